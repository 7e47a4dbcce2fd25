"""The owner of a subscription's state: gathers inputs, steps the units, performs what they decide. One thread (the event loop's).

    poll thread --Fetched--> Ownership --ready--> Dispatch --> executor (async / threads / batches)
                                 ^  `--commit--> poll thread        |
    producer --Delivered----> Conclusions <-------outcome-----------+
                                 `--hand-offs, dead letters, outputs--> Sender --> producer

Everything that reaches it from other threads is posted to the inbox; `_step` empties it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.core.delivery import Delivery
from pipeline.core.effects import DeadLetter, Effect, HandOff
from pipeline.core.flow import FloodGuard
from pipeline.core.unit import Unit, UnitPolicy
from pipeline.model.errors import PipelineError
from pipeline.worker.alarm import Alarm
from pipeline.worker.committing import Committer
from pipeline.worker.concluding import Background, Conclusions
from pipeline.worker.dispatch import Dispatch
from pipeline.worker.execution import Execution
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.inputs import (
    Claimed,
    Committed,
    Delivered,
    Ended,
    Faulted,
    Fetched,
    Input,
    Lost,
    Opened,
    Refused,
    Revoking,
    Transacted,
    Unreadable,
)
from pipeline.worker.ownership import Ownership, unit_policy
from pipeline.worker.parts import EngineParts, Executor
from pipeline.worker.quarantine import Quarantine
from pipeline.worker.regulating import Regulator
from pipeline.worker.schema_waits import SchemaWaits
from pipeline.worker.sending import Sender
from pipeline.worker.stalls import Stalls
from pipeline.worker.stats import Stats
from pipeline.worker.switching import Switching
from pipeline.worker.transacting import transactions_of
from pipeline.worker.transaction_parts import SPAN_MAX


class Engine:
    """See the module. Public to executors: `ready`, `resumed`, `take`, `done`, `complete`, `abandoned`, `await_schema`, `stats`."""

    def __init__(self, execution: Execution, parts: EngineParts, loop: asyncio.AbstractEventLoop) -> None:
        sub = execution.subscription
        self.execution = execution
        self.stats: Stats = Stats()
        self.stalls: Stalls = Stalls(parts.log)
        self.broken: BaseException | None = None
        self.flood = FloodGuard(sub.flow.dead_letter_flood, sub.flow.flood_window_ms)
        self._flow = sub.flow
        self.parts = self._parts = parts
        self.clock = self._clock = parts.clock
        self.log = self._log = parts.log
        self.loop = self._loop = loop
        self._inbox: deque[Input] = deque()
        self._woken = False
        self._alarm = Alarm(loop, self._step)
        self._ticker: asyncio.TimerHandle | None = None
        self._assemble(unit_policy(parts, sub))
        self.fetcher: Fetcher
        self.executor: Executor

    def _assemble(self, policy: UnitPolicy) -> None:
        parts, flow = self._parts, self._flow
        self._background = Background(self._loop, self.fail)
        self._committer = Committer()
        self.transactions = transactions = transactions_of(parts, flow, self._committer, self, self.stats)
        self._sender = Sender(transactions or parts.producer, parts.topics.dead_letters, self.post, parts.schema_of)
        self._ownership = Ownership(
            policy, self._committer, self._clock, flow.drain_timeout_ms, self._log, parts.restored
        )
        self._ownership.connect(self, self._loop)
        self._regulator = Regulator(flow, self._committer, self._sender, SPAN_MAX if transactions else 0)
        self.quarantine: Quarantine = Quarantine(self, self._committer)
        self._schema_waits = SchemaWaits(parts.fetch_schema, self._schema_known, self._background, self._log)
        self._dispatch = dispatch = Dispatch(self._clock, self.perform)
        self._switching = Switching(parts, dispatch, self.flood)
        self.restart, self.stall = self._ownership.restart, self._switching.stall
        self.unwritten: Callable[[], Mapping[int, Exception]] = dict
        self.concluded: Callable[[Unit], bool] = transactions.concluded if transactions else lambda _unit: True
        self.give_up: Callable[[str], None] = transactions.give_up if transactions else lambda _reason: None
        tally = transactions.tally if transactions else self.stats
        self._commit_due = transactions.tick if transactions else self._commit
        self._conclusions = ends = Conclusions(parts, dispatch, self._sender, tally, self.flood, self._background)
        ends.perform, ends.flooded, ends.wake = self.perform, self.follow_switches, self.wake
        if transactions is not None:
            ends.once_stored = transactions.after_commit
        # Executors call these once per record: bound once, so that there is no second call in between.
        self.ready, self.resumed, self.gathered = dispatch.ready, dispatch.resumed, dispatch.gathered
        self.take, self.take_many = dispatch.take, dispatch.take_many
        self.done, self.done_many, self.complete = ends.done, ends.done_many, ends.complete
        self.count_dead_letter = ends.count_dead_letter
        self._handlers = self._inputs()
        self.diagnose_all, self.await_schema = ends.diagnose_all, self._schema_waits.add

    def _inputs(self) -> dict[type, Callable[[Any], None]]:
        owner = self._ownership
        handlers: dict[type, Callable[[Any], None]] = {
            Fetched: partial(owner.fetched, ready=self.ready),
            Ended: owner.ended,
            Opened: owner.open,
            Claimed: owner.claimed,
            Refused: owner.refuse,
            Revoking: owner.revoking,
            Lost: self._on_lost,
            Committed: self._on_committed,
            Faulted: self._on_faulted,
            Unreadable: self._on_unreadable,
            Delivered: self._on_delivered,
        }
        if self.transactions is not None:
            handlers[Transacted] = self.transactions.answered
        return handlers

    # -- wiring

    def connect(self, fetcher: Fetcher, executor: Executor) -> None:
        self.fetcher, self.executor = fetcher, executor

    def start(self) -> None:
        self.follow_switches()
        if self.transactions is not None:
            self.transactions.start()
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
        """Records fetched that nothing has looked at yet, given how many the poll thread has fetched in all. From any thread.
        What waits behind its own key or for its next attempt is bounded per partition (`Regulator`): one would stop all of them here.
        """
        return fetched - self._ownership.received + len(self._dispatch)

    # -- the step

    def _step(self) -> None:
        self._woken = False
        if self.broken is not None:
            return  # what the step that failed left undone would be a gap to those after it, and a gap counts as done
        inbox, handlers = self._inbox, self._handlers
        try:
            while inbox:
                item = inbox.popleft()
                handlers[type(item)](item)
            self.advance()
        except Exception as error:
            self.fail(error)

    def advance(self) -> None:
        """Let time and effects take their course, then give the executor what is ready."""
        now_ms = self._clock.read()
        units = self._ownership.units
        times = [self._dispatch.resume_due(now_ms), self._sender.resend_due(now_ms)]
        for unit in units:
            times.append(unit.release_due(now_ms, self.ready if unit.care is None else unit.care.inbox))
            if unit.effects:
                self.perform(unit)
        # Known ids keep working while the registry is away, until what waits for it fills the buffer.
        full_of_waits = len(self._schema_waits) + self._conclusions.unprepared >= self._flow.buffered
        self._regulator.regulate(units, self.fetcher, self.paused, full_of_waits)
        self.executor.pump()
        if self._ownership.is_draining:
            self._ownership.let_go_drained()
        if (wake_at := min((at for at in times if at is not None), default=None)) is not None:
            self._alarm.at(wake_at, now_ms)

    def _tick(self) -> None:
        """Commit what has changed; the clock of slow things."""
        self._step()
        if self.broken is not None:
            return
        try:
            self._commit_due()
        except Exception as error:
            self.fail(error)
        self._ticker = self._loop.call_later(self.quarantine.commit_interval_s(self._flow), self._tick)

    def _commit(self) -> None:
        units = (unit for unit in self._ownership.units if not unit.draining)
        positions = self._committer.next(units, self._clock.now_ms)
        if positions:
            self.fetcher.request(partial(self.fetcher.commit, positions))

    def perform(self, unit: Unit) -> None:
        """Effects of a unit, in order."""
        now_ms = self._clock.read()
        while unit.effects:
            effects, unit.effects = unit.effects, []
            for effect in effects:
                self._perform_one(unit, effect, now_ms)

    def _perform_one(self, unit: Unit, effect: Effect, now_ms: int) -> None:
        if isinstance(effect, HandOff):
            self.stats.handed_off(unit.lanes[effect.lane].spec.name, effect.caused_by)
            self._sender.hand_off(effect, now_ms)
            if effect.caused_by == "wait":
                self._conclusions.watch_amplification(effect.delivery, self._flow.amplification_alarm)
        elif isinstance(effect, DeadLetter):
            self._sender.dead_letter(effect, now_ms)
        elif unit.draining:
            unit.hand_back(effect.delivery, now_ms)
        else:
            self.stats.waited_in_memory += 1
            self._dispatch.run_later(effect)
            self._alarm.at(effect.at_ms, now_ms)

    # -- inputs

    def _on_lost(self, item: Lost) -> None:
        self._ownership.lost(item)
        if self.transactions is not None:
            self.transactions.lost()

    def _on_delivered(self, item: Delivered) -> None:
        self._conclusions.delivered(item)
        if self.transactions is not None:
            self.transactions.settled()

    def _on_committed(self, item: Committed) -> None:
        for tp, error in self._committer.answered(item.errors, self._clock.now_ms, item.asked).items():
            self._log.warning("commit refused", topic=tp.topic, partition=tp.partition, error=str(error))

    def _on_faulted(self, item: Faulted) -> None:
        fault, (topic, partition) = item.fault, item.fault.partition
        self.stats.fetch_faults += 1
        self._log.error("fetch error", topic=topic, partition=partition, kind=fault.kind, text=fault.text)
        if fault.kind == "out_of_range" or partition < 0:  # below zero: the subscription as a whole, its topic deleted
            self._ownership.refused[partition] = PipelineError(fault.text)

    def _on_unreadable(self, item: Unreadable) -> None:
        if (unit := self._ownership.unreadable(item)) is not None:
            self.stats.unreadable_batches += 1
            self.perform(unit)

    def _schema_known(self, waited: list[Delivery]) -> None:
        self.resumed.extend(waited)
        self.wake()

    def rested(self) -> None:
        """An executor has nothing to do, or was cancelled: a unit that drains may be idle now, and nothing else may wake us for long."""
        if self._ownership.is_draining:
            self.wake()

    # -- what Ownership asks of its keeper

    def opened(self, unit: Unit) -> None:
        self._regulator.add(unit, len(self._ownership.units))
        self.executor = self.quarantine.take(unit, self.executor)
        self._switching.apply(unit)

    def draining(self, unit: Unit) -> None:
        now_ms = self._clock.read()
        for delivery in (*self._dispatch.withdraw(unit), *self._schema_waits.withdraw(unit)):
            unit.hand_back(delivery, now_ms)
        self.perform(unit)

    def idle(self, unit: Unit) -> bool:
        return not self.executor.holds(unit) and not self._sender.pending(unit)

    def cancel(self, unit: Unit) -> None:
        self.executor.cancel(unit)

    def dropped(self, unit: Unit) -> None:
        self._regulator.forget(unit)
        self._sender.forget(unit)
        self._schema_waits.forget(unit)
        self._dispatch.drop(unit)

    # -- what Transactions ask of their keeper

    @property
    def owned(self) -> Sequence[Unit]:
        return self._ownership.units

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._loop.call_later(delay_ms / 1000, self._guarded, action)

    def _guarded(self, action: Callable[[], None]) -> None:
        self._step()
        if self.broken is None:
            try:
                action()
            except Exception as error:
                self.fail(error)

    # -- operators

    @property
    def paused(self) -> bool:
        return self._switching.paused

    def follow_switches(self) -> None:
        """The control topic changed, or the flood guard tripped."""
        if self.broken is not None:
            return
        self._switching.follow(self._ownership.units)
        self.wake()

    def resume(self) -> None:
        """An operator resumed the group: a tripped flood guard starts over."""
        self.flood.reset()
        self.follow_switches()

    # -- the end

    async def drain_all(self) -> None:
        """Stop taking work, finish what runs (up to the drain deadline). Last positions go out through `fetcher.release`."""
        await self._ownership.drain_all()

    async def stop(self) -> None:
        self._stop_timers()
        await self.executor.stop()

    def abandon(self) -> None:
        """See `Worker.abandon`. What is posted already, or still comes, is not heard: it could have a dead worker begin something."""
        self.broken = self.broken or RuntimeError("abandoned")
        self._stop_timers()
        self._ownership.abandon()
        self.executor.abandon()

    def _stop_timers(self) -> None:
        if self.transactions is not None:
            self.transactions.stop()
        self._alarm.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
        self._background.cancel()

    def fail(self, error: BaseException) -> None:
        """A defect of the pipeline itself, or the poll thread died: this engine can't go on, and says so."""
        if self.broken is None:
            self.broken = error
            self._dispatch.paused, self._ownership.trusted = True, False
            self._log.error("the engine stopped working", error=repr(error), exc_info=error)
            self._parts.broken(error)

    def failed_elsewhere(self, error: BaseException) -> None:
        """`fail`, from another thread."""
        self._loop.call_soon_threadsafe(self.fail, error)

    # -- looking in

    @property
    def partitions(self) -> Mapping[int, Unit]:
        return self._ownership.by_partition

    @property
    def refused(self) -> Mapping[int, PipelineError]:
        """Partitions that are ours and can't be processed, with the reason."""
        return self._ownership.refused

    def committed(self, unit: Unit) -> int:
        """Below this offset the source is not read again, whatever happens."""
        return self._committer.committed(unit)

    @property
    def commit_failures(self) -> int:
        return self._committer.failures

    @property
    def buffered(self) -> int:
        """Records in memory that do not run: not started, behind their key, or between two attempts."""
        return self.backlog(self._ownership.received) + sum(u.waiting.count + u.blocked.count for u in self.owned)

    @property
    def stuck(self) -> Mapping[int, Exception]:
        """Partitions that take no new work because a write does not get through, with the last refusal."""
        doubt = self.transactions.counts.why if self.transactions is not None else None
        error, units = doubt or self._sender.last_error, self._ownership.units
        found = [unit.partition for unit in units if doubt is not None or self._sender.troubled(unit)]
        stuck = dict.fromkeys(found or ([-1] if doubt else []), error) if error is not None else {}
        return {**self.unwritten(), **stuck}
