"""Replays with real workers behind the lane: only the group that asked, in the order of each key, dead letters with their history."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Pipeline, Retry
from pipeline.inspect.appending import Entry, append
from pipeline.model.headers import DeliveryHeaders, encode, producer_headers
from tests.integration.harness import GROUP, SOURCE, Scene, make_app, running, until_async
from tests.integration.replays import Replays, check_history, origins

HEAD, EACH, KEYS = 3, 12, 3
"""Of so many records of each of so many keys, the one that fails."""


@pytest.fixture
def replays(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Replays]:
    with Scene(kafka, topic_name, tmp_path, partitions=2) as scene:
        yield Replays(scene)


def two_groups(scene: Scene, seen: dict[str, list[tuple[str, int]]]) -> Pipeline:
    app = scene.app()
    for group in (GROUP, "other"):

        @app.subscribe(SOURCE, group=group, value="json", tiers=("200ms",))
        async def handle(value: dict[str, Any], ctx: Any, group: str = group) -> None:
            seen[group].append((ctx.run_id, ctx.offset))

    return app


def test_only_the_group_that_asked_sees_it_again(replays: Replays) -> None:
    scene, seen = replays.scene, dict[str, list[tuple[str, int]]]()
    seen |= {GROUP: [], "other": []}
    app = two_groups(scene, seen)
    scene.make_topics(app)
    scene.publish_many((f"k{n % 7}", {"n": n}) for n in range(400))

    async def go() -> None:
        async with running(app, scene.partitions):
            await until_async("both have seen all", lambda: all(len(found) == 400 for found in seen.values()))
            await until_async("it is committed", scene.settled)
            plan = await asyncio.to_thread(replays.plan)
            await asyncio.to_thread(replays.run, plan)
            await until_async("the group has seen all again", lambda: len(seen[GROUP]) == 800)
            check_history(replays, plan, origins(scene), 0)

    asyncio.run(go())
    assert len(seen["other"]) == 400
    by_key: dict[str, list[int]] = defaultdict(list)
    for key, offset in seen[GROUP][400:]:
        by_key[key].append(offset)
    assert sum(map(len, by_key.values())) == 400
    assert all(offsets == sorted(offsets) for offsets in by_key.values())


def dead(scene: Scene) -> list[Any]:
    return scene.read(scene.lane("dlq"))


def test_dead_letters_go_back_in_the_order_of_their_origins_whatever_theirs(replays: Replays) -> None:
    """The first dead letter of each key is appended again, as an edited one is: it lies behind those that came after it."""
    scene = replays.scene
    scene.make_topics(make_app(scene.spec()))
    records = [(f"k{n % 5}", {"n": n, "reject": True}) for n in range(60)]
    scene.publish_many(records)
    app = make_app(scene.spec())

    async def reject_all() -> None:
        async with running(app):
            await until_async("all are dead", lambda: len(dead(scene)) == 60, 40)
            await until_async("it is committed", scene.settled)

    asyncio.run(reject_all())
    letters = dead(scene)
    firsts: dict[bytes, Any] = {}
    for message in letters:
        firsts.setdefault(message.key(), message)
    chosen: dict[int, list[int]] = defaultdict(list)
    moved = set()
    for key, message in list(firsts.items())[:3]:
        append(
            scene.client.cluster,
            scene.lane("dlq"),
            [Entry(key, message.value(), list(message.headers()), message.partition())],
        )
        moved.add((message.partition(), message.offset()))
    for message in dead(scene):
        if (message.partition(), message.offset()) not in moved:
            chosen[message.partition()].append(message.offset())
    plan = replays.plan(
        scene.lane("dlq"), positions={partition: tuple(sorted(offsets)) for partition, offsets in chosen.items()}
    )
    assert plan.source.kind == "dead_letters"
    assert plan.preview is not None
    assert (plan.preview["selected"], plan.preview["inverted_keys"]) == (60, 3)
    assert sum(map(len, plan.last.values())) == 36
    tally = replays.run(plan)
    assert dict(tally.counts) == {"written": 60}
    by_key: dict[bytes | None, list[int]] = defaultdict(list)
    for message, delivery in replays.copies():
        by_key[message.key()].append(delivery.origin_offset)
        assert (delivery.attempt, delivery.hop, delivery.replay_count, delivery.replay_id) == (0, 0, 1, plan.plan_id)
        assert delivery.error.error_type == "Reject"
        assert delivery.history
    assert all(found == sorted(found) for found in by_key.values()), by_key
    assert sum(map(len, by_key.values())) == 60


def test_killed_while_the_last_ones_go_out(replays: Replays) -> None:
    """All keys are inverted: each stage of the second pass."""
    scene = replays.scene
    replays.prepare(600, keys=6)
    entries = []
    for message in reversed(scene.read(scene.topic())):
        delivery = origin_of(scene, message)
        entries.append(
            Entry(
                message.key(),
                message.value(),
                encode(producer_headers(message.headers()), delivery),
                message.partition(),
            )
        )
    append(scene.client.cluster, scene.lane("dlq"), entries)
    plan = replays.plan(scene.lane("dlq"), kind="dead_letters")
    assert sum(map(len, plan.last.values())) == 600
    for stage in ("sent", "acknowledged", "recorded"):
        replays.dies(plan, die_at=stage)
    tally = replays.run(plan)
    assert dict(tally.counts) == {"written": 600}
    first: dict[bytes | None, list[int]] = defaultdict(list)
    for message, delivery in replays.copies():
        if delivery.origin_offset not in first[message.key()]:
            first[message.key()].append(delivery.origin_offset)
    assert sum(map(len, first.values())) == 600
    assert all(found == sorted(found) for found in first.values())


def origin_of(scene: Scene, message: Any) -> DeliveryHeaders:
    return DeliveryHeaders(
        3, 2, 1, scene.topic(), message.partition(), message.offset(), message.timestamp()[1], scene.prefix + GROUP
    )


def test_order_holds_with_records_that_wait_in_a_tier(replays: Replays) -> None:
    """Replayed records of a key take their place among those of it that are parked: by origin, and behind the first time of each.

    The head of each key fails until all of it is parked, replayed, and the worker has had every copy of the replay lane.
    """
    scene, marks, shut = replays.scene, list[tuple[str, str, int, bool]](), [True]
    app = scene.app()

    @app.subscribe(SOURCE, group=GROUP, value="json", tiers=("300ms",), attempts=1_000)
    async def handle(value: dict[str, Any], ctx: Any) -> None:
        if value["n"] == HEAD and not ctx.replay_id and shut[0]:
            raise Retry("not yet")
        marks.append((f"{ctx.partition}/{ctx.key}", value["kind"], ctx.offset, bool(ctx.replay_id)))

    scene.make_topics(app)
    for partition in range(scene.partitions):
        keyed = [(f"k{key}", {"kind": "keyed", "n": n}) for n in range(EACH) for key in range(KEYS)]
        scene.publish_many([*keyed, ("last", {"kind": "last", "n": 0})], partition=partition)
    held = scene.partitions * KEYS * (EACH - HEAD)
    calm = len(scene.published) - held

    async def go() -> None:
        async with running(app, scene.partitions):
            await until_async("what is before the heads is done", lambda: len(marks) == calm)
            await until_async("all behind them is parked", lambda: scene.count(scene.lane("retry.300ms")) >= held)
            await until_async("it is committed", scene.settled)
            plan = await asyncio.to_thread(replays.plan)
            assert (await asyncio.to_thread(replays.run, plan)).counts == {"written": len(scene.published)}
            # The last copies of both partitions ran, so those before them have been looked at; none may have passed its head.
            await until_async(
                "the lane is read", lambda: sum(kind == "last" for _, kind, *_ in marks) == 2 * scene.partitions
            )
            await until_async("what is before the heads is done again", lambda: len(marks) >= 2 * calm)
            shut[0] = False
            await until_async("all is done twice", lambda: len(marks) == 2 * len(scene.published), 60)

    asyncio.run(go())
    behind: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for key, kind, offset, replayed in marks[2 * calm :]:
        assert kind == "keyed"
        behind[key].append((offset, replayed))
    assert len(behind) == scene.partitions * KEYS
    for key, found in behind.items():
        assert found == sorted(found), (key, found)
        assert len(found) == 2 * (EACH - HEAD)
