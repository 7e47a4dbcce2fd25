"""Reads dead letters themselves, by position: the index has their headers' facts, never key bytes, values or stacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

from pipeline.dead_letters.states import id_of, position_of
from pipeline.inspect.scan import TAIL_S, read_batches, read_to_end
from pipeline.model.cluster import Cluster, Message, TopicPartition
from pipeline.model.headers import headers_in

GAP_RECORDS = 1_000
"""So many records between two that are wanted are read and passed over: a new start costs more."""
NEWEST = 100
"""So many offsets at the end of each partition tell what a topic has: with transactions every second one may be a marker."""
_LETTERS = {"pl.group", "pl.origin.topic"}
"""A worker spells these out in a dead letter only: copies in lanes, and those that a replay writes to a topic, have them packed."""


def fetch(
    cluster: Cluster, topic: str, numbers: Collection[int], progress: Callable[[int], None] | None = None
) -> Iterator[Message]:
    """The records at these positions, in offset order per partition; those that are deleted by now are left out.

    `progress` hears how many were read. Raises `ClusterUnavailable` when the brokers stop answering.
    """
    if not numbers:
        return
    wanted: dict[int, list[int]] = defaultdict(list)
    for number in sorted(set(numbers)):
        partition, offset = position_of(number)
        wanted[partition].append(offset)
    places = [TopicPartition(topic, partition) for partition in wanted]
    admin = cluster.admin()
    try:
        beginnings = admin.beginning_offsets(places)
    finally:
        admin.close()
    spans = {
        place: _spans([offset for offset in wanted[place.partition] if offset >= beginnings[place]]) for place in places
    }
    chosen, read = frozenset(numbers), 0
    while any(spans.values()):
        now = {place: left.pop(0) for place, left in spans.items() if left}
        starts = {place: span[0] for place, span in now.items()}
        ends = {place: span[1] for place, span in now.items()}
        for batch in read_batches(cluster, starts, ends, None, stop_at_open=True):
            for message in batch:
                if id_of(message.partition(), message.offset()) in chosen:
                    read += 1
                    yield message
            if progress is not None:
                progress(read)


def ends_with_letters(cluster: Cluster, topic: str) -> bool:
    """Whether a worker wrote one of the newest records as a dead letter. Raises `ClusterUnavailable`."""
    admin = cluster.admin()
    try:
        spec = admin.topics([topic]).get(topic)
        places = [TopicPartition(topic, p) for p in range(spec.partitions)] if spec is not None else []
        beginnings, ends = admin.beginning_offsets(places), admin.end_offsets(places)
    finally:
        admin.close()
    starts = {place: max(beginnings[place], ends[place] - NEWEST) for place in places}
    newest = read_to_end(cluster, starts, ends, TAIL_S, stop_at_open=True)
    return any(dict(headers_in(message) or ()).keys() >= _LETTERS for message in newest)


def _spans(offsets: list[int]) -> list[tuple[int, int]]:
    """[start, end) of stretches that hold the offsets, with small gaps read through."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and offset - found[-1][1] <= GAP_RECORDS:
            found[-1] = (found[-1][0], offset + 1)
        else:
            found.append((offset, offset + 1))
    return found
