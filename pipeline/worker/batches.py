"""Batch handlers: many events in one call, one outcome per item; only failed items are retried.

A batch holds at most one record per key, so a key's order survives an item that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.model.outcome import Failure, FailureKind, Reject, Retry
from pipeline.worker.context import Context
from pipeline.worker.engine import Engine
from pipeline.worker.execution import SKIP, concluded, failure_of, timed_out

BatchHandler = Callable[[Sequence[object], Sequence[Context]], Awaitable[object] | object]
BATCHES_AT_ONCE = 4


class BatchRunners:
    """An `Executor`. `size` and `wait_ms` as in `BatchPolicy`; `concurrency` bounds the records running in all batches."""

    def __init__(self, engine: Engine, handler: BatchHandler, is_async: bool, loop: asyncio.AbstractEventLoop) -> None:
        subscription = engine.execution.subscription
        self._engine = engine
        self._handler = handler
        self._is_async = is_async
        self._loop = loop
        self._size = subscription.batch.size
        self._wait_s = subscription.batch.wait_ms / 1000
        self._at_once = max(1, min(BATCHES_AT_ONCE, subscription.flow.concurrency // self._size)) if is_async else 1
        self._timeout_s = subscription.timeout_ms / 1000
        self._gathered: list[Delivery] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[asyncio.Task[None], list[Delivery]] = {}

    def pump(self) -> None:
        engine = self._engine
        while len(self._running) < self._at_once:
            gathered = self._gathered
            engine.take_many(gathered, self._size - len(gathered))
            if len(gathered) < self._size:
                break
            self._start()
        if self._gathered and self._timer is None and len(self._running) < self._at_once:
            self._timer = self._loop.call_later(self._wait_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        if self._gathered and len(self._running) < self._at_once:
            self._start()
        self.pump()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._gathered = [d for d in self._gathered if not d.unit.draining], []
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
        deliveries, events, contexts = self._decode(batch)
        if not deliveries:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._is_async:
                    returned = await self._handler(events, contexts)  # type: ignore[misc]
                else:
                    returned = await self._loop.run_in_executor(None, self._handler, events, contexts)
        except TimeoutError:
            self._fail_all(deliveries, timed_out(self._engine.execution.subscription.timeout_ms))
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the unit is let go, or the pool stops
            inside = RuntimeError("the handler was cancelled from inside: something it awaited was cancelled")
            self._fail_all(deliveries, failure_of(inside, ()))
            return
        except Exception as error:
            self._fail_all(deliveries, failure_of(error, self._engine.execution.subscription.retry.terminal))
            return
        self._conclude(deliveries, contexts, returned)

    def _decode(self, batch: list[Delivery]) -> tuple[list[Delivery], list[object], list[Context]]:
        """What can be given to the handler; the rest gets its ending here."""
        engine, execution = self._engine, self._engine.execution
        decode = execution.decode
        deliveries: list[Delivery] = []
        events: list[object] = []
        contexts: list[Context] = []
        for delivery in batch:
            context = Context(execution, delivery)
            try:
                event = decode(delivery, context)
            except SchemaUnavailable as error:
                engine.await_schema(delivery, error.schema_id or 0)
                continue
            except CodecError as error:
                self._answer(engine.complete(delivery, failure_of(error, ())))
                continue
            if event is SKIP:
                self._answer(engine.done(delivery))
                continue
            deliveries.append(delivery)
            events.append(event)
            contexts.append(context)
        return deliveries, events, contexts

    def _conclude(self, deliveries: list[Delivery], contexts: list[Context], returned: object) -> None:
        engine = self._engine
        if returned is None:
            if all(context.emitted is None for context in contexts):
                engine.done_many(deliveries)
                return
            returned = [None] * len(deliveries)
        if not isinstance(returned, (list, tuple)) or len(returned) != len(deliveries):
            text = f"a batch handler returns None or a list with one outcome per item ({len(deliveries)}), not {type(returned).__name__}"
            self._fail_all(deliveries, Failure(FailureKind.TERMINAL, "UnexpectedReturn", type(returned).__name__, text))
            return
        for delivery, context, item in zip(deliveries, contexts, returned, strict=True):
            if isinstance(item, (Retry, Reject, Exception)):
                self._answer(engine.complete(delivery, failure_of(item, engine.execution.subscription.retry.terminal)))
                continue
            outcome, emitted = concluded(item, context)
            self._answer(engine.complete(delivery, outcome, emitted))

    def _fail_all(self, deliveries: Sequence[Delivery], failure: Failure) -> None:
        for delivery in deliveries:
            self._answer(self._engine.complete(delivery, failure))

    def _answer(self, following: Delivery | None) -> None:
        if following is not None:
            self._engine.resumed.append(following)

    def holds(self, unit: Unit) -> bool:
        return any(delivery.unit is unit for batch in self._running.values() for delivery in batch)

    def cancel(self, unit: Unit) -> None:
        for task, batch in self._running.items():
            if all(delivery.unit is unit for delivery in batch):
                task.cancel()

    def running(self) -> int:
        return sum(len(batch) for batch in self._running.values())

    def abandon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._running:
            task.cancel()

    async def stop(self) -> None:
        self.abandon()
        await asyncio.gather(*tuple(self._running), return_exceptions=True)
