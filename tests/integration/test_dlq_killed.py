"""A redrive and a release that are killed at each of their stages, on real Kafka, with a worker that runs what came of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline import Context
from pipeline.dead_letters import RedrivePolicy, Wanted, list_dead_letters, redrive_dead_letters, release_dead_letters
from pipeline.dead_letters import redrive as engine
from pipeline.dead_letters.api import OPEN
from pipeline.dead_letters.desk import Desk
from pipeline.model.headers import decode
from pipeline.model.topics import RESULTS_TOPIC
from pipeline.replay.results import read_results
from tests.integration.harness import GROUP, SOURCE, running, until_async
from tests.integration.redrive_process import ANA, CANARY, WINDOW, killed
from tests.integration.test_dlq_redrive import PARTITIONS, Redriving, place
from tests.integration.test_worker_hold import Holding
from tests.integration.test_worker_hold import place as holding

__all__ = ["holding", "place"]
pytestmark = [pytest.mark.first, pytest.mark.timeout(180)]


def settled_count(place: Redriving, lane: str) -> int:
    """How many there are when nothing comes any more: what the dead process had sent may still be on its way."""
    count, calm_until = place.scene.count(lane), time.monotonic() + 1.0
    while time.monotonic() < calm_until:
        time.sleep(0.1)
        if (now := place.scene.count(lane)) != count:
            count, calm_until = now, time.monotonic() + 1.0
    return count


@pytest.mark.parametrize("stage", ["audited", "sent", "acknowledged", "recorded", CANARY])
def test_killed_at_any_stage_and_begun_anew_nothing_is_lost_and_order_holds(place: Redriving, stage: str) -> None:
    count = 2_000
    place.die_many(count)
    killed(place.scene, stage, GROUP)
    lane = place.scene.lane("replay")
    after = settled_count(place, lane)
    assert after < count, "it was killed too late to prove anything"
    plans = place.scene.folder / "state" / "dead-letters"
    with Desk.of(place.app, GROUP) as desk:
        desk.refresh()
        prepared = engine.prepare(desk, desk.matching(OPEN), ANA.who, 1, RedrivePolicy())
    left = [(each.left, each.file.exists()) for each in prepared.unfinished]
    assert left == ([] if stage == CANARY else [(len(prepared.letters), True)]), "what was begun can be taken up"
    done = redrive_dead_letters(place.app, OPEN, ANA, group=GROUP, canary=0)
    assert done.end == "finished"
    assert not list(plans.rglob("rp-*.json")), "to take it up now would send all of it again"
    copies = Counter((m.partition(), decode(m.headers()).origin_offset) for m in place.scene.read(lane))
    assert len(copies) == count, "none is lost"
    assert max(copies.values()) <= 2
    twice = {offset for (_, offset), many in copies.items() if many == 2}
    unknown = 0 if stage in ("audited", CANARY) else after  # what was sent behind the first results has none
    assert len(twice) <= min(unknown, WINDOW + 250), (
        f"{len(twice)} went out twice: at most the window and one fetch (a quarter of a second at this rate)"
    )
    assert place.states() == {"redriven": count}
    results = read_results(place.scene.client.cluster, place.scene.prefix + RESULTS_TOPIC)
    written = {result.offset for batch in results for result in batch.results if batch.partition == 0}
    assert written == set(range(count)), "one result for each at least"
    if stage == "acknowledged":
        assert twice, "else this tells nothing of what comes twice"
        _work_off(place, copies.total(), twice)


def _work_off(place: Redriving, total: int, twice: set[int]) -> None:
    """A worker runs each copy, in the order of each key; a handler that remembers idempotency keys does nothing twice."""
    app, seen = place.scene.app(), []

    @app.subscribe(SOURCE, group=GROUP, tiers=("200ms",), attempts=2, value="json")
    async def handle(value: dict[str, int], ctx: Context) -> None:
        seen.append((ctx.run_id, value["n"], ctx.idempotency_key, ctx.replay_id))

    async def go() -> None:
        async with running(app, PARTITIONS):
            await until_async("all have run", lambda: len(seen) >= total)

    asyncio.run(go())
    runs = Counter(n for _, n, _, _ in seen)
    assert {n for n, many in runs.items() if many > 1} == twice
    assert len({key for _, _, key, _ in seen}) == len(runs), "one idempotency key for each record"
    assert len({(n, replay_id) for _, n, _, replay_id in seen}) == total, "two runs of one record have two replay ids"
    first: dict[str, list[int]] = {}
    done: set[str] = set()
    for key, n, idempotency_key, _ in seen:
        if idempotency_key not in done:
            done.add(idempotency_key)
            first.setdefault(key, []).append(n)
    for key, found in first.items():
        assert found == sorted(found), f"{key}: in the order of its origins"


def test_a_release_that_is_killed_is_finished_by_the_same_command(holding: Holding) -> None:
    """When its key is open and its records are sent, and nothing says so. (Killed before that: test_worker_hold.py.)"""
    holding.rejects = lambda n: n == 0
    holding.publish("a", 0, 1, 2)

    async def go() -> None:
        async with running(holding.app, 1):
            await holding.until_dead(3)
            await holding.until_held(1)
            await asyncio.to_thread(killed, holding.scene, "acknowledged", GROUP, "release")
            holding.publish("a", 3)
            done = await asyncio.to_thread(release_dead_letters, holding.app, ["a"], ANA, group=GROUP)
            assert (done.end, done.held) == ("finished", ()), done
            assert done.counts.get("cancelled") == 1, done
            await until_async("all are done", lambda: set(holding.of("a")) == {0, 1, 2, 3})
            await holding.until_held(0)

    asyncio.run(go())
    found = holding.of("a")
    assert [n for at, n in enumerate(found) if n not in found[:at]] == [0, 1, 2, 3], (
        "nothing overtakes, nothing is lost"
    )
    assert max(Counter(found).values()) <= 2, found
    letters = list_dead_letters(holding.app, group=GROUP, wanted=Wanted(), limit=10).letters
    assert Counter(letter.state for letter in letters) == {"cancelled": 1, "redriven": 2}
    assert not list(Path(holding.scene.folder / "state").rglob("rp-*.json"))
