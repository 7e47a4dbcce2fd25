"""Deliveries run in child processes, one in each: their answers, deadlines and deaths become endings.

A child that ends while it runs a record is a death of that record. It runs again at once, its key still busy; when it has taken
`IsolationPolicy.deaths` processes with it, it goes to the dead letters with its raw bytes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline.core.care import runs_alone
from pipeline.core.copies import note_failure
from pipeline.core.delivery import Delivery
from pipeline.core.unit import Unit
from pipeline.model.headers import headers_in
from pipeline.model.outcome import Done, Failure, FailureKind
from pipeline.model.policies import Subscription
from pipeline.worker.child import emits_of, failure_in
from pipeline.worker.child_frames import pack
from pipeline.worker.child_jobs import Answer, ChildSpec, Death, Job
from pipeline.worker.children import Children
from pipeline.worker.declaring import is_async
from pipeline.worker.engine import Engine
from pipeline.worker.execution import PROCESS_DIED, timed_out


def child_spec(subscription: Subscription, target: str) -> ChildSpec:
    return ChildSpec(
        target,
        subscription.group,
        subscription.timeout_ms,
        is_async(subscription.handler),
        subscription.isolation.memory_bytes,
    )


def _frame(delivery: Delivery) -> bytes:
    message = delivery.message
    headers = headers_in(message) or []
    head = {
        "topic": message.topic(),
        "partition": delivery.unit.partition,
        "offset": delivery.offset,
        "timestamp": message.timestamp()[1],
        "lane": delivery.lane,
        "attempt": delivery.attempt,
        "hop": delivery.hop,
        "headers": [name for name, _ in headers],
    }
    return pack(head, [delivery.key, message.value(), *(value for _, value in headers)])


class Isolation:
    """Runs deliveries that were admitted. `freed` is called, in the event loop, when there may be room for another.

    `died_before` says how many processes the record has taken with it before this one's children.
    """

    def __init__(
        self,
        engine: Engine,
        spec: ChildSpec,
        size: int,
        freed: Callable[[], None],
        died_before: Callable[[Delivery], int] = lambda _delivery: 0,
    ) -> None:
        self._engine = engine
        self._policy = engine.execution.subscription.isolation
        self._died_before = died_before
        self._freed = freed
        self._jobs: dict[Delivery, Job] = {}
        self._deaths: dict[Delivery, int] = {}
        self._log = engine.execution.log
        self.children = Children(spec, size, engine.loop, self._log, self._pump)

    @property
    def deliveries(self) -> list[Delivery]:
        return list(self._jobs)

    @property
    def room(self) -> bool:
        return len(self._jobs) < self.children.size

    def run(self, delivery: Delivery) -> None:
        began_ms = self._engine.clock.read()
        job = Job(delivery.unit, _frame(delivery), partial(self._ended, delivery, began_ms))
        self._jobs[delivery] = job
        self.children.submit(job)

    def _pump(self) -> None:
        try:
            self._freed()
        except Exception as error:
            self._engine.fail(error)

    def _ended(self, delivery: Delivery, began_ms: int, how: Answer | Death) -> None:
        del self._jobs[delivery]
        try:
            following = self._answered(delivery, began_ms, how) if isinstance(how, Answer) else None
            if isinstance(how, Death):
                following = self._died(delivery, began_ms, how)
        except Exception as error:
            self._engine.fail(error)
            return
        if following is not None and runs_alone(following):
            self.run(following)
        elif following is not None:
            self._engine.resumed.append(following)
        self._engine.wake()

    def _answered(self, delivery: Delivery, began_ms: int, answer: Answer) -> Delivery | None:
        engine, head = self._engine, answer.head
        if head["kind"] == "schema":
            unit = delivery.unit
            if unit.policy.isolated:
                engine.await_schema(delivery, head["id"])
            elif unit.open and not unit.draining:
                # A suspect: what waits for a schema goes on in this process; the child asks, and pauses, too.
                self.run(delivery)
            return None
        self._deaths.pop(delivery, None)
        engine.stats.durations.observe((engine.clock.read() - began_ms) / 1000)
        if head["kind"] == "failed":
            return engine.complete(delivery, replace(failure_in(head), started_ms=began_ms))
        emitted = emits_of(head, answer.blobs)
        if not emitted and head["warning"] is None:
            engine.stats.took(delivery, engine.clock.read())
            return engine.done(delivery)
        return engine.complete(delivery, Done(head["warning"]), emitted)

    def _died(self, delivery: Delivery, began_ms: int, death: Death) -> Delivery | None:
        engine = self._engine
        self._forget_closed()
        if death.late:
            self._deaths.pop(delivery, None)
            failure = replace(timed_out(engine.execution.subscription.timeout_ms), stack=death.stack, scrubbed=True)
            return engine.complete(delivery, replace(failure, started_ms=began_ms))
        here = self._deaths[delivery] = self._deaths.get(delivery, 0) + 1
        deaths = self._died_before(delivery) + here
        text = f"the process that ran it was {death.how}; the record has taken {deaths} with it"
        failure = Failure(
            FailureKind.TERMINAL, PROCESS_DIED, PROCESS_DIED, text, death.stack, started_ms=began_ms, scrubbed=True
        )
        engine.stats.process_deaths += 1
        self._log.error(
            "a record took its process with it",
            partition=delivery.unit.partition,
            origin=delivery.identity.origin,
            deaths=deaths,
            of=self._policy.deaths,
            how=death.how,
        )
        if deaths >= self._policy.deaths:
            del self._deaths[delivery]
            return engine.complete(delivery, failure)
        delivery.attempt += 1
        note_failure(delivery, failure, engine.clock.read())
        unit = delivery.unit
        if unit.open and unit.draining and unit.policy.isolated:
            unit.hand_back(delivery, engine.clock.now_ms)  # not a suspect: in a tier nothing would tell it from others
            engine.perform(unit)
        elif unit.open and not unit.draining:
            self.run(delivery)
        return None

    # -- of an executor

    def holds(self, unit: Unit) -> bool:
        return any(delivery.unit is unit for delivery in self._jobs)

    def cancel(self, unit: Unit) -> None:
        for delivery in [delivery for delivery in self._jobs if delivery.unit is unit]:
            self.children.withdraw(self._jobs.pop(delivery))
            self._engine.rested()

    def _forget_closed(self) -> None:
        """Counts of records that are not ours any more."""
        self._deaths = {delivery: count for delivery, count in self._deaths.items() if delivery.unit.open}

    def running(self) -> int:
        return len(self._jobs)

    def abandon(self) -> None:
        self._jobs.clear()
        self.children.abandon()


class ProcessRunners:
    """An `Executor`: plain `def` handlers in a bounded pool of child processes, which a deadline can kill."""

    def __init__(self, engine: Engine, target: str, concurrency: int) -> None:
        subscription = engine.execution.subscription
        size = min(concurrency, subscription.isolation.processes or os.cpu_count() or 1)
        self._engine = engine
        self._isolation = Isolation(engine, child_spec(subscription, target), size, self.pump)

    async def ready(self) -> None:
        """One child is up. Raises as `Children.warm` does."""
        await self._isolation.children.warm()

    @property
    def trouble(self) -> str:
        """Why nothing that is taken can run; empty while it can."""
        children = self._isolation.children
        why = children.unloadable or "they end before they are ready, see the log"
        return f"child processes can't be started: {why}" if children.hopeless else ""

    def pump(self) -> None:
        take, isolation = self._engine.take, self._isolation
        while isolation.room and (delivery := take()) is not None:
            isolation.run(delivery)

    def holds(self, unit: Unit) -> bool:
        return self._isolation.holds(unit)

    def cancel(self, unit: Unit) -> None:
        self._isolation.cancel(unit)

    def running(self) -> int:
        return self._isolation.running()

    def abandon(self) -> None:
        self._isolation.abandon()

    async def stop(self) -> None:
        self.abandon()
        await asyncio.sleep(0)
