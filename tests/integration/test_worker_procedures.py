"""What the guide says to do when something changes, step by step on real Kafka and with keys parked: other attempts, more partitions,
a restart under the same instance id."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.headers import decode
from tests.integration.harness import GROUP, Scene, make_app, verdict
from tests.integration.test_worker_deploy import behind
from tests.patience import PATIENCE

pytestmark = [pytest.mark.first, pytest.mark.timeout(180)]
HEADS = 12
FINISHED = {"lag": 0, "waiting": 0}


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path, partitions=4) as scene:
        yield scene


def publish(scene: Scene, head: dict[str, Any]) -> set[tuple[int, int]]:
    """A head for each key, and three records behind each; the heads' origins."""
    heads = scene.publish_many([(f"k{n}", head) for n in range(HEADS)])
    scene.publish_many([(f"k{n % HEADS}", {}) for n in range(3 * HEADS)])
    return set(heads)


def failed(scene: Scene, heads: set[tuple[int, int]], attempt: int) -> bool:
    marks = scene.ledger.marks("fail")
    return {(m.partition, m.offset) for m in marks if m.attempt == attempt} >= heads


def check(scene: Scene, dead: set[tuple[int, int]] | None = None, tier_s: float = 0.0) -> None:
    """All of what was published so far has one ending, in order, and no attempt was begun twice."""
    ended = len(scene.published) - len(dead or ())
    scene.until("all have their ending", lambda: len(set(scene.ledger.done())) == ended, 60)
    scene.until("all are committed", scene.settled)
    marks = scene.ledger.marks()
    verdict(marks, scene.published, dead or (), tier_s).check()
    attempts = Counter((m.partition, m.offset, m.attempt) for m in marks if m.what == "start")
    assert max(attempts.values()) == 1, "an attempt was begun twice"


def test_records_that_wait_over_a_change_of_attempts_go_on_from_what_was_tried(scene: Scene) -> None:
    """docs/guide/changing-topology.md, "Attempts, back-off, timeouts": nothing is drained."""
    many, few = (scene.spec(tiers=("1s", "3s"), attempts=attempts) for attempts in (9, 2))
    scene.make_topics(make_app(many))
    old = scene.start_and_wait(many)
    heads = publish(scene, {"fails": 5})
    scene.until("each was tried twice", lambda: failed(scene, heads, 2))
    assert old.stop() == 0
    fewer = scene.start_and_wait(few)
    scene.until("they are given up", lambda: len(scene.dead()) >= HEADS, 40)
    check(scene, heads, 1.0)
    tried = {(d.origin_partition, d.origin_offset): d.attempt for d in (decode(m.headers()) for m in scene.dead())}
    assert tried == dict.fromkeys(heads, 3), "tried twice before, and given up at the next failure"

    again = publish(scene, {"fails": 2, "after": "3s"})
    scene.until("each was tried once", lambda: failed(scene, again, 1))
    assert fewer.stop() == 0
    more = scene.start_and_wait(many)
    check(scene, heads, 1.0)
    assert len(scene.dead()) == HEADS, "with two attempts they would be dead"
    assert more.stop() == 0


def test_partitions_are_added_by_the_procedure_of_the_guide_and_without_it(scene: Scene) -> None:
    """docs/guide/changing-topology.md, "More partitions": step by step; then by somebody who did not read it."""
    spec = scene.spec(tiers=("1s",), attempts=4)
    scene.make_topics(make_app(spec))
    worker = scene.start_and_wait(spec)
    publish(scene, {"fails": 2})
    scene.until("keys are parked", lambda: scene.count(scene.lane("retry.1s")) >= HEADS)
    scene.until("nothing is behind", lambda: behind(scene, GROUP) == FINISHED, 60)
    assert worker.stop() == 0
    before = len(scene.ledger.marks())
    add_partitions(scene, 6)
    scene.make_topics(make_app(spec))
    worker = scene.start_and_wait(spec)
    heads = publish(scene, {"fails": 2})
    assert {partition for partition, _ in heads} & {4, 5}, "keys have moved"
    check(scene, tier_s=1.0)
    old = [m for m in scene.ledger.marks()[:before] if m.what == "done"]
    assert len(old) == 4 * HEADS, "all that was published before was done before: so no key's order changed"

    heads = publish(scene, {"fails": 3})
    scene.until("keys are parked", lambda: failed(scene, heads, 1))
    assert worker.stop() == 0
    parked = len(scene.unsettled()) + sum(behind(scene, GROUP).values())
    assert parked, "nothing is parked any more: the rest of the test shows nothing"
    add_partitions(scene, 8)
    refused = scene.start(spec)
    assert refused.popen.wait(30 * PATIENCE) == 2
    said = refused.log.read_text()
    for lane in ("retry.1s", "replay", "dlq"):
        assert scene.lane(lane) in said, said
    assert "Traceback" not in said, said
    scene.make_topics(make_app(spec))
    worker = scene.start_and_wait(spec)
    publish(scene, {"fails": 1})
    check(scene, tier_s=1.0)
    assert scene.dead() == []
    assert worker.stop() == 0


def add_partitions(scene: Scene, total: int) -> None:
    scene.admin.add_partitions(scene.topic(), total)
    scene.partitions, scene._producer = total, None  # one that knows of them


@contextlib.contextmanager
def load(scene: Scene) -> Iterator[None]:
    """Ten records every 20 ms, some of which are retried."""
    stop, problems = threading.Event(), list[BaseException]()

    def run() -> None:
        n = 0
        try:
            while not stop.wait(0.02):
                scene.publish_many(
                    [(f"k{i % 40}", {"sleep": 0.01, "fails": int(i % 41 == 0)}) for i in range(n, n + 10)]
                )
                n += 10
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
    assert not problems, problems


def test_a_restart_under_the_same_instance_id_moves_no_partition(scene: Scene) -> None:
    """Static membership: the group waits for the one that is restarted, and the other does not notice."""
    specs = [
        scene.spec(
            settings={"instance_id": name, "session_timeout_s": 30.0}, tiers=("300ms",), attempts=3, concurrency=50
        )
        for name in ("one", "two")
    ]
    scene.make_topics(make_app(specs[0]))
    restarted, other = (scene.start(spec) for spec in specs)
    scene.until("they share", lambda: (len(restarted.partitions()), len(other.partitions())) == (2, 2), 40)
    mine, kept, opened = restarted.partitions(), other.partitions(), len(other.said("partition open"))
    pids = {restarted.pid, other.pid}
    with load(scene):
        for _ in range(2):
            done = len(scene.ledger.marks("done"))
            scene.until("the load runs", lambda done=done: len(scene.ledger.marks("done")) > done + 100)
            assert restarted.stop() == 0
            done = len(scene.ledger.marks("done"))
            restarted = scene.start(specs[0])
            pids.add(restarted.pid)
            scene.until("it has its partitions again", lambda now=restarted: now.partitions() == mine, 25)
            by_other = {m.partition for m in scene.ledger.marks("done")[done:] if m.pid == other.pid}
            assert by_other == set(kept), "the other went on meanwhile, with its own only"
    check(scene, tier_s=0.3)
    assert other.partitions() == kept
    assert len(other.said("partition open")) == opened, "a partition of the other was closed and opened"
    assert not other.said("partition lost")
    assert {m.pid for m in scene.ledger.marks("done")} == pids, "all took part"
    assert [restarted.stop(), other.stop()] == [0, 0]
