"""Calls of `def` handlers of jobs, each in a thread, which can't be stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from functools import partial

from pipeline.worker.daemon_threads import DaemonThreads
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.jobs.runs import Run


class HandlerThreads:
    """A thread for each of `places`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, places: int) -> None:
        self._loop = loop
        self._places = places
        self._threads: DaemonThreads | None = None

    def call(
        self,
        handler: Callable[..., object],
        arguments: tuple[object, ...],
        contexts: Sequence[JobContext],
        runs: Sequence[Run],
    ) -> Awaitable[object]:
        """What the handler gives. Who awaits it may be cancelled; the call goes on."""
        for run in runs:
            run.thread = 0
        if self._threads is None:
            self._threads = DaemonThreads(self._places, "pipeline-jobs")
        work = partial(copy_context().run, _in_thread, self._loop.time, handler, arguments, contexts, runs)
        call = self._loop.run_in_executor(self._threads, work)
        call.add_done_callback(_heard)
        for run in runs:
            run.call = call
        return _outcome(call)

    def time_left_s(self, run: Run) -> float:
        """Its time begins when its handler is called: not while it waits for a thread."""
        timeout_s = run.timeout_ms / 1000
        return timeout_s if run.called_s is None else run.called_s + timeout_s - self._loop.time()

    def abandon(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()


def _heard(call: asyncio.Future[object]) -> None:
    """Of one that was stopped just then, or let go, nobody asks for the error, and asyncio would say so."""
    if not call.cancelled():
        call.exception()


async def _outcome(call: asyncio.Future[object]) -> object:
    """`asyncio.shield` tells the loop's handler of an error that nobody waits for any more (from Python 3.14 on)."""
    await asyncio.wait((call,))
    return call.result()


def _in_thread(
    time: Callable[[], float],
    handler: Callable[..., object],
    arguments: tuple[object, ...],
    contexts: Sequence[JobContext],
    runs: Sequence[Run],
) -> object:
    for run in runs:
        run.called_s, run.thread = time(), threading.get_ident()
    try:
        return None if all(run.ended_by for run in runs) else handler(*arguments)
    except (StopIteration, GeneratorExit) as error:
        # No asyncio future takes the one (a `next` too many), no task goes on after the other: the job would never end.
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error
    finally:
        for context in contexts:  # not before: what one that was let go asks for is of an attempt that did not succeed
            context.ended = True
