"""Records that are sent last, in the plan's order: keys whose dead letters lie in another order than their origins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.inspect.scan import read_batches
from pipeline.model.cluster import Cluster, Message, TopicPartition

CHUNK = 10_000
"""So many are held in memory at once; each chunk is one more reading of the span."""


class LastOnes:
    """Reads one chunk of a partition's last records, a batch per `ready`, so that the caller goes on polling; then gives them out."""

    def __init__(self, cluster: Cluster, place: TopicPartition, offsets: Sequence[int]) -> None:
        self._offsets = offsets[:CHUNK]
        self._given = 0
        self._wanted = frozenset(self._offsets)
        self._found: dict[int, Message] = {}
        start, end = min(self._offsets), max(self._offsets) + 1
        self._batches: Iterator[list[Message]] = read_batches(cluster, {place: start}, {place: end}, None)

    def ready(self) -> bool:
        """All were read that are still there."""
        batch = next(self._batches, None)
        if batch is not None:
            self._found |= {m.offset(): m for m in batch if m.offset() in self._wanted}
        return batch is None

    def take(self, most: int) -> tuple[int, list[Message]]:
        """The next of them in the plan's order: how many, and those that are still there."""
        offsets = self._offsets[self._given : self._given + most]
        self._given += len(offsets)
        return len(offsets), [self._found.pop(offset) for offset in offsets if offset in self._found]

    @property
    def through(self) -> bool:
        return self._given >= len(self._offsets)
