"""The simulator itself: the same seed gives the same history, a failure shrinks and is repeated; and what it found once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest

from pipeline.core.parking import Parking
from tests.simulation.resetting import simulate_resets
from tests.simulation.scenario import Event, Planned, Scenario, drawn
from tests.simulation.shrink import promise, shrunk
from tests.simulation.world import simulate


def test_the_same_seed_gives_the_same_history() -> None:
    for seed in (3, 8, 25):
        first, second = simulate(drawn(seed)), simulate(drawn(seed))
        assert first.told() == second.told()
        assert first.seen == second.seen


@pytest.mark.parametrize("seed", [139, 163, 226])
def test_another_process_repeats_it_too(seed: int) -> None:
    """Whatever order its sets have: of workers stopped, of runners cancelled, of partitions watched after a crash."""
    told = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
            env={**os.environ, "PYTHONHASHSEED": hashing}, stdout=subprocess.PIPE, check=True, timeout=60,
        ).stdout
        for hashing in ("0", "1", "7")
    }  # fmt: skip
    assert len(told) == 1


@pytest.mark.parametrize("seed", range(8))
def test_resets_lose_nothing_and_zombies_stay_dead(seed: int) -> None:
    world = simulate_resets(seed)
    assert not world.problems, f"seed {seed}: {world.problems[:5]}"
    assert world.seen["reset"] == 4


@pytest.fixture
def nobody_waits() -> Iterator[None]:
    with patch.object(Parking, "tail_before", lambda self, key, identity: None):
        yield


@pytest.mark.usefixtures("nobody_waits")
def test_a_failing_history_shrinks_to_what_it_needs_and_is_repeated_from_its_parts() -> None:
    seed = next(seed for seed in range(50) if any(promise(p) == "I3" for p in simulate(drawn(seed)).problems))

    def breaks(scenario: Scenario) -> bool:
        return any(promise(problem) == "I3" for problem in simulate(scenario).problems)

    small = shrunk(drawn(seed), breaks)
    assert len(small.records) <= 3, (
        "one that waits in a tier, one that should wait behind it, and one that sets the time"
    )
    assert not small.events
    assert not small.faults
    again = simulate(drawn(seed).only(small.parts()))
    assert again.told() == simulate(small).told()
    assert promise(again.problems[0]) == "I3"


def planned(*steps: str, key: bytes = b"k", at_ms: int = 10) -> Planned:
    return Planned(-1, at_ms, key, steps, 0)


def written(records: list[Planned], **more: object) -> Scenario:
    numbered = tuple(replace(record, number=number) for number, record in enumerate(records))
    return replace(Scenario(0, partitions=1, workers=1, records=numbered), **more)  # type: ignore[arg-type]


def test_threads_without_order_run_what_stands_behind_a_failure_of_its_key() -> None:
    """They come in one chunk; with order, those behind a failure wait for it, and without they must not be forgotten."""
    short = [planned("ok", at_ms=10 + number) for number in range(20)]
    world = simulate(
        written(
            [
                *short,
                *[planned("ok", at_ms=400)] * 2,
                planned("fail", "ok", at_ms=400),
                *[planned("ok", at_ms=400)] * 5,
            ],
            executor="def",
            order="none",
            concurrency=1,
        )
    )
    assert not world.problems


@pytest.mark.parametrize("executor", ["async", "def", "batch"])
def test_a_stop_forgets_no_attempt(executor: str) -> None:
    """Records that wait in memory between two attempts, for a thread, or for their batch, when their worker is stopped."""
    records = [
        planned("retry:150", "retry:150", "retry:150", "ok", key=b"%d" % at, at_ms=at) for at in range(0, 2_500, 47)
    ]
    turns = [
        Event(n, at, kind)
        for n, (at, kind) in enumerate(zip(range(600, 2_400, 200), ["stop", "start"] * 5, strict=False))
    ]
    world = simulate(written(records, events=tuple(turns), executor=executor, calm=True))
    assert not world.problems
    assert world.seen["handed back"] > 30


def test_successors_that_find_no_room_in_memory_do_not_hop_without_end() -> None:
    """Two of a key fit into memory; the others come up once per delay of the first tier until their head is through."""
    records = [planned("fail", "fail", "fail", "ok"), *[planned("ok", at_ms=20)] * 8]
    tight = replace(Scenario(0).limits, buffered=2)
    world = simulate(written(records, limits=tight))
    assert not world.problems
    assert 60 < world.seen["hop: wait"] < 90, (
        "about every first tier's delay for as long as the head takes; else it is above 100"
    )


def test_a_pause_and_an_operator_s_skip_are_obeyed() -> None:
    records = [
        planned("retry:2500", "ok"),
        planned("ok", at_ms=30),
        *[planned("ok", key=b"other", at_ms=at) for at in range(0, 3_000, 100)],
    ]
    events = (Event(0, 100, "skip"), Event(1, 300, "pause", value=2_500))
    world = simulate(written(records, events=events))
    assert not world.problems
    assert world.seen["dead letter"] == 1
    assert world.seen["log: subscription paused"] == 1


def test_a_worker_that_starts_takes_nothing_before_it_knows_what_is_paused() -> None:
    """The control topic comes in small pieces, with the pause behind other switches."""
    records = [
        planned("retry:2500", "ok"),
        *[planned("ok", key=b"k%d" % (at % 7), at_ms=at) for at in range(0, 3_000, 50)],
    ]
    before = [Event(number, 100 + 10 * number, "release", pick=number) for number in range(12)]
    paused = [Event(12, 300, "pause", value=4_000), Event(13, 1_900, "stop"), Event(14, 2_000, "start")]
    world = simulate(written(records, events=(*before, *paused), delays=("fetch",)))
    assert not world.problems


def test_a_letter_of_a_worker_that_seemed_dead_comes_after_the_release_of_its_key() -> None:
    """Frozen, it fell out of the group, and an operator found nobody there; awake, it writes once more what it had decided."""
    world = simulate(drawn(710392).only(["e1", "e6", "e7", "e8", "e9", "r1", "r4", "r13"]))
    assert not world.problems
    assert world.seen["a release while nobody is in the group"] == 1
    assert world.seen["a dead letter of an owner that was replaced"] == 2
