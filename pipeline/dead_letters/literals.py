"""JSON whose numbers are written again as they were read: a float has no room for all the digits, nor for 1e999.

NaN, Infinity and -Infinity, which JSON does not have and Python's does, are read and shown; `dumps` refuses to write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

NO_NUMBERS: Final = ("NaN", "Infinity", "-Infinity")


class Literal(float):
    """A number with a fraction, an exponent or no end. `text`: as it was written."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Literal:
        made = super().__new__(cls, text)
        made.text = text
        return made


def loads(text: str) -> Any:
    """As `json.loads` has it, but for such numbers. Raises `ValueError`, and `RecursionError` for what is nested too deep."""
    return json.loads(text, parse_float=Literal, parse_constant=Literal)


def indented(value: Any) -> str:
    """For people. What no JSON has is shown as Python has it."""
    return "".join(_pieces(value, "\n"))


def dumps(value: Any) -> str:
    """On one line, without blanks. Raises `ValueError` for a number that JSON does not have."""
    return "".join(_pieces(value, ""))


def _pieces(value: Any, start: str) -> Iterator[str]:
    """`start`: what a line begins with, "" where there are no lines."""
    inner = start and start + "  "
    if isinstance(value, dict) and value:
        before = "{"
        for key, each in value.items():
            yield f"{before}{inner}{json.dumps(str(key), ensure_ascii=False)}:{' ' if start else ''}"
            yield from _pieces(each, inner)
            before = ","
        yield f"{start}}}"
    elif isinstance(value, (list, tuple)) and value:
        before = "["
        for each in value:
            yield f"{before}{inner}"
            yield from _pieces(each, inner)
            before = ","
        yield f"{start}]"
    else:
        text = value.text if isinstance(value, Literal) else json.dumps(value, ensure_ascii=False, default=str)
        if text in NO_NUMBERS and not start:
            raise ValueError(f"JSON has no number {text}: write another, null or a text")
        yield text
