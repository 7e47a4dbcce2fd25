"""Key-ordered retries hold in random histories of owners that die, and every broken rule is noticed.

More of them: python -m tests.property.histories 5000
"""

from __future__ import annotations

import pytest

from tests.property.histories import check
from tests.property.history_mutants import MUTANTS, mutant, seeds

CHUNK = 50
MUTANT_HISTORIES_MAX = 600


@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_every_history_keeps_every_promise(first: int) -> None:
    found = check(range(first, first + CHUNK), stop=False)
    assert not found, "\n".join(
        f"seed {seed}: {wrong}    again: python -m tests.property.histories 1 --seed {seed}" for seed, wrong in found
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str) -> None:
    with mutant(name) as rules:
        found = check(seeds(name, MUTANT_HISTORIES_MAX), rules)
    assert found, f"{name}: not noticed in {MUTANT_HISTORIES_MAX} histories"


def test_what_was_broken_is_whole_again() -> None:
    with mutant("a-no-wait") as rules:
        assert check(range(50), rules)
    assert not check(range(5))
