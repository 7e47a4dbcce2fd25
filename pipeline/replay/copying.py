"""The copies a replay writes: key and value as they are, headers that say where the record comes from and which replay it was.

The path of a million records: what is the same for all records of a partition is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter

from pipeline.model.cluster import Acknowledgements, Headers, Message, OutRecord
from pipeline.model.headers import (
    NO_ERROR,
    DeliveryHeaders,
    HeaderError,
    decode,
    encode,
    headers_in,
    producer_headers,
    replay_count_of,
)
from pipeline.model.partitioner import partition_of
from pipeline.replay.plan import ReplayPlan, TargetKind
from pipeline.replay.results import Result

_OFFSET_HERE, _TIME_HERE = 7_700_000_000_000_000_077, 8_800_000_000_000_000_088
"""Stand for the two numbers that are every record's own, where its headers are made once for all."""
PLAIN_NAMES_MAX = 10_000
"""Header names that copies keep are remembered, at most so many."""
_NONE: Headers = []
_name_of = itemgetter(0)
_Frame = tuple[str, bytes, Headers]
"""The header that holds both, as (name, pattern), and the headers behind it."""


def own_headers(delivery: DeliveryHeaders, kind: TargetKind) -> Headers:
    """What a copy says of itself. On a topic that is no lane: where it comes from, which replay it was, how often it was replayed."""
    if kind == "lane":
        return encode([], delivery)
    return encode([], replace(delivery, error=NO_ERROR, history=b"", log="", schema=""))


def _framed(headers: Headers) -> _Frame:
    (name, value), *rest = headers
    pattern = (value or b"").replace(b"%", b"%%")
    for number in (_OFFSET_HERE, _TIME_HERE):
        assert pattern.count(b"%d" % number) == 1, "offset and time are in the first header, once each"
        pattern = pattern.replace(b"%d" % number, b"%d")
    return name, pattern, rest


@dataclass(slots=True)
class Outgoing:
    """Records for one partition of a target topic, in the order they are sent. `sources` are their offsets in the source;
    `records` holds those that the producer has not taken yet."""

    topic: str
    partition: int
    sources: list[int] = field(default_factory=list)
    records: list[OutRecord] = field(default_factory=list)
    answers: Acknowledgements = field(default_factory=Acknowledgements)


@dataclass(slots=True)
class Copies:
    """What is made of the chosen records of one fetch of one partition: what goes out, and what does not with its result."""

    outgoing: list[Outgoing] = field(default_factory=list)
    kept: list[Result] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


Copier = Callable[[int, Sequence[Message]], Copies]
"""(partition of the source, its chosen records in order) -> copies."""


def copier_of(plan: ReplayPlan, partitions: dict[str, int]) -> Copier:
    """How this plan's records are copied. `partitions`: how many each target topic has."""
    if plan.source.kind == "topic":
        return _SourceCopier(plan, partitions)
    return _LetterCopier(plan, partitions)


class _SourceCopier:
    """Records of a source topic: their origin is where they lie."""

    def __init__(self, plan: ReplayPlan, partitions: dict[str, int]) -> None:
        target = plan.target.topic_for(plan.source.topic)
        assert target is not None, "a plan over a source topic names its target"
        self._plan = plan
        self._target, self._count = target, partitions[target]
        self._same = plan.target.kind == "lane" or self._count == plan.source.partitions
        self._frames: dict[tuple[int, int], _Frame] = {}
        self._plain: set[str] = set()
        self._placed: dict[bytes, int] = {}

    def _frame(self, partition: int, count: int) -> _Frame:
        found = self._frames.get((partition, count))
        if found is None:
            plan = self._plan
            delivery = DeliveryHeaders(
                attempt=0,
                hop=0,
                epoch=0,
                origin_topic=plan.source.topic,
                origin_partition=partition,
                origin_offset=_OFFSET_HERE,
                origin_timestamp_ms=_TIME_HERE,
                group=plan.target.group,
                replay_id=plan.plan_id,
                replay_count=count,
            )
            found = self._frames[partition, count] = _framed(own_headers(delivery, plan.target.kind))
        return found

    def __call__(self, partition: int, messages: Sequence[Message]) -> Copies:
        offsets, copies = [message.offset() for message in messages], Copies()
        given = [headers_in(message) or _NONE for message in messages]
        if self._plain.issuperset(map(_name_of, chain.from_iterable(given))):
            name, pattern, rest = self._frame(partition, 1)
            records: list[OutRecord] = [
                (
                    m.key(),
                    m.value(),
                    [*headers, (name, pattern % (offset, t if (t := m.timestamp()[1]) > 0 else 0)), *rest],
                )
                for m, headers, offset in zip(messages, given, offsets, strict=True)
            ]
        else:
            records = self._sorted_out(partition, messages, given, copies)
            capped = {result.offset for result in copies.kept}
            offsets = [offset for offset in offsets if offset not in capped]
        direct = Outgoing(self._target, partition if self._same else -1, offsets, records)
        copies.outgoing = [direct] if self._same else self._by_key(direct, partition)
        return copies

    def _sorted_out(
        self, partition: int, messages: Sequence[Message], given: Sequence[Headers], copies: Copies
    ) -> list[OutRecord]:
        """Records of which one has a header name not seen yet, or one that copies do not keep; what was replayed enough stays."""
        records: list[OutRecord] = []
        for message, headers in zip(messages, given, strict=True):
            kept = producer_headers(headers)
            if len(self._plain) < PLAIN_NAMES_MAX:
                self._plain.update(name for name, _ in kept)
            count = replay_count_of(headers) + 1
            if count > self._plan.replays_max:
                copies.kept.append(Result(message.offset(), "loop_capped"))
                continue
            name, pattern, rest = self._frame(partition, count)
            own = (name, pattern % (message.offset(), max(0, message.timestamp()[1])))
            records.append((message.key(), message.value(), [*kept, own, *rest]))
        return records

    def _by_key(self, direct: Outgoing, partition: int) -> list[Outgoing]:
        """The target has another number of partitions: each key has its own there."""
        found: dict[int, Outgoing] = {}
        for source, record in zip(direct.sources, direct.records, strict=True):
            place = place_of(record[0], partition, self._count, self._placed)
            out = found.get(place)
            if out is None:
                out = found[place] = Outgoing(direct.topic, place)
            out.sources.append(source)
            out.records.append(record)
        return list(found.values())


def place_of(key: bytes | None, partition: int, count: int, known: dict[bytes, int]) -> int:
    """The partition of a topic with `count` of them: by key, or for records without one by where they come from."""
    if key is None:
        return partition % count
    place = known.get(key)
    if place is None:
        place = partition_of(key, count)
        if len(known) < 50_000:
            known[key] = place
    return place


class _LetterCopier:
    """Dead letters, and records of a file: their origin is in their headers, and their failures go with them."""

    def __init__(self, plan: ReplayPlan, partitions: dict[str, int]) -> None:
        self._plan = plan
        self._partitions = partitions
        self._placed: dict[bytes, int] = {}

    def __call__(self, partition: int, messages: Sequence[Message]) -> Copies:
        plan, copies, partitions = self._plan, Copies(), self._partitions
        found: dict[tuple[str, int], Outgoing] = {}
        for message in messages:
            offset, headers = message.offset(), headers_in(message)
            try:
                delivery = decode(headers)
            except HeaderError as error:
                copies.kept.append(Result(offset, "failed"))
                copies.errors[offset] = f"its headers do not say where it comes from: {error}"
                continue
            if delivery.replay_count >= plan.replays_max:
                copies.kept.append(Result(offset, "loop_capped"))
                continue
            topic = plan.target.topic_for(delivery.origin_topic)
            if topic is None:
                copies.kept.append(Result(offset, "failed"))
                copies.errors[offset] = f"it comes from {delivery.origin_topic}, for which the plan names no target"
                continue
            place = self._place(delivery, topic, message.key())
            if place >= partitions[topic]:
                copies.kept.append(Result(offset, "failed"))
                copies.errors[offset] = (
                    f"it says that it comes from partition {place}, and {topic} has {partitions[topic]} partitions"
                )
                continue
            out = found.get((topic, place))
            if out is None:
                out = found[topic, place] = Outgoing(topic, place)
            out.sources.append(offset)
            out.records.append((message.key(), message.value(), self._headers(headers, delivery)))
        copies.outgoing = list(found.values())
        return copies

    def _place(self, delivery: DeliveryHeaders, topic: str, key: bytes | None) -> int:
        count = self._partitions[topic]
        if self._plan.target.kind == "lane" or topic == delivery.origin_topic:
            return delivery.origin_partition
        return place_of(key, delivery.origin_partition, count, self._placed)

    def _headers(self, headers: Headers | None, delivery: DeliveryHeaders) -> Headers:
        plan = self._plan
        fresh = replace(
            delivery,
            attempt=0,
            hop=0,
            epoch=0,
            due_ms=0,
            not_before_ms=0,
            log="",
            hold="",
            group=plan.target.group or delivery.group,
            replay_id=plan.plan_id,
            replay_count=delivery.replay_count + 1,
        )
        return producer_headers(headers) + own_headers(fresh, plan.target.kind)
