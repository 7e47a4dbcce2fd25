"""A board's whole life at random, with owners that die, checked from the facts alone; `pytest -k SEED` of a finding repeats it."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.core.jobs.job import Job
from pipeline.model.job_states import MOVES, TERMINAL, JobState
from tests.property.board_checker import problems
from tests.property.board_world import lives

BLOCK = 25


@pytest.mark.parametrize("first", range(0, 200, BLOCK))
def test_no_life_breaks_a_promise(first: int) -> None:
    found = {seed: wrong[:3] for seed in range(first, first + BLOCK) if (wrong := problems(lives(seed)))}
    assert not found, f"lives(seed) and what is wrong: {found}"


def test_only_the_moves_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to a job, its state goes as `MOVES` says. What it begins as, or is restored as, is its first one."""
    moves: Counter[tuple[JobState, JobState]] = Counter()

    class Watched(Job):
        __slots__ = ("_begun", "_state")

        @property
        def state(self) -> JobState:
            return self._state

        @state.setter
        def state(self, after: JobState) -> None:
            before = getattr(self, "_state", None)
            self._state: JobState = after
            if before is None:
                self._begun = False
            elif self._begun and before is not after:
                moves[before, after] += 1
            self._begun: bool = before is not None

    for module in ("board", "commands", "job"):
        monkeypatch.setattr(f"pipeline.core.jobs.{module}.Job", Watched)
    for seed in range(80):
        lives(seed)
    wrong = {move: count for move, count in moves.items() if move[1] not in MOVES[move[0]]}
    assert not wrong
    there_are = {
        (before, after) for before, many in MOVES.items() for after in many if JobState.WAITING not in (before, after)
    }
    again = {move for move in there_are if move[0] in TERMINAL}  # another round is another object
    assert there_are - again <= set(moves), "and all of them happen"


def test_a_life_is_the_same_again() -> None:
    for seed in (3, 17):
        once, again = lives(seed), lives(seed)
        assert once.log == again.log
        assert once.facts == again.facts


def test_the_lives_are_about_something() -> None:
    """What has never happened is not proven."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        told = lives(seed)
        for fact in told.facts:
            seen[fact.what] += 1
            if fact.what in ("ended", "wrote"):
                seen[fact.how if isinstance(fact.how, str) else type(fact.how).__name__] += 1
        seen["duplicate"] += sum(b"JobDuplicate" in value for _, value in told.log if value)
        seen["tick"] += len({key for key, _ in told.log if b"@" in key})
        seen["floor"] += len(told.floors)
        seen["tombstone"] += sum(value is None for _, value in told.log)
    for what in (
        *(
            "began",
            "lost",
            "crashed",
            "stalled",
            "Completed",
            "Failure",
            "Cancelled",
            "duplicate",
            "tick",
            "tombstone",
            "floor",
        ),
        *("scheduled", "queued", "running", "retrying", "completed", "completed_with_warning", "failed", "cancelled"),
        "dead_letter",
    ):
        assert seen[what] >= 10, f"{what}: {seen[what]} times"
