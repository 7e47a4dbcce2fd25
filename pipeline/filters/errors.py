"""What is wrong with a filter, and where: one sentence, the line it is in, and a caret under the column."""

from __future__ import annotations

import unicodedata

from pipeline.model.errors import ConfigurationError

_BEFORE, _AFTER = 60, 40
_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


class FilterError(ConfigurationError):
    """A filter that can't be compiled. Its text is `sentence`, then `excerpt` (two lines) where there is something to point at.

    `line` and `column` count from 1, in characters of the filter's text.
    """

    def __init__(self, sentence: str, text: str, at: int) -> None:
        before = text[:at]
        self.sentence = _printable(sentence)
        self.line = before.count("\n") + 1
        self.column = at - (before.rfind("\n") + 1) + 1
        self.excerpt = _excerpt(text, at)
        super().__init__(f"{self.sentence}\n{self.excerpt}" if self.excerpt else self.sentence)


def _excerpt(text: str, at: int) -> str:
    """The line around `at`, cut to a window, with nothing in it that could steer a terminal; and the caret's line."""
    if not text.strip():
        return ""
    first = max((text.rfind(c, 0, at) for c in _BREAKS), default=-1) + 1
    start = max(first, at - _BEFORE)
    end = at
    while end < len(text) and end < at + _AFTER and text[end] not in _BREAKS:
        end += 1
    left, right = map(_printable, (text[start:at], text[at:end]))
    lead = "..." if start > first else ""
    tail = "..." if end < len(text) and text[end] not in _BREAKS else ""
    return f"  {lead}{left}{right}{tail}\n  {' ' * (len(lead) + _width(left))}^"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _width(text: str) -> int:
    """Columns that a terminal gives it."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )
