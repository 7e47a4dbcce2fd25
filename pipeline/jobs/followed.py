"""What is known of one job that somebody in this process waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from pipeline.model.errors import NotAuthorized, PipelineError
from pipeline.model.jobs import JobDuplicate, JobRecord

NOWHERE = -1

Answer = JobRecord | JobDuplicate


class Followed:
    """What is known of a job, and the `epoch` of the owner that said so. `partition`: where its entries are, once somebody waits."""

    __slots__ = ("__weakref__", "_over", "_waiters", "denied", "entry", "epoch", "job_id", "partition")

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.partition = NOWHERE
        self.entry: Answer | None = None
        self.epoch = 0
        self.denied: PipelineError | None = None
        self._over = -1
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def tell(self, entry: Answer, epoch: int) -> None:
        """Of the same owner what was read later may be older, as what it said when a write failed stands twice; an earlier owner's
        says nothing."""
        known = self.entry
        if isinstance(entry, JobRecord) and entry.version <= self._over:
            return
        older = isinstance(known, JobRecord) and isinstance(entry, JobRecord) and _is_older(entry, known)
        if epoch < self.epoch or (epoch == self.epoch and older):
            return
        self.entry, self.epoch, self.denied = entry, epoch, None
        self._wake()

    def deny(self, error: PipelineError) -> None:
        """It can't be read, or is not any more: whoever waits is told, instead of waiting for ever."""
        self.denied = error
        self._wake()

    def allow(self) -> None:
        """It can be read again."""
        if isinstance(self.denied, NotAuthorized):
            self.denied = None

    def let_go(self) -> None:
        """Nobody follows it any more, since its application or its queue was closed."""
        self.deny(PipelineError(f"job {self.job_id} is not followed any more: what it was asked for with was closed"))

    def _wake(self) -> None:
        for loop, event in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(event.set)

    def again(self, version: int) -> None:
        """It was asked for one more round: what it was in this version and before says nothing any more."""
        self._over = max(self._over, version)
        if isinstance(self.entry, JobRecord) and self.entry.version <= version:
            self.entry = None

    async def wait(self, until: Callable[[Answer], bool]) -> Answer:
        """The first entry of which this holds. Raises NotAuthorized when entries may not be read, PipelineError when they are not any
        more."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        self._waiters.append(waiter)
        try:
            while self.entry is None or not until(self.entry):
                if self.denied is not None:
                    raise self.denied
                await event.wait()
                event.clear()
            return self.entry
        finally:
            self._waiters.remove(waiter)


def _is_older(entry: JobRecord, known: JobRecord) -> bool:
    if entry.version != known.version:
        return entry.version < known.version
    told, before = entry.outcome.progress, known.outcome.progress
    return before is not None and (told is None or told.at_ms < before.at_ms)
