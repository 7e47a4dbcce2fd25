"""Plain `def` handlers: a pool of threads. The engine's thread admits, the pool executes, results come back in bulk.

Work is handed over in chunks sized by how long the handler takes: one at a time when it waits, many when it only computes,
since waking a thread costs more than a short handler. A chunk runs in its order, so it may hold several records of a key; the
next of them runs only when the one before was a plain success.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from pipeline.core.batching import gathering_ends, hold_back_behind
from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.outbox import UNDER_WAY
from pipeline.model.outcome import Done, Emit, Failure
from pipeline.worker.alarm import guarded
from pipeline.worker.context import Context
from pipeline.worker.engine import Engine
from pipeline.worker.execution import SKIP, concluded, failure_of, timed_out
from pipeline.worker.stalls import stack_of

THREADS_MAX = 64
CHUNK_MAX = 256
CHUNK_S = 0.004
"""How long a chunk should take: below it, hand over more at once."""
THREADS_MIN = 1
THREAD_PER_S = 0.00005
"""One more thread for each so much of time that a handler takes: short ones only compute, and threads would fight for the interpreter
(a second one costs 15 to 25 % of the rate of a handler that does nothing, measured on two cores)."""
STUCK_S = 0.02
"""Nothing came back for so long: a slow one among short ones holds its chunk, so all threads may take work."""

Handler = Callable[[object, Context], object]


@dataclass(slots=True)
class _Result:
    """What came of one execution in the pool. `schema_id` is set when its schema is not known yet; neither: it did not run."""

    delivery: Delivery
    outcome: Done | Failure | None
    emitted: Sequence[Emit] = ()
    schema_id: int | None = None
    took_s: float = 0.0


class _Chunk:
    """Deliveries handed over at once, and what came of them so far: the pool appends, the engine's thread takes."""

    __slots__ = ("deliveries", "results", "seen", "since_s", "taken", "thread_id")

    def __init__(self, deliveries: list[Delivery]) -> None:
        self.deliveries = deliveries
        self.results: list[_Result | Delivery] = []
        self.taken = 0
        self.thread_id = 0
        self.seen = -1
        self.since_s = 0.0


class ThreadRunners:
    """An `Executor`. A thread can't be stopped from outside: an attempt past its deadline counts as timed out when it returns."""

    def __init__(self, engine: Engine, handler: Handler, concurrency: int, name: str) -> None:
        self._engine = engine
        self._handler = handler
        self._threads_max = min(concurrency, THREADS_MAX)
        self._work: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        self._samples: deque[tuple[float, Delivery | None]] = deque()
        self._out: list[_Chunk] = []
        self._threads: list[threading.Thread] = []
        self._refused = ""
        self._name = name
        self._seconds_each = CHUNK_S  # one at a time until more is known: slow ones must not queue in one thread
        self._answered_s = time.monotonic()
        self._timeout_s = engine.execution.subscription.timeout_ms / 1000
        self._sweep_s = min(1.0, max(0.01, self._timeout_s / 10))
        self._sweeper: asyncio.TimerHandle | None = None

    def _sweep(self) -> None:
        """Deadlines, without looking at the clock for each record: a chunk that had no further result for so long hangs in one."""
        self._sweeper = None
        now_s, stalls = time.monotonic(), self._engine.stalls
        for chunk in self._out:
            ended = len(chunk.results)
            if not chunk.thread_id or ended != chunk.seen:
                chunk.seen, chunk.since_s = ended if chunk.thread_id else -1, now_s
            elif now_s - chunk.since_s >= self._timeout_s and ended < len(chunk.deliveries):
                stalls.begin(chunk.deliveries[ended], chunk.since_s, stack_of(chunk.thread_id))
        self._grow()
        self._watch()

    def _watch(self) -> None:
        if self._sweeper is None and self._out:
            self._sweeper = self._engine.loop.call_later(self._sweep_s, guarded(self._engine, self._sweep))

    def pump(self) -> None:
        self._collect()
        engine = self._engine
        while self.running() < self._threads_useful * self._chunk_size and (engine.ready or engine.resumed):
            deliveries: list[Delivery] = []
            engine.take_many(deliveries, self._chunk_size, True)
            if not deliveries:
                return
            gathering_ends(deliveries)
            chunk = _Chunk(deliveries)
            self._out.append(chunk)
            self._work.put(chunk)
            self._grow()
        self._watch()

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
        """One thread more, if it is of use. A machine that has none to give is asked again; meanwhile those that there are go on."""
        if len(self._threads) >= min(self._threads_useful, len(self._out)):
            return
        thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._refused:
                self._engine.log.error(
                    "no thread can be started for a handler", threads=len(self._threads), error=str(error)
                )
            self._refused = str(error)
            return
        self._threads.append(thread)
        self._refused = ""

    @property
    def trouble(self) -> str:
        """Why nothing that is taken can run; empty while it can."""
        return (
            f"no thread can be started for the handler: {self._refused}" if self._refused and not self._threads else ""
        )

    def _collect(self) -> None:
        """Answers, in the engine's thread."""
        engine, heard = self._engine, False
        while self._samples:
            seconds, finished = self._samples.popleft()
            engine.stats.durations.observe(seconds)
            if finished is not None:
                engine.stats.took(finished, engine.clock.read())
        for chunk in self._out:
            results = chunk.results[chunk.taken :]
            if results:
                heard = True
                self._answer(chunk, results)
                chunk.taken += len(results)
        if heard or not self._out:
            self._answered_s = time.monotonic()
            self._out = [chunk for chunk in self._out if chunk.taken < len(chunk.deliveries)]
            if self._engine.stalls.current:
                self._engine.stalls.keep({one for chunk in self._out for one in chunk.deliveries[chunk.taken :]})

    def _answer(self, chunk: _Chunk, results: list[_Result | Delivery]) -> None:
        """In the order in which they ended; plain successes in bulk."""
        engine = self._engine
        plain: list[Delivery] = []
        for place, result in enumerate(results, chunk.taken):
            if type(result) is Delivery:
                plain.append(result)
                continue
            engine.done_many(plain)
            plain = []
            ended = cast("_Result", result)
            if ended.outcome is not None or ended.schema_id is not None:
                hold_back_behind(ended.delivery, chunk.deliveries[place + 1 :])
            self._conclude(ended)
        engine.done_many(plain)

    def _conclude(self, result: _Result) -> None:
        engine, outcome = self._engine, result.outcome
        if outcome is None:
            if result.schema_id is not None:
                engine.await_schema(result.delivery, result.schema_id)
            elif (unit := result.delivery.unit).open and unit.draining:
                # It was to run again: attempts that failed in memory are not forgotten.
                unit.hand_back(result.delivery, engine.clock.now_ms)
                engine.perform(unit)
            return
        if isinstance(outcome, Failure):
            outcome = replace(outcome, started_ms=engine.clock.read() - round(result.took_s * 1000))
        following = engine.complete(result.delivery, outcome, result.emitted)
        if following is not None:
            engine.resumed.append(following)

    def _run(self) -> None:
        engine, clock, plain = self._engine, time.perf_counter, self._handler
        while True:
            chunk = self._work.get()
            if not chunk.deliveries:
                return
            chunk.thread_id = threading.get_ident()
            append = chunk.results.append
            handler: Handler = self._timed
            stopped: set[tuple[Unit, bytes | None]] = set()
            began = started = clock()
            for delivery in chunk.deliveries:
                # Let go while it waited for a thread: it runs at its next owner's. Or it waits behind one of its key.
                if delivery.unit.draining or (stopped and (delivery.unit, delivery.key) in stopped):
                    append(_Result(delivery, None))
                    continue
                result = self._execute(delivery, handler)
                ended = clock()
                if ended - started > self._timeout_s:
                    result = _Result(delivery, timed_out(engine.execution.subscription.timeout_ms))
                if result is not delivery:
                    cast("_Result", result).took_s = ended - started
                    if delivery.key is not None and delivery.unit.by_key:
                        stopped.add((delivery.unit, delivery.key))
                append(result)
                handler, started = plain, ended
            each = (clock() - began) / len(chunk.deliveries)
            self._seconds_each += (each - self._seconds_each) * 0.2
            engine.wake()

    def _timed(self, event: object, context: Context) -> object:
        """The handler, and how long it took: for the first record of a chunk. Runs in the pool."""
        began = time.perf_counter()
        done = False
        try:
            returned = self._handler(event, context)
            done = returned is None and context.emitted is None
        finally:
            self._samples.append((time.perf_counter() - began, context._delivery if done else None))
        return returned

    def _execute(self, delivery: Delivery, handler: Handler) -> _Result | Delivery:
        """Runs in the pool. A plain success is just the delivery: nothing more to say."""
        execution = self._engine.execution
        context = Context(execution, delivery)
        try:
            event = execution.decode(delivery, context)
            UNDER_WAY.set(context)
            returned = None if event is SKIP else handler(event, context)
        except BaseException as error:
            # Also SystemExit: it would end the thread, and nobody would answer for the record.
            if isinstance(error, SchemaUnavailable) and UNDER_WAY.get() is not context:  # else it is the handler's own
                return _Result(delivery, None, schema_id=error.schema_id or 0)
            return _Result(delivery, failure_of(error, execution.subscription.retry.terminal))
        finally:
            context.ended = True
        if returned is None and context.emitted is None:
            return delivery
        outcome, emitted = concluded(returned, context)
        return _Result(delivery, outcome, emitted)

    def holds(self, unit: Unit) -> bool:
        return any(delivery.unit is unit for chunk in self._out for delivery in chunk.deliveries[chunk.taken :])

    def cancel(self, unit: Unit) -> None:
        """Threads run on; the closed unit ignores what they return."""

    def running(self) -> int:
        return sum(len(chunk.deliveries) - chunk.taken for chunk in self._out)

    def abandon(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for _ in self._threads:
            self._work.put(_Chunk([]))  # nothing to do any more

    async def stop(self) -> None:
        self.abandon()
