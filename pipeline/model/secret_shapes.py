"""Secrets by their shape: keys, tokens, passwords and private keys in any text, masked.

Linear in the text, and quick where there are none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MASK: Final = "[secret]"
_PATH_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class _Shape:
    """`hints`: one of these stands in every text that can match, which is far quicker to look for."""

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    put: str = MASK


def _shape(hints: str, pattern: str, flags: int = 0, put: str = MASK) -> _Shape:
    return _Shape(tuple(hint.replace("~", " ") for hint in hints.split()), re.compile(pattern, flags), put)


_NAMES = (
    r"(?:[\w-]{0,40}[_-])?(?:password|passwd|secret|api[_-]?key|apikey|access[_-]?key|secret[_-]?key|private[_-]?key"
    r"|access[_-]?token|refresh[_-]?token|auth[_-]?token|authorization)"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_NAME_HINTS = "assw ASSW ecret ECRET key KEY Key oken OKEN uthoriz UTHORIZ"
_KEPT = rf"\1{MASK}"
_SHAPES: tuple[tuple[str, tuple[_Shape, ...]], ...] = (
    (
        "",
        (
            _shape("AKIA ASIA", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
            _shape("AIza", r"\bAIza[\w-]{35}"),
            _shape(".eyJ", r"(?<![\w-])eyJ[\w-]{8,4096}\.eyJ[\w-]{8,16384}\.[\w-]{0,4096}"),
            _shape(
                "earer~ EARER~",
                r"\b(bearer\s{1,8})(?=[^\s0-9]{0,256}[0-9])[A-Za-z0-9._~+/-]{16,4096}=*",
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
                r'-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY-----[^"]{0,16384}?'
                r'(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY-----|(?=\\{0,3}")|(?=-----BEGIN )|\Z)',
            ),
            _shape("sk-", r"(?<![\w-])sk-(?=[A-Za-z_-]{0,256}[0-9])[A-Za-z0-9_-]{20,256}"),
            _shape("glpat-", r"(?<![\w-])glpat-[\w-]{20,256}"),
            _shape("xox", r"(?<![\w-])xox[abeoprs]-[A-Za-z0-9-]{10,256}"),
        ),
    ),
    (
        "_",
        (
            _shape("k_live_ k_test_", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,256}"),
            _shape("gh github_pat_", r"\b(?:gh[opusr]_[A-Za-z0-9]{30,256}|github_pat_\w{22,256})"),
            _shape("hf_", r"\bhf_[A-Za-z0-9]{30,256}\b"),
            _shape("npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ),
    ),
    (
        ":",
        (
            _shape(
                "asic~ ASIC~",
                r"(authorization\\?[\"']?\s{0,8}[:=]\s{0,8}\\?[\"']?basic\s{1,8})[A-Za-z0-9+/]{8,4096}=*",
                re.IGNORECASE,
                _KEPT,
            ),
            _shape("://", r"([A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:@/\"']{0,128}:)[^\s@/\"']{1,256}(?=@)", 0, _KEPT),
        ),
    ),
    (
        '"',
        (
            # As JSON has it: "password": "..."
            _shape(_NAME_HINTS, rf'("{_NAMES}"\s{{0,8}}:\s{{0,8}}")(?:[^"\\]|\\.){{1,4096}}', re.IGNORECASE, _KEPT),
            # The same as a string of JSON has it: \"password\": \"...\"
            _shape(
                '\\"',
                rf'(\\{{1,3}}"{_NAMES}\\{{1,3}}"\s{{0,8}}:\s{{0,8}}\\{{1,3}}")[^"\\]{{1,4096}}',
                re.IGNORECASE,
                _KEPT,
            ),
        ),
    ),
    (
        "=",
        (
            # As query strings, shells and .env files have it: password=...
            _shape(
                _NAME_HINTS,
                rf"(?<![\w-])({_NAMES}=[\"']?)[^\s&\"'\\,;()\[\]{{}}<>]{{4,512}}(?=[\s&\"'\\,;]|$)",
                re.IGNORECASE,
                _KEPT,
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
