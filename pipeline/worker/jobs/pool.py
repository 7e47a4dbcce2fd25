"""Long-lived tasks that run jobs one after another: a job whose handler never suspends costs no task of its own.

One that suspends leaves the others to the next runner (the baton): before a handler is awaited, one more runner is woken if jobs wait.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable

from pipeline.model.outbox import UNDER_WAY
from pipeline.worker.jobs.runs import Run
from pipeline.worker.runners import forget_cancellation

RUNS_PER_TURN = 100
"""So many jobs may a runner run without suspending before it lets timers and acknowledgements have the loop."""


class _Runner:
    __slots__ = ("task", "wake")

    def __init__(self) -> None:
        self.wake: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None]


class Pool:
    """As many runners as jobs ran at once; they are kept. `execute` runs a job to its ending, and raises nothing but what ends the
    process; `failed` is told of a defect of our own."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        execute: Callable[[Run], Awaitable[None]],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = loop
        self._execute = execute
        self._failed = failed
        self._waiting: deque[Run] = deque()
        self._runners: dict[_Runner, None] = {}  # a set that keeps its order
        self._idle: list[_Runner] = []
        self._baton = self._abandoned = False
        self._context = contextvars.copy_context()

    def add(self, run: Run) -> None:
        self._waiting.append(run)
        if not self._baton:
            self._pass_baton()

    def _pass_baton(self) -> None:
        if self._idle:
            wake = self._idle.pop().wake
            assert wake is not None
            if not wake.done():  # its loop is closing
                wake.set_result(None)
        else:
            runner = _Runner()
            self._runners[runner] = None
            runner.task = self._loop.create_task(self._work(runner), context=self._context.copy())
        self._baton = True

    async def _work(self, runner: _Runner) -> None:
        waiting, execute, task = self._waiting, self._execute, runner.task
        UNDER_WAY.set(None)
        clean = contextvars.copy_context()
        self._baton, turn = False, 0
        try:
            while True:
                if not waiting:
                    turn = 0
                    await self._rest(runner)
                    continue
                run = waiting.popleft()
                if waiting and not self._baton:
                    self._pass_baton()
                run.task = task
                await execute(run)
                run.task = None
                if self._abandoned or task.cancelling() > bool(run.ended_by):
                    del self._runners[runner]  # it is the task that was to end, with its loop
                    return
                forget_cancellation(task)
                UNDER_WAY.set(None)
                if contextvars.copy_context() != clean:
                    # The handler left a context variable behind: the next job must not see it, so this runner ends here.
                    self._retire(runner)
                    return
                turn += 1
                if turn >= RUNS_PER_TURN:
                    turn = 0
                    await asyncio.sleep(0)
        except Exception as error:
            self._failed(error)

    async def _rest(self, runner: _Runner) -> None:
        """Until the baton comes here."""
        runner.wake = self._loop.create_future()
        self._idle.append(runner)
        await runner.wake
        self._baton = False

    def _retire(self, runner: _Runner) -> None:
        del self._runners[runner]
        if self._waiting and not self._baton:
            self._pass_baton()

    def tasks(self) -> list[asyncio.Task[None]]:
        """All of them, also those that rest."""
        return [runner.task for runner in self._runners]

    def abandon(self) -> None:
        """Nothing more begins; whoever calls this cancels the `tasks`."""
        self._abandoned = True
        self._waiting.clear()
