"""What the checks of queues are made of: they wait for conditions, and close the queue that they were given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from pipeline.model.background import BackgroundQueue

PATIENCE_S = 30.0
"""How long a check waits for what must come."""
LATE_S = 0.3
"""And for what must not."""

QueueCheck = Callable[[BackgroundQueue, str], Awaitable[None]]


def queue_check(body: Callable[[Any, str], Awaitable[None]]) -> QueueCheck:
    @wraps(body)
    async def check(queue: BackgroundQueue, topic: str) -> None:
        try:
            async with asyncio.timeout(4 * PATIENCE_S):
                await body(queue, topic)
        finally:
            await queue.close()

    return check


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.005)


async def refused(call: Awaitable[object], kind: type[BaseException], what: str) -> None:
    try:
        await call
    except kind:
        return
    raise AssertionError(f"{what} is taken: {kind.__name__} should be raised")
