"""Reading from the simulated logs: positions, pauses, faults, and turns, so that no partition starves another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.memory.log import MemoryMessage
from pipeline.model.cluster import FetchFault, TopicPartition
from pipeline.model.errors import ClusterError

if TYPE_CHECKING:
    from pipeline.memory.cluster import MemoryCluster


class Fetcher:
    """The partitions of one client and the next offset to read of each. The cluster's lock is held by the caller."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._stopped: set[TopicPartition] = set()  # after a fault, until sought
        self.positions: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()

    def set(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset
        self._stopped.discard(partition)

    def drop(self, partition: TopicPartition) -> None:
        self.positions.pop(partition, None)
        self._stopped.discard(partition)
        self.paused.discard(partition)

    def ready(self) -> bool:
        """Is there anything to read or to report now?"""
        return any(self._has_more(partition) for partition in self.positions)

    def _has_more(self, partition: TopicPartition) -> bool:
        position = self.positions[partition]
        try:
            log = self._cluster.log(partition)
        except ClusterError:
            log = None
        if log is not None and position == log.end:  # nearly always: asked of every partition at every poll
            return False
        if partition in self.paused or partition in self._stopped or partition in self._cluster.faults.unavailable:
            return False
        if log is None:
            return True
        return position > log.end or position < log.start or bool(log.read(position, 1))

    def ends(self) -> dict[TopicPartition, int]:
        """The ends of those partitions that have been read to them. One that is away or has a fault has none."""
        away = self._cluster.faults.unavailable | self._stopped | self.paused
        reached = (place for place in self.positions if place not in away and not self._has_more(place))
        return {place: self._cluster.log(place).stable for place in reached}

    def fetch(self, max_records: int) -> tuple[list[MemoryMessage], list[FetchFault]]:
        """Partitions take turns: the one read last goes to the back of the queue."""
        faults = self._cluster.faults
        left = max_records if faults.fetch_records is None else min(max_records, faults.drawn(faults.fetch_records))
        records: list[MemoryMessage] = []
        found: list[FetchFault] = []
        for partition in [tp for tp in self.positions if self._has_more(tp)]:
            if left <= 0:
                break
            batch, fault = self._read(partition, left)
            if fault is not None:
                found.append(fault)
            if batch:
                records += batch
                left -= len(batch)
                self.positions[partition] = batch[-1].offset() + 1
            self.positions[partition] = self.positions.pop(partition)
        return records, found

    def _read(self, partition: TopicPartition, limit: int) -> tuple[list[MemoryMessage], FetchFault | None]:
        position = self.positions[partition]
        try:
            log = self._cluster.log(partition)
        except ClusterError as error:
            self._stopped.add(partition)
            return [], FetchFault(partition, position, "unknown_topic", str(error))
        if not log.start <= position <= log.end:
            self._stopped.add(partition)
            text = f"offset {position} is outside {log.start}..{log.end}"
            return [], FetchFault(partition, position, "out_of_range", text)
        batch = log.read(position, limit)
        faults = self._cluster.faults
        bad = {offset: offset for topic, number, offset in faults.bad_batches if (topic, number) == partition}
        for topic, number, first, last in faults.bad_ranges:
            if (topic, number) == partition:
                bad |= dict.fromkeys(range(first, last + 1), first)
        for count, record in enumerate(batch if bad else ()):
            if record.offset() in bad:
                if count:
                    return batch[:count], None
                return [], FetchFault(partition, bad[record.offset()], "bad_batch", "the batch can't be decompressed")
        return batch, None
