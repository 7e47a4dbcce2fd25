"""Whole workers, simulated: seeds must hold, and the product with a rule broken must not.

A failing seed is run again with `make sim SEED=<seed>`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipeline.core.delivery import Delivery
from pipeline.core.parking import Parking
from pipeline.core.unit import HandOff, Unit
from pipeline.worker.committing import Committer
from pipeline.worker.sending import Sender
from tests.simulation.world import Scenario, calm, simulate

SEEDS = range(12)
MUTANT_SEEDS = range(10)


def failed(seed: int, problems: Sequence[str]) -> str:
    return f"seed {seed} (again: make sim SEED={seed}): " + "; ".join(problems[:5])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_must_hold_holds_through_kills_zombies_and_broker_faults(seed: int) -> None:
    world = simulate(Scenario(seed))
    assert not world.problems, failed(seed, world.problems)
    assert len(world.published) > 100, "the simulation published next to nothing"


@pytest.mark.parametrize("seed", range(5))
def test_graceful_stops_repeat_nothing(seed: int) -> None:
    world = simulate(calm(Scenario(seed)))
    assert not world.problems, failed(seed, world.problems)
    assert sum("stop" in event for event in world.events) > 3, "no worker was stopped"


@pytest.mark.parametrize("order", ["key_relaxed", "none"])
def test_other_orders_lose_nothing(order: str) -> None:
    for seed in range(3):
        world = simulate(Scenario(seed, order=order))
        assert not world.problems, failed(seed, world.problems)


def test_the_same_seed_gives_the_same_history() -> None:
    first, second = simulate(Scenario(3)), simulate(Scenario(3))
    assert first.events == second.events
    assert first.attempts == second.attempts


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """(a): a record runs although a lower one of its key is unresolved."""
    monkeypatch.setattr(Parking, "tail_before", lambda self, key, identity: None)


def settled_before_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand-off counts as settled when it is sent."""
    send = Sender.hand_off

    def hand_off(self: Sender, effect: HandOff, now_ms: int) -> None:
        effect.delivery.unit.handed_off(effect.delivery)
        send(self, effect, now_ms)

    monkeypatch.setattr(Sender, "hand_off", hand_off)
    monkeypatch.setattr(Unit, "handed_off", _once(Unit.handed_off))


def _once(settle: Callable[[Unit, Delivery], None]) -> Callable[[Unit, Delivery], None]:
    def handed_off(self: Unit, delivery: Delivery) -> None:
        if delivery.offset in self.lanes[delivery.lane].tracker.open:
            settle(self, delivery)

    return handed_off


def nothing_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new owner does not look into the lanes: parked keys and their copies are unknown to it."""
    monkeypatch.setattr(Parking, "observe", lambda self, key, identity, hop, lane: None)


def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tier records are released before they are due."""
    release = Unit.release_due
    monkeypatch.setattr(Unit, "release_due", lambda self, now_ms, ready: release(self, now_ms + 500, ready))


def commits_what_was_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit passes unsettled work (I6)."""
    positions = Committer.positions

    def seen(self: Committer, unit: Unit, now_ms: int) -> Any:
        found = positions(self, unit, now_ms)
        return {
            tp: replace(p, offset=max(p.offset, lane.tracker.next_offset), metadata=p.metadata if index == 0 else "")
            for index, lane in enumerate(unit.lanes)
            for tp, p in found.items()
            if tp.topic == lane.spec.topic
        }

    monkeypatch.setattr(Committer, "positions", seen)


# Rules (c), (d) and (g) only save repeated executions, which disturbances explain here: tests/property/histories counts them.
MUTANTS = [no_waiting, settled_before_acknowledged, nothing_rebuilt, early, commits_what_was_received]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_rule_is_caught(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    for seed in MUTANT_SEEDS:
        if simulate(Scenario(seed, records=60, seconds=25.0, patience_s=120.0)).problems:
            return
    pytest.fail(f"{mutant.__doc__} No seed of {len(MUTANT_SEEDS)} noticed.")
