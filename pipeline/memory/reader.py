"""Reading partitions of the simulated cluster without a group."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

from pipeline.memory.fetching import Fetcher
from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.errors import ClusterError

if TYPE_CHECKING:
    from pipeline.memory.cluster import MemoryCluster


class MemoryReader:
    """See `PartitionReader`."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._fetcher = Fetcher(cluster)
        self._fault: ClusterError | None = None
        self._closed = False
        self._ended: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        with self._cluster.changed:
            self._fetcher = Fetcher(self._cluster)
            for partition, offset in positions.items():
                self._fetcher.set(TopicPartition(*partition), offset)
            self._ended = {}

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        with self._cluster.changed:
            for partition in partitions:
                self._fetcher.drop(partition)
                self._ended.pop(partition, None)

    def ended(self) -> Mapping[TopicPartition, int]:
        return self._ended

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        if self._closed:
            raise ClusterError("the reader is closed: make a new one")
        self._cluster.tick()
        deadline = time.monotonic() + timeout_s
        with self._cluster.changed:
            if self._cluster.blocking:
                while (
                    not self._fetcher.ready() and not self._new_ends() and (left_s := deadline - time.monotonic()) > 0
                ):
                    self._cluster.changed.wait(left_s)
            if self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            records, faults = self._fetcher.fetch(max_records)
            self._ended |= self._new_ends()
        if faults:
            first = faults[0]
            where = f"{first.partition.topic}[{first.partition.partition}] at offset {first.offset}"
            self._fault = ClusterError(f"reading {where} failed: {first.text}")
            if not records:
                return self.poll(max_records, 0)
        return cast("list[Message]", records)

    def _new_ends(self) -> dict[TopicPartition, int]:
        """Ends that were not met before. The cluster's lock is held."""
        return {place: end for place, end in self._fetcher.ends().items() if self._ended.get(place) != end}

    def close(self) -> None:
        self._closed = True
