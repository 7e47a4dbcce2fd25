"""Waiting in tests: for a condition, with a deadline, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tests.patience import PATIENCE

PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5
PAUSES_PER_LOOK = 3
"""Looking can be work, for us and for the broker (a topic that is read anew): a quarter of the time at most."""


def until(what: str, condition: Callable[[], Any], deadline_s: float = 30.0, tell: Callable[[], str] = str) -> Any:
    """Wait for a truthy answer; on time-out say what was waited for and what `tell` knows. `deadline_s`: of an idle machine."""
    deadline_s *= PATIENCE
    end = (looked := time.monotonic()) + deadline_s
    while not (answer := condition()):
        if (now := time.monotonic()) > end:
            raise AssertionError(f"not within {deadline_s} s: {what}\n{tell()}")
        time.sleep(min(LONGEST_PAUSE_S, max(PAUSE_S, PAUSES_PER_LOOK * (now - looked))))
        looked = time.monotonic()
    return answer


async def until_async(what: str, condition: Callable[[], Any], deadline_s: float = 30.0) -> Any:
    """`until` for code in the event loop."""
    deadline_s *= PATIENCE
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        await asyncio.sleep(0.01)
    return answer
