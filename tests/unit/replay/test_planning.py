"""How long a plan says it takes, what is told while it reads, and where it ends at a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.codec.container import ContainerWriter
from pipeline.inspect import scan
from pipeline.inspect.scan import read_to_end
from pipeline.memory.cluster import MemoryCluster, connect, forget
from pipeline.model.cluster import TopicPartition
from pipeline.replay.asking import Request
from pipeline.replay.plan import Selection
from pipeline.replay.planning import expected_s, make_plan

HERE = frozenset({"T"})


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[MemoryCluster]:
    """T has 100 events of the run "r" and of another, ten to a step."""
    address = f"memory://planning-{request.node.name}"
    found = connect(address)
    found.create("T", 1)
    producer = found.producer()
    for n in range(100):
        producer.send("T", b"other" if n % 4 else b"r", b'{"step": %d}' % (n // 10), partition=0)
    assert producer.flush(10.0) == 0
    yield found
    forget(address)


def test_how_long_it_takes_is_told_by_how_fast_its_own_records_were_read(cluster: MemoryCluster) -> None:
    """Reading takes two seconds here, by a clock of our own: that, and as long for each copy; the rate where that takes longer."""
    now_s = 0.0

    def reading(_done: int, _total: int) -> None:
        nonlocal now_s
        now_s += 2.0

    def expected(**asked: Any) -> float:
        request = Request("T", "ann", to_topic="T", allowed=HERE, **asked)
        found: float = (make_plan(cluster, request, None, 1, reading, lambda: now_s).preview or {})["expected_s"]
        return found

    assert expected() == 4.0
    assert expected(select=Selection(keys=(b"r",))) == 2.5, "a quarter of them is written"
    assert expected(rate=100.0) == 4.0
    assert expected(rate=5.0) == 20.0
    assert expected(limit=50) == 4.0, "what reading for the limit took is not in it"


@pytest.mark.parametrize(("limit", "end"), [(1, 1), (2, 5), (24, 93), (25, 97), (26, 97), (1_000, 97)])
def test_a_limit_holds_also_where_all_that_is_chosen_lies_in_one_partition(
    cluster: MemoryCluster, limit: int, end: int
) -> None:
    request = Request("T", "ann", to_topic="T", allowed=HERE, select=Selection(keys=(b"r",)), limit=limit)
    plan = make_plan(cluster, request, None, 1)
    assert (plan.preview or {})["selected"] == min(limit, 25)
    if limit < 25:
        assert plan.source.spans[0].end == end


def test_nothing_to_read_takes_no_time() -> None:
    assert expected_s(0.0, 0, 0, 0.0) == 0.0
    assert expected_s(0.0, 0, 0, 100.0) == 0.0


def test_reading_for_a_step_is_told_as_the_rest_is(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "POLL_RECORDS", 25)
    told: list[tuple[int, int]] = []
    request = Request("T", "ann", to_topic="T", allowed=HERE, select=Selection(keys=(b"r",)), to_step=4)
    plan = make_plan(cluster, request, None, 1, lambda done, total: told.append((done, total)))
    assert plan.source.spans[0].end == 52, "before its first event of step 5; those of others do not count"
    assert told == [(25, 100), (50, 100), (75, 100), (100, 100), (25, 52), (50, 52), (52, 52)]


def test_a_file_ends_at_a_step_too(cluster: MemoryCluster, tmp_path: Path) -> None:
    path = tmp_path / "kept.avro"
    with ContainerWriter(path) as writer:
        writer.add(read_to_end(cluster, {TopicPartition("T", 0): 0}, {TopicPartition("T", 0): 100}))
    select = Selection(keys=(b"r",))
    request = Request(str(path), "ann", to_topic="T", allowed=HERE, kind="file", select=select, to_step=4)
    plan = make_plan(cluster, request, None, 1)
    assert plan.source.spans[0].end == 52
    assert (plan.preview or {})["selected"] == 13
