"""Operators and bounds on real Kafka: pause and resume, skip and release, start positions, back-pressure, commit metadata."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import Context, FlowPolicy
from pipeline.model.cluster import TopicPartition
from pipeline.model.control import Pause, Release, Skip
from tests.integration.harness import GROUP, SOURCE, Scene, make_app, running, until_async, verdict
from tests.patience import PATIENCE

TIERS = ("200ms",)


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


def test_pause_and_resume_reach_every_worker_and_outlive_a_restart(scene: Scene) -> None:
    spec = scene.spec(tiers=("300ms",), attempts=3)
    scene.make_topics(make_app(spec))
    first, second = scene.start(spec), scene.start(spec)
    scene.until("they share", lambda: (len(first.partitions()), len(second.partitions())) == (1, 1))
    pause = Pause(scene.prefix + GROUP, "me", "a test")
    scene.switch(pause)
    for process in (first, second):
        scene.until("it says that it is paused", lambda process=process: process.status()[0] == 503)
        status, body = process.status()
        assert "paused by an operator" in body, (status, body)
    scene.publish_many([(f"k{n}", {"fails": n % 2}) for n in range(20)])
    assert first.stop() == 0
    third = scene.start(spec)
    scene.until("the new one is paused too", lambda: "paused by an operator" in third.status()[1])
    time.sleep(0.7)  # long enough for work that must not happen
    assert scene.ledger.marks() == []
    scene.switch(pause, on=False)
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 20)
    scene.until("it is healthy again", lambda: third.status()[0] == 200)
    verdict(scene.ledger.marks(), scene.published, tier_s=0.3).check()


def test_a_skipped_head_is_a_dead_letter_and_its_successors_go_on(scene: Scene) -> None:
    app = make_app(scene.spec(tiers=("1s", "4s"), attempts=9))
    scene.make_topics(app)
    head = scene.publish("k", {"fails": 99})
    behind = scene.publish_many([("k", {"n": n}) for n in range(3)])

    async def go() -> None:
        async with running(app):
            await until_async("it waits in the second tier", lambda: scene.count(scene.lane("retry.4s")) >= 1)
            assert scene.ledger.done() == []
            skip = Skip(scene.prefix + GROUP, scene.topic(), *head, b"k", "me", "poison")
            await asyncio.to_thread(scene.switch, skip)
            await until_async("its successors are done", lambda: scene.ledger.done() == behind, 20)
            await until_async("it is a dead letter", lambda: scene.count(scene.lane("dlq")) == 1, 20)
            await until_async("committed", scene.settled)

    asyncio.run(go())
    assert [m.attempt for m in scene.ledger.marks("fail")] == [1, 2], "it does not run again"
    found = dict(scene.dead()[0].headers() or [])
    assert int(found["pl.origin.offset"]) == head[1]
    assert found["pl.error.class"] == b"Skipped"


def test_a_released_key_lets_its_successors_run_before_the_head(scene: Scene) -> None:
    app = make_app(scene.spec(tiers=("1s", "4s"), attempts=4))
    scene.make_topics(app)
    head = scene.publish("k", {"fails": 2})
    behind = scene.publish_many([("k", {"n": n}) for n in range(3)])

    async def go() -> None:
        async with running(app):
            await until_async("it waits in the second tier", lambda: scene.count(scene.lane("retry.4s")) >= 1)
            release = Release(scene.prefix + GROUP, scene.topic(), head[0], b"k", behind[-1][1], "me", "go on")
            await asyncio.to_thread(scene.switch, release)
            later = await asyncio.to_thread(scene.publish, "k", {"later": True})
            await until_async("all are done", lambda: len(scene.ledger.done()) == 5, 30)
            assert scene.ledger.done()[-1] == later, "a record past the release keeps its place"

    asyncio.run(go())
    found = verdict(scene.ledger.marks(), scene.published, tier_s=1.0)
    assert not found.lost
    assert not found.duplicates
    assert not found.early


@pytest.mark.parametrize("start", ["earliest", "latest", "time"])
def test_a_new_group_starts_where_it_says_and_an_old_one_where_it_was(scene: Scene, start: str) -> None:
    plain = make_app(scene.spec(tiers=TIERS))
    scene.make_topics(plain)
    scene.publish_many([(f"old-{n}", {}) for n in range(10)])
    time.sleep(0.05)
    between = int(time.time() * 1000)
    time.sleep(0.05)
    scene.publish_many([(f"new-{n}", {}) for n in range(10)])
    app = make_app(scene.spec(tiers=TIERS, start=between if start == "time" else start))

    async def go() -> None:
        async with running(app, 2):
            await until_async("a start is committed", lambda: len(scene.committed()) >= 2)
            await asyncio.to_thread(scene.publish_many, [(f"last-{n}", {}) for n in range(10)])
            await until_async(
                "the last are done", lambda: sum(m.key.startswith("last") for m in scene.ledger.marks("done")) == 10
            )
            await until_async("committed", scene.settled)

    asyncio.run(go())
    seen = {mark.key.split("-")[0] for mark in scene.ledger.marks("done")}
    assert seen == {"earliest": {"old", "new", "last"}, "latest": {"last"}, "time": {"new", "last"}}[start]
    count = len(scene.ledger.done())
    scene.publish_many([("while-away", {})])

    async def again() -> None:
        async with running(make_app(scene.spec(tiers=TIERS, start="latest")), 2):
            await until_async("it goes on where it was", lambda: len(scene.ledger.done()) == count + 1)

    asyncio.run(again())


def test_a_group_that_starts_at_the_end_keeps_its_start_while_nothing_comes(scene: Scene) -> None:
    """start="latest" is decided once: what is published while no worker runs must not be jumped over."""
    app = make_app(scene.spec(tiers=TIERS, start="latest"))
    scene.make_topics(app)
    scene.publish_many([(f"old-{n}", {}) for n in range(10)])

    async def nothing() -> None:
        async with running(app, 2):
            await until_async("its start is committed", lambda: len(scene.committed()) >= 2)

    async def go() -> None:
        async with running(make_app(scene.spec(tiers=TIERS, start="latest")), 2):
            await until_async("all of it", lambda: len(scene.ledger.done()) >= 10)

    asyncio.run(nothing())
    scene.publish_many([(f"new-{n}", {}) for n in range(10)])
    asyncio.run(go())
    assert {mark.key.split("-")[0] for mark in scene.ledger.marks("done")} == {"new"}


def test_a_committed_offset_that_was_deleted_stops_with_a_sentence(scene: Scene) -> None:
    app = make_app(scene.spec(tiers=TIERS))
    scene.make_topics(app)
    scene.publish_many([("k", {}) for _ in range(5)], partition=0)
    scene.publish_many([("l", {}) for _ in range(5)], partition=1)

    async def first() -> None:
        async with running(app):
            await until_async("committed", scene.settled)

    asyncio.run(first())
    scene.publish_many([("k", {}) for _ in range(10)], partition=0)
    scene.publish_many([("l", {}) for _ in range(3)], partition=1)
    scene.admin.delete_records({TopicPartition(scene.topic(), 0): 9})
    again = make_app(scene.spec(tiers=TIERS))

    async def second() -> None:
        async with running(again):
            assert again.worker
            engine = again.worker.running[0].engine
            await until_async("partition 0 is refused", lambda: 0 in engine.refused)
            await until_async("the other one works", lambda: len(scene.ledger.done()) == 13)
            sentence = str(engine.refused[0])
            for word in (scene.topic(), "offset 5", "9..15", f"pipeline groups reset {scene.prefix}g --topic"):
                assert word in sentence, sentence
            health = again.worker.health()[scene.prefix + GROUP]
            assert not health["consuming"]
            assert "deleted" in health["why"]
            await asyncio.sleep(0.6)

    asyncio.run(second())
    assert not [m for m in scene.ledger.marks() if m.partition == 0 and m.offset >= 5], "never a silent jump"
    assert scene.progress(0).offset == 5, "the commit stays for the operator's choice"


def test_a_stalled_key_stops_nobody_else_and_memory_stays_bounded(scene: Scene) -> None:
    app = scene.app()
    stalled = asyncio.Event()
    seen: list[str] = []

    @app.subscribe(SOURCE, group="g", tiers=TIERS, value="json", concurrency=10, flow=FlowPolicy(buffered=400))
    async def handle(value: int, ctx: Context) -> None:
        if ctx.run_id == "stalled" and value == 0:
            await stalled.wait()
        seen.append(ctx.run_id)

    scene.make_topics(app)

    async def go() -> None:
        async with running(app, 2):
            assert app.worker
            engine = app.worker.running[0].engine
            records = [("stalled" if n % 3 == 0 else f"k{n % 50}", 0 if n == 0 else n) for n in range(900)]
            await asyncio.to_thread(scene.publish_many, records, None, 0)
            await asyncio.to_thread(scene.publish_many, [(f"other{n}", n) for n in range(300)], None, 1)
            await until_async("others of the same partition and the other partition go on", lambda: len(seen) == 900)
            assert "stalled" not in seen
            # Now more of the stalled key than the bound: its partition pauses, the rest goes on.
            await asyncio.to_thread(scene.publish_many, [("stalled", n) for n in range(1, 4000)], None, 0)
            await asyncio.to_thread(scene.publish_many, [(f"other{n}", n) for n in range(300)], None, 1)
            await until_async("the other partition still goes on", lambda: len(seen) == 1200)
            await asyncio.sleep(1)
            # 400 in the buffer, 400 behind keys of this partition, and what the polls brought until the pause took hold.
            # (Of 4,000: on a busy machine that takes hold late.)
            assert engine.buffered <= 400 + 400 + 1_800, f"{engine.buffered} records are held"
            stalled.set()
            await until_async("everything runs", lambda: len(seen) == 900 + 300 + 300 + 3999, 40)
            await until_async("committed", scene.settled)

    asyncio.run(go())


def test_a_partition_whose_commit_metadata_fills_up_takes_no_new_work(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the broker's 4,095 characters cut to 300: a slow neighbour covers some 1,500 offsets, then its partition waits."""
    from pipeline.worker import committing
    from pipeline.worker import engine as engine_module

    small = type("Small", (committing.Committer,), {"__init__": lambda self: committing.Committer.__init__(self, 300)})
    monkeypatch.setattr(engine_module, "Committer", small)
    app = scene.app()
    slow = asyncio.Event()
    seen: list[int] = []

    @app.subscribe(SOURCE, group="g", tiers=TIERS, value="json", flow=FlowPolicy(commit_interval_ms=20))
    async def handle(value: int, ctx: Context) -> None:
        if value % 5 == 0 and not slow.is_set():
            await slow.wait()
        seen.append(value)

    scene.make_topics(app)

    async def go() -> None:
        async with running(app, 2):
            for first in range(0, 4000, 100):
                await asyncio.to_thread(scene.publish_many, [(f"k{n}", n) for n in range(first, first + 100)], None, 0)
                await asyncio.sleep(0.02)
            await asyncio.to_thread(scene.publish, "other", 1, None, 1)
            await until_async("the other partition goes on", lambda: seen.count(1) == 2)
            await asyncio.sleep(0.5)
            taken = len(seen)
            assert 800 < taken < 3000, f"{taken} of 3,200 quick ones were taken"
            assert len(scene.progress(0).open) > 100
            slow.set()
            await until_async("everything runs", lambda: len(seen) == 4001, 40)
            await until_async("committed", scene.settled)

    asyncio.run(go())
    assert sorted(seen) == sorted([*range(4000), 1])


def test_a_paused_tier_keeps_a_bounded_look_ahead_and_stays_on_time(scene: Scene) -> None:
    app = make_app(scene.spec(tiers=("1s",), attempts=2, flow={"look_ahead": 20}))
    scene.make_topics(app)
    scene.publish_many([(f"k{n}", {"fails": 1}) for n in range(600)])

    async def go() -> None:
        async with running(app, 2):
            assert app.worker
            engine = app.worker.running[0].engine
            most = 0
            while len(scene.ledger.done()) < 600:
                units = list(engine.partitions.values())
                most = max(most, *(len(lane.look_ahead) for unit in units for lane in unit.lanes))
                await asyncio.sleep(0.02)
            print("the longest look-ahead was", most)

    asyncio.run(asyncio.wait_for(go(), 60 * PATIENCE))
    verdict(scene.ledger.marks(), scene.published, tier_s=1.0).check()
    failed = {(m.partition, m.offset): m.at for m in scene.ledger.marks("fail")}
    late = sorted(m.at - failed[m.partition, m.offset] - 1.0 for m in scene.ledger.marks("done"))
    assert late[-1] < 3 * PATIENCE, late[-5:]


def test_control_records_that_are_not_readable_are_passed_over(scene: Scene) -> None:
    app = make_app(scene.spec(tiers=TIERS))
    scene.make_topics(app)
    control = "_pipeline.control"
    scene.publish("pause/x", b"\xff", topic=control)
    scene.publish(
        "pause/" + scene.prefix + "h",
        json.dumps({"kind": "pause", "group": scene.prefix + GROUP}).encode(),
        topic=control,
    )
    scene.publish("k", {})

    async def go() -> None:
        async with running(app, 2):
            await until_async("it works", lambda: len(scene.ledger.done()) == 1)
            await asyncio.to_thread(scene.switch, Pause(scene.prefix + GROUP))
            assert app.worker
            await until_async("it listens still", lambda: not app.worker.health()[scene.prefix + GROUP]["consuming"])

    asyncio.run(go())
