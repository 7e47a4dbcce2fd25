"""Reads whole partitions without a group, up to their ends as they were at the start: for tools, never for workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from pipeline.model.cluster import Cluster, Message, TopicPartition
from pipeline.model.errors import ClusterUnavailable

POLL_RECORDS = 2_000
POLL_S = 0.25
IDLE_S = 3.0
"""Transaction markers and compaction leave offsets that never come: a partition is read to its end when nothing came for so long."""


def read_to_end(
    cluster: Cluster,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    deadline_s: float = 60.0,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Message]:
    """Records of each partition from its start to before its end, in offset order per partition.

    Raises `ClusterUnavailable` when the ends are not reached by the deadline while records still come.
    """
    left = {place: start for place, start in starts.items() if start < ends.get(place, 0)}
    if not left:
        return
    reader = cluster.reader("pipeline-inspect")
    try:
        reader.assign(left)
        until, heard = monotonic() + deadline_s, monotonic()
        while left:
            messages = reader.poll(POLL_RECORDS, POLL_S)
            now = monotonic()
            if messages:
                heard = now
            elif now - heard > IDLE_S:
                return
            if now > until:
                raise ClusterUnavailable(
                    f"reading {next(iter(left)).topic} took longer than {deadline_s:g} s: try again, or ask for less"
                )
            for message in messages:
                place = TopicPartition(message.topic(), message.partition())
                end = ends[place]
                if message.offset() < end:
                    yield message
                if message.offset() + 1 >= end:
                    left.pop(place, None)
    finally:
        reader.close()
