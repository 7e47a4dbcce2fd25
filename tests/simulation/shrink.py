"""The smallest scenario that still breaks the same promise: parts are taken away, as long as it does. Deterministic."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.scenario import Scenario

TRIES_MAX = 400


def promise(problem: str) -> str:
    """What a problem is about: "I3", "defect", ..."""
    return problem.partition(":")[0]


def shrunk(scenario: Scenario, breaks: Callable[[Scenario], bool], tries_max: int = TRIES_MAX) -> Scenario:
    """The scenario with as few parts as `breaks` allows: halves first, then smaller pieces, then one by one (delta debugging)."""
    kept = scenario.parts()
    tries = 0
    pieces = 2
    while kept and tries < tries_max:
        size = max(1, len(kept) // pieces)
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            tries += 1
            if breaks(scenario.only(fewer)):
                kept, pieces = fewer, max(2, pieces - 1)
                break
            if tries >= tries_max:
                break
        else:
            if size == 1:
                break
            pieces = min(len(kept), pieces * 2)
    return scenario.only(kept)
