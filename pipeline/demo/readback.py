"""Turns what stands in the topics into the facts that the account is made of: live while the demo runs, and once more at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from pipeline.app import Pipeline
from pipeline.core.progress import Progress, decode
from pipeline.demo.accounting import CopyFact, EndingFact, GroupFacts, SourceFact
from pipeline.demo.groups import GROUPS, TIERS, lanes_of, ledger_topic
from pipeline.inspect.lag import unsettled_count
from pipeline.inspect.positions import committed
from pipeline.model.cluster import Message, PartitionReader, TopicPartition
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.headers import decode as decode_headers
from pipeline.model.headers import event_id_of, headers_in
from pipeline.model.views import Ledger

POLL_RECORDS = 5_000
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class TopicMap:
    """Which topic says what. Real names."""

    source: str
    ledgers: Mapping[str, str]
    dead_letters: Mapping[str, str]
    tiers: Mapping[str, tuple[str, str]]
    """tier topic -> (group, tier)"""
    partitions: int

    @classmethod
    def of(cls, app: Pipeline, partitions: int) -> TopicMap:
        tiers = {
            topic: (group, tier)
            for group in GROUPS
            for topic, tier in zip(lanes_of(app, group).tiers, TIERS[group], strict=True)
        }
        return cls(
            source=app.topic_name(app.settings.events_topic),
            ledgers={app.topic_name(ledger_topic(group)): group for group in GROUPS},
            dead_letters={lanes_of(app, group).dead_letters: group for group in GROUPS},
            tiers=tiers,
            partitions=partitions,
        )

    def places(self) -> list[TopicPartition]:
        """Every partition that is read back."""
        topics = (self.source, *self.ledgers, *self.dead_letters, *self.tiers)
        return [TopicPartition(topic, partition) for topic in topics for partition in range(self.partitions)]

    def lanes(self, group: str) -> list[TopicPartition]:
        """Source and tiers of a group: what its commits cover."""
        topics = (self.source, *(topic for topic, (owner, _) in self.tiers.items() if owner == group))
        return [TopicPartition(topic, partition) for topic in topics for partition in range(self.partitions)]


@dataclass(slots=True)
class Facts:
    """Everything read so far. `ended`: by group, the (partition, origin) that have an ending.

    `dead` (by group) and `copies` (by group and tier) are counts, for a screen that is drawn often.
    """

    source: list[SourceFact] = field(default_factory=list)
    groups: dict[str, GroupFacts] = field(default_factory=lambda: {g: GroupFacts(g, TIERS[g]) for g in GROUPS})
    ended: dict[str, set[tuple[int, int]]] = field(default_factory=lambda: {g: set() for g in GROUPS})
    dead: Counter[str] = field(default_factory=Counter)
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)

    def endings(self) -> int:
        return sum(len(found) for found in self.ended.values())

    def unfinished(self, group: str) -> dict[int, int]:
        """Partition -> its records without an ending."""
        ended, found = self.ended[group], dict[int, int]()
        for record in self.source:
            if (record.partition, record.offset) not in ended:
                found[record.partition] = found.get(record.partition, 0) + 1
        return found


class Collector:
    """Messages in, facts out. The ledger is Avro; everything else says what is needed in its headers."""

    def __init__(self, app: Pipeline, topics: TopicMap) -> None:
        self._codec = app.codec
        self._topics = topics
        self.facts = Facts()

    def add(self, messages: Iterable[Message]) -> None:
        topics = self._topics
        for message in messages:
            topic = message.topic()
            if topic == topics.source:
                self.facts.source.append(_source(message))
            elif topic in topics.ledgers:
                self._ledger(topics.ledgers[topic], message)
            elif topic in topics.dead_letters:
                self._dead_letter(topics.dead_letters[topic], message)
            else:
                self._copy(*topics.tiers[topic], message)

    def _ledger(self, group: str, message: Message) -> None:
        entry = cast("Ledger", self._codec.decode(message.topic(), message.value(), headers_in(message)))
        place = (entry.origin_partition, entry.origin_offset)
        self.facts.ended[group].add(place)
        ending = EndingFact(*place, False, message.offset(), message.timestamp()[1], entry.worker)
        self.facts.groups[group].endings.append(ending)

    def _dead_letter(self, group: str, message: Message) -> None:
        headers = decode_headers(headers_in(message))
        place = (headers.origin_partition, headers.origin_offset)
        self.facts.ended[group].add(place)
        ending = EndingFact(
            *place, True, message.offset(), message.timestamp()[1], "", message.key(), hash(message.value())
        )
        self.facts.groups[group].endings.append(ending)
        self.facts.dead[group] += 1

    def _copy(self, group: str, tier: str, message: Message) -> None:
        headers = decode_headers(headers_in(message))
        copy = CopyFact(
            tier=tier,
            topic=message.topic(),
            partition=headers.origin_partition,
            place=message.offset(),
            origin=headers.origin_offset,
            hop=headers.hop,
            attempt=headers.attempt,
            at_ms=message.timestamp()[1],
            key=message.key(),
            digest=hash(message.value()),
        )
        self.facts.groups[group].copies.append(copy)
        self.facts.copies[group, tier] += 1


def _source(message: Message) -> SourceFact:
    return SourceFact(
        message.partition(),
        message.offset(),
        message.key(),
        event_id_of(headers_in(message)) or "",
        hash(message.value()),
        message.timestamp()[1],
    )


class Tail:
    """Follows all topics from their beginning, for the screen and for knowing when to act. `poll` never waits long."""

    def __init__(self, app: Pipeline, topics: TopicMap) -> None:
        self._collector = Collector(app, topics)
        self._reader: PartitionReader = app.cluster.reader("demo-tail")
        self._reader.assign(dict.fromkeys(topics.places(), 0))

    @property
    def facts(self) -> Facts:
        return self._collector.facts

    def poll(self, timeout_s: float) -> None:
        self._collector.add(self._reader.poll(POLL_RECORDS, timeout_s))

    def close(self) -> None:
        self._reader.close()


def read_back(app: Pipeline, topics: TopicMap, deadline_s: float) -> Facts:
    """All topics from beginning to end, read anew. Source facts are in offset order per partition.

    Raises `ClusterUnavailable` when the ends are not reached in time: half a reading would look like lost records.
    """
    collector = Collector(app, topics)
    ends = app.cluster.admin().end_offsets(topics.places())
    left = {place: end for place, end in ends.items() if end}
    reader = app.cluster.reader("demo-read-back")
    try:
        reader.assign(dict.fromkeys(left, 0))
        until = time.monotonic() + deadline_s
        while left:
            messages = reader.poll(POLL_RECORDS, POLL_S)
            collector.add(messages)
            for message in messages:
                place = TopicPartition(message.topic(), message.partition())
                if message.offset() + 1 >= ends[place]:
                    left.pop(place, None)
            if time.monotonic() > until:
                raise ClusterUnavailable(f"{next(iter(left)).topic} could not be read back within {deadline_s:g} s.")
    finally:
        reader.close()
    for group in GROUPS:
        collector.facts.groups[group].unsettled = unsettled(app, topics, group)
    return collector.facts


def progress_of(app: Pipeline, group: str, places: Sequence[TopicPartition]) -> dict[tuple[str, int], Progress]:
    """What the group has committed there."""
    positions = committed(app.cluster, app.group_name(group), places)
    return {place: decode(position.offset, position.metadata) for place, position in positions.items()}


def unsettled(app: Pipeline, topics: TopicMap, group: str) -> int:
    """Offsets of the source and the tiers that no commit of the group covers."""
    places = topics.lanes(group)
    ends, progress = app.cluster.admin().end_offsets(places), progress_of(app, group, places)
    return sum(unsettled_count(progress.get(place), 0, ends[place]) for place in places)
