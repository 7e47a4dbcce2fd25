"""Does a literal fit its field and operator? Times and durations become milliseconds here."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from pipeline.filters.fields import Field, Kind
from pipeline.filters.tree import Value
from pipeline.model.instants import epoch_ms_of

_ORDER = frozenset({"<", "<=", ">", ">="})
_OF_TEXT = frozenset({"contains", "startswith", "endswith", "like"})
_EXAMPLE_TIME = '"2026-01-31T12:00:00Z"'
_ALLOWED = {
    Kind.TEXT: ("text",),
    Kind.NUMBER: ("number",),
    Kind.TIME: ("text", "number"),
    Kind.DURATION: ("duration",),
    Kind.HEADER: ("text", "number"),
    Kind.ANY: ("text", "number", "bool", "duration"),
}


class Literal(NamedTuple):
    """`kind`: "text", "number", "bool" or "duration"."""

    kind: str
    value: Value


class Wrong(NamedTuple):
    """Why it does not fit; `operator`: the operator is to blame, not the literal."""

    sentence: str
    operator: bool = False


def fit(field: Field, op: str, literal: Literal) -> Value | Wrong:
    """The literal as it is compared with the field's values, or what is wrong."""
    if op in _OF_TEXT and field.kind not in (Kind.TEXT, Kind.HEADER, Kind.ANY):
        return Wrong(f"{op} is for text, and {field.name} is {field.kind.value}", operator=True)
    if op in _ORDER and literal.kind == "bool":
        return Wrong(f"true and false have no order: write {field.name} == true", operator=True)
    of_text = op in _OF_TEXT and not (op == "contains" and field.kind is Kind.ANY)  # a list may contain a number
    if of_text and literal.kind != "text":
        return Wrong(f"{op} needs text in quotes")
    if literal.kind not in _ALLOWED[field.kind]:
        return Wrong(_misfit(field, op, literal))
    if field.kind is Kind.TIME and literal.kind == "text":
        return _time(field, str(literal.value))
    return literal.value


def _misfit(field: Field, op: str, literal: Literal) -> str:
    start = f"{field.name} is {field.kind.value}"
    if field.kind is Kind.NUMBER and literal.kind == "text":
        return f"{start}, not text: write it without quotes, such as {'3' if op == 'in' else f'{field.name} {op} 3'}"
    if field.kind in (Kind.TEXT, Kind.HEADER):
        return f"{start}: put it in quotes"
    if field.kind is Kind.TIME:
        ago = "; how long ago is written with age, such as age > 2h" if field.name == "timestamp" else ""
        return f"{start}: write it such as {_EXAMPLE_TIME}{ago}"
    if field.kind is Kind.DURATION:
        return f"{start}: write a number with ms, s, m, h or d, such as {field.name} > 2h"
    return f"{start}: write one such as 3"


def _time(field: Field, text: str) -> Value | Wrong:
    """Milliseconds since the epoch; without a zone it is UTC, as everywhere on the command line."""
    try:
        return epoch_ms_of(datetime.fromisoformat(text.strip()))
    except ValueError:
        return Wrong(f"{field.name} is a time and {text[:40]!r} is not one: write it such as {_EXAMPLE_TIME}")
