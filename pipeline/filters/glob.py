"""`like`: the whole text against a pattern of `*` (any characters) and `?` (one), in time proportional to the text."""

from __future__ import annotations

import re
from collections.abc import Callable

PATTERN_MAX = 1_000
"""Characters of a pattern."""


def _pieces(pattern: str) -> list[list[str | None]]:
    """The pattern cut at its stars; None in a piece stands for any one character. `\\*`, `\\?` and `\\\\` are themselves."""
    pieces: list[list[str | None]] = [[]]
    characters = iter(pattern)
    for char in characters:
        if char == "*":
            pieces.append([])
        elif char == "?":
            pieces[-1].append(None)
        else:
            pieces[-1].append(next(characters, char) if char == "\\" else char)
    return pieces


def glob(pattern: str) -> Callable[[str], bool]:
    """Each piece is looked for once, after the one before it, so nothing is ever tried again."""
    pieces = [
        re.compile("".join("." if char is None else re.escape(char) for char in piece), re.DOTALL)
        for piece in _pieces(pattern)
    ]
    widths = [len(piece) for piece in _pieces(pattern)]
    if len(pieces) == 1:
        whole = pieces[0].fullmatch
        return lambda text: whole(text) is not None
    first, last, last_width = pieces[0].match, pieces[-1].fullmatch, widths[-1]
    inner = [piece.search for piece, width in zip(pieces[1:-1], widths[1:-1], strict=True) if width]
    at_least = sum(widths)

    def matches(text: str) -> bool:
        if len(text) < at_least or (found := first(text)) is None:
            return False
        end = len(text) - last_width
        here = found.end()
        for search in inner:
            if (found := search(text, here, end)) is None:
                return False
            here = found.end()
        return last(text, end) is not None

    return matches
