"""Gathers from the cluster what `explain` decides on: committed offsets, lane records, members, switches."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.progress import Progress, decode
from pipeline.inspect.control import read_switches
from pipeline.inspect.explain import Explanation, PartitionView, explain, unresolved
from pipeline.inspect.positions import committed, of_these_topics
from pipeline.inspect.records import LaneRecord, SourceRecord, lane_record, source_record, without_diagnostics
from pipeline.inspect.scan import read_batches, read_to_end
from pipeline.model.cluster import Cluster, ClusterAdmin, GroupMember, Message, TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.model.keys import typed_keys
from pipeline.model.partitioner import partition_of
from pipeline.topology.naming import Layout, discover

SCAN_RECORDS = 200_000

_Wanted = Callable[[bytes | None, str | None], bool]
_NONE: Mapping[int, Any] = {}


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back tools look: source and dead-letter records in all. Lanes are read in full, however long that takes: only a reading
    that stands still ends."""

    records: int = SCAN_RECORDS


def find_layouts(admin: ClusterAdmin, group: str | None = None, dead_letters: str | None = None) -> tuple[Layout, ...]:
    """Layouts of one group, or of every group on the cluster, by topic names. `dead_letters`: their topic, if not the default.

    Raises `ConfigurationError` when the named group has no lanes here, or the topic does not exist.
    """
    names = admin.topic_names()
    groups = admin.groups() if group is None else [group]
    found = tuple(entry for name in groups for entry in discover(name, names))
    if group is not None and not found:
        raise ConfigurationError(
            f"group {group!r} has no lanes on this cluster that you may see: check the name with `pipeline groups list`, "
            "run `pipeline topics apply`, or grant Describe"
        )
    if dead_letters is None:
        return found
    if dead_letters not in names:
        raise ConfigurationError(
            f"topic {dead_letters!r} does not exist: --dead-letters is the name that dead_letter_topic has in subscribe"
        )
    return tuple(entry.with_dead_letters(dead_letters) for entry in found)


class Collector:
    """Reads one group. Close it when done."""

    def __init__(self, cluster: Cluster, entry: Layout, control_topic: str) -> None:
        self.cluster = cluster
        self.entry = entry
        self.admin = cluster.admin()
        self._paused = read_switches(cluster, control_topic).paused(entry.group)

    def close(self) -> None:
        self.admin.close()

    def progress(self, places: Collection[TopicPartition]) -> dict[TopicPartition, Progress]:
        positions = committed(self.cluster, self.entry.group, places)
        return {place: decode(position.offset, position.metadata) for place, position in positions.items()}

    def owners(self) -> dict[int, GroupMember]:
        """Partition of the source -> the member that has it."""
        members = self.admin.describe_group(self.entry.group).members
        source = self.entry.topics.source
        return {place.partition: member for member in members for place in member.partitions if place.topic == source}

    def paused_by(self) -> str | None:
        """Who paused the group, and why; None when nobody did."""
        switch = self._paused
        return None if switch is None else f"{switch.who}: {switch.why}".strip(": ") or "an operator"

    def partitions(self) -> int:
        spec = self.admin.topics([self.entry.topics.source]).get(self.entry.topics.source)
        if spec is None:
            raise ConfigurationError(f"topic {self.entry.topics.source} does not exist")
        return spec.partitions

    def views(self, partitions: Collection[int], wanted: _Wanted, reach: Reach) -> list[PartitionView]:
        """One view per partition: all lane records, source records and dead letters that are `wanted`; none with its stack or history."""
        topics = self.entry.topics
        progress, starts, ends = self._found((topics.source, *topics.lanes, topics.dead_letters), partitions)
        far = max(1, reach.records // max(1, len(partitions)))
        for place in starts:
            if place.topic not in topics.lanes:
                starts[place] = max(starts[place], ends[place] - far)
        lanes: dict[int, list[LaneRecord]] = defaultdict(list)
        dead: dict[int, list[LaneRecord]] = defaultdict(list)
        source: dict[int, list[SourceRecord]] = defaultdict(list)
        for message in read_to_end(self.cluster, starts, ends, None, stop_at_open=True):
            if message.topic() == topics.source:
                record = source_record(message)
                if wanted(record.key, record.event_id):
                    source[record.partition].append(record)
                continue
            copy = without_diagnostics(lane_record(message))
            if copy.topic != topics.dead_letters:
                lanes[copy.partition].append(copy)
            elif self._is_ours(copy) and wanted(copy.key, copy.event_id):
                dead[copy.partition].append(copy)
        return self._views(partitions, progress, lanes, dead, source)

    def copies(
        self, lanes: Sequence[str], partitions: Collection[int], wanted: Callable[[Message], bool],
        read: dict[TopicPartition, int] | None = None,
    ) -> list[PartitionView]:  # fmt: skip
        """One view per partition with the copies in these lanes that are `wanted`, and nothing else, however many wait there.
        `read`: the offsets that an earlier call has read up to; brought forward."""
        read = {} if read is None else read
        progress, starts, ends = self._found((self.entry.topics.source, *lanes), partitions)
        starts = {place: max(start, read.get(place, 0)) for place, start in starts.items() if place.topic in lanes}
        reached: dict[TopicPartition, int] = {}
        found: dict[int, list[LaneRecord]] = defaultdict(list)
        for messages in read_batches(self.cluster, starts, ends, None, stop_at_open=True):
            for message in messages:
                reached[TopicPartition(message.topic(), message.partition())] = message.offset() + 1
                if wanted(message):
                    found[message.partition()].append(without_diagnostics(lane_record(message)))
        read |= reached
        return self._views(partitions, progress, found)

    def _found(
        self, names: Sequence[str], partitions: Collection[int]
    ) -> tuple[dict[TopicPartition, Progress], dict[TopicPartition, int], dict[TopicPartition, int]]:
        """(what is committed, where to read from, the ends) of these partitions of these topics; lanes from what is committed on."""
        specs = self.admin.topics(list(names))
        places = [TopicPartition(name, p) for name, spec in specs.items() for p in partitions if p < spec.partitions]
        found = self.progress(places)
        ends = self.admin.end_offsets(places)
        progress = of_these_topics(found, ends)
        starts = self.admin.beginning_offsets(places)
        for place in places:
            if place.topic in self.entry.topics.lanes and place in progress:
                starts[place] = max(starts[place], progress[place].offset)
        return progress, starts, ends

    def _views(
        self, partitions: Collection[int], progress: Mapping[TopicPartition, Progress],
        lanes: Mapping[int, Sequence[LaneRecord]], dead: Mapping[int, Sequence[LaneRecord]] = _NONE,
        source: Mapping[int, Sequence[SourceRecord]] = _NONE,
    ) -> list[PartitionView]:  # fmt: skip
        owners = self.owners()
        paused = self.paused_by()
        return [
            PartitionView(
                self.entry.group,
                self.entry.topics,
                p,
                {place.topic: known for place, known in progress.items() if place.partition == p},
                lanes.get(p, ()),
                dead.get(p, ()),
                source.get(p, ()),
                owners.get(p),
                paused,
            )
            for p in sorted(partitions)
        ]

    def _is_ours(self, copy: LaneRecord) -> bool:
        """A dead-letter topic may be shared by groups."""
        return copy.delivery is None or (copy.delivery.group, copy.delivery.origin_topic) == (
            self.entry.group,
            self.entry.topics.source,
        )


def look_up(collector: Collector, what: str, reach: Reach, now_ms: int | None = None) -> list[Explanation]:
    """Everything known of a key or an event id in this group: lowest origin first. Empty when it was found nowhere.

    Where the text is a key the partition is known; only when nothing is there all partitions are searched.
    """
    keys = typed_keys(what)

    def wanted(key: bytes | None, event_id: str | None) -> bool:
        return key in keys or event_id == what

    count = collector.partitions()
    likely = {partition_of(key, count) for key in keys}
    for partitions in (tuple(likely), tuple(p for p in range(count) if p not in likely)):
        found = [
            explanation
            for view in (collector.views(partitions, wanted, reach) if partitions else ())
            for explanation in explain(
                view, _identities(view, wanted), int(time.time() * 1000) if now_ms is None else now_ms
            )
        ]
        if found:
            return found
    return []


def _identities(view: PartitionView, wanted: _Wanted) -> Iterable[tuple[int, str]]:
    yield from ((record.offset, "") for record in view.source)
    for copy in (*unresolved(view).values(), *view.dead):
        if wanted(copy.key, copy.event_id):
            yield copy.identity
