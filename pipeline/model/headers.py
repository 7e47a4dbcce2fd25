"""Record headers: every name the pipeline writes or reads, with a version, in one place.

A retried or dead record keeps its original key and value bytes; all context is in headers. On a *source* topic the
producer headers below are read as untrusted input and delivery headers are ignored; on a lane both are ours.

    producer headers   pl.event_id, traceparent, ce_*, pl.replay.count
    delivery headers   pl.v, pl.attempt, pl.hop, pl.epoch, pl.origin.*, pl.due, pl.not_before, pl.first_failed,
                       pl.error.*, pl.group, pl.replay.id, pl.replay.count, pl.schema
    on dead letters    also Kafka Connect's and Streams' names `__dlq.errors.*`
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.model.cluster import Headers

VERSION = 1
EVENT_ID = "pl.event_id"
TRACEPARENT = "traceparent"
REPLAY_ID = "pl.replay.id"
REPLAY_COUNT = "pl.replay.count"
SCHEMA = "pl.schema"
ERROR_TEXT_BYTES = 8_192
"""Error class, type, message and stack together, both ends kept."""

_V, _ATTEMPT, _HOP, _EPOCH = "pl.v", "pl.attempt", "pl.hop", "pl.epoch"
_ORIGIN_TOPIC, _ORIGIN_PARTITION, _ORIGIN_OFFSET, _ORIGIN_TIME = (
    f"pl.origin.{n}" for n in ("topic", "partition", "offset", "timestamp")
)
_DUE, _NOT_BEFORE, _FIRST_FAILED, _GROUP = "pl.due", "pl.not_before", "pl.first_failed", "pl.group"
_ERROR_CLASS, _ERROR_TYPE, _ERROR_MESSAGE, _ERROR_STACK = (
    f"pl.error.{n}" for n in ("class", "type", "message", "stack")
)
_DIGITS_MAX = 19
_DELIVERY_PREFIX = "pl."
_PRODUCER_OWNED = {EVENT_ID}
_DLQ_PREFIX = "__dlq.errors."


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """The last failure, as the headers carry it."""

    error_class: str = ""
    error_type: str = ""
    message: str = ""
    stack: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryHeaders:
    """The context of a record in a lane. Times are milliseconds since the epoch; offsets and counts are integers.

    `due_ms` is when this lane lets it go; `not_before_ms` (0 = none) is when it may run at all, for waits longer than the last tier.
    `attempt` counts executions so far, `hop` hand-offs so far, `epoch` is the writing owner's.
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
    error: ErrorInfo = ErrorInfo()


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


def clip_error(error: ErrorInfo) -> ErrorInfo:
    """The same, its four texts within `ERROR_TEXT_BYTES` together: the stack gives way first."""
    names = [_clip(error.error_class, 256), _clip(error.error_type, 256), _clip(error.message, 2_048)]
    stack = _clip(error.stack, ERROR_TEXT_BYTES - sum(map(len, names)))
    return ErrorInfo(*(part.decode("utf-8", "ignore") for part in (*names, stack)))


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
    """Headers of a lane record: the producer's own, then ours (version first). Empty fields are left out."""
    out: Headers = list(kept)
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
    error = delivery.error
    texts = (
        (REPLAY_ID, delivery.replay_id),
        (SCHEMA, delivery.schema),
        (_ERROR_CLASS, error.error_class),
        (_ERROR_TYPE, error.error_type),
        (_ERROR_MESSAGE, error.message),
        (_ERROR_STACK, error.stack),
    )
    out.extend((name, text.encode("utf-8", "replace")) for name, text in texts if text)
    return out


def decode(headers: Headers | None) -> DeliveryHeaders:
    """The delivery headers of a lane record. Raises `HeaderError` naming the header when one is missing or malformed.

    A newer version is read too: versions only add names (a worker of version N works beside N-1).
    """
    found = {name: value for name, value in headers or () if value is not None}

    def number(name: str, default: int | None = None) -> int:
        raw = found.get(name)
        if raw is None:
            if default is None:
                raise HeaderError(f"header {name} is missing")
            return default
        if not raw.isdigit() or len(raw) > _DIGITS_MAX:
            raise HeaderError(f"header {name} is not a number: {raw[:40]!r}")
        return int(raw)

    def text(name: str) -> str:
        return found.get(name, b"").decode("utf-8", "replace")

    number(_V)
    return DeliveryHeaders(
        attempt=number(_ATTEMPT),
        hop=number(_HOP),
        epoch=number(_EPOCH),
        origin_topic=text(_ORIGIN_TOPIC),
        origin_partition=number(_ORIGIN_PARTITION),
        origin_offset=number(_ORIGIN_OFFSET),
        origin_timestamp_ms=number(_ORIGIN_TIME),
        group=text(_GROUP),
        due_ms=number(_DUE, 0),
        not_before_ms=number(_NOT_BEFORE, 0),
        first_failed_ms=number(_FIRST_FAILED, 0),
        replay_id=text(REPLAY_ID),
        replay_count=number(REPLAY_COUNT, 0),
        schema=text(SCHEMA),
        error=ErrorInfo(text(_ERROR_CLASS), text(_ERROR_TYPE), text(_ERROR_MESSAGE), text(_ERROR_STACK)),
    )


def dead_letter_headers(kept: Headers, delivery: DeliveryHeaders) -> Headers:
    """`encode` plus Kafka's own names, so that other tools show them too."""
    error = delivery.error
    own: Headers = [
        (_DLQ_PREFIX + "topic", delivery.origin_topic.encode()),
        (_DLQ_PREFIX + "partition", b"%d" % delivery.origin_partition),
        (_DLQ_PREFIX + "offset", b"%d" % delivery.origin_offset),
        (_DLQ_PREFIX + "exception.class.name", error.error_type.encode("utf-8", "replace")),
        (_DLQ_PREFIX + "exception.message", error.message.encode("utf-8", "replace")),
    ]
    return encode(kept, replace(delivery, due_ms=0, not_before_ms=0)) + own


def event_id_of(headers: Headers | None) -> str | None:
    """The producer's event id, if it gave one."""
    for name, value in headers or ():
        if name == EVENT_ID and value:
            return value.decode("utf-8", "replace")
    return None


def replay_count_of(headers: Headers | None) -> int:
    """How often the record was replayed, as its producer says (untrusted: anything unreadable counts as 0)."""
    for name, value in headers or ():
        if name == REPLAY_COUNT and value and value.isdigit() and len(value) < 10:
            return int(value)
    return 0
