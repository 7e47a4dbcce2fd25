"""A thousand simulated histories of whole workers, the first half: every promise is kept, and every situation is met."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.coverage import held, missing

FIRST, COUNT, CHUNK = 0, 500, 50
SEEN: Counter[str] = Counter()


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, CHUNK))
def test_every_promise_is_kept(first: int) -> None:
    found = held(range(first, first + CHUNK), SEEN)
    SEEN["histories"] += CHUNK
    assert not found, "\n".join(found)


def test_every_fault_and_every_path_was_met() -> None:
    if SEEN["histories"] < COUNT:
        pytest.skip("only when all of this file's histories have run")
    assert not missing(SEEN)
