"""Files that replays write: one writer at a time, nothing written over, the plan's rate, and one run of a plan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from pipeline.codec.container import ContainerWriter, StoredRecord, read_container
from pipeline.inspect import scan
from pipeline.inspect.control import write_switch
from pipeline.memory.cluster import MemoryCluster, connect, forget
from pipeline.model.control import Replay
from pipeline.model.errors import ConfigurationError
from pipeline.replay.asking import Request
from pipeline.replay.plan import ReplayPlan, Selection, Source, Span, Target
from pipeline.replay.planning import check_request, make_plan
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from tests.unit.replay.test_copying import Record

RECORDS = [Record(n, b"k", b"v%d" % n, None, 5) for n in range(3)]
TOPICS = {"T": 1, "_pipeline.audit": 1, "_pipeline.control": 1, "_pipeline.replay.results": 2}


def stored(path: Path) -> list[bytes | None]:
    return [record.value() for record in read_container(path, StoredRecord)]


# -- the file


def test_a_file_has_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "kept.avro"
    with ContainerWriter(path) as first:
        first.add(RECORDS[:1])
        with pytest.raises(ConfigurationError, match=r"kept\.avro\.part is being written by another process"):
            ContainerWriter(path)
        first.add(RECORDS[1:])
    assert stored(path) == [b"v0", b"v1", b"v2"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "kept.avro"
    path.with_name("kept.avro.part").write_bytes(b"half a file" * 1_000)
    with ContainerWriter(path) as writer:
        writer.add(RECORDS)
    assert stored(path) == [b"v0", b"v1", b"v2"]


def test_a_writer_that_fails_leaves_no_part_and_the_next_one_may(tmp_path: Path) -> None:
    path = tmp_path / "kept.avro"
    with pytest.raises(RuntimeError), ContainerWriter(path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with ContainerWriter(path) as writer:
        writer.add(RECORDS)
    assert len(stored(path)) == 3


def test_a_part_that_was_put_in_its_place_while_it_was_opened_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second opens the part of the first, which is through before the second has locked it."""
    from pipeline.codec import container

    path, lock = tmp_path / "kept.avro", container.fcntl.flock
    first = ContainerWriter(path).__enter__()
    first.add(RECORDS)

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr(container.fcntl, "flock", lock)
        first.__exit__(None, None, None)
        lock(file, how)

    monkeypatch.setattr(container.fcntl, "flock", late)
    second = ContainerWriter(path)
    assert len(stored(path)) == 3
    second.__exit__(RuntimeError, RuntimeError(), None)
    assert len(stored(path)) == 3


# -- a run


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[MemoryCluster]:
    address = f"memory://files-{request.node.name}"
    found = connect(address)
    for topic, partitions in TOPICS.items():
        found.create(topic, partitions)
    producer = found.producer()
    for n in range(300):
        producer.send("T", b"k%d" % n, b'{"n": %d}' % n, partition=0)
    assert producer.flush(10.0) == 0
    yield found
    forget(address)


def planned(cluster: MemoryCluster, path: Path, **asked: Any) -> ReplayPlan:
    return make_plan(cluster, Request("T", "ann", to_file=str(path), **asked), None, 1)


def run(cluster: MemoryCluster, plan: ReplayPlan, **chosen: Any) -> Any:
    surroundings = Surroundings(cluster)
    return run_plan(surroundings, plan, Reason("ann", "a test"), run_options(surroundings, plan, "ann", **chosen))


def test_a_second_run_to_a_file_is_refused_while_the_first_writes(cluster: MemoryCluster, tmp_path: Path) -> None:
    path, writing, go_on = tmp_path / "kept.avro", Event(), Event()
    plan, tallies = planned(cluster, path), list[Any]()

    def hold(_stage: str) -> None:
        if _stage == "sent":
            writing.set()
            assert go_on.wait(20)

    first = Thread(target=lambda: tallies.append(run(cluster, plan, stage=hold)))
    first.start()
    try:
        assert writing.wait(20)
        with pytest.raises(ConfigurationError, match=r"is being run by pipeline-replay on .*: wait until that ends"):
            run(cluster, plan)
        with pytest.raises(ConfigurationError, match="is being written by another process"):
            run(cluster, planned(cluster, path))
    finally:
        go_on.set()
        first.join(20)
    assert tallies[0].state == "finished"
    assert len(stored(path)) == 300
    assert run(cluster, plan).state == "finished", "it is through: there is nothing to do"
    with pytest.raises(ConfigurationError, match="is there already: move or delete it first"):
        planned(cluster, path)


def test_a_file_that_came_up_since_the_plan_was_made_is_not_written_over(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    from pipeline.replay.audit import read_audit

    path = tmp_path / "kept.avro"
    plan = planned(cluster, path)
    path.write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="is there already"):
        run(cluster, plan)
    assert path.read_bytes() == b"precious"
    assert list(read_audit(cluster, "_pipeline.audit")) == []


def test_the_rate_of_a_plan_holds_for_a_file_too(
    cluster: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "POLL_RECORDS", 50)
    plan = planned(cluster, tmp_path / "kept.avro", rate=300.0)
    began = time.monotonic()
    assert run(cluster, plan).counts == {"written": 300}
    assert time.monotonic() - began > 0.6, "250 records go before the last 50"


@pytest.mark.parametrize("kind", ["to", "from"])
def test_nobody_joins_a_plan_about_a_file(cluster: MemoryCluster, tmp_path: Path, kind: str) -> None:
    source, target = Source("topic", "T", 1, {0: Span(0, 9)}), Target("file", file=str(tmp_path / "kept.avro"))
    if kind == "from":
        source, target = Source("file", str(tmp_path / "old.avro"), 1, {0: Span(0, 9)}), Target("topic", "", {"": "T"})
    plan = ReplayPlan("rp-1", 5, "ann", source, Selection(), target)
    with pytest.raises(ConfigurationError, match=r"avro, which one process alone .*: leave out --processes and --join"):
        run(cluster, plan, join=True)


class Late:
    """A reader that a broker answers after two polls, as a real one does."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._empty = inner, 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def poll(self, records: int, timeout_s: float) -> Any:
        if self._empty:
            self._empty -= 1
            return []
        return self._inner.poll(records, timeout_s)

    def ended(self) -> Any:
        return {} if self._empty else self._inner.ended()


@pytest.mark.parametrize("way", ["to", "from"])
def test_a_plan_that_was_paused_before_waits_with_its_first_record(
    cluster: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    reader = cluster.reader
    monkeypatch.setattr(
        cluster, "reader", lambda name: Late(reader(name)) if name == "pipeline-replay" else reader(name)
    )
    plan = planned(cluster, tmp_path / "kept.avro")
    if way == "from":
        run(cluster, plan)
        asked = Request(plan.target.file, "ann", to_topic="T", allowed=frozenset({"T"}), kind="file")
        plan = make_plan(cluster, asked, None, 1)
    paused, seen = Replay(plan.plan_id, "paused"), list[Any]()
    write_switch(cluster, "_pipeline.control", paused, True)

    def progress(tally: Any) -> None:
        seen.append((tally.state, tally.done))
        if len(seen) == 3:
            write_switch(cluster, "_pipeline.control", paused, False)

    assert run(cluster, plan, progress=progress).done == 300
    assert seen[:3] == [("paused", 0)] * 3


# -- what is asked wrongly


def test_one_plan_has_one_target(tmp_path: Path) -> None:
    for asked, said in (
        ({"group": "g", "to_topic": "T"}, "--group and --to-topic exclude each other"),
        ({"group": "g", "to_file": str(tmp_path / "f")}, "--group and --to-file exclude each other"),
        ({"kind": "file", "to_file": str(tmp_path / "f")}, "--from-file and --to-file exclude each other"),
        ({"to_file": str(tmp_path / "no" / "f")}, "there is no directory"),
        ({"to_file": str(tmp_path)}, "is there already"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            check_request(Request("T", "ann", **asked))  # type: ignore[arg-type]
