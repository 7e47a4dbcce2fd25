"""Records of lanes and sources as the inspection sees them: position, key, ids and delivery headers, never the value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.core.progress import Progress
from pipeline.model.cluster import Headers, Message
from pipeline.model.headers import DeliveryHeaders, HeaderError, decode, event_id_of, headers_in

_CLOUD_EVENT_ID = "ce_id"


@dataclass(frozen=True, slots=True)
class LaneRecord:
    """A copy in a tier, the replay lane or the dead letters. `delivery` is None where its headers are not readable."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    event_id: str | None
    timestamp_ms: int
    delivery: DeliveryHeaders | None

    @property
    def origin(self) -> int:
        return self.offset if self.delivery is None else self.delivery.origin_offset

    @property
    def identity(self) -> tuple[int, str]:
        """The record for its whole life: origin offset, and the replay that brought it back ("" = none)."""
        return (self.origin, "" if self.delivery is None else self.delivery.replay_id)


@dataclass(frozen=True, slots=True)
class SourceRecord:
    topic: str
    partition: int
    offset: int
    key: bytes | None
    event_id: str | None
    timestamp_ms: int


def event_id(headers: Headers | None) -> str | None:
    """The event's id: our header, else the CloudEvents one."""
    found = event_id_of(headers)
    if found is None:
        raw = next((value for name, value in headers or () if name == _CLOUD_EVENT_ID and value), None)
        found = None if raw is None else raw.decode("utf-8", "replace")
    return found


def source_record(message: Message) -> SourceRecord:
    identity = event_id(headers_in(message))
    return SourceRecord(
        message.topic(), message.partition(), message.offset(), message.key(), identity, message.timestamp()[1]
    )


def lane_record(message: Message) -> LaneRecord:
    headers = headers_in(message)
    try:
        delivery = decode(headers)
    except HeaderError:
        delivery = None
    place = (message.topic(), message.partition(), message.offset())
    return LaneRecord(*place, message.key(), event_id(headers), message.timestamp()[1], delivery)


def without_diagnostics(record: LaneRecord) -> LaneRecord:
    """Without stack, history and log: kilobytes each, and who looks at a whole lane asks for none of them."""
    delivery = record.delivery
    if delivery is None or not (delivery.error.stack or delivery.history or delivery.log):
        return record
    error = replace(delivery.error, stack="")
    return replace(record, delivery=replace(delivery, error=error, history=b"", log=""))


def is_settled(progress: Progress | None, offset: int) -> bool:
    """Does the group's commit say that this offset is done? None: the group never committed there."""
    if progress is None:
        return False
    return offset < progress.offset or (offset < progress.end and offset not in progress.open)


def written_by_zombie(record: LaneRecord, source: Progress | None, fence: int | None) -> bool:
    """Rule (g): at or past the fence of the committed epoch, with an older epoch: nobody will run this copy."""
    if source is None or record.delivery is None or fence is None or not record.delivery.hop:
        return False
    return record.offset >= fence and record.delivery.epoch < source.epoch
