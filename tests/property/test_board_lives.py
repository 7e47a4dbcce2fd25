"""A board's whole life at random, with owners that die, checked from the facts alone; `pytest -k SEED` of a finding repeats it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.property.board_checker import problems
from tests.property.board_world import lives

BLOCK = 25


@pytest.mark.parametrize("first", range(0, 200, BLOCK))
def test_no_life_breaks_a_promise(first: int) -> None:
    found = {seed: wrong[:3] for seed in range(first, first + BLOCK) if (wrong := problems(lives(seed)))}
    assert not found, f"lives(seed) and what is wrong: {found}"


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
        seen["tombstone"] += sum(value is None for _, value in told.log)
    for what in (
        *("began", "lost", "crashed", "stalled", "Completed", "Failure", "Cancelled", "duplicate", "tick", "tombstone"),
        *("scheduled", "queued", "running", "retrying", "completed", "completed_with_warning", "failed", "cancelled"),
        "dead_letter",
    ):
        assert seen[what] >= 10, f"{what}: {seen[what]} times"
