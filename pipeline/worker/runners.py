"""`async def` handlers: a pool of long-lived tasks, each running one record after another.

A handler that never suspends costs no task of its own; one that does leaves the rest of the queue to the next runner (the baton).
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.outbox import UNDER_WAY
from pipeline.model.outcome import Failure
from pipeline.worker.alarm import guarded
from pipeline.worker.context import Context
from pipeline.worker.engine import Engine
from pipeline.worker.execution import SKIP, concluded, failure_of, timed_out

RECORDS_PER_TURN = 200
"""How many records a runner may run without suspending before it lets timers and acknowledgements have the loop."""

STOP_TIMEOUT_S = 5.0
"""How long a stop waits for handlers that were cancelled."""

Handler = Callable[[object, Context], Awaitable[object]]


class _Runner:
    """One task of the pool. `delivery` is what it runs now; `ended_by` says why it was cancelled."""

    __slots__ = ("delivery", "ended_by", "seen", "seen_attempt", "since_s", "task", "wake")

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self.seen: Delivery | None = None
        self.seen_attempt = 0
        self.since_s = 0.0
        self.ended_by = ""
        self.wake: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None]


class AsyncRunners:
    """An `Executor`. At most `concurrency` runners; they are made when needed and kept."""

    def __init__(self, engine: Engine, handler: Handler, concurrency: int, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._handler = handler
        self._concurrency = concurrency
        self._loop = loop
        self._runners: dict[_Runner, None] = {}  # a set that keeps its order: a history can be repeated
        self._idle: list[_Runner] = []
        self._baton = False
        self._context = contextvars.copy_context()
        self._timeout_s = engine.execution.subscription.timeout_ms / 1000
        self._sweep_s = min(1.0, max(0.01, self._timeout_s / 10))
        self._sweeps = guarded(engine, self._sweep)
        self._sweeper = loop.call_later(self._sweep_s, self._sweeps)
        self._clock = engine.clock

    def pump(self) -> None:
        if not self._baton and (self._engine.ready or self._engine.resumed):
            self._pass_baton()

    def _pass_baton(self) -> None:
        """Have one more runner look at the queue, if there may be one."""
        if self._idle:
            runner = self._idle.pop()
            assert runner.wake is not None
            runner.wake.set_result(None)
        elif len(self._runners) < self._concurrency:
            runner = _Runner()
            self._runners[runner] = None
            runner.task = self._loop.create_task(self._run(runner), context=self._context.copy())
        else:
            return
        self._baton = True

    async def _run(self, runner: _Runner) -> None:
        """A runner's life. The handler is awaited right here: each coroutine in between would be gone through twice a suspension."""
        engine, take, ready, resumed = self._engine, self._engine.take, self._engine.ready, self._engine.resumed
        execution, decode = engine.execution, engine.execution.decode
        UNDER_WAY.set(None)
        clean = contextvars.copy_context()
        turn, worked, self._baton = 0, False, False
        try:
            while True:
                if (delivery := take()) is None:
                    await self._rest(runner, worked)
                    turn, worked = 0, False
                while delivery is not None:
                    worked = True
                    runner.delivery, began_ms, context = delivery, self._clock.now_ms, Context(execution, delivery)
                    if not self._baton and (ready or resumed):
                        self._pass_baton()
                    try:
                        returned, event = None, decode(delivery, context)
                        if event is not SKIP:
                            UNDER_WAY.set(context)
                            returned = await (self._handler if turn else self._timed)(event, context)
                    except BaseException as error:
                        delivery = self._raised(runner, context, error, began_ms)
                    else:
                        if returned is None and context.emitted is None:
                            delivery = engine.done(delivery)
                        else:
                            delivery = engine.complete(delivery, *concluded(returned, context))
                    context.ended = True
                    if runner.ended_by and self._swallowed(runner) == "stop":
                        return
                    turn += 1
                    if turn >= RECORDS_PER_TURN:
                        turn = 0
                        if delivery is not None:
                            resumed.append(delivery)
                        runner.delivery = delivery = None
                        await asyncio.sleep(0)
                runner.delivery = None
                UNDER_WAY.set(None)
                if contextvars.copy_context() != clean:
                    # The handler left a context variable behind: the next record must not see it, so this runner ends here.
                    self._retire(runner)
                    return
        except Exception as error:
            engine.fail(error)

    async def _rest(self, runner: _Runner, worked: bool) -> None:
        """Until the baton comes here again."""
        runner.wake = self._loop.create_future()
        self._idle.append(runner)
        if worked:  # else nothing has changed, and an engine that may start nothing would wake us for ever
            self._engine.rested()
        await runner.wake
        self._baton = False

    async def _timed(self, event: object, context: Context) -> object:
        """The handler, and how long it took: for the first record of a turn, so that the others need not look at a clock."""
        stats, began_s = self._engine.stats, self._loop.time()
        try:
            returned = await self._handler(event, context)
        finally:
            stats.durations.observe(self._loop.time() - began_s)
        if returned is None and context.emitted is None:
            stats.took(context._delivery, self._clock.read())
        return returned

    def _raised(self, runner: _Runner, context: Context, error: BaseException, began_ms: int) -> Delivery | None:
        """Decoding or the handler ended in an exception. Gives the key's next record."""
        engine, failure, delivery = self._engine, None, context._delivery
        if isinstance(error, SchemaUnavailable) and UNDER_WAY.get() is not context:  # else it is the handler's own
            engine.await_schema(delivery, error.schema_id or 0)
            return None
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise error  # SystemExit is the record's failure, as in a thread: it would take with it all that runs beside
        if not isinstance(error, asyncio.CancelledError):
            failure = failure_of(error, engine.execution.subscription.retry.terminal)
        elif (failure := self._cancelled(runner, error)) is None:
            engine.rested()  # let go: it runs again elsewhere
            return None
        return engine.complete(delivery, replace(failure, started_ms=began_ms))

    def _cancelled(self, runner: _Runner, error: asyncio.CancelledError) -> Failure | None:
        """The failure a cancellation stands for; None when the unit is let go. Re-raises when the pool itself stops."""
        reason, runner.ended_by = runner.ended_by, ""
        if reason == "stop":
            raise error
        forget_cancellation(runner.task)
        if reason == "revoked":
            return None
        if reason == "timeout":
            return timed_out(self._engine.execution.subscription.timeout_ms)
        return failure_of(RuntimeError("the handler was cancelled from inside: something it awaited was cancelled"), ())

    @staticmethod
    def _swallowed(runner: _Runner) -> str:
        """The handler returned although it was cancelled: the reason is not the next record's. Returns it."""
        reason, runner.ended_by = runner.ended_by, ""
        forget_cancellation(runner.task)
        return reason

    def _retire(self, runner: _Runner) -> None:
        self._runners.pop(runner, None)
        self._engine.rested()
        self.pump()

    def _sweep(self) -> None:
        """Deadlines, without a timer per record: a runner seen with the same delivery for longer than the timeout is cancelled."""
        now = self._loop.time()
        for runner in self._runners:
            delivery = runner.delivery
            if delivery is None or delivery is not runner.seen or delivery.attempt != runner.seen_attempt:
                runner.seen, runner.since_s = delivery, now
                runner.seen_attempt = delivery.attempt if delivery is not None else 0
            elif now - runner.since_s >= self._timeout_s:
                if runner.ended_by == "timeout":  # it was cancelled a timeout ago, and goes on
                    stack = "".join(map(str, runner.task.get_stack()))
                    self._engine.stalls.begin(delivery, time.monotonic() - self._timeout_s, stack)
                runner.since_s = now  # cancel again after another timeout, should the handler swallow this one
                runner.ended_by = "timeout"
                runner.task.cancel()
        if self._engine.stalls.current:
            self._engine.stalls.keep({runner.delivery for runner in self._runners if runner.delivery is not None})
        self._sweeper = self._loop.call_later(self._sweep_s, self._sweeps)

    def holds(self, unit: Unit) -> bool:
        return any(runner.delivery is not None and runner.delivery.unit is unit for runner in self._runners)

    def cancel(self, unit: Unit) -> None:
        for runner in self._runners:
            if runner.delivery is not None and runner.delivery.unit is unit:
                runner.ended_by = "revoked"
                runner.task.cancel()

    def running(self) -> int:
        """From any thread."""
        return sum(runner.delivery is not None for runner in tuple(self._runners))

    def abandon(self) -> None:
        self._sweeper.cancel()
        for runner in self._runners:
            runner.ended_by = "stop"
            runner.task.cancel()

    async def stop(self) -> None:
        self.abandon()
        if tasks := [runner.task for runner in self._runners]:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)


def forget_cancellation(task: asyncio.Task[None]) -> None:
    """All requests so far were answered: structured code that this task runs later must not see them."""
    while task.cancelling():
        task.uncancel()
