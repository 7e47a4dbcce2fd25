"""What follows an execution: settle, publish its outputs, retry, give up. The way back from the executor to the unit."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pipeline.core.delivery import Delivery
from pipeline.core.flow import FloodGuard
from pipeline.core.unit import DeadLetter, HandOff, Unit
from pipeline.model.errors import ClusterError, RecordTooLarge, SchemaUnavailable
from pipeline.model.headers import EVENT_ID, HELD_CLASS
from pipeline.model.outcome import Done, Emit, Failure
from pipeline.worker.dispatch import Dispatch
from pipeline.worker.encoding import headers_of
from pipeline.worker.execution import failure_of, output_failure
from pipeline.worker.inputs import Delivered
from pipeline.worker.parts import EngineParts
from pipeline.worker.sending import Outputs, OutRecord, Sender
from pipeline.worker.stats import Stats

OUTPUTS_SAMPLED = 16
"""Of records with outputs every so-manieth is timed from its publication to the last acknowledgement."""
REGISTRY_RETRY_S = 0.2
REGISTRY_RETRY_MAX_S = 5.0


def registry_pause_s(tries: int) -> float:
    """Before the next question to a registry that did not answer, for any number of tries."""
    return min(REGISTRY_RETRY_MAX_S, REGISTRY_RETRY_S * (1 << min(tries, 10)))


class Background:
    """Tasks that go on beside the steps; all end with the engine. `failed` hears of one that died: records wait for it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, failed: Callable[[BaseException], None] = lambda _error: None
    ) -> None:
        self._loop = loop
        self._failed = failed
        self._tasks: dict[asyncio.Task[None], None] = {}  # a set that keeps its order

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def cancel(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()


class Conclusions:
    """Each method returns the key's next record, to be run at once, if there is one. `perform` carries out a unit's effects.

    `once_stored` acts when what is acknowledged can't be undone any more: with exactly_once that is its commit.
    `unprepared`: records that are done but for outputs whose contract is not known yet. Nothing else bounds them.
    """

    def __init__(
        self,
        parts: EngineParts,
        dispatch: Dispatch,
        sender: Sender,
        stats: Stats,
        flood: FloodGuard,
        background: Background,
    ) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._dispatch = dispatch
        self._sender = sender
        self._stats = stats
        self._flood = flood
        self._background = background
        self._log = parts.log
        self.unprepared = self._published = 0
        self.once_stored: Callable[[Callable[[], None]], None] = lambda act: act()
        self.perform: Callable[[Unit], None]
        self.flooded: Callable[[], None]
        self.wake: Callable[[], None]

    def done(self, delivery: Delivery) -> Delivery | None:
        """It succeeded and has no outputs."""
        unit = delivery.unit
        if not unit.open:
            return None
        self._stats.processed += 1
        following = unit.done(delivery, self._clock.now_ms)
        if unit.effects:
            self.perform(unit)
        return following if following is None else self._dispatch.unless_paused(following)

    def done_many(self, deliveries: Sequence[Delivery]) -> None:
        """`done` for a batch; what follows in their keys is queued."""
        resumed, now_ms, count = self._dispatch.resumed, self._clock.now_ms, 0
        for delivery in deliveries:
            unit = delivery.unit
            if unit.open:
                count += 1
                following = unit.done(delivery, now_ms)
                if unit.effects:
                    self.perform(unit)
                if following is not None:
                    resumed.append(following)
        self._stats.processed += count

    def complete(self, delivery: Delivery, outcome: Done | Failure, emitted: Sequence[Emit] = ()) -> Delivery | None:
        """Any ending of an execution."""
        if not delivery.unit.open:
            return None
        if isinstance(outcome, Failure):
            return self._failed(delivery, outcome)
        if emitted:
            return self._publish(delivery, outcome, emitted)
        if outcome.warning:
            self._warn(delivery, outcome.warning)
        return self.done(delivery)

    def _failed(self, delivery: Delivery, failure: Failure) -> Delivery | None:
        unit = delivery.unit
        if self._parts.diagnosis is not None:
            failure = self._parts.diagnosis.complete(delivery, failure)
        self._stats.failed(failure.kind.value)
        self._log.warning(
            "attempt failed",
            key=(delivery.key or b"").decode("utf-8", "replace"),
            partition=unit.partition,
            origin=delivery.identity.origin,
            attempt=delivery.attempt + 1,
            error=failure.error_type,
            message=failure.message[:300],
        )
        # The clock is asked anew and its part of a millisecond counted as a whole one: a delay never ends early (I8).
        now_ms, late_ms = self._clock.read(), self._clock.spread_ms + 1
        following = unit.failed(delivery, failure, now_ms, self._parts.rng.random(), late_ms)
        self.perform(unit)
        return self._dispatch.unless_paused(following)

    def diagnose_all(self, deliveries: Sequence[Delivery], failure: Failure) -> Failure:
        """The failure of all of them at once, fit for the headers of each."""
        diagnosis = self._parts.diagnosis
        return failure if diagnosis is None else diagnosis.complete_all(deliveries, failure)

    # -- outputs

    def _publish(self, delivery: Delivery, outcome: Done, emitted: Sequence[Emit]) -> Delivery | None:
        try:
            records = [self._encoded(delivery, i, item) for i, item in enumerate(emitted)]
        except SchemaUnavailable:
            self._sender.hold(delivery.unit)
            self.unprepared += 1
            self._background.start(self._prepare_outputs(delivery, outcome, emitted))
        except Exception as error:
            return self._failed(delivery, output_failure(error))
        else:
            if self._sender.is_too_large(Outputs, delivery):
                refused = RecordTooLarge(
                    "an output of it is larger than its topic takes: raise max.message.bytes there"
                )
                return self._failed(delivery, failure_of(refused, (RecordTooLarge,)))
            self._sender.outputs(delivery, records, outcome.warning, self._clock.now_ms)
        return None

    async def _prepare_outputs(self, delivery: Delivery, outcome: Done, emitted: Sequence[Emit]) -> None:
        """Look up the contracts of outputs, for as long as it takes, then conclude: the handler does not run again."""
        ending: Done | Failure = outcome
        for tries in itertools.count():
            if not delivery.unit.open:
                break  # it runs at the next owner's
            try:
                for item in emitted:
                    await self._parts.prepare(item)
                break
            except (SchemaUnavailable, ClusterError) as error:
                self._log.warning("schema registry does not answer: an output waits", error=str(error))
                await asyncio.sleep(registry_pause_s(tries))
            except Exception as error:
                ending = failure_of(error, ())
                break
        self.unprepared -= 1
        self._sender.let_go(delivery.unit)
        following = self.complete(delivery, ending, emitted)
        if following is not None:
            self._dispatch.resumed.append(following)
        self.wake()

    def _encoded(self, delivery: Delivery, index: int, item: Emit) -> OutRecord:
        topic, key, value = self._parts.encode(item)
        headers = headers_of(item)
        if not any(name == EVENT_ID for name, _ in headers):
            place = f"{self._parts.topics.source}/{delivery.unit.partition}/{delivery.identity.origin}"
            headers.append((EVENT_ID, f"{self._parts.group}:{place}#{index}".encode()))
        return OutRecord(topic, key, value, headers)

    # -- the broker's answers

    def delivered(self, item: Delivered) -> None:
        """A hand-off, a dead letter or the last output of a record is acknowledged, or was refused."""
        sent: Any = item.effect
        unit = sent.what.delivery.unit
        if item.error is not None:
            self._log.error("write refused, trying again", topic=sent.record.topic, error=str(item.error))
        complete = self._sender.answer(sent, item.error, self._clock.now_ms)
        if isinstance(item.error, RecordTooLarge) and unit.open:
            self._too_large(sent.what, item.error)
        if complete is None or not unit.open:
            return
        if isinstance(complete, HandOff):
            following = unit.handed_off(complete.delivery, complete.lane, sent.offset, self._clock.now_ms)
        elif isinstance(complete, DeadLetter):
            following = unit.dead_lettered(complete.delivery, self._clock.now_ms)
            self.count_dead_letter(complete.failure.error_class)
            self.once_stored(lambda: self._parts.alert(complete, sent.offset))
        else:
            if complete.warning:
                self._warn(complete.delivery, complete.warning)
            self._stats.processed += 1
            self._published += 1  # a count of its own: a transaction's begins anew
            if not self._published % OUTPUTS_SAMPLED:
                self._stats.took(complete.delivery, self._clock.read())
            following = unit.done(complete.delivery, self._clock.now_ms)
        if following is not None:
            self._dispatch.resumed.append(following)

    def _too_large(self, what: object, error: RecordTooLarge) -> None:
        """No try gets it through: a hand-off was given up, and a record whose output it is has failed, once however many there are."""
        if isinstance(what, HandOff):
            self.perform(what.delivery.unit)
        elif isinstance(what, Outputs) and not what.refused:
            what.refused = True
            self._failed(what.delivery, failure_of(error, (RecordTooLarge,)))

    def watch_amplification(self, delivery: Delivery, alarm: int) -> None:
        """Each successor of a head costs a hop: a long queue behind one key is worth an alarm."""
        unit = delivery.unit
        # Its own place and not the length: those that waited in memory are all handed on before the first of them comes here.
        waiting = bisect_right(unit.parking.keys.get(delivery.key, ()), delivery.identity)
        if waiting and waiting % alarm == 0:
            self._stats.amplification_alarms += 1
            self._log.error(
                "many records wait behind one key until its head succeeds or is given up; `pipeline keys skip` gives it up when it is due",
                key=(delivery.key or b"").decode("utf-8", "replace"),
                partition=unit.partition,
                waiting=waiting,
                amplification=round(self._stats.amplification, 1),
            )

    def count_dead_letter(self, error_class: str) -> None:
        """One was acknowledged; too many of them pause the subscription."""
        self._stats.dead_lettered(error_class)
        # One record that is given up can have any number behind it: they say nothing about the next one.
        if error_class != HELD_CLASS:
            self.once_stored(self._count_for_flood)

    def _count_for_flood(self) -> None:
        if self._flood.count(self._clock.now_ms):
            self._log.error(
                "flood of dead letters: the subscription is paused; fix the cause, then `pipeline resume`",
                group=self._parts.group,
            )
            self.flooded()

    def _warn(self, delivery: Delivery, warning: str) -> None:
        self._stats.warnings += 1
        self._log.warning(
            "done with a warning", origin=delivery.identity.origin, partition=delivery.unit.partition, warning=warning
        )
