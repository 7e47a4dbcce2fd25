"""max.poll.interval exceeded on purpose, on real Kafka: what was this worker's is lost to it, it never commits it, and the work goes on."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.kafka import commits
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ClusterError, FencedError
from tests.conformance.sides import SESSION_MS, KafkaSide, wait_until
from tests.integration.commit_log import setbacks, stored_commits
from tests.integration.harness import GROUP, Mark, Process, Scene, make_app, running, until_async, verdict
from tests.patience import PATIENCE

pytestmark = [pytest.mark.first, pytest.mark.timeout(180)]
INTERVAL_S = 4.0
"""Not shorter than the session, which Kafka's client refuses."""


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


def spec_of(scene: Scene, protocol: str) -> dict[str, Any]:
    settings = {"max_poll_interval_s": INTERVAL_S, "group_protocol": protocol}
    return scene.spec(settings=settings, tiers=("500ms", "1s"), attempts=4, concurrency=200)


def publish_to(scene: Scene, gate: Path) -> None:
    """100 in the hands of a worker that will be silent, with successors behind each; half of them fail when they end."""
    scene.publish_many([(f"k{n}", {"gate": str(gate), "fails": n % 2}) for n in range(100)])
    scene.publish_many([(f"k{n}", {"behind": n}) for n in range(100)])


def judge(scene: Scene, owner_pid: int) -> None:
    """The others' runs are each once and in order; the silent worker's are what it had in its hands, and what of its queue it starts
    before it hears the news: each at most once, and no retry."""
    marks = scene.ledger.marks()
    given = set(scene.published[:200])
    late = [m for m in marks if m.pid != owner_pid and (m.partition, m.offset) in given]
    rest = [m for m in marks if m not in set(late)]
    verdict(rest, scene.published, tier_s=0.5).check()
    assert max(Counter((m.partition, m.offset) for m in late if m.what == "start").values()) == 1
    assert {m.attempt for m in late} == {1}
    assert scene.dead() == []
    commits = stored_commits(scene.bootstrap, scene.prefix + GROUP)
    assert len(commits) > 4
    assert setbacks(commits, scene.topic()) == [], "the silent worker committed"


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_process_stopped_for_longer_than_the_interval(scene: Scene, protocol: str) -> None:
    gate = scene.folder / "gate"
    spec = spec_of(scene, protocol)
    scene.make_topics(make_app(spec))
    silent = scene.start_and_wait(spec)
    publish_to(scene, gate)
    scene.until("100 are in its hands", lambda: len(scene.ledger.marks("start")) == 100)
    stopped_at = time.monotonic()
    silent.send(signal.SIGSTOP)
    owner = scene.start(spec)
    scene.until("the partitions have moved", lambda: len(owner.partitions()) == 2, 40)
    gate.touch()
    scene.until("the new owner has done it all", lambda: len(set(scene.ledger.done())) == 200, 60)
    scene.until("all is committed", scene.settled)
    scene.until("the interval is exceeded too", lambda: time.monotonic() - stopped_at > INTERVAL_S + 1)
    silent.send(signal.SIGCONT)
    scene.until("it hears of its loss", lambda: silent.said("partition lost") or len(silent.partitions()) < 2, 30)
    more = scene.publish_many([(f"k{n}", {"after": n}) for n in range(100)])
    scene.until("what comes after is done", lambda: set(more) <= set(scene.ledger.done()), 60)
    scene.until("all is committed", scene.settled)
    judge_after(scene, owner, silent)


def judge_after(scene: Scene, owner: Process, silent: Process) -> None:
    judge(scene, owner.pid)
    assert owner.stop() == 0
    assert silent.stop() == 0


@pytest.mark.parametrize("owner_lives", [True, False], ids=["owner lives", "owner gone"])
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_blocked_poll_thread(scene: Scene, protocol: str, owner_lives: bool) -> None:
    """The process lives and its heartbeats go on, but nobody polls: the client leaves the group. Meanwhile its handlers end, its engine
    asks for commits, and all that waits in the queue of the thread that hangs. When it goes on nothing of it may be stored; worst is
    a group that is empty by then, since the coordinator takes a commit from anybody for such a group."""
    gate = scene.folder / "gate"
    spec = spec_of(scene, protocol)
    scene.make_topics(make_app(spec))
    blocked, free = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        free.wait(60 * PATIENCE)

    async def session() -> None:
        app = make_app(spec)
        async with running(app, scene.partitions):
            assert app.worker
            engine, fetcher = app.worker.running[0].engine, app.worker.running[0].fetcher
            await asyncio.to_thread(publish_to, scene, gate)
            await until_async("100 are in its hands", lambda: len(scene.ledger.marks("start")) == 100)
            fetcher.request(block)
            await until_async("its poll thread hangs", blocked.is_set)
            try:
                owner = await asyncio.to_thread(scene.start_and_wait, spec)
                gate.touch()
                await until_async("the new owner has done it all", lambda: done_by(scene, owner.pid) == 200, 60)
                await asyncio.to_thread(scene.until, "all is committed", scene.settled)
                if not owner_lives:
                    assert await asyncio.to_thread(owner.stop) == 0
            finally:
                free.set()
            # Until then it may run what comes to it by its old assignment; that runs again, as its commits are not taken.
            await until_async(
                "it hears of its loss", lambda: all(unit.epoch > 1 for unit in engine.partitions.values()), 30
            )
            more = await asyncio.to_thread(scene.publish_many, [(f"k{n}", {"after": n}) for n in range(100)])
            await until_async("what comes after is done", lambda: set(more) <= set(scene.ledger.done()), 60)
            await asyncio.to_thread(scene.until, "all is committed", scene.settled)
            judge(scene, owner.pid)
            if owner_lives:
                assert await asyncio.to_thread(owner.stop) == 0

    asyncio.run(session())


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_commit_from_before_a_loss_is_not_sent_after_it(
    kafka: str, topic_name: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is slow: it comes to it when its client has joined again. A client of the new protocol is the same member then."""
    side = KafkaSide(kafka, protocol)
    slow, free = threading.Event(), threading.Event()
    pass_for = commits._pass_for

    def late(thread_id: int) -> None:
        if slow.is_set():
            assert free.wait(60 * PATIENCE)
        pass_for(thread_id)

    monkeypatch.setattr(commits, "_pass_for", late)
    topic, group = side.topic(1), f"{topic_name}.g"
    place = TopicPartition(topic, 0)
    first = side.member(topic, group, max_poll_interval_ms=SESSION_MS, drain_timeout_ms=1_000)
    try:
        wait_until(lambda: place in first.listener.owned, "to own it", first.poll)
        second = side.member(topic, group)
        wait_until(lambda: place in second.listener.owned, "the other to own it", second.poll)
        assert second.consumer.commit_now({place: Position(10)}, 10.0) == {place: None}
        slow.set()
        answers: list[Mapping[TopicPartition, ClusterError | None]] = []
        first.consumer.commit({place: Position(3)}, answers.append)
        wait_until(lambda: first.listener.heard("lost") == [(place,)], "to hear of the loss", first.poll)
        second.consumer.close()
        wait_until(lambda: place in first.listener.owned, "to own it again", first.poll)
        free.set()
        wait_until(lambda: bool(answers), "the answer", first.poll)
        assert isinstance(answers[0][place], FencedError)
        assert first.consumer.committed([place], 10.0) == {place: Position(10)}
    finally:
        free.set()
        side.close()


def done_by(scene: Scene, pid: int) -> int:
    marks: list[Mark] = scene.ledger.marks("done")
    return len({(m.partition, m.offset) for m in marks if m.pid == pid})
