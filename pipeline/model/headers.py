"""Record headers: every name the pipeline writes or reads, with a version, in one place.

A retried or dead record keeps its original key and value bytes; all context is in headers. On a *source* topic the
producer headers below are read as untrusted input and delivery headers are ignored; on a lane both are ours.

    producer headers   pl.event_id, traceparent, ce_*, pl.replay.count (or pl.d of a replay's copy, for its count alone)
    on lanes           pl.d (all numbers, origin topic, replay id, group), pl.error.*, pl.history, pl.hold, pl.schema
    on dead letters    pl.d spelled out: pl.v, pl.attempt, pl.hop, pl.epoch, pl.origin.*, pl.first_failed, pl.replay.*,
                       pl.group; also pl.log, Kafka Connect's and Streams' names `__dlq.errors.*`, and pl.pointer.*
                       where there is no value, see `Pointer`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import quote, unquote

from pipeline.model.cluster import Headers, Message

VERSION = 1
EVENT_ID = "pl.event_id"
TRACEPARENT = "traceparent"
REPLAY_ID = "pl.replay.id"
REPLAY_COUNT = "pl.replay.count"
SCHEMA = "pl.schema"
HISTORY = "pl.history"
LOG = "pl.log"
HELD, OPENS, CLOSES, BEHIND = "held", "open/", "close/", "behind/"
HELD_CLASS = "Held"
"""Error class of dead letters that only follow a held one: what lists, filters and alerts tell them by."""
HOLD = "pl.hold"
"""In the replay lane: `held`, `open/ID`, `close/ID` (`core.holding`); on dead letters `behind/OFFSET`, the origin of the held one."""
EDITED_FROM = "pl.edited_from"
"""Dead letters: `partition/offset` of the one that this edited one takes the place of."""
ERROR_TEXT_BYTES = 8_192
"""Error class, type, message and stack together, both ends kept."""
DIAGNOSTICS_BYTES = 12_288
"""The same with history and log: what Kafka's own names repeat and the other headers fit into a lane's 16 KiB beside it."""
LOG_BYTES = 2_048
STORE_EPOCH = "pl.epoch"
"""On entries of a store: the epoch of the owner that wrote them."""
STORE_AGAIN = "pl.again"
"""On entries that a store has further up: they stand here so that nobody has to read it from there, and nothing has happened."""
POINTER_KIND, POINTER_LAST = "pl.pointer.kind", "pl.pointer.last"

_V, _ATTEMPT, _HOP, _EPOCH = "pl.v", "pl.attempt", "pl.hop", "pl.epoch"
_ORIGIN_TOPIC, _ORIGIN_PARTITION, _ORIGIN_OFFSET, _ORIGIN_TIME = (
    f"pl.origin.{n}" for n in ("topic", "partition", "offset", "timestamp")
)
_DUE, _NOT_BEFORE, _FIRST_FAILED, _GROUP = "pl.due", "pl.not_before", "pl.first_failed", "pl.group"
_ERROR_CLASS, _ERROR_TYPE, _ERROR_MESSAGE, _ERROR_STACK = (
    f"pl.error.{n}" for n in ("class", "type", "message", "stack")
)
_NUMBERS = (
    _V, _ATTEMPT, _HOP, _EPOCH, _ORIGIN_PARTITION, _ORIGIN_OFFSET, _ORIGIN_TIME, _DUE, _NOT_BEFORE, _FIRST_FAILED, REPLAY_COUNT,
)  # fmt: skip
_OPTIONAL = frozenset({_DUE, _NOT_BEFORE, _FIRST_FAILED, REPLAY_COUNT})
_DELIVERY = "pl.d"
_PACKED = b" ".join([b"%d"] * len(_NUMBERS) + [b"%b", b"%b"])
"""The numbers in that order, then origin topic and group (last: it may have spaces). Of a replayed record the topic is followed
by `/` and the replay's id, percent-encoded: a topic's name has no `/`."""
_DIGITS_MAX = 19
_DELIVERY_PREFIX = "pl."
COUNTING = frozenset({REPLAY_COUNT, _DELIVERY})
_PRODUCER_OWNED = {EVENT_ID}
_DLQ_PREFIX = "__dlq.errors."


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """The last failure, as the headers carry it."""

    error_class: str = ""
    error_type: str = ""
    message: str = ""
    stack: str = ""


NO_ERROR = ErrorInfo()


@dataclass(frozen=True, slots=True)
class Pointer:
    """A dead letter without a value, for what can't be copied: offsets from its origin's to `last_offset` of the origin's topic
    and partition, where the bytes are for as long as that topic keeps them. `kind`: why."""

    kind: str
    last_offset: int


@dataclass(frozen=True, slots=True)
class DeliveryHeaders:
    """The context of a record in a lane. Times are milliseconds since the epoch; offsets and counts are integers.

    `due_ms` is when this lane lets it go; `not_before_ms` (0 = none) is when it may run at all, for waits longer than the last tier.
    `attempt` counts executions so far, `hop` hand-offs so far, `epoch` is the writing owner's.
    `history`: every failed attempt, as `model.history` encodes it; `log`: the last lines of the final one (dead letters only).
    `hold`: what it has to do with a held key.
    """

    attempt: int
    hop: int
    epoch: int
    origin_topic: str
    origin_partition: int
    origin_offset: int
    origin_timestamp_ms: int
    group: str
    due_ms: int = 0
    not_before_ms: int = 0
    first_failed_ms: int = 0
    replay_id: str = ""
    replay_count: int = 0
    schema: str = ""
    error: ErrorInfo = NO_ERROR
    history: bytes = b""
    log: str = ""
    pointer: Pointer | None = None
    hold: str = ""


class Standing(NamedTuple):
    """The part of `DeliveryHeaders` that a new owner goes by, who reads lanes by the hundred thousand before it may begin."""

    epoch: int
    hop: int
    origin_offset: int
    due_ms: int
    replay_id: str
    hold: str


class HeaderError(ValueError):
    """A lane record's headers are not ours or not readable."""


def _clip(text: str, limit_bytes: int) -> bytes:
    """UTF-8 of at most `limit_bytes`, both ends kept."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw
    mark = b" ... "
    half = max(0, (limit_bytes - len(mark)) // 2)
    cut = raw[:half] + mark + (raw[-half:] if half else b"")
    return cut.decode("utf-8", "ignore").encode()[:limit_bytes]


def clip_error(error: ErrorInfo, others_bytes: int = 0) -> ErrorInfo:
    """The same, its four texts within `ERROR_TEXT_BYTES` together: the stack gives way first.

    `others_bytes`: history and log beside it, together within `DIAGNOSTICS_BYTES`.
    """
    room = min(ERROR_TEXT_BYTES, DIAGNOSTICS_BYTES - others_bytes)
    names = [_clip(error.error_class, 256), _clip(error.error_type, 256), _clip(error.message, 2_048)]
    stack = _clip(error.stack, room - sum(map(len, names)))
    return ErrorInfo(*(part.decode("utf-8", "ignore") for part in (*names, stack)))


def headers_in(message: Message) -> Headers | None:
    """The headers of a record that anybody may have written. Where a name is no UTF-8 it counts as one without headers: confluent-kafka
    (2.16) raises the first time and then gives a name that is a null pointer, which ends the process of whoever looks at it."""
    try:
        return message.headers()
    except (SystemError, UnicodeDecodeError):
        message.set_headers([])  # type: ignore[attr-defined]
        return None


def producer_headers(headers: Headers | None) -> Headers:
    """What a lane copy keeps of a record's headers: everything but our delivery headers and dead-letter marks."""
    if not headers:
        return []
    return [
        (name, value)
        for name, value in headers
        if name in _PRODUCER_OWNED or not name.startswith((_DELIVERY_PREFIX, _DLQ_PREFIX))
    ]


def encode(kept: Headers, delivery: DeliveryHeaders) -> Headers:
    """Headers of a lane record: the producer's own, then ours. Empty texts are left out.

    All numbers share one header: a hop is read and written by workers only, and each header costs a microsecond on either way.
    """
    d, topic = delivery, delivery.origin_topic
    if d.replay_id:
        topic = f"{topic}/{quote(d.replay_id, safe='', errors='replace')}"
    packed = _PACKED % (
        VERSION, d.attempt, d.hop, d.epoch, d.origin_partition, d.origin_offset, d.origin_timestamp_ms, d.due_ms,
        d.not_before_ms, d.first_failed_ms, d.replay_count, topic.encode(), d.group.encode(),
    )  # fmt: skip
    out = [*kept, (_DELIVERY, packed)]
    _add_texts(out, delivery)
    return out


def _add_texts(out: Headers, delivery: DeliveryHeaders) -> None:
    if delivery.schema:
        out.append((SCHEMA, delivery.schema.encode("utf-8", "replace")))
    error = delivery.error
    if error is not NO_ERROR:
        texts = (
            (_ERROR_CLASS, error.error_class),
            (_ERROR_TYPE, error.error_type),
            (_ERROR_MESSAGE, error.message),
            (_ERROR_STACK, error.stack),
        )
        out.extend((name, text.encode("utf-8", "replace")) for name, text in texts if text)
    if delivery.log:
        out.append((LOG, delivery.log.encode("utf-8", "replace")))
    if delivery.history:
        out.append((HISTORY, delivery.history))
    if delivery.hold:
        out.append((HOLD, delivery.hold.encode("utf-8", "replace")))


def _spelled(delivery: DeliveryHeaders) -> Headers:
    """One header per field (version first), for people and other tools. Empty fields are left out."""
    out: Headers = []
    out.append((_V, b"%d" % VERSION))
    numbers = (
        (_ATTEMPT, delivery.attempt),
        (_HOP, delivery.hop),
        (_EPOCH, delivery.epoch),
        (_ORIGIN_PARTITION, delivery.origin_partition),
        (_ORIGIN_OFFSET, delivery.origin_offset),
        (_ORIGIN_TIME, delivery.origin_timestamp_ms),
    )
    out.extend((name, b"%d" % number) for name, number in numbers)
    out.append((_ORIGIN_TOPIC, delivery.origin_topic.encode()))
    out.append((_GROUP, delivery.group.encode()))
    optional = (
        (_DUE, delivery.due_ms),
        (_NOT_BEFORE, delivery.not_before_ms),
        (_FIRST_FAILED, delivery.first_failed_ms),
        (REPLAY_COUNT, delivery.replay_count),
    )
    out.extend((name, b"%d" % number) for name, number in optional if number)
    return out


def decode(headers: Headers | None) -> DeliveryHeaders:
    """The delivery headers of a lane record or a dead letter. Raises `HeaderError` naming the header that is missing or malformed.

    A newer version is read too: versions only add names (a worker of version N works beside N-1).
    """
    found = {name: value for name, value in headers or () if value is not None}
    packed = found.get(_DELIVERY)
    pointer = None
    if packed is not None:
        found_numbers, topic, replay_id, group = _unpacked(packed)
        replay_id = replay_id or _text(found, REPLAY_ID)
    else:
        if _V not in found:
            raise HeaderError(f"header {_DELIVERY} is missing")
        found_numbers = [_number(found, name) for name in _NUMBERS]
        topic, replay_id, group = (_text(found, name) for name in (_ORIGIN_TOPIC, REPLAY_ID, _GROUP))
        pointer = pointer_of(found)
    _, attempt, hop, epoch, partition, offset, timestamp, due, not_before, first_failed, replay_count = found_numbers
    error = NO_ERROR
    if _ERROR_CLASS in found or _ERROR_TYPE in found or _ERROR_MESSAGE in found or _ERROR_STACK in found:
        error = ErrorInfo(*(_text(found, name) for name in (_ERROR_CLASS, _ERROR_TYPE, _ERROR_MESSAGE, _ERROR_STACK)))
    return DeliveryHeaders(
        attempt, hop, epoch, topic, partition, offset, timestamp, group, due, not_before, first_failed,
        replay_id, replay_count, _text(found, SCHEMA), error, found.get(HISTORY, b""), _text(found, LOG),
        pointer, _text(found, HOLD),
    )  # fmt: skip


def standing_of(headers: Headers | None) -> Standing:
    """The same as `decode` says, and the same errors, in half the time: no texts are read that nobody asks for."""
    packed = replay_id = hold = None
    for name, value in headers or ():
        if value is None:
            continue
        if name == _DELIVERY:
            packed = value
        elif name == REPLAY_ID:
            replay_id = value
        elif name == HOLD:
            hold = value
    if packed is None:
        d = decode(headers)
        return Standing(d.epoch, d.hop, d.origin_offset, d.due_ms, d.replay_id, d.hold)
    (_, _, hop, epoch, _, offset, _, due_ms, *_), _, replayed, _ = _unpacked(packed)
    if replay_id and not replayed:
        replayed = replay_id.decode("utf-8", "replace")
    return Standing(epoch, hop, offset, due_ms, replayed, hold.decode("utf-8", "replace") if hold else "")


def pointer_of(found: Mapping[str, bytes | None]) -> Pointer | None:
    """What a dead letter points at, by its headers; None for one that has its record's own bytes. Never raises."""
    kind, last = found.get(POINTER_KIND), found.get(POINTER_LAST)
    if kind is None or last is None or not last.isdigit() or len(last) > _DIGITS_MAX:
        return None
    return Pointer(kind.decode("utf-8", "replace"), int(last))


def _unpacked(packed: bytes) -> tuple[list[int], str, str, str]:
    """The numbers, origin topic, replay id and group."""
    parts = packed.split(b" ", len(_NUMBERS) + 1)
    digits = parts[: len(_NUMBERS)]
    if len(parts) != len(_NUMBERS) + 2 or not all(map(bytes.isdigit, digits)) or max(map(len, digits)) > _DIGITS_MAX:
        raise HeaderError(f"header {_DELIVERY} is not a delivery: {packed[:80]!r}")
    topic, _, replay_id = parts[-2].decode("utf-8", "replace").partition("/")
    return list(map(int, digits)), topic, unquote(replay_id), parts[-1].decode("utf-8", "replace")


def _number(found: Mapping[str, bytes], name: str) -> int:
    raw = found.get(name)
    if raw is None:
        if name in _OPTIONAL:
            return 0
        raise HeaderError(f"header {name} is missing")
    if not raw.isdigit() or len(raw) > _DIGITS_MAX:
        raise HeaderError(f"header {name} is not a number: {raw[:40]!r}")
    return int(raw)


def _text(found: Mapping[str, bytes], name: str) -> str:
    raw = found.get(name)
    return raw.decode("utf-8", "replace") if raw else ""


def spelled_out(found: Mapping[str, bytes | None]) -> Mapping[str, bytes | None]:
    """Headers by name with a tier copy's numbers under the names that dead letters have: for filters and tools.

    What is not readable is left as it is.
    """
    packed = found.get(_DELIVERY)
    if packed is None:
        return found
    try:
        numbers, topic, replay_id, group = _unpacked(packed)
    except HeaderError:
        return found
    named = {
        name: b"%d" % number for name, number in zip(_NUMBERS, numbers, strict=True) if number or name not in _OPTIONAL
    }
    replayed = {REPLAY_ID: replay_id.encode("utf-8", "replace")} if replay_id else {}
    return {**found, **named, **replayed, _ORIGIN_TOPIC: topic.encode(), _GROUP: group.encode()}


def dead_letter_headers(kept: Headers, delivery: DeliveryHeaders) -> Headers:
    """One header per field, and Kafka's own names, so that other tools show them too."""
    error = delivery.error
    own: Headers = [
        (_DLQ_PREFIX + "topic", delivery.origin_topic.encode()),
        (_DLQ_PREFIX + "partition", b"%d" % delivery.origin_partition),
        (_DLQ_PREFIX + "offset", b"%d" % delivery.origin_offset),
        (_DLQ_PREFIX + "exception.class.name", error.error_type.encode("utf-8", "replace")),
        (_DLQ_PREFIX + "exception.message", error.message.encode("utf-8", "replace")),
    ]
    out = [*kept, *_spelled(replace(delivery, due_ms=0, not_before_ms=0))]
    if delivery.pointer is not None:
        out.append((POINTER_KIND, delivery.pointer.kind.encode("utf-8", "replace")))
        out.append((POINTER_LAST, b"%d" % delivery.pointer.last_offset))
    if delivery.replay_id:
        out.append((REPLAY_ID, delivery.replay_id.encode("utf-8", "replace")))
    _add_texts(out, delivery)
    return out + own


def event_id_of(headers: Headers | None) -> str | None:
    """The producer's event id, if it gave one."""
    for name, value in headers or ():
        if name == EVENT_ID and value:
            return value.decode("utf-8", "replace")
    return None


def replay_count_of(headers: Headers | None) -> int:
    """How often the record was replayed, as its producer says (untrusted: anything unreadable counts as 0)."""
    return max((replay_count_in(name, value) for name, value in headers or () if name in COUNTING), default=0)


def replay_count_in(name: str, value: bytes | None) -> int:
    """The same of one header, of those in `COUNTING`: its own, or the delivery of a copy that a replay wrote to a topic."""
    if name == _DELIVERY:
        try:
            return _unpacked(value or b"")[0][-1]
        except HeaderError:
            return 0
    return int(value) if value and value.isdigit() and len(value) < 10 else 0


def is_again(headers: Headers | None) -> bool:
    return any(name == STORE_AGAIN for name, _ in headers or ())


def epoch_of(headers: Headers | None) -> int:
    """Of the owner that wrote this record of a store; 0 for what no owner wrote."""
    for name, value in headers or ():
        if name == STORE_EPOCH and value is not None and value.isdigit() and len(value) < 19:
            return int(value)
    return 0
