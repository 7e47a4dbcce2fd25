"""Editing a dead letter: its value as JSON, checked against its schema, appended as a new dead letter. Both versions stay.

JSON has no bytes and no named union branches: in an Avro value they stand as {"$bytes": "hex"} and {"$record": "name", "value": {...}}.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

from pipeline.codec import wire
from pipeline.codec.misfit import misfit
from pipeline.codec.writer import WRITE_ERRORS, compile_writer
from pipeline.dead_letters.acting import Actor, Done, begin, only, record
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.states import id_of, position_of
from pipeline.dead_letters.values import Shown, undecoded
from pipeline.inspect.appending import Entry, append
from pipeline.model.cluster import Headers, Message
from pipeline.model.errors import ConfigurationError, EncodeError
from pipeline.model.headers import EDITED_FROM

_BYTES, _RECORD = "$bytes", "$record"


@dataclass(frozen=True, slots=True)
class Editable:
    """A dead letter as text to edit, and what is needed to write it again."""

    number: int
    text: str
    shown: Shown
    message: Message


@dataclass(frozen=True, slots=True)
class Edited:
    """A checked new version. `difference`: unified, line by line; empty: nothing was changed."""

    value: bytes
    headers: Headers
    difference: tuple[str, ...]


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return {_RECORD: value[0], "value": _to_json(value[1])}
    if isinstance(value, dict):
        return {key: _to_json(each) for key, each in value.items()}
    return [_to_json(each) for each in value] if isinstance(value, (list, tuple)) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_BYTES}:
        if not isinstance(value[_BYTES], str):
            raise ValueError(f"{_BYTES} takes a text of hex digits")
        return bytes.fromhex(value[_BYTES])
    if value.keys() == {_RECORD, "value"}:
        if not isinstance(value[_RECORD], str):
            raise ValueError(f"{_RECORD} takes the name of a record")
        return (value[_RECORD], _from_json(value["value"]))
    return {key: _from_json(each) for key, each in value.items()}


def text_of(value: object, avro: bool = True) -> str:
    """A value as people edit it. `avro` False: it was JSON or text, and nothing in it is a mark of ours."""
    return json.dumps(_to_json(value) if avro else value, indent=2, ensure_ascii=False, default=str) + "\n"


def open_for_edit(desk: Desk, number: int) -> Editable:
    """Fetch and decode it. Raises `ConfigurationError` when it is not there or not open, `UndecodableError` when it has no JSON form."""
    place = "{}:{}".format(*position_of(number))
    chosen, left = only(desk, [number], ("open", "cancelled"))
    if not chosen:
        raise ConfigurationError(f"dead letter {place} can't be edited: it is {next(iter(left))}")
    message = next(iter(desk.fetch([number])), None)
    if message is None:
        raise ConfigurationError(f"dead letter {place} is not in {desk.topics.dead_letters} any more")
    shown = desk.values.show(message)
    if shown.problem or shown.type in ("bytes", "null"):
        raise undecoded(shown)
    if shown.schema is not None and (own := desk.values.as_written(message)) is not None:
        shown = Shown(shown.type, own[0], "", own[1])
    return Editable(number, text_of(shown.value, shown.schema is not None), shown, message)


def check_edit(editable: Editable, text: str) -> Edited:
    """The new version, encoded. Raises `EncodeError` naming the line or the field that is wrong."""
    avro = editable.shown.schema is not None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"the edited text is not JSON: {error}") from None
    try:
        value = _from_json(value) if avro else value
        data, headers = _encoded(editable, value)
    except UnicodeEncodeError as error:
        raise EncodeError(
            f"the edited text has a character that is no text, {error.object[error.start]!r}: take it out"
        ) from None
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"the edited text does not fit: {error}") from None
    headers.append((EDITED_FROM, b"%d/%d" % position_of(editable.number)))
    return Edited(data, headers, difference(editable.text, text_of(value, avro)))


def _encoded(editable: Editable, value: Any) -> tuple[bytes, Headers]:
    headers = [pair for pair in editable.message.headers() or () if pair[0] != EDITED_FROM]
    if editable.shown.schema is not None:
        return _avro(editable, value, headers), headers
    if editable.shown.type == "text":
        if not isinstance(value, str):
            raise EncodeError("the value is plain text: its edited form must be a JSON string")
        return value.encode(), headers
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), headers


def difference(before: str, after: str) -> tuple[str, ...]:
    """A unified difference of two texts."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=2)
    return tuple(lines)


def _avro(editable: Editable, value: Any, headers: Headers) -> bytes:
    """With the schema that its producer wrote it with, under the same id: no registry is needed, and no field is lost."""
    schema = editable.shown.schema
    assert schema is not None
    if not isinstance(value, dict):
        raise EncodeError(f"{schema.name} is a record: its edited form must be a JSON object")
    unknown = value.keys() - {member["name"] for member in schema.node["fields"]}
    if unknown:
        raise EncodeError(f"{schema.name} has no field {', '.join(sorted(unknown))}")
    key, start = wire.split(editable.message.value() or b"", headers)
    try:
        return compile_writer(schema)(value, key if start else b"")
    except WRITE_ERRORS as error:
        raise EncodeError(misfit(schema, value, error)) from error


def apply_edit(desk: Desk, editable: Editable, edited: Edited, actor: Actor, now_ms: int) -> Done:
    """Append the new version to the same partition; the old one becomes `edited`. `details["position"]`: the new one's."""
    number, topic = editable.number, desk.topics.dead_letters
    action_id = begin(desk, actor, "edit", [number], now_ms, lines_changed=len(edited.difference))
    partition, offset = position_of(number)
    entry = Entry(editable.message.key(), edited.value, edited.headers, partition)
    (written,) = append(desk.cluster, topic, [entry])
    record(desk, actor, action_id, "edit", {number: ("edited", partition, written)}, now_ms)
    desk.refresh()
    place = {"position": f"{partition}:{written}", "was": f"{partition}:{offset}", "id": id_of(partition, written)}
    return Done(action_id, "edit", {"edited": 1}, {}, place)
