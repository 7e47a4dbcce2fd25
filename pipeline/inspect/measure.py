"""Reads the facts about a group that `lag` reports on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.core.progress import decode
from pipeline.inspect.lag import GroupFacts
from pipeline.inspect.positions import committed, of_these_topics
from pipeline.inspect.records import is_settled, lane_record
from pipeline.inspect.scan import TAIL, ends_of_records, read_to_end
from pipeline.model.cluster import Cluster, Message, TopicPartition
from pipeline.topology.naming import Layout

LANE_RECORDS_MAX = 500_000
"""Beyond so many waiting records the keys are not counted: reading them all would take too long for a command."""


def measure(cluster: Cluster, entry: Layout, read_lanes: bool = True) -> GroupFacts:
    """All facts; with `read_lanes` the waiting lane records are read to count parked keys, and one record per partition for its age."""
    topics = entry.topics
    admin = cluster.admin()
    try:
        specs = admin.topics([topics.source, *topics.lanes, topics.dead_letters])
        places = [TopicPartition(name, p) for name, spec in specs.items() for p in range(spec.partitions)]
        state = admin.describe_group(entry.group).state  # first: who may not see the group is told so at once
        positions = committed(cluster, entry.group, places)
        beginnings, ends = admin.beginning_offsets(places), admin.end_offsets(places)
    finally:
        admin.close()
    progress = {place: decode(position.offset, position.metadata) for place, position in positions.items()}
    known = of_these_topics(progress, ends)
    progress = {place: found for place, found in progress.items() if place in known or place.topic == topics.source}
    starts = {place: max(beginnings[place], known[place].offset if place in known else 0) for place in places}
    waiting = sum(ends[p] - starts[p] for p in places if p.topic in topics.lanes)
    parked: Mapping[TopicPartition, int] = {}
    oldest: dict[TopicPartition, int] = {}
    if read_lanes and waiting <= LANE_RECORDS_MAX:
        lanes = {place: starts[place] for place in places if place.topic in topics.lanes}
        keys: dict[TopicPartition, set[bytes | None]] = {}
        for message in read_to_end(cluster, lanes, ends, stop_at_open=True):
            place = TopicPartition(message.topic(), message.partition())
            if not is_settled(progress.get(place), message.offset()):
                keys.setdefault(place, set()).add(message.key())
                oldest.setdefault(place, _age_of(message))
        parked = {place: len(found) for place, found in keys.items()}
    if read_lanes:
        heads = {place: starts[place] for place in places if place.topic not in topics.lanes}
        oldest |= _first_timestamps(cluster, heads, ends)
    reach = {place: start for place, start in starts.items() if place.topic != topics.dead_letters}
    readable = ends_of_records(cluster, reach, ends) if read_lanes else {}
    return GroupFacts(entry, state, specs, progress, beginnings, ends, parked, oldest, readable)


def _age_of(message: Message) -> int:
    """Since when a lane record waits: its first failure, or when it was written to the lane."""
    delivery = lane_record(message).delivery
    return delivery.first_failed_ms if delivery and delivery.first_failed_ms else message.timestamp()[1]


def _first_timestamps(
    cluster: Cluster, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> Iterable[tuple[TopicPartition, int]]:
    few = {
        place: min(ends[place], start + TAIL) for place, start in starts.items()
    }  # the first offsets may hold no record
    first: dict[TopicPartition, int] = {}
    for message in read_to_end(cluster, starts, few, deadline_s=20.0, stop_at_open=True):
        first.setdefault(TopicPartition(message.topic(), message.partition()), message.timestamp()[1])
    return first.items()
