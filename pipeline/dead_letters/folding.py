"""Folds an error text to what its kind has in common: failures that differ in numbers, ids, quoted text or paths fold to one.

    "Timeout after 30s calling https://api/v1/runs/8f2c: 'acme'"   ->   "Timeout after <n> calling <url> <text>"

Pure. Every pattern looks at one word, or is bounded, so that a hostile message can't make it slow.
"""

from __future__ import annotations

import re
from functools import lru_cache

TEXT_CHARACTERS_MAX = 1_024
FOLDED_CHARACTERS_MAX = 300
_WORD_CHARACTERS_MAX = 200

_QUOTED = re.compile(r"(?<!\w)'[^'\n]{0,500}'(?!\w)|\"[^\"\n]{0,500}\"|`[^`\n]{0,500}`|\u201c[^\u201d\n]{0,500}\u201d")
_PATTERNS = {
    "url": r"[a-z][a-z\d+.-]{1,15}://[^<>,;)\]}]+",
    "uuid": r"[\da-fA-F]{8}-(?:[\da-fA-F]{4}-){3}[\da-fA-F]{12}",
    "mail": r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+",
    "time": r"\d{4}-\d{2}-\d{2}(?:T[\d:.,]+(?:Z|[+-]\d{2}:?\d{2})?)?|(?<!\d)\d{2}:\d{2}:\d{2}(?:[.,]\d{1,9})?Z?",
    "path": r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][\w.@%+~-]+){2,}[/\\]?",
    "hex": r"(?<!\w)(?:\dx[\da-fA-F]+|(?=[a-fA-F]*\d)(?=\d*[a-fA-F])[\da-fA-F]{6,})(?!\w)",
    "n": r"(?<![A-Za-z\d_])[-+]?\d[\d_,.:]*(?:e[-+]?\d+)?(?:ms|us|ns|s|m|h|d|%|[kKMGT]i?B|B)?(?![A-Za-z\d])",
    "id": r"(?<![\w-])[A-Za-z0][\w-]*+",
}
_ALL = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()))
_REPEATED = re.compile(r"(<[a-z]+>)(?:[\s,;:|/.-]*\1)+")
_ID_CHARACTERS = 12
"""From so many on, letters and digits in one are an id also without a dash in it."""
_ZEROS = re.compile(r"0+")
_SAME_DIGIT = {ord(digit): "0" for digit in "123456789"}


def fold(text: str) -> str:
    """The folded text: one line, at most `FOLDED_CHARACTERS_MAX` characters."""
    return _fold(text[:TEXT_CHARACTERS_MAX].translate(_SAME_DIGIT))


@lru_cache(maxsize=10_000)
def _fold(text: str) -> str:
    """`text` has one digit only: no pattern tells digits apart, so texts that differ in digits alone are folded once."""
    if "'" in text or '"' in text or "`" in text or "\u201c" in text:
        text = _QUOTED.sub("<text>", text)
    found = " ".join(
        [word if word.isalpha() or (word[:-1].isalpha() and word[-1] != "0") else _word(word) for word in text.split()]
    )
    if ">" in found:
        found = _REPEATED.sub(r"\1", found)
    return found if len(found) <= FOLDED_CHARACTERS_MAX else found[: FOLDED_CHARACTERS_MAX - 1] + "…"


def _word(word: str) -> str:
    if len(word) > _WORD_CHARACTERS_MAX:
        return "<text>"
    return _ZEROS.sub("#", _ALL.sub(_mark, word))


def _mark(match: re.Match[str]) -> str:
    found = match[0]
    if match.lastgroup == "id" and (
        "0" not in found or not (len(found) >= _ID_CHARACTERS or "-" in found or "_" in found)
    ):
        return found
    return f"<{match.lastgroup}>"
