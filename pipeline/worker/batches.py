"""Batch handlers: many events in one call, one outcome per item; only failed items are retried.

A batch holds one record per key, so a key's order survives an item that fails. One that is done or not done as a whole may
hold several, in their order: when it fails, the first of each key has failed, and the others were not run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

from pipeline.core.batching import gathering_ends, hold_back_behind
from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.outcome import Failure, FailureKind, Reject, Retry
from pipeline.worker.alarm import guarded
from pipeline.worker.context import Context
from pipeline.worker.daemon_threads import DaemonThreads
from pipeline.worker.engine import Engine
from pipeline.worker.execution import SKIP, Execution, concluded, failure_of, timed_out
from pipeline.worker.runners import STOP_TIMEOUT_S
from pipeline.worker.stalls import stack_of

BatchHandler = Callable[[Sequence[object], Sequence[Context]], Awaitable[object] | object]
BATCHES_AT_ONCE = 4
BUSY_WAIT_S = 0.005
"""How long a batch waits for other keys while records wait behind it."""


class _Late(Exception):
    """The attempt took longer than it may. A TimeoutError may be the handler's own: a database's, a socket's."""


class Contexts(Sequence[Context]):
    """The contexts of a batch, each made when it is asked for: most handlers look at few of them."""

    __slots__ = ("_deliveries", "_execution", "_made", "_names")

    def __init__(self, execution: Execution, deliveries: Sequence[Delivery], names: Sequence[str]) -> None:
        self._execution = execution
        self._deliveries = deliveries
        self._names = names
        self._made: dict[int, Context] = {}

    def __len__(self) -> int:
        return len(self._deliveries)

    @overload
    def __getitem__(self, index: int) -> Context: ...
    @overload
    def __getitem__(self, index: slice) -> list[Context]: ...
    def __getitem__(self, index: int | slice) -> Context | list[Context]:
        places = range(len(self._deliveries))[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def __iter__(self) -> Iterator[Context]:
        return map(self._at, range(len(self._deliveries)))

    def _at(self, place: int) -> Context:
        context = self._made.get(place)
        if context is None:
            context = self._made[place] = Context(self._execution, self._deliveries[place])
            if self._names:
                context.record_name = self._names[place]
        return context

    @property
    def any_emitted(self) -> bool:
        return any(context.emitted is not None for context in self._made.values())


def _is_waited_for(delivery: Delivery) -> bool:
    return delivery.key in delivery.unit.waiting.by_key or delivery.key in delivery.unit.blocked


class BatchRunners:
    """An `Executor`. `size` and `wait_ms` as in `BatchPolicy`; `concurrency` bounds the records running in all batches."""

    def __init__(self, engine: Engine, handler: BatchHandler, is_async: bool, loop: asyncio.AbstractEventLoop) -> None:
        subscription = engine.execution.subscription
        self._engine = engine
        self._handler = handler
        self._is_async = is_async
        self._loop = loop
        self._size = subscription.batch.size
        self._whole = subscription.batch.whole
        self._wait_s = subscription.batch.wait_ms / 1000
        self._at_once = max(1, min(BATCHES_AT_ONCE, subscription.flow.concurrency // self._size)) if is_async else 1
        self._timeout_s = subscription.timeout_ms / 1000
        self._gathered = engine.gathered
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[asyncio.Task[None], list[Delivery]] = {}
        self._thread = DaemonThreads(1, "pipeline-batches")

    def pump(self) -> None:
        engine = self._engine
        if engine.paused:
            return  # also what was gathered before: who pauses a group wants its handler not to be called
        while len(self._running) < self._at_once:
            engine.take_many(self._gathered, self._size - len(self._gathered), self._whole)
            if len(self._gathered) < self._size:
                break
            self._start()
        if self._gathered and self._timer is None and len(self._running) < self._at_once:
            # What waits behind this batch can't fill it: a few busy keys would get one record per wait.
            wait_s = min(BUSY_WAIT_S, self._wait_s) if any(map(_is_waited_for, self._gathered)) else self._wait_s
            self._timer = self._loop.call_later(wait_s, guarded(self._engine, self._time_is_up))

    def _time_is_up(self) -> None:
        self._timer = None
        if self._gathered and len(self._running) < self._at_once and not self._engine.paused:
            self._start()
        self.pump()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathering_ends(self._gathered)
        batch = [delivery for delivery in self._gathered if not delivery.unit.draining]
        self._gathered.clear()
        if batch:
            task = self._loop.create_task(self._run(batch))
            self._running[task] = batch
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._engine.fail(error)
        self._engine.wake()

    async def _run(self, batch: list[Delivery]) -> None:
        deliveries, events, contexts = self._decode_all(batch) or self._decode(batch)
        if not deliveries:
            return
        engine = self._engine
        began_s, began_ms = self._loop.time(), engine.clock.read()
        try:
            if self._is_async:
                returned = await self._in_time(deliveries[0], self._handler(events, contexts))
            else:
                returned = await self._in_thread(deliveries[0], partial(self._handler, events, contexts))
        except _Late:
            self._fail_all(deliveries, timed_out(engine.execution.subscription.timeout_ms), began_ms)
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the unit is let go, or the pool stops
            inside = RuntimeError("the handler was cancelled from inside: something it awaited was cancelled")
            self._fail_all(deliveries, failure_of(inside, ()), began_ms)
            return
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # also SystemExit: it would take the worker with it
            self._fail_all(deliveries, failure_of(error, engine.execution.subscription.retry.terminal), began_ms)
            return
        finally:
            engine.stats.durations.observe(self._loop.time() - began_s)
        first = next((delivery for delivery in deliveries if delivery.unit.open), None)
        if returned is None and first is not None and not contexts.any_emitted:
            engine.stats.took(first, engine.clock.read())
        self._conclude(deliveries, contexts, returned, began_ms)

    async def _in_time(self, first: Delivery, running: Any) -> object:
        """A coroutine is cancelled at its deadline; one that goes on is told as stalled a timeout later."""
        stalls, task = self._engine.stalls, asyncio.current_task()

        def late() -> None:
            stack = "".join(map(str, task.get_stack())) if task is not None else ""
            stalls.begin(first, time.monotonic() - self._timeout_s, stack)

        watch = self._loop.call_later(2 * self._timeout_s, late)
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                return await running
        except TimeoutError as error:
            if deadline.expired():
                raise _Late from error
            raise
        finally:
            watch.cancel()
            stalls.end(first)

    async def _in_thread(self, first: Delivery, call: Callable[[], object]) -> object:
        """A thread can't be stopped: past the deadline it is told as stalled, and its keys wait until it returns."""
        engine, began_s, thread, failed = self._engine, self._loop.time(), [0], list[BaseException]()

        def run() -> object:
            thread[0] = threading.get_ident()
            try:
                return call()
            except BaseException as error:  # not through the future, which takes no StopIteration and would never end
                failed.append(error)
                return None

        def late() -> None:
            engine.stalls.begin(first, time.monotonic() - self._timeout_s, stack_of(thread[0]))

        watch = self._loop.call_later(self._timeout_s, late)
        try:
            returned = await self._loop.run_in_executor(self._thread, run)
        finally:
            watch.cancel()
            engine.stalls.keep(set())
        if failed:
            raise failed.pop()
        if self._loop.time() - began_s > self._timeout_s:
            raise _Late
        return returned

    def _decode_all(self, batch: list[Delivery]) -> tuple[list[Delivery], list[object], Contexts] | None:
        """The whole batch at once; None when something is amiss with one of them."""
        decode_many = self._engine.execution.decode_many
        if decode_many is None:
            return None
        try:
            names, events = decode_many(batch)
        except Exception:  # which one it is, and what that means, is found out one by one
            return None
        return batch, events, Contexts(self._engine.execution, batch, names)

    def _decode(self, batch: list[Delivery]) -> tuple[list[Delivery], list[object], Contexts]:
        """What can be given to the handler; the rest gets its ending here."""
        engine, execution = self._engine, self._engine.execution
        decode = execution.decode
        deliveries: list[Delivery] = []
        events: list[object] = []
        names: list[str] = []
        left = deque(batch)
        while left:
            delivery = left.popleft()
            context = Context(execution, delivery)
            try:
                event = decode(delivery, context)
            except SchemaUnavailable as error:
                left = self._hold_back(delivery, left)
                engine.await_schema(delivery, error.schema_id or 0)
                continue
            except Exception as error:
                # Not only the codec's own: a value may be too deep, or too large, to be looked into.
                left = self._hold_back(delivery, left)
                self._answer(engine.complete(delivery, failure_of(error, execution.subscription.retry.terminal)))
                continue
            if event is SKIP:
                self._answer(engine.done(delivery))
                continue
            deliveries.append(delivery)
            events.append(event)
            names.append(context.record_name)
        return deliveries, events, Contexts(execution, deliveries, names)

    @staticmethod
    def _hold_back(stopped: Delivery, left: deque[Delivery]) -> deque[Delivery]:
        """Those of its key that come after it wait behind it; returns the others."""
        behind = hold_back_behind(stopped, left)
        return deque(delivery for delivery in left if delivery not in behind) if behind else left

    def _conclude(self, deliveries: list[Delivery], contexts: Contexts, returned: object, began_ms: int) -> None:
        engine = self._engine
        if returned is None:
            if not contexts.any_emitted:
                engine.done_many(deliveries)
                return
            returned = [None] * len(deliveries)
        elif self._whole or not isinstance(returned, (list, tuple)) or len(returned) != len(deliveries):
            wanted = "None" if self._whole else f"None or a list with one outcome per item ({len(deliveries)})"
            text = f"a batch handler{' of whole batches' if self._whole else ''} returns {wanted}, not {type(returned).__name__}"
            failure = Failure(FailureKind.TERMINAL, "UnexpectedReturn", type(returned).__name__, text)
            self._fail_all(deliveries, failure, began_ms)
            return
        for delivery, context, item in zip(deliveries, contexts, returned, strict=True):
            if isinstance(item, (Retry, Reject, Exception)):
                failure = failure_of(item, engine.execution.subscription.retry.terminal)
                self._answer(engine.complete(delivery, replace(failure, started_ms=began_ms)))
                continue
            outcome, emitted = concluded(item, context)
            self._answer(engine.complete(delivery, outcome, emitted))

    def _fail_all(self, deliveries: Sequence[Delivery], failure: Failure, began_ms: int) -> None:
        failure = self._engine.diagnose_all(deliveries, replace(failure, started_ms=began_ms))
        left = deque(deliveries)
        while left:
            delivery = left.popleft()
            left = self._hold_back(delivery, left)
            self._answer(self._engine.complete(delivery, failure))

    def _answer(self, following: Delivery | None) -> None:
        if following is not None:
            self._engine.resumed.append(following)

    def holds(self, unit: Unit) -> bool:
        return any(delivery.unit is unit for batch in self._running.values() for delivery in batch)

    def cancel(self, unit: Unit) -> None:
        """A thread runs on, and nothing beside it: given up, its records would be in two calls at once when they come again."""
        for task, batch in self._running.items() if self._is_async else ():
            if all(delivery.unit is unit for delivery in batch):
                task.cancel()

    def running(self) -> int:
        """From any thread."""
        return sum(len(batch) for batch in tuple(self._running.values()))

    def abandon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._running:
            task.cancel()
        self._thread.shutdown()

    async def stop(self) -> None:
        self.abandon()
        if tasks := tuple(self._running):
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)  # one may swallow its cancellation
