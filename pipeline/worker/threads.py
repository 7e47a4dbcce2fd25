"""Plain `def` handlers: a pool of threads. The engine's thread admits, the pool executes, results come back in bulk.

Work is handed over in chunks sized by how long the handler takes: one at a time when it waits, many when it only computes,
since waking a thread costs more than a short handler.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.outcome import Done, Emit, Failure
from pipeline.worker.context import Context
from pipeline.worker.engine import Engine
from pipeline.worker.execution import SKIP, concluded, failure_of, timed_out

THREADS_MAX = 64
CHUNK_MAX = 128
CHUNK_S = 0.004
"""How long a chunk should take: below it, hand over more at once."""
THREADS_MIN = 4
THREAD_PER_S = 0.00005
"""One more thread for each so much of time that a handler takes: short ones only compute, and threads would fight for the interpreter."""
STUCK_S = 0.02
"""Nothing came back for so long: a slow one among short ones holds its chunk, so all threads may take work."""

Handler = Callable[[object, Context], object]
_STOP: list[Delivery] = []


@dataclass(slots=True)
class _Result:
    """What came of one execution in the pool. `schema_id` is set when its schema is not known yet; neither: it did not run."""

    delivery: Delivery
    outcome: Done | Failure | None
    emitted: Sequence[Emit] = ()
    schema_id: int | None = None


class ThreadRunners:
    """An `Executor`. A thread can't be stopped from outside: an attempt past its deadline counts as timed out when it returns."""

    def __init__(self, engine: Engine, handler: Handler, concurrency: int, name: str) -> None:
        self._engine = engine
        self._handler = handler
        self._threads_max = min(concurrency, THREADS_MAX)
        self._work: queue.SimpleQueue[list[Delivery]] = queue.SimpleQueue()
        self._results: deque[_Result | Delivery] = deque()
        self._out: dict[Delivery, None] = {}
        self._threads: list[threading.Thread] = []
        self._name = name
        self._seconds_each = CHUNK_S  # one at a time until more is known: slow ones must not queue in one thread
        self._answered_s = time.monotonic()
        self._timeout_s = engine.execution.subscription.timeout_ms / 1000

    def pump(self) -> None:
        self._collect()
        engine = self._engine
        while len(self._out) < self._threads_useful * self._chunk_size and (engine.ready or engine.resumed):
            chunk: list[Delivery] = []
            size = self._chunk_size
            while len(chunk) < size and (delivery := engine.take()) is not None:
                chunk.append(delivery)
            if not chunk:
                return
            self._out.update(dict.fromkeys(chunk))
            if len(self._threads) < min(self._threads_useful, len(self._out)):
                self._grow()
            self._work.put(chunk)

    @property
    def _threads_useful(self) -> int:
        """Chunks that may be out at once."""
        if time.monotonic() - self._answered_s > STUCK_S:
            return self._threads_max
        return min(self._threads_max, max(THREADS_MIN, int(self._seconds_each / THREAD_PER_S)))

    @property
    def _chunk_size(self) -> int:
        return max(1, min(CHUNK_MAX, int(CHUNK_S / self._seconds_each)))

    def _grow(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _collect(self) -> None:
        """Answers, in the engine's thread."""
        engine, results, out = self._engine, self._results, self._out
        if results or not out:
            self._answered_s = time.monotonic()
        while results:
            result = results.popleft()
            following: Delivery | None
            if isinstance(result, Delivery):
                del out[result]
                following = engine.done(result)
            else:
                del out[result.delivery]
                if result.outcome is None:
                    if result.schema_id is not None:
                        engine.await_schema(result.delivery, result.schema_id)
                    continue
                following = engine.complete(result.delivery, result.outcome, result.emitted)
            if following is not None:
                engine.resumed.append(following)

    def _run(self) -> None:
        engine, results = self._engine, self._results
        while True:
            chunk = self._work.get()
            if chunk is _STOP:
                return
            began = time.perf_counter()
            for delivery in chunk:
                if delivery.unit.draining:  # let go while it waited for a thread: it runs at its next owner's
                    results.append(_Result(delivery, None))
                    continue
                started = time.perf_counter()
                result = self._execute(delivery)
                if time.perf_counter() - started > self._timeout_s:
                    result = _Result(delivery, timed_out(engine.execution.subscription.timeout_ms))
                results.append(result)
            each = (time.perf_counter() - began) / len(chunk)
            self._seconds_each += (each - self._seconds_each) * 0.2
            engine.wake()

    def _execute(self, delivery: Delivery) -> _Result | Delivery:
        """Runs in the pool. A plain success is just the delivery: nothing more to say."""
        execution = self._engine.execution
        context = Context(execution, delivery)
        try:
            event = execution.decode(delivery, context)
            returned = None if event is SKIP else self._handler(event, context)
        except SchemaUnavailable as error:
            return _Result(delivery, None, schema_id=error.schema_id or 0)
        except (
            BaseException
        ) as error:  # also SystemExit: it would end the thread, and nobody would answer for the record
            return _Result(delivery, failure_of(error, execution.subscription.retry.terminal))
        if returned is None and context.emitted is None:
            return delivery
        outcome, emitted = concluded(returned, context)
        return _Result(delivery, outcome, emitted)

    def holds(self, unit: Unit) -> bool:
        return any(delivery.unit is unit for delivery in self._out)

    def cancel(self, unit: Unit) -> None:
        """Threads run on; the closed unit ignores what they return."""

    def running(self) -> int:
        return len(self._out)

    def abandon(self) -> None:
        for _ in self._threads:
            self._work.put(_STOP)

    async def stop(self) -> None:
        self.abandon()
