"""The owner of a subscription's state: gathers inputs, steps the units, performs what they decide. One thread (the event loop's).

    poll thread --Fetched--> engine --ready--> executor (async / threads / batches) --outcome--> engine --hand-off--> producer
                                 `--commit--> poll thread                  producer --Delivered--> engine

Everything that reaches it from other threads is posted to the inbox; `_step` empties it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.flow import FloodGuard, Gate
from pipeline.core.parking import Identity
from pipeline.core.rebuild import Rebuild
from pipeline.core.unit import DeadLetter, HandOff, LaneSpec, RunAgain, Unit, UnitPolicy
from pipeline.model.cluster import Message, Position, RecordProducer, TopicPartition
from pipeline.model.control import Release, Switches
from pipeline.model.errors import ClusterError, CodecError, PipelineError, SchemaUnavailable
from pipeline.model.headers import EVENT_ID
from pipeline.model.outcome import Done, Emit, Failure
from pipeline.model.topics import LaneTopics
from pipeline.worker.committing import Committer
from pipeline.worker.execution import Execution, failure_of
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.inputs import (
    Claimed,
    Committed,
    Delivered,
    Faulted,
    Fetched,
    Input,
    Lost,
    Opened,
    Refused,
    Revoking,
)
from pipeline.worker.sending import Outputs, OutRecord, Sender
from pipeline.worker.stats import Stats

METADATA_FULL = 0.75
"""Part of the commit metadata's size at which a partition takes no new work."""

LAST_REPLAY = chr(0x10FFFF)
"""Sorts after every replay id: a release covers the replays of its last record too."""


class Executor(Protocol):
    """Runs deliveries that `Engine.take` gives, and answers through `Engine.done`, `complete` or `abandoned`."""

    def pump(self) -> None:
        """There may be work: start as much as the bound allows."""

    def holds(self, unit: Unit) -> bool:
        """Does anything of this unit run now?"""
        ...

    def cancel(self, unit: Unit) -> None:
        """Stop what runs for this unit, as far as it can be stopped."""

    def running(self) -> int: ...

    def abandon(self) -> None:
        """Stop at once, as a dying process does."""

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall time in ms, injected: the virtual one on the memory cluster."""

    now_ms: Callable[[], int]


@dataclass(slots=True)
class _Opening:
    """A partition whose lanes are being read, or whose epoch is being committed."""

    rebuild: Rebuild
    lanes: tuple[LaneSpec, ...]
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What the composition root hands in. `encode` turns an output into (key, value) bytes for its topic's real name.

    It raises SchemaUnavailable before the output's contract was looked up, which `prepare` does.
    """

    topics: LaneTopics
    group: str
    producer: RecordProducer
    encode: Callable[[Emit], tuple[str, bytes | None, bytes | None]]
    schema_of: Callable[[Delivery], str]
    clock: Clock
    rng: random.Random
    log: Any
    prepare: Callable[[Emit], Awaitable[None]]
    fetch_schema: Callable[[int], None] = lambda _id: None
    switches: Switches = field(default_factory=Switches)
    broken: Callable[[BaseException], None] = lambda _error: None


class Engine:
    """See the module. Public to executors: `ready`, `take`, `done`, `complete`, `abandoned`, `await_schema`."""

    def __init__(self, execution: Execution, parts: EngineParts, loop: asyncio.AbstractEventLoop) -> None:
        sub = execution.subscription
        self.execution = execution
        self.stats = Stats()
        self.ready: deque[Delivery] = deque()
        self.resumed: deque[Delivery] = deque()
        self.paused = False
        self.flood = FloodGuard(sub.flow.dead_letter_flood, sub.flow.flood_window_ms)
        self.now_ms = parts.clock.now_ms()
        self.broken: BaseException | None = None
        self._flow = sub.flow
        self._parts = parts
        self._log = parts.log
        self._loop = loop
        self._policy = UnitPolicy(parts.topics.source, parts.group, sub.order, sub.retry, sub.flow.look_ahead)
        self._sender = Sender(parts.producer, parts.topics.dead_letters, self.post, parts.schema_of)
        self._committer = Committer()
        self._inbox: deque[Input] = deque()
        self._woken = False
        self._units: dict[int, Unit] = {}
        self._unit_list: tuple[Unit, ...] = ()
        self._openings: dict[int, _Opening] = {}
        self._routes: dict[tuple[str, int], tuple[Unit | _Opening, int]] = {}
        self._again: list[tuple[int, int, Delivery]] = []
        self._ticket = itertools.count()
        self._schema_waits: dict[int, list[Delivery]] = {}
        self._draining: dict[Unit, asyncio.TimerHandle] = {}
        self._gates: dict[Unit, Gate] = {}
        self._held: set[TopicPartition] = set()
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused: dict[int, PipelineError] = {}
        self.fetcher: Fetcher
        self.executor: Executor

    # -- wiring

    def connect(self, fetcher: Fetcher, executor: Executor) -> None:
        self.fetcher = fetcher
        self.executor = executor

    def start(self) -> None:
        self.follow_switches()
        self._tick()

    def post(self, item: Input) -> None:
        """From any thread."""
        self._inbox.append(item)
        self.wake()

    def wake(self) -> None:
        """From any thread: step soon."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._step)

    def backlog(self, fetched: int) -> int:
        """Records fetched and not started, given how many the poll thread has fetched in all. From any thread."""
        return (
            fetched
            - self._received
            + len(self.ready)
            + len(self.resumed)
            + sum(unit.waiting_count for unit in self._unit_list)
        )

    # -- the step

    def _step(self) -> None:
        self._woken = False
        inbox = self._inbox
        try:
            while inbox:
                item = inbox.popleft()
                _HANDLERS[type(item)](self, item)
            self.advance()
        except Exception as error:
            self.fail(error)

    def advance(self) -> None:
        """Let time and effects take their course, then give the executor what is ready."""
        self.now_ms = now = self._parts.clock.now_ms()
        wake_at: int | None = None
        for unit in self._unit_list:
            due = unit.release_due(now, self.ready)
            wake_at = due if wake_at is None or (due is not None and due < wake_at) else wake_at
            if unit.effects:
                self.perform(unit)
        again = self._again
        while again and again[0][0] <= now:
            delivery = heapq.heappop(again)[2]
            if delivery.unit.open and not delivery.unit.draining:
                self.resumed.append(delivery)
        resend_at = self._sender.resend_due(now)
        for at in (again[0][0] if again else None, resend_at):
            wake_at = at if wake_at is None or (at is not None and at < wake_at) else wake_at
        self._regulate()
        self.executor.pump()
        if self._draining:
            self._let_go_drained()
        if wake_at is not None:
            self._wake_at(wake_at, now)

    def _wake_at(self, at_ms: int, now_ms: int) -> None:
        if self._timer is not None:
            if self._timer_ms <= at_ms and self._timer_ms > now_ms:
                return
            self._timer.cancel()
        self._timer_ms = at_ms
        self._timer = self._loop.call_later(max(1, at_ms - now_ms) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.advance()

    def perform(self, unit: Unit) -> None:
        """Effects of a unit, in order."""
        effects, unit.effects = unit.effects, []
        now = self._parts.clock.now_ms()
        for effect in effects:
            if isinstance(effect, HandOff):
                self.stats.handed_off(unit.lanes[effect.lane].spec.name, effect.caused_by)
                self._sender.hand_off(effect, now)
                if effect.caused_by == "wait":
                    self._watch_amplification(unit, effect.delivery)
            elif isinstance(effect, DeadLetter):
                self._sender.dead_letter(effect, now)
            elif isinstance(effect, RunAgain):
                self.stats.waited_in_memory += 1
                heapq.heappush(self._again, (effect.at_ms, next(self._ticket), effect.delivery))
                self._wake_at(effect.at_ms, now)

    def _watch_amplification(self, unit: Unit, delivery: Delivery) -> None:
        """Each hop of a head costs a hop of every successor: a long queue behind one key is worth an alarm."""
        waiting = len(unit.parking.keys.get(delivery.key, ()))
        if waiting and waiting % self._flow.amplification_alarm == 0:
            self.stats.amplification_alarms += 1
            self._log.error(
                "many records wait behind one key: each of its retries moves them all; `pipeline keys skip` gives up its head",
                key=(delivery.key or b"").decode("utf-8", "replace"),
                partition=unit.partition,
                waiting=waiting,
                amplification=round(self.stats.amplification, 1),
            )

    # -- for executors

    def take(self) -> Delivery | None:
        """The next delivery that may run now; its key is busy until it is answered."""
        if self.paused:
            return None
        while self.resumed:
            delivery = self.resumed.popleft()
            if not delivery.unit.draining:
                return delivery
        ready, now = self.ready, self.now_ms
        while ready:
            delivery = ready.popleft()
            unit = delivery.unit
            if unit.admit(delivery, now):
                return delivery
            if unit.effects:
                self.perform(unit)
        return None

    def take_many(self, into: list[Delivery], limit: int) -> None:
        """Append up to `limit` deliveries that may run now."""
        while limit > 0 and (delivery := self.take()) is not None:
            into.append(delivery)
            limit -= 1

    def done_many(self, deliveries: Sequence[Delivery]) -> None:
        """`done` for a batch; what follows in their keys is queued."""
        resumed = self.resumed
        for delivery in deliveries:
            following = self.done(delivery)
            if following is not None:
                resumed.append(following)

    def done(self, delivery: Delivery) -> Delivery | None:
        """It succeeded and has no outputs. Returns the next record of its key, to be run at once."""
        unit = delivery.unit
        if not unit.open:
            return None
        self.stats.processed += 1
        following = unit.done(delivery, self.now_ms)
        if unit.effects:
            self.perform(unit)
        return self._unless_paused(following)

    def complete(self, delivery: Delivery, outcome: Done | Failure, emitted: Sequence[Emit] = ()) -> Delivery | None:
        """Any ending of an execution. Returns the next record of its key, to be run at once, if there is one."""
        unit = delivery.unit
        if not unit.open:
            return None
        if isinstance(outcome, Done):
            if not emitted:
                if outcome.warning:
                    self._warn(delivery, outcome.warning)
                return self.done(delivery)
            try:
                records = [self._encoded(delivery, i, item) for i, item in enumerate(emitted)]
            except SchemaUnavailable:
                self._sender.hold(unit)
                task = self._loop.create_task(self._prepare_outputs(delivery, outcome, emitted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return None
            except (CodecError, PipelineError) as error:
                outcome = failure_of(error, ())
            else:
                self._sender.outputs(delivery, records, outcome.warning, self.now_ms)
                return None
        self.stats.failed(outcome.kind.value)
        self._log.warning(
            "attempt failed",
            key=(delivery.key or b"").decode("utf-8", "replace"),
            partition=unit.partition,
            origin=delivery.identity.origin,
            attempt=delivery.attempt + 1,
            error=outcome.error_type,
            message=outcome.message[:300],
        )
        following = unit.failed(delivery, outcome, self._parts.clock.now_ms(), self._parts.rng.random())
        self.perform(unit)
        return self._unless_paused(following)

    def _unless_paused(self, following: Delivery | None) -> Delivery | None:
        if following is not None and self.paused:
            self.resumed.append(following)
            return None
        return following

    def abandoned(self, delivery: Delivery) -> None:
        """Cancelled because its unit is let go: it runs again elsewhere."""
        if self._draining:
            self.wake()

    def await_schema(self, delivery: Delivery, schema_id: int) -> None:
        """Its schema is not known yet: ask the registry, for as long as it takes; the key waits, nothing is dead-lettered."""
        waits = self._schema_waits.get(schema_id)
        if waits is not None:
            waits.append(delivery)
            return
        self._schema_waits[schema_id] = [delivery]
        task = self._loop.create_task(self._fetch_schema(schema_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch_schema(self, schema_id: int) -> None:
        for tries in itertools.count():
            try:
                await self._loop.run_in_executor(None, self._parts.fetch_schema, schema_id)
                break
            except PipelineError as error:
                self._log.warning("schema registry does not answer: waiting", schema_id=schema_id, error=str(error))
                await asyncio.sleep(min(5.0, 0.2 * 2**tries))
        self.resumed.extend(self._schema_waits.pop(schema_id))
        self.wake()

    async def _prepare_outputs(self, delivery: Delivery, outcome: Done, emitted: Sequence[Emit]) -> None:
        """Look up the contracts of outputs, for as long as it takes, then conclude: the handler does not run again."""
        ending: Done | Failure = outcome
        for tries in itertools.count():
            try:
                for item in emitted:
                    await self._parts.prepare(item)
                break
            except (SchemaUnavailable, ClusterError) as error:
                self._log.warning("schema registry does not answer: an output waits", error=str(error))
                await asyncio.sleep(min(5.0, 0.2 * 2**tries))
            except PipelineError as error:
                ending = failure_of(error, ())
                break
        self._sender.let_go(delivery.unit)
        following = self.complete(delivery, ending, emitted)
        if following is not None:
            self.resumed.append(following)
        self.wake()

    def _encoded(self, delivery: Delivery, index: int, item: Emit) -> OutRecord:
        topic, key, value = self._parts.encode(item)
        headers = list(item.headers or ())
        if not any(name == EVENT_ID for name, _ in headers):
            origin = f"{self._policy.group}:{self._policy.source}/{delivery.unit.partition}/{delivery.identity.origin}#{index}"
            headers.append((EVENT_ID, origin.encode()))
        return OutRecord(topic, key, value, headers)

    def _warn(self, delivery: Delivery, warning: str) -> None:
        self.stats.warnings += 1
        self._log.warning(
            "done with a warning", origin=delivery.identity.origin, partition=delivery.unit.partition, warning=warning
        )

    # -- inputs

    def _on_fetched(self, item: Fetched) -> None:
        messages = item.messages
        self._received += len(messages)
        start, topic, partition = 0, messages[0].topic(), messages[0].partition()
        for index, message in enumerate(messages):
            if message.partition() != partition or message.topic() != topic:
                self._route(topic, partition, messages[start:index])
                start, topic, partition = index, message.topic(), message.partition()
        self._route(topic, partition, messages[start:] if start else messages)

    def _route(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        target, lane = self._routes.get((topic, partition), (None, 0))
        if isinstance(target, Unit):
            if lane == SOURCE:
                target.receive_source(messages, self.ready)
            else:
                target.receive_lane(lane, messages)
        elif target is not None and target.unit is None and lane != SOURCE:
            for message in messages:
                target.rebuild.observe(lane, message.offset(), message.key(), message.headers())
            if target.rebuild.complete:
                self._claim(partition, target)

    def _on_opened(self, item: Opened) -> None:
        self.refused.pop(item.partition, None)
        rebuild = Rebuild(item.source, [lane.name for lane in item.lanes], item.progress, item.ends)
        opening = _Opening(rebuild, item.lanes)
        self._openings[item.partition] = opening
        scan = {}
        for index, lane in enumerate(item.lanes, start=1):
            tp = TopicPartition(lane.topic, item.partition)
            self._routes[tp] = (opening, index)
            if index in rebuild.scan_from:
                scan[tp] = rebuild.scan_from[index]
        if rebuild.complete:
            self._claim(item.partition, opening)
        else:
            self.fetcher.request(partial(self.fetcher.add, scan))

    def _claim(self, partition: int, opening: _Opening) -> None:
        opening.unit = unit = Unit(partition, self._policy, opening.lanes, opening.rebuild)
        positions = self._committer.positions(unit, self.now_ms)
        source = TopicPartition(self._policy.source, partition)
        lanes = {tp: position for tp, position in positions.items() if tp != source}
        own = {source: positions[source]}
        self.fetcher.request(partial(self.fetcher.claim, partition, unit.epoch, lanes, own))

    def _on_claimed(self, item: Claimed) -> None:
        opening = self._openings.get(item.partition)
        if opening is None or opening.unit is None or opening.unit.epoch != item.epoch:
            return
        unit = opening.unit
        del self._openings[item.partition]
        self._units[item.partition] = unit
        self._unit_list = tuple(self._units.values())
        self._gates[unit] = Gate(max(100, 2 * self._flow.buffered // max(1, len(self._units))))
        for index, lane in enumerate(unit.lanes):
            self._routes[lane.spec.topic, item.partition] = (unit, index)
        self._apply_switches(unit)
        if opening.rebuild.zombies:
            self._log.warning(
                "records of a zombie were found and set aside", partition=item.partition, count=opening.rebuild.zombies
            )
        self._log.info("partition open", partition=item.partition, epoch=unit.epoch, parked=len(unit.parking))

    def _on_refused(self, item: Refused) -> None:
        self.refused[item.partition] = item.error
        self._log.error("partition can't be opened", partition=item.partition, error=str(item.error))

    def _on_committed(self, item: Committed) -> None:
        for tp, error in self._committer.answered(item.errors, self.now_ms).items():
            self._log.warning("commit refused", topic=tp.topic, partition=tp.partition, error=str(error))

    def _on_faulted(self, item: Faulted) -> None:
        fault = item.fault
        self.stats.fetch_faults += 1
        self._log.error(
            "fetch error",
            topic=fault.partition.topic,
            partition=fault.partition.partition,
            kind=fault.kind,
            text=fault.text,
        )
        if fault.kind == "out_of_range":
            self.refused[fault.partition.partition] = PipelineError(fault.text)

    def _on_delivered(self, item: Delivered) -> None:
        sent: Any = item.effect
        unit = sent.what.delivery.unit
        if item.error is not None:
            self._log.error("write refused, trying again", topic=sent.record.topic, error=str(item.error))
        complete = self._sender.answer(sent, item.error, self.now_ms)
        if complete is None or not unit.open:
            return
        if isinstance(complete, HandOff):
            unit.handed_off(complete.delivery)
            return
        if isinstance(complete, DeadLetter):
            following = unit.dead_lettered(complete.delivery, self.now_ms)
            self._count_dead_letter(complete)
        else:
            assert isinstance(complete, Outputs)
            if complete.warning:
                self._warn(complete.delivery, complete.warning)
            self.stats.processed += 1
            following = unit.done(complete.delivery, self.now_ms)
        if following is not None:
            self.resumed.append(following)

    def _count_dead_letter(self, effect: DeadLetter) -> None:
        self.stats.dead_lettered(effect.failure.error_class)
        if self.flood.count(self.now_ms):
            self._log.error(
                "flood of dead letters: the subscription is paused; fix the cause, then `pipeline resume`",
                group=self._parts.group,
            )
            self.follow_switches()

    # -- flow

    def _regulate(self) -> None:
        """Pause and resume partitions: full look-aheads, hot keys, full commit metadata, writes that don't get through."""
        hold: list[TopicPartition] = []
        free: list[TopicPartition] = []
        for unit in self._unit_list:
            stop_source = (
                self.paused
                or self._gates[unit].update(unit.waiting_count)
                or self._committer.loads.get(unit, 0.0) >= METADATA_FULL
                or self._sender.troubled(unit)
                or bool(self._schema_waits)
            )
            for index, lane in enumerate(unit.lanes):
                tp = TopicPartition(lane.spec.topic, unit.partition)
                if index == SOURCE:
                    stop = stop_source
                else:
                    full = self._flow.look_ahead if tp not in self._held else self._flow.look_ahead // 2
                    stop = len(lane.look_ahead) >= max(1, full) or self.paused
                if stop and tp not in self._held:
                    hold.append(tp)
                elif not stop and tp in self._held:
                    free.append(tp)
        if hold:
            self._held.update(hold)
            self.fetcher.request(partial(self.fetcher.pause, tuple(hold)))
        if free:
            self._held.difference_update(free)
            self.fetcher.request(partial(self.fetcher.resume, tuple(free)))

    def _tick(self) -> None:
        """Commit what has changed; the clock of slow things."""
        self.advance()
        positions = self._committer.next((unit for unit in self._unit_list if not unit.draining), self.now_ms)
        if positions:
            self.fetcher.request(partial(self.fetcher.commit, positions))
        self._ticker = self._loop.call_later(self._flow.commit_interval_ms / 1000, self._tick)

    # -- operators

    def follow_switches(self) -> None:
        """The control topic changed, or the flood guard tripped."""
        paused = self.flood.tripped or self._parts.switches.paused(self._parts.group) is not None
        if paused != self.paused:
            self.paused = paused
            self._log.warning("subscription paused" if paused else "subscription resumed", group=self._parts.group)
        for unit in self._unit_list:
            self._apply_switches(unit)
        self.wake()

    def resume(self) -> None:
        """An operator resumed the group: a tripped flood guard starts over."""
        self.flood.reset()
        self.follow_switches()

    def _apply_switches(self, unit: Unit) -> None:
        group, source = self._parts.group, self._policy.source
        for origin, skip in self._parts.switches.skips(group, source, unit.partition).items():
            unit.skip(skip.key, Identity(origin))
        for switch in self._parts.switches:
            if isinstance(switch, Release) and (switch.group, switch.topic, switch.partition) == (
                group,
                source,
                unit.partition,
            ):
                unit.release(switch.key, Identity(switch.up_to_origin, LAST_REPLAY))

    # -- letting go

    def _on_revoking(self, item: Revoking) -> None:
        for partition in item.partitions:
            opening = self._openings.pop(partition, None)
            unit = self._units.get(partition)
            if unit is None:
                if opening is not None and opening.unit is not None:
                    opening.unit.close()
                    self._committer.forget(opening.unit)
                self._unroute(partition)
                self.fetcher.release(partition, {})
                continue
            self._drain(unit)

    def _drain(self, unit: Unit) -> None:
        if unit in self._draining:
            return
        unit.drain()
        deadline = self._flow.drain_timeout_ms * 0.8 / 1000
        self._draining[unit] = self._loop.call_later(deadline, self._force, unit)
        self.wake()

    def _force(self, unit: Unit) -> None:
        self._log.warning("drain deadline reached: cancelling what still runs", partition=unit.partition)
        self.executor.cancel(unit)
        self._let_go(unit)

    def _let_go_drained(self) -> None:
        for unit in tuple(self._draining):
            if not self.executor.holds(unit) and not self._sender.pending(unit):
                self._let_go(unit)

    def _let_go(self, unit: Unit) -> None:
        handle = self._draining.pop(unit, None)
        if handle is None:
            return
        handle.cancel()
        positions = self._committer.positions(unit, self.now_ms)
        self._drop(unit)
        self.fetcher.release(unit.partition, positions)
        if self._stopping is not None and not self._units and not self._stopping.done():
            self._stopping.set_result(None)

    def _drop(self, unit: Unit) -> None:
        unit.close()
        self._units.pop(unit.partition, None)
        self._unit_list = tuple(self._units.values())
        self._gates.pop(unit, None)
        self._committer.forget(unit)
        self._sender.forget(unit)
        self._unroute(unit.partition)
        self.ready = _without(self.ready, unit)
        self.resumed = _without(self.resumed, unit)

    def _unroute(self, partition: int) -> None:
        self._routes = {tp: target for tp, target in self._routes.items() if tp[1] != partition}
        self._held = {tp for tp in self._held if tp.partition != partition}
        self.refused.pop(partition, None)

    def _on_lost(self, item: Lost) -> None:
        for partition in item.partitions:
            self._log.warning("partition lost", partition=partition)
            self._openings.pop(partition, None)
            unit = self._units.get(partition)
            if unit is None:
                self._unroute(partition)
                continue
            handle = self._draining.pop(unit, None)
            if handle is not None:
                handle.cancel()
            self.executor.cancel(unit)
            self._drop(unit)

    async def drain_all(self) -> None:
        """Stop taking work, finish what runs (up to the drain deadline). Last positions go out through `fetcher.release`."""
        if self._units:
            self._stopping = self._loop.create_future()
            for unit in tuple(self._units.values()):
                self._drain(unit)
            self.advance()
            await self._stopping

    async def stop(self) -> None:
        for handle in (self._ticker, self._timer):
            if handle is not None:
                handle.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await self.executor.stop()

    def abandon(self) -> None:
        """See `Worker.abandon`."""
        for handle in (self._ticker, self._timer, *self._draining.values()):
            if handle is not None:
                handle.cancel()
        for unit in self._unit_list:
            unit.close()
        self._unit_list, self._units, self._routes = (), {}, {}
        self.executor.abandon()

    def fail(self, error: BaseException) -> None:
        """A defect of the pipeline itself, or the poll thread died: this engine can't go on, and says so."""
        if self.broken is None:
            self.broken = error
            self._log.error("the engine stopped working", error=repr(error), exc_info=error)
            self._parts.broken(error)

    def failed_elsewhere(self, error: BaseException) -> None:
        """`fail`, from another thread."""
        self._loop.call_soon_threadsafe(self.fail, error)

    # -- looking in

    @property
    def partitions(self) -> Mapping[int, Unit]:
        return self._units

    @property
    def commit_failures(self) -> int:
        return self._committer.failures

    @property
    def buffered(self) -> int:
        """Records received and not started."""
        return self.backlog(self._received)

    @property
    def last_write_error(self) -> PipelineError | None:
        return self._sender.last_error


def _without(queue: deque[Delivery], unit: Unit) -> deque[Delivery]:
    return deque(delivery for delivery in queue if delivery.unit is not unit)


_HANDLERS: dict[type, Callable[[Engine, Any], None]] = {
    Fetched: Engine._on_fetched,
    Opened: Engine._on_opened,
    Claimed: Engine._on_claimed,
    Refused: Engine._on_refused,
    Revoking: Engine._on_revoking,
    Lost: Engine._on_lost,
    Committed: Engine._on_committed,
    Faulted: Engine._on_faulted,
    Delivered: Engine._on_delivered,
}

__all__ = ["Clock", "Engine", "EngineParts", "Executor", "Position"]
