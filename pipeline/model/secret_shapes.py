"""Secrets by their shape: keys, tokens, passwords and private keys in any text, masked.

Linear in the text, and quick where there are none. A secret has no greatest length: what is a run of characters is taken whole
and never given back (`++`), and what has to follow one is looked at once, so that no part of a text is gone through for each start in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MASK: Final = "[secret]"
_PATH_NAME: Final = 100
_Put = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True, slots=True)
class _Shape:
    """`hints`: one of these stands in every text that can match, which is far quicker to look for."""

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    put: _Put = MASK


def _shape(hints: str, pattern: str, flags: int = 0, put: _Put = MASK) -> _Shape:
    return _Shape(tuple(hint.replace("~", " ") for hint in hints.split()), re.compile(pattern, flags), put)


_NAMES = (
    r"(?:[\w-]{0,40}[_-])?(?:password|passwd|secret|api[_-]?key|apikey|access[_-]?key|secret[_-]?key|private[_-]?key"
    r"|access[_-]?token|refresh[_-]?token|auth[_-]?token|authorization)"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_NAME_HINTS = "assw ASSW ecret ECRET key KEY Key oken OKEN uthoriz UTHORIZ"
_KEPT = rf"\1{MASK}"


def _if_ended(found: re.Match[str]) -> str:
    """Masked unless a bracket follows, as in `token=make()`; passed over whole then, since what else begins in it ends there, too."""
    return found[0] if found["follows"] is not None else f"{found[1]}{MASK}"


def _in_text(marks: int) -> _Shape:
    """A value by its name in JSON that stands in a text itself, so that each of its quotes has `marks` backslashes before it.

    Of a secret's own quote or backslash there `step` backslashes are its escape, and then comes what it escapes.
    """
    step = 2 if marks == 1 else 4
    end = rf'\\{{{marks}}}"'
    quote, backslash = rf"\\{{{step}}}{end}", rf"\\{{{2 * step}}}"
    own = rf'\\++(?!["\\])|(?:{backslash})*+{quote}|(?:{backslash})++(?={end})'  # before no quote; before its own; before the end
    name = rf'(\\{{{marks}}}"{_NAMES}{end}\s{{0,8}}:\s{{0,8}}{end})(?!\\{{0,{marks}}}")'
    return _shape("\\" * marks + '"', rf'{name}[^"\\]*+(?:(?:{own})[^"\\]*+)*+', re.IGNORECASE, _KEPT)


_SHAPES: tuple[tuple[str, tuple[_Shape, ...]], ...] = (
    (
        "",
        (
            _shape("AKIA ASIA", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
            _shape("AIza", r"\bAIza[\w-]{35}"),
            _shape(".eyJ", r"(?<![\w-])eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]*+"),
            _shape(
                "earer~ EARER~",
                r"\b(bearer\s{1,8})(?=[^\s0-9]*+[0-9])[A-Za-z0-9._~+/-]{16,}+=*+",
                re.IGNORECASE,
                _KEPT,
            ),
        ),
    ),
    (
        "-",
        (
            _shape(
                "PRIVATE~KEY-----",
                r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY-----(?:"
                r'[^"]{0,16384}?(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY-----|(?=\\{0,3}")|(?=-----BEGIN )|\Z)'
                # One without an end in a long text: as far as it looks like a key.
                r"|[\w+/=\s\\:,]*+(?:-(?!-)[\w+/=\s\\:,]*+)*+(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY-----)?)",
            ),
            _shape("sk-", r"(?<![\w-])sk-(?=[A-Za-z_-]*+[0-9])[A-Za-z0-9_-]{20,}+"),
            _shape("glpat-", r"(?<![\w-])glpat-[\w-]{20,}+"),
            _shape("xox", r"(?<![\w-])xox[abeoprs]-[A-Za-z0-9-]{10,}+"),
        ),
    ),
    (
        "_",
        (
            _shape("k_live_ k_test_", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}+"),
            _shape("gh github_pat_", r"\b(?:gh[opusr]_[A-Za-z0-9]{30,}+|github_pat_\w{22,}+)"),
            _shape("hf_", r"\bhf_[A-Za-z0-9]{30,}+\b"),
            _shape("npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ),
    ),
    (
        ":",
        (
            _shape(
                "asic~ ASIC~",
                r"(authorization\\?[\"']?\s{0,8}[:=]\s{0,8}\\?[\"']?basic\s{1,8})[A-Za-z0-9+/]{8,}+=*+",
                re.IGNORECASE,
                _KEPT,
            ),
            _shape("://", r"((?<=[A-Za-z0-9+.-]{2})://[^\s:@/\"']*+:)[^\s@/\"']++(?=@)", 0, _KEPT),
        ),
    ),
    (
        '"',
        (
            # As JSON has it: "password": "..."
            _shape(
                _NAME_HINTS,
                rf'("{_NAMES}"\s{{0,8}}:\s{{0,8}}")(?!")[^"\\]*+(?:\\.[^"\\]*+)*+',
                re.IGNORECASE | re.DOTALL,
                _KEPT,
            ),
            # The same as a string of JSON has it: \"password\": \"...\"
            _in_text(1),
            _in_text(2),
            _in_text(3),
        ),
    ),
    (
        "=",
        (
            # As query strings, shells and .env files have it: password=...
            _shape(
                _NAME_HINTS,
                rf"(?<![\w-])({_NAMES}=[\"']?)[^\s&\"'\\,;()\[\]{{}}<>]{{4,}}+(?P<follows>(?=[()\[\]{{}}<>]))?",
                re.IGNORECASE,
                _if_ended,
            ),
        ),
    ),
)
"""By a character that each of the shapes has: most texts lack most of them."""


def _may_hold(text: str) -> bool:
    """Does one of the shapes' hints stand in it? The same question as the loop below, written out: it is asked of every event."""
    return (
        "AKIA" in text or "ASIA" in text or "AIza" in text or ".eyJ" in text or "earer " in text or "EARER " in text
        or ("-" in text and ("sk-" in text or "glpat-" in text or "xox" in text or "PRIVATE KEY-----" in text))
        or ("_" in text and ("gh" in text or "hf_" in text or "npm_" in text or "k_live_" in text or "k_test_" in text
                             or "github_pat_" in text))
        or (":" in text and ("://" in text or "asic " in text or "ASIC " in text))
        or (('"' in text or "=" in text) and (_may_name(text) or '\\"' in text))
    )  # fmt: skip


def _may_name(text: str) -> bool:
    """Does one of `_NAME_HINTS` stand in it?"""
    return (
        "assw" in text or "ASSW" in text or "ecret" in text or "ECRET" in text or "key" in text or "KEY" in text
        or "Key" in text or "oken" in text or "OKEN" in text or "uthoriz" in text or "UTHORIZ" in text
    )  # fmt: skip


def mask_secrets(text: str) -> str:
    """The text with what looks like a key, token, password or private key masked; most texts come back as they are."""
    if not _may_hold(text):
        return text
    for needed, shapes in _SHAPES:
        if needed in text:
            for shape in shapes:
                for hint in shape.hints:
                    if hint in text:
                        text = shape.pattern.sub(shape.put, text)
                        break
    return text


def secret_field(value: object) -> str | None:
    """Where in a value as JSON has it the first secret is, as a path such as `items[2].token`; None where there is none.

    Only names of fields are in it, never a part of a value, and no name that looks like a secret itself.
    """
    if isinstance(value, str):
        return "" if mask_secrets(value) != value else None
    if isinstance(value, dict):
        for name, inner in value.items():
            if mask_secrets(name) != name:
                return MASK
            found = "" if isinstance(inner, str) and inner and names_secret(name) else secret_field(inner)
            if found is not None:
                return f"{name[:_PATH_NAME]}{'' if found[:1] in ('', '[') else '.'}{found}"
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            found = secret_field(inner)
            if found is not None:
                return f"[{at}]{'' if found[:1] in ('', '[') else '.'}{found}"
    return None


def names_secret(name: str) -> bool:
    """Whether a key of a map, such as `api_key`, says that its value is a secret."""
    return _SECRET_NAME.fullmatch(name) is not None
