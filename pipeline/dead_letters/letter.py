"""A dead letter as the index keeps it: one tuple of columns from a fetched record.

The columns hold what the filter language's fields mean (`pipeline.filters.fields`); a test holds one to the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from zlib import crc32

from pipeline.dead_letters.states import id_of
from pipeline.model.cluster import Headers, Message
from pipeline.model.events import NAMESPACE
from pipeline.model.headers import EDITED_FROM, EVENT_ID, POINTER_KIND, REPLAY_COUNT, REPLAY_ID, SCHEMA, headers_in
from pipeline.model.keys import key_text

COLUMNS: Final = (
    "id", "ts", "size", "attempt", "hop", "origin_partition", "origin_offset", "origin_ts", "replay_count", "first_failed",
    "edited_from", "key", "tenant", "agent", "run_id", "event_id", "grp", "origin_topic", "replay_id", "schema", "message",
)  # fmt: skip
"""Those that come from the record alone; `type` and `error` are numbers of other tables."""

Values = Callable[[Headers | None, Mapping[str, bytes | None], bytes | None, str], tuple[str, object]]
"""(headers, the same by name, value, origin topic) -> (type, value): see `values.Values`."""

POINTER: Final = "pointer"
"""The type of one that has no record's bytes, only where they are."""
_NO_HEADERS = (None, None, None)
_OURS = NAMESPACE.encode() + b"."
_INT_MAX = 2**63 - 1
_DIGITS_MAX = 19


def _number(raw: bytes | None) -> int | None:
    """A header's number; one beyond what SQLite holds counts as the largest."""
    if raw is None or not raw.isdigit() or len(raw) > _DIGITS_MAX:
        return None
    return min(int(raw), _INT_MAX)


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "replace")


def storable(text: str | None) -> str | None:
    """Text that SQLite takes: lone surrogates (only JSON can hold them) become question marks."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def edited_from(raw: bytes | None) -> int | None:
    """The position in an `EDITED_FROM` header; None where it is not one."""
    partition, _, offset = (raw or b"").partition(b"/")
    found = _number(partition), _number(offset)
    return None if found[0] is None or found[1] is None else id_of(found[0], found[1]) & _INT_MAX


def columns_of(message: Message, values: Values) -> tuple[tuple[Any, ...], str, tuple[str | None, str | None, str]]:
    """(columns, type, (error class, error type, error message)). Never raises for what a record holds."""
    pairs = headers_in(message)
    headers = dict(pairs) if pairs else {}
    get, key, value = headers.get, message.key(), message.value()
    origin_topic = _text(get("pl.origin.topic"))
    ce_type = get("ce_type")
    tenant, agent, run_id = get("ce_tenant"), get("ce_agent"), get("ce_subject")
    said: tuple[str | None, str | None, str | None]
    if value is None and POINTER_KIND in headers:
        kind, said = POINTER, (None, None, None)
    elif ce_type and ce_type.startswith(_OURS) and tenant and agent and run_id:
        kind, said = _text(ce_type) or "", (_text(tenant), _text(agent), _text(run_id))
    else:
        kind, decoded = values(pairs, headers, value, origin_topic or message.topic())
        said = _said(decoded, (tenant, agent, run_id) if ce_type and ce_type.startswith(_OURS) else _NO_HEADERS)
        kind = _text(ce_type) or "" if ce_type else kind
    error = get("pl.error.message")
    text = None if error is None else error.decode("utf-8", "replace")
    kind_of_time, time_ms = message.timestamp()
    columns = (
        id_of(message.partition(), message.offset()),
        time_ms if kind_of_time else -1,
        len(key or b"") + len(value or b""),
        _number(get("pl.attempt")),
        _number(get("pl.hop")),
        _number(get("pl.origin.partition")),
        _number(get("pl.origin.offset")),
        _number(get("pl.origin.timestamp")),
        _number(get(REPLAY_COUNT)) or 0,
        _number(get("pl.first_failed")),
        edited_from(get(EDITED_FROM)) if EDITED_FROM in headers else None,
        key_text(key),
        *said,
        _text(get(EVENT_ID) or get("ce_id") or None),
        _text(get("pl.group")),
        origin_topic,
        _text(get(REPLAY_ID)),
        _text(get(SCHEMA)),
        text,
    )
    return columns, storable(kind) or "", (_text(get("pl.error.class")), _text(get("pl.error.type")), text or "")


def _said(value: object, headers: tuple[bytes | None, ...]) -> tuple[str | None, str | None, str | None]:
    """Tenant, agent and run id: by the headers, else by the value."""
    fields = value if isinstance(value, dict) else {}
    if headers == _NO_HEADERS:
        tenant, agent, run_id = fields.get("tenant"), fields.get("agent"), fields.get("run_id")
        return (
            storable(tenant) if isinstance(tenant, str) else None,
            storable(agent) if isinstance(agent, str) else None,
            storable(run_id) if isinstance(run_id, str) else None,
        )
    found: list[str | None] = []
    for name, raw in zip(("tenant", "agent", "run_id"), headers, strict=True):
        inside = None if raw else fields.get(name)
        found.append(_text(raw) if raw else storable(inside) if isinstance(inside, str) else None)
    return found[0], found[1], found[2]


def mark_of(message: Message) -> int:
    """A checksum of a record: another record at the same position means that the topic was made anew."""
    headers = b"\0".join(name.encode() + b"=" + (raw or b"") for name, raw in headers_in(message) or ())
    stamp = b"%d" % message.timestamp()[1]
    return crc32(b"\0".join((message.key() or b"", message.value() or b"", headers, stamp)))


def plain(data: bytes | None) -> tuple[str, object]:
    """What a value is that is no Avro: ("json" | "text" | "bytes" | "null", value), as `pipeline.inspect.decoding` says."""
    if data is None:
        return "null", None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "bytes", "0x" + data.hex()
    try:
        return "json", json.loads(text)
    except (ValueError, RecursionError):
        return "text", text
