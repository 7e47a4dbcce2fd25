"""Editing a dead letter: its value as JSON (`forms`), checked against its schema, appended as a new dead letter. Both versions stay."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, cast

from pipeline.codec import wire
from pipeline.codec.jobs import REQUEST
from pipeline.codec.misfit import misfit
from pipeline.codec.writer import WRITE_ERRORS, compile_writer
from pipeline.dead_letters.acting import Actor, Done, begin, only, record, still
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.forms import BYTES_FORM, from_json, to_json
from pipeline.dead_letters.job_inputs import check_request, encoded_input, readable
from pipeline.dead_letters.literals import dumps, indented, loads
from pipeline.dead_letters.states import id_of, position_of
from pipeline.dead_letters.values import Shown, undecoded
from pipeline.inspect.appending import Entry, append
from pipeline.model.cluster import Headers, Message
from pipeline.model.errors import ConfigurationError, EncodeError
from pipeline.model.headers import EDITED_FROM, headers_in

EDITABLE = ("open", "cancelled")


@dataclass(frozen=True, slots=True)
class Editable:
    """A dead letter as text to edit, and what is needed to write it again. `value`: what the text is of; `shown` has it as written."""

    number: int
    text: str
    shown: Shown
    message: Message
    value: Any


@dataclass(frozen=True, slots=True)
class Edited:
    """A checked new version. `difference`: unified, line by line; empty: nothing was changed."""

    value: bytes
    headers: Headers
    difference: tuple[str, ...]


def text_of(value: object, avro: bool = True) -> str:
    """A value as people edit it. `avro` False: it was JSON or text, and nothing in it is a mark of ours."""
    return indented(to_json(value) if avro else value) + "\n"


def open_for_edit(desk: Desk, number: int) -> Editable:
    """Fetch and decode it. Raises `ConfigurationError` when it is not there or not open, `UndecodableError` when it has no JSON form."""
    place = "{}:{}".format(*position_of(number))
    _refuse_closed(number, *only(desk, [number], EDITABLE))
    message = next(iter(desk.fetch([number])), None)
    if message is None:
        raise ConfigurationError(f"dead letter {place} is not in {desk.topics.dead_letters} any more")
    shown = desk.values.show(message)
    if shown.problem or shown.type in ("bytes", "null"):
        raise undecoded(shown)
    if shown.schema is not None and (own := desk.values.as_written(message)) is not None:
        shown = Shown(shown.type, own[0], "", own[1])
    if shown.schema is None and shown.type == "json":
        shown = shown._replace(value=loads((message.value() or b"").decode()))
    value = readable(shown.type, shown.value)
    return Editable(number, text_of(value, shown.schema is not None), shown, message, value)


def _refuse_closed(number: int, chosen: list[int], left: dict[str, int]) -> None:
    if not chosen:
        raise ConfigurationError(
            "dead letter {}:{} can't be edited: it is {}".format(*position_of(number), next(iter(left)))
        )


def check_edit(editable: Editable, text: str) -> Edited:
    """The new version, encoded. Raises `EncodeError` naming the line or the field that is wrong."""
    avro = editable.shown.schema is not None
    try:
        value = loads(text)
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"the edited text is not JSON: {error}") from None
    try:
        value = _fields(editable, value) if avro else value
        data, headers = _encoded(editable, value)
    except UnicodeEncodeError as error:
        raise EncodeError(
            f"the edited text has a character that is no text, {error.object[error.start]!r}: take it out"
        ) from None
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"the edited text does not fit: {error}") from None
    headers.append((EDITED_FROM, b"%d/%d" % position_of(editable.number)))
    return Edited(data, headers, difference(editable.text, text_of(readable(editable.shown.type, value), avro)))


def _fields(editable: Editable, value: Any) -> Any:
    """Field by field, so that what does not fit is named."""
    schema = editable.shown.schema
    if schema is None or not isinstance(value, dict):
        return value
    made: dict[str, Any] = {}
    for name, given in value.items():
        try:
            if editable.shown.type == REQUEST and name == "payload":
                made[name] = encoded_input(_as_written(editable), given)
            else:
                made[name] = from_json(given)
        except ValueError as error:
            raise EncodeError(f"{schema.name}.{name} does not fit: {error}") from None
    return made


def _as_written(editable: Editable) -> dict[str, Any]:
    """A record's fields before they were edited."""
    return cast(dict[str, Any], editable.shown.value)


def _encoded(editable: Editable, value: Any) -> tuple[bytes, Headers]:
    headers = [pair for pair in headers_in(editable.message) or () if pair[0] != EDITED_FROM]
    if editable.shown.schema is not None:
        return _avro(editable, value, headers), headers
    if editable.shown.type == "text":
        if not isinstance(value, str):
            raise EncodeError("the value is plain text: its edited form must be a JSON string")
        return value.encode(), headers
    return dumps(value).encode(), headers


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
    if editable.shown.type == REQUEST:
        check_request(schema.name, _as_written(editable), value)
    key, start = wire.split(editable.message.value() or b"", headers)
    try:
        return compile_writer(schema)(value, key if start else b"")
    except WRITE_ERRORS as error:
        raise EncodeError(misfit(schema, value, error, BYTES_FORM)) from error


def apply_edit(desk: Desk, editable: Editable, edited: Edited, actor: Actor, now_ms: int) -> Done:
    """Append the new version to the same partition; the old one becomes `edited`. `details["position"]`: the new one's.

    Raises `ConfigurationError` when something else was done about it since it was opened: it would be sent as it was, and as edited.
    """
    number, topic = editable.number, desk.topics.dead_letters
    _refuse_closed(number, *still(desk, [number], EDITABLE))
    action_id = begin(desk, actor, "edit", [number], now_ms, lines_changed=len(edited.difference))
    partition, offset = position_of(number)
    entry = Entry(editable.message.key(), edited.value, edited.headers, partition)
    (written,) = append(desk.cluster, topic, [entry])
    record(desk, actor, action_id, "edit", {number: ("edited", partition, written)}, now_ms)
    desk.refresh()
    place = {"position": f"{partition}:{written}", "was": f"{partition}:{offset}", "id": id_of(partition, written)}
    return Done(action_id, "edit", {"edited": 1}, {}, place)
