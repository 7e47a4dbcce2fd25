"""What every `BackgroundQueue` does, as checks that any back-end can be held to; each takes a queue of its own and an unused topic.

    @pytest.mark.parametrize("check", QUEUE_CHECKS, ids=lambda check: check.__name__)
    def test_my_queue(check):
        asyncio.run(check(MyQueue(), unused_topic()))     # closes the queue

Without pytest: `await check_queue(MyQueue)`. They run in real time, most in well under a second where the queue is fast. Those about
results only ask a queue that has `handle`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from pipeline.model.background import BackgroundQueue
from pipeline.testing import choice_checks, delivery_checks, failure_checks
from pipeline.testing.checking import QueueCheck

QUEUE_CHECKS: tuple[QueueCheck, ...] = (*delivery_checks.CHECKS, *failure_checks.CHECKS, *choice_checks.CHECKS)


async def check_queue(make: Callable[[], BackgroundQueue]) -> None:
    """All checks, each with a queue that `make` gives. Raises AssertionError that names the first one that failed."""
    for check in QUEUE_CHECKS:
        try:
            await check(make(), f"check.{uuid.uuid4().hex[:12]}")
        except Exception as error:
            name = check.__name__
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
