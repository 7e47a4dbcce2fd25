"""A filter's text as tokens, each with its place. Names come as paths: `value.labels."odd name"` has three parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.filters.errors import FilterError
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError

TEXT_MAX = 65_536
"""Characters of a filter."""

_NUMBER_MAX = 32
_OPERATORS = ("==", "!=", "<=", ">=", "<", ">", "(", ")", ",")
_NAME = re.compile(r"[^\W\d][\w-]*")
_PART = re.compile(r"[\w-]+")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_UNIT = re.compile(r"\w+")
_PLAIN = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}
_ESCAPES = {"\\": "\\", '"': '"', "'": "'", "/": "/", "n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_MEANT = {"=": "==", "&&": "and", "||": "or", "!": "not", "<>": "!=", "=~": "like", "~": "like", "===": "=="}


class Token(NamedTuple):
    """`kind`: "name" (value: its parts), "text", "number", "duration" (milliseconds), "op" or "end". `at` is its first character."""

    kind: str
    value: object
    at: int


def tokens(text: str) -> Iterator[Token]:
    """Raises `FilterError` at the first character that can't be read."""
    if len(text) > TEXT_MAX:
        raise FilterError(f"the filter has {len(text):,} characters: at most {TEXT_MAX:,} are read", "", 0)
    at, size = 0, len(text)
    while at < size:
        char = text[at]
        if char.isspace():
            at += 1
            continue
        if char in _PLAIN:
            value, end = _quoted(text, at)
            yield Token("text", value, at)
        elif found := _NUMBER.match(text, at):
            end = found.end()
            if unit := _UNIT.match(text, end):
                end = unit.end()
            yield _number(text, at, found[0], unit[0] if unit else "")
        elif found := _NAME.match(text, at):
            parts, end = _path(text, found)
            yield Token("name", parts, at)
        else:
            operator = _operator(text, at)
            end = at + len(operator)
            yield Token("op", operator, at)
        at = end
    yield Token("end", "", size)


def _operator(text: str, at: int) -> str:
    for length in (3, 2, 1):
        written = text[at : at + length]
        if written in _MEANT:
            raise FilterError(f"{written} is not an operator: write {_MEANT[written]}", text, at)
        if written in _OPERATORS:
            return written
    raise FilterError(f"the character {text[at]!a} means nothing here: put text in quotes", text, at)


def _quoted(text: str, at: int) -> tuple[str, int]:
    """What is between the quotes, and where it goes on."""
    quote, parts, here = text[at], list[str](), at + 1
    plain = _PLAIN[quote]
    while found := plain.match(text, here):
        parts.append(found[0])
        here = found.end()
        if text[here : here + 1] == quote:
            return _joined("".join(parts)), here + 1
        if found := _UNICODE.match(text, here):
            parts.append(chr(int(found[1], 16)))
            here = found.end()
            continue
        escaped = text[here + 1 : here + 2]
        if not escaped:
            break
        if escaped not in _ESCAPES:
            raise FilterError(f"\\{escaped} is not an escape: write \\\\ for a backslash", text, here)
        parts.append(_ESCAPES[escaped])
        here += 2
    raise FilterError(f"the text is not closed: a {quote} is missing at its end", text, at)


def _joined(text: str) -> str:
    """Halves of a character that came as two escapes, as in JSON, are put together."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def quoted(text: str) -> str:
    """Any text as a literal of the language: to put a filter together. A JSON string is one too."""
    return json.dumps(text, ensure_ascii=False)


def _number(text: str, at: int, digits: str, unit: str) -> Token:
    if len(digits) > _NUMBER_MAX:
        raise FilterError(f"the number has {len(digits)} characters: at most {_NUMBER_MAX} are read", text, at)
    if not unit:
        return Token("number", float(digits) if "." in digits else int(digits), at)
    try:
        return Token("duration", parse_duration_ms(digits + unit), at)
    except ConfigurationError:
        hint = "a duration is a number with ms, s, m, h or d, such as 10m, and at most 100,000 days"
        raise FilterError(f"{digits}{unit:.20} can't be read: {hint}; text is put in quotes", text, at) from None


def _path(text: str, first: re.Match[str]) -> tuple[tuple[str, ...], int]:
    parts, here = [first[0]], first.end()
    while text[here : here + 1] == ".":
        here += 1
        if text[here : here + 1] in _PLAIN:
            part, here = _quoted(text, here)
        elif found := _PART.match(text, here):
            part, here = found[0], found.end()
        else:
            raise FilterError("a name is missing after the dot: odd names are put in quotes", text, here)
        parts.append(part)
    return tuple(parts), here
