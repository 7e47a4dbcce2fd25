"""The fields of the language: name, kind, how each is read from a row, and what that costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from operator import attrgetter
from typing import Any

from pipeline.filters.row import Row
from pipeline.model.events import NAMESPACE
from pipeline.model.headers import EVENT_ID, REPLAY_COUNT, REPLAY_ID

Get = Callable[[Row], Any]
PATH_PARTS_MAX = 32
_DIGITS_MAX = 19
_NUMBER = re.compile(rb"\s*-?[0-9]{1,19}(\.[0-9]{1,19})?\s*")
_OURS = NAMESPACE.encode() + b"."


class Kind(Enum):
    """What a field's values are; the text is what error messages call it. Times and durations are int milliseconds."""

    TEXT = "text"
    NUMBER = "a number"
    TIME = "a time"
    DURATION = "a duration"
    HEADER = "a header's text"
    ANY = "a part of the value"


@dataclass(frozen=True, slots=True)
class Field:
    """`get` gives None where the record has no such thing. `headers`, `value`: reading it may look at them.

    `path` are the names below `value`, or the header's name.
    """

    name: str
    kind: Kind
    get: Get
    headers: bool = False
    value: bool = False
    path: tuple[str, ...] = ()


def _header_number(name: str) -> Get:
    def get(row: Row) -> int | None:
        raw = row.headers.get(name)
        return int(raw) if raw is not None and raw.isdigit() and len(raw) <= _DIGITS_MAX else None

    return get


def header_text(name: str) -> Get:
    """A header as text, bad bytes as U+FFFD."""

    def get(row: Row) -> str | None:
        raw = row.headers.get(name)
        return None if raw is None else raw.decode("utf-8", "replace")

    return get


def header_as_number(name: str) -> Get:
    """A header whose text is a decimal number; None for any other."""

    def get(row: Row) -> int | float | None:
        raw = row.headers.get(name)
        if raw is None or not (found := _NUMBER.fullmatch(raw)):
            return None
        return float(raw) if found[1] else int(raw)

    return get


def _event_id(row: Row) -> str | None:
    raw = row.headers.get(EVENT_ID) or row.headers.get("ce_id")
    return raw.decode("utf-8", "replace") if raw else None


def _replay_count(row: Row) -> int:
    raw = row.headers.get(REPLAY_COUNT)
    return int(raw) if raw and raw.isdigit() and len(raw) <= _DIGITS_MAX else 0


def _type(row: Row) -> str | None:
    raw = row.headers.get("ce_type")
    return raw.decode("utf-8", "replace") if raw else row.type


def short_type(row: Row) -> str | None:
    """The last part of the record's name: `ToolCall` of `agent.run.ToolCall`."""
    name = _type(row)
    return None if name is None else name.rpartition(".")[2]


def _of_event(name: str, header: str) -> Get:
    """A field of the event, from the CloudEvents header where the record has one of our types."""

    def get(row: Row) -> str | None:
        headers = row.headers
        raw = headers.get(header)
        if raw and (headers.get("ce_type") or b"").startswith(_OURS):
            return raw.decode("utf-8", "replace")
        value = row.value
        found = value.get(name) if isinstance(value, dict) else None
        return found if isinstance(found, str) else None

    return get


def path_of(parts: tuple[str, ...]) -> Get:
    """Follows names through records and maps, and numbers into lists."""

    def step(value: Any, part: str) -> Any:
        if type(value) is dict:
            return value.get(part)
        if isinstance(value, (list, tuple)) and part.isascii() and part.isdigit() and len(part) <= _DIGITS_MAX:
            index = int(part)
            return value[index] if index < len(value) else None
        return value.get(part) if isinstance(value, dict) else None

    if len(parts) == 1:
        (only,) = parts

        def get_one(row: Row) -> Any:
            value = row.value
            return value.get(only) if type(value) is dict else step(value, only)

        return get_one

    def get(row: Row) -> Any:
        value = row.value
        for part in parts:
            value = step(value, part)
            if value is None:
                return None
        return value

    return get


def _own(name: str, kind: Kind, attribute: str = "") -> Field:
    return Field(name, kind, attrgetter(attribute or name))


def _of_headers(name: str, kind: Kind, header: str) -> Field:
    get = header_text(header) if kind is Kind.TEXT else _header_number(header)
    return Field(name, kind, get, headers=True)


_ALL = (
    _own("topic", Kind.TEXT),
    _own("partition", Kind.NUMBER),
    _own("offset", Kind.NUMBER),
    _own("timestamp", Kind.TIME, "timestamp_ms"),
    _own("age", Kind.DURATION, "timestamp_ms"),  # the compiler knows the time to count from
    _own("size", Kind.NUMBER, "size_bytes"),
    _own("key", Kind.TEXT),
    Field("type", Kind.TEXT, _type, headers=True, value=True),
    Field("tenant", Kind.TEXT, _of_event("tenant", "ce_tenant"), headers=True, value=True),
    Field("agent", Kind.TEXT, _of_event("agent", "ce_agent"), headers=True, value=True),
    Field("run_id", Kind.TEXT, _of_event("run_id", "ce_subject"), headers=True, value=True),
    Field("event_id", Kind.TEXT, _event_id, headers=True),
    _of_headers("attempt", Kind.NUMBER, "pl.attempt"),
    _of_headers("hop", Kind.NUMBER, "pl.hop"),
    _of_headers("group", Kind.TEXT, "pl.group"),
    _of_headers("origin.topic", Kind.TEXT, "pl.origin.topic"),
    _of_headers("origin.partition", Kind.NUMBER, "pl.origin.partition"),
    _of_headers("origin.offset", Kind.NUMBER, "pl.origin.offset"),
    _of_headers("origin.timestamp", Kind.TIME, "pl.origin.timestamp"),
    _of_headers("replay.id", Kind.TEXT, REPLAY_ID),
    Field("replay.count", Kind.NUMBER, _replay_count, headers=True),
    _of_headers("error.class", Kind.TEXT, "pl.error.class"),
    _of_headers("error.type", Kind.TEXT, "pl.error.type"),
    _of_headers("error.message", Kind.TEXT, "pl.error.message"),
    _of_headers("first_failed", Kind.TIME, "pl.first_failed"),
)
FIELDS = {field.name: field for field in _ALL}
"""Those with a fixed name, in the order of the guide; `header.<name>` and `value.<path>` come on top."""


def find_field(parts: tuple[str, ...]) -> Field | str:
    """The field, or one sentence that says what is wrong with the name."""
    name, first, rest = ".".join(parts), parts[0], parts[1:]
    if name in FIELDS:
        return FIELDS[name]
    if first == "header" and rest:
        header = ".".join(rest)
        return Field(name, Kind.HEADER, header_text(header), headers=True, path=(header,))
    if first == "value" and len(rest) <= PATH_PARTS_MAX:
        return Field(name, Kind.ANY, path_of(rest) if rest else attrgetter("value"), value=True, path=rest)
    if first == "value":
        return f"the path has {len(rest)} parts: at most {PATH_PARTS_MAX} are followed"
    shown = f"the field {name[:60]!r} is not known"
    if first == "header":
        return f"{shown}: write header and the header's name, such as header.traceparent"
    known = [*FIELDS, "header", "value"]
    near = get_close_matches(name[:60], known, 1) or (get_close_matches(first[:60], known, 1) if rest else [])
    if near:
        meant = near[0] if near[0] not in ("header", "value") or not rest else ".".join((near[0], *rest))[:60]
        return f"{shown}: did you mean {meant}?"
    return f"{shown}: a part of the record's value is written value.{name[:60]}, a header header.{name[:60]}"
