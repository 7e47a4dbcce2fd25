"""Scans and time: no pause of the brokers ends one early, and none lasts longer than its deadlines."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.inspect.scan import read_batches, read_to_end
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import Message, TopicPartition, TopicSpec
from pipeline.model.errors import ClusterUnavailable

PLACE = TopicPartition("t", 0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Slow:
    """A cluster whose reader lets time pass before each poll: `waits` in turn, then the last one for ever."""

    def __init__(self, cluster: MemoryCluster, clock: Clock, *waits: float) -> None:
        self._cluster, self._clock, self._waits = cluster, clock, list(waits)
        self.closed = False

    def reader(self, client_id: str) -> Slow:
        self._reader = self._cluster.reader(client_id)
        return self

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._reader.assign(positions)

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        wait_s = self._waits.pop(0) if len(self._waits) > 1 else self._waits[0]
        self._clock.now_s += wait_s
        return self._reader.poll(3, 0) if wait_s < 5 else []

    def ended(self) -> Mapping[TopicPartition, int]:
        return self._reader.ended()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def cluster() -> MemoryCluster:
    made = MemoryCluster(f"scan-{uuid.uuid4().hex}")
    made.admin().create_topics([TopicSpec("t", 1)])
    producer = made.producer()
    for number in range(9):
        producer.send("t", None, b"%d" % number, partition=0)
    assert producer.flush(5.0) == 0
    return made


def offsets(cluster: Any, clock: Clock, **limits: Any) -> list[int]:
    return [m.offset() for m in read_to_end(cluster, {PLACE: 0}, {PLACE: 9}, monotonic=clock, **limits)]


def test_brokers_that_pause_do_not_shorten_a_scan(cluster: MemoryCluster) -> None:
    clock = Clock()
    slow = Slow(cluster, clock, 0.1, 10.0, 10.0, 0.1, 25.0, 0.1)  # the idle time of old was 3 s
    assert offsets(slow, clock, deadline_s=None) == list(range(9))
    assert slow.closed


def test_a_scan_that_stands_still_says_so(cluster: MemoryCluster) -> None:
    clock = Clock()
    slow = Slow(cluster, clock, 0.1, 10.0)
    seen: list[int] = []
    with pytest.raises(ClusterUnavailable, match=r"t\[0\] stood still for 30 s"):
        seen.extend(m.offset() for m in read_to_end(slow, {PLACE: 0}, {PLACE: 9}, None, clock))  # type: ignore[arg-type]
    assert seen == [0, 1, 2]
    assert slow.closed
    assert clock.now_s == pytest.approx(140.1)


def test_a_scan_ends_with_an_error_at_its_deadline_though_records_still_come(cluster: MemoryCluster) -> None:
    clock = Clock()
    with pytest.raises(ClusterUnavailable, match="took longer than 3 s"):
        offsets(Slow(cluster, clock, 2.0), clock, deadline_s=3.0)


def test_the_callers_own_time_is_no_standstill(cluster: MemoryCluster) -> None:
    clock = Clock()
    slow = Slow(cluster, clock, 0.1, 10.0, 0.1, 10.0, 0.1)  # after each batch a poll that brings nothing
    found = []
    for batch in read_batches(slow, {PLACE: 0}, {PLACE: 9}, None, clock):  # type: ignore[arg-type]
        found += [m.offset() for m in batch]
        clock.now_s += 1_000.0
    assert found == list(range(9))


def test_a_partition_that_is_away_is_not_at_its_end(cluster: MemoryCluster) -> None:
    cluster.faults.unavailable.add(PLACE)
    clock = Clock()
    with pytest.raises(ClusterUnavailable, match="stood still"):
        offsets(Slow(cluster, clock, 4.0), clock)
    cluster.faults.unavailable.clear()
    assert offsets(Slow(cluster, clock, 4.0), clock) == list(range(9))


def test_a_caller_that_stops_early_closes_the_reader(cluster: MemoryCluster) -> None:
    slow = Slow(cluster, Clock(), 0.1)
    reading = read_batches(slow, {PLACE: 0}, {PLACE: 9})  # type: ignore[arg-type]
    assert len(next(reading)) == 3
    reading.close()
    assert slow.closed
