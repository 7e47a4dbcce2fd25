"""Retries on real Kafka: through tiers and in memory, with and without order, never early, counted as executions."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Backoff, Context, Reject, Retries, Retry
from tests.integration.harness import SOURCE, Scene, running, until_async, verdict
from tests.patience import PATIENCE

TIERS_S = (0.3, 0.6)
TIERS = ("300ms", "600ms")


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


def run_plan(scene: Scene, records: list[tuple[str, Any]], ended: int, **subscribe: Any) -> Any:
    """Process `records` in this process by what they say (`fails`, `reject`, `after`) until so many have ended; the stats."""
    from tests.integration.harness import make_app

    app = make_app(scene.spec(**subscribe))
    scene.make_topics(app)
    scene.publish_many(records)
    found: list[Any] = []

    async def go() -> None:
        async with running(app):
            assert app.worker
            stats = app.worker.running[0].engine.stats
            found.append(stats)
            await until_async(f"{ended} ended", lambda: stats.processed + sum(stats.dead.values()) >= ended)

    asyncio.run(go())
    assert scene.settled(), scene.committed()
    return found[0]


def starts(scene: Scene) -> dict[tuple[int, int], list[float]]:
    found = defaultdict(list)
    for mark in scene.ledger.marks("start"):
        found[mark.partition, mark.offset].append(mark.at)
    return found


@pytest.mark.parametrize("kind", ["async", "def", "batch"])
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_order_of_a_key_holds_through_the_tiers(scene: Scene, kind: str, protocol: str) -> None:
    records = [(f"k{n % 8}", {"n": n, "fails": {3: 1, 13: 2, 27: 3}.get(n, 0)}) for n in range(80)]
    stats = run_plan(
        scene, records, 80, kind=kind, settings={"group_protocol": protocol}, tiers=TIERS, attempts=4, order="key"
    )
    verdict(scene.ledger.marks(), scene.published, tier_s=TIERS_S[0]).check()
    assert len(scene.ledger.done()) == 80
    fails = list(scene.ledger.marks("fail"))
    assert len(fails) == 6
    assert stats.hops["300ms", "retry"] == 3
    assert stats.hops["600ms", "retry"] == 3
    assert sum(count for (_, cause), count in stats.hops.items() if cause == "wait") >= 3, "successors were parked"
    for marks in starts(scene).values():
        waits = [b - a for a, b in itertools.pairwise(marks)]
        assert all(wait >= tier for wait, tier in zip(waits, (0.3, 0.6, 0.6), strict=False)), waits
        assert all(wait < tier + 1.5 for wait, tier in zip(waits, (0.3, 0.6, 0.6), strict=False)), waits


@pytest.mark.parametrize("order", ["key_relaxed", "none"])
def test_without_order_successors_overtake_a_record_that_waits(scene: Scene, order: str) -> None:
    records = [("k", {"n": n, "fails": 1 if n == 0 else 0}) for n in range(20)]
    stats = run_plan(scene, records, 20, tiers=TIERS, order=order)
    found = verdict(scene.ledger.marks(), scene.published, tier_s=0.3)
    found.check("disorder")
    assert found.disorder, "nothing overtook the record that waited"
    assert scene.ledger.done()[-1][1] == scene.published[0][1], "the one that waited comes last"
    assert not [cause for _, cause in stats.hops if cause == "wait"]
    firsts = [m.offset for m in scene.ledger.marks("start") if m.attempt == 1]
    if order == "key_relaxed":
        assert firsts == sorted(firsts), "first attempts are still in order"


def test_without_order_records_of_one_key_run_at_the_same_time(scene: Scene) -> None:
    for order, at_once in (("none", 5), ("key_relaxed", 1)):
        group = f"g-{order}".replace("_", "-")
        app = scene.app()
        now: list[int] = [0]
        most: list[int] = [0]
        seen: list[int] = []

        @app.subscribe(SOURCE, group=group, order=order, tiers=TIERS, value="json")  # type: ignore[arg-type]
        async def handle(value: Any, ctx: Context, now: Any = now, most: Any = most, seen: Any = seen) -> None:
            now[0] += 1
            most[0] = max(most[0], now[0])
            await asyncio.sleep(0.1)
            now[0] -= 1
            seen.append(value)

        scene.make_topics(app)
        if order == "none":
            scene.publish_many([("k", n) for n in range(5)])

        async def go(app: Any = app, seen: Any = seen) -> None:
            async with running(app):
                await until_async("5 records", lambda: len(seen) >= 5)

        asyncio.run(go())
        assert most[0] == at_once, order


def test_short_backoff_waits_in_memory_with_its_key_blocked(scene: Scene) -> None:
    app = scene.app()
    seen: list[tuple[str, int, int, float]] = []

    @app.subscribe(
        SOURCE,
        group="g",
        tiers=("5s",),
        attempts=4,
        value="json",
        retries=Retries(backoff=Backoff(100, 2.0), jitter=0.5),
    )
    async def handle(value: int, ctx: Context) -> None:
        seen.append((ctx.run_id, value, ctx.attempt, time.monotonic()))
        if value == 0 and ctx.attempt < 4:
            raise RuntimeError("again")

    scene.make_topics(app)
    scene.publish_many([("a", 0), ("a", 1), ("b", 2)], partition=0)

    async def go() -> None:
        async with running(app):
            await until_async("all", lambda: len(seen) >= 6)

    asyncio.run(go())
    mine = [(value, attempt) for key, value, attempt, _ in seen if key == "a"]
    assert mine == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]
    assert [value for _, value, _, _ in seen][:2] == [0, 2], "another key is not held up"
    times = [at for key, value, _, at in seen if value == 0]
    waits = [b - a for a, b in itertools.pairwise(times)]
    for wait, delay in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert delay - 0.001 <= wait < delay * 1.5 + 0.25, waits
    assert scene.count(scene.lane("retry.5s")) == 0


def test_retry_after_takes_the_smallest_tier_that_is_not_shorter_and_hops_again_beyond_the_last(scene: Scene) -> None:
    records = [
        ("a", {"fails": 1, "after": 0.25}),
        ("b", {"fails": 1, "after": 0.3}),
        ("c", {"fails": 1, "after": 0.4}),
        ("d", {"fails": 1, "after": 1.5}),
        ("e", {"fails": 1, "after": 0.05}),
        ("d", {"n": "behind"}),
    ]
    stats = run_plan(scene, records, 6, tiers=TIERS, attempts=3)
    waits = {}
    for mark in scene.ledger.marks("fail"):
        waits[mark.key] = starts(scene)[mark.partition, mark.offset][1] - mark.at
    # Which tier is in the counts below; upper bounds are wide, since a producer's first write on a new broker takes a while.
    for key, least in {"a": 0.25, "b": 0.3, "c": 0.6, "d": 1.5, "e": 0.05}.items():
        assert least <= waits[key] < least + 1.5, waits
    assert waits["e"] < 0.3, waits
    assert stats.waited_in_memory == 2
    assert stats.hops["300ms", "retry"] == 1
    assert stats.hops["600ms", "retry"] == 2
    assert sum(n for (_, cause), n in stats.hops.items() if cause == "hop") >= 1
    assert [m.attempt for m in scene.ledger.marks("done") if m.key == "d"] == [2, 1], "hops are no attempts"
    verdict(scene.ledger.marks(), scene.published).check()


def test_attempts_count_executions_and_the_last_failure_is_a_dead_letter(scene: Scene) -> None:
    records = [("k", {"fails": 99}), ("k", {"n": 1}), ("one", {"reject": True}), ("one", {"n": 2})]
    run_plan(scene, records, 4, tiers=TIERS, attempts=3)
    marks = scene.ledger.marks()
    dead = {(m.partition(), int(dict(m.headers())["pl.origin.offset"])) for m in scene.dead()}
    assert len(scene.dead()) == 2
    assert [m.attempt for m in marks if m.what == "fail"] == [1, 2, 3]
    assert [m.attempt for m in marks if m.what == "reject"] == [1]
    verdict(marks, scene.published, dead, 0.3).check()
    headers = [dict(m.headers()) for m in scene.dead()]
    assert sorted(h["pl.attempt"] for h in headers) == [b"1", b"3"]


def test_one_attempt_means_no_retry(scene: Scene) -> None:
    stats = run_plan(scene, [("k", {"fails": 1})], 1, tiers=TIERS, attempts=1)
    assert [m.what for m in scene.ledger.marks()] == ["start", "fail"]
    assert not stats.hops
    assert len(scene.dead()) == 1


def test_terminal_exceptions_are_dead_letters_at_once(scene: Scene) -> None:
    app = scene.app()
    seen: list[tuple[str, int]] = []
    errors: dict[str, Exception] = {
        "terminal": PermissionError("no"), "sub": FileNotFoundError("x"), "plain": OSError("later"), "reject": Reject("r"),
        "slow down": Retry("429", after=0.05),
    }  # fmt: skip

    @app.subscribe(
        SOURCE, group="g", tiers=TIERS, attempts=2, value="json",
        retries=Retries(terminal=(PermissionError, FileNotFoundError)),
    )  # fmt: skip
    async def handle(value: str, ctx: Context) -> None:
        seen.append((value, ctx.attempt))
        if ctx.attempt == 1:
            raise errors[value]

    scene.make_topics(app)
    scene.publish_many([(name, name) for name in errors])

    async def go() -> None:
        async with running(app):
            await until_async("all", lambda: len(seen) >= 7 and scene.count(scene.lane("dlq")) >= 3)

    asyncio.run(go())
    assert sorted(seen) == sorted([*((name, 1) for name in errors), ("plain", 2), ("slow down", 2)])
    assert sorted(json.loads(m.value()) for m in scene.dead()) == ["reject", "sub", "terminal"]


def test_a_coroutine_past_its_deadline_is_cancelled_and_a_thread_counts_when_it_returns(scene: Scene) -> None:
    app = scene.app()
    seen: list[tuple[str, int, str]] = []
    began_s: list[float] = []
    let_go = threading.Event()

    @app.subscribe(SOURCE, group="co", tiers=("100ms",), attempts=2, timeout="300ms", value="json")
    async def co(value: int, ctx: Context) -> None:
        try:
            if ctx.attempt == 1 and value == 0:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(("co", ctx.attempt, "cancelled"))
            raise
        seen.append(("co", ctx.attempt, f"done {value}"))

    @app.subscribe(SOURCE, group="thread", tiers=("100ms",), attempts=2, timeout="300ms", value="json")
    def thread(value: int, ctx: Context) -> None:
        if ctx.attempt == 1 and value == 0:
            began_s.append(time.monotonic())
            assert let_go.wait(20 * PATIENCE)
            seen.append(("thread", ctx.attempt, "returned"))
            return
        seen.append(("thread", ctx.attempt, f"done {value}"))

    scene.make_topics(app)
    scene.publish_many([("k", 0), ("k", 1)])
    timeouts: list[int] = []

    async def go() -> None:
        async with running(app):
            assert app.worker
            stats = {r.subscription.group: r.engine.stats for r in app.worker.running}
            await until_async("the coroutine's two", lambda: stats["co"].processed == 2)
            await until_async(
                "the thread is past its deadline", lambda: began_s != [] and time.monotonic() - began_s[0] > 0.5
            )
            assert stats["thread"].processed == 0
            assert not stats["thread"].failures, "a thread that still runs has not failed yet"
            let_go.set()
            await until_async("the thread's two", lambda: stats["thread"].processed == 2)
            timeouts.extend(each.failures["timed_out"] for each in stats.values())
            timeouts.extend(each.timeouts for each in stats.values())

    asyncio.run(go())
    assert [s[1:] for s in seen if s[0] == "co"] == [(1, "cancelled"), (2, "done 0"), (1, "done 1")]
    assert [s[1:] for s in seen if s[0] == "thread"] == [(1, "returned"), (2, "done 0"), (1, "done 1")]
    assert timeouts == [1, 1, 1, 1], "failures[timed_out] and the timeout counter, of both"
    for group in ("co", "thread"):
        assert scene.count(scene.lane("retry.100ms", group)) == 2, "the head and its successor"


def test_a_handler_that_swallows_its_cancellation_has_still_timed_out_or_finished(scene: Scene) -> None:
    """Swallowing the deadline's cancellation and returning late must not leave the record or the pool stuck."""
    app = scene.app()
    seen: list[tuple[int, int]] = []

    @app.subscribe(SOURCE, group="g", tiers=("100ms",), attempts=2, timeout="200ms", value="json", concurrency=1)
    async def handle(value: int, ctx: Context) -> None:
        seen.append((value, ctx.attempt))
        if value == 0 and ctx.attempt == 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.05)

    scene.make_topics(app)
    scene.publish_many([("a", 0), ("b", 1), ("c", 2)])

    async def go() -> None:
        async with running(app):
            await until_async("all have run", lambda: {value for value, _ in seen} == {0, 1, 2})
            await until_async("all are committed", scene.settled)

    asyncio.run(go())
    assert {value for value, _ in seen} == {0, 1, 2}


def test_a_second_group_never_sees_another_groups_retries(scene: Scene) -> None:
    app = scene.app()
    seen: list[tuple[str, int]] = []

    @app.subscribe(SOURCE, group="first", tiers=("100ms",), attempts=3, value="json")
    async def first(value: Any, ctx: Context) -> None:
        seen.append(("first", ctx.attempt))
        if ctx.attempt < 3:
            raise RuntimeError("again")

    @app.subscribe(SOURCE, group="second", tiers=("100ms",), value="json")
    async def second(value: Any, ctx: Context) -> None:
        seen.append(("second", ctx.attempt))

    scene.make_topics(app)
    scene.publish("k", 1)

    async def go() -> None:
        async with running(app):
            await until_async("three and one", lambda: len(seen) >= 4)

    asyncio.run(go())
    assert sorted(seen) == [("first", 1), ("first", 2), ("first", 3), ("second", 1)]
    assert scene.count(scene.lane("retry.100ms", "second")) == 0
