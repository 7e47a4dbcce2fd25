"""The partitions of one group member: opened, claimed, processed, drained, let go.

Opened -> lanes are read up to their fences -> claim (epoch committed) -> Claimed -> processed
Revoking -> drained, or the deadline passed -> released with its last positions
Lost -> closed at once: it belongs to someone else
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from pipeline.core.care import let_go, take_care
from pipeline.core.delivery import SOURCE
from pipeline.core.rebuild import Rebuild
from pipeline.core.store_scan import STORE, StoreScan
from pipeline.core.unit import LaneSpec, Unit, UnitPolicy
from pipeline.core.unreadable import may_hold_ours, point_at
from pipeline.model.cluster import Message, Position, TopicPartition
from pipeline.model.errors import PipelineError
from pipeline.model.headers import headers_in
from pipeline.model.policies import Subscription
from pipeline.worker.alarm import guarded
from pipeline.worker.committing import Committer
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.inputs import Claimed, Ended, Fetched, Lost, Opened, Refused, Revoking, Unreadable
from pipeline.worker.parts import Clock, EngineParts
from pipeline.worker.transaction_parts import SPAN_MAX

IN_STORE = -1
"""Stands for the store where lanes have their index."""
NO_PARTITION = -1
"""In `refused`: the subscription as a whole, for example because its topic was deleted."""


def unit_policy(parts: EngineParts, sub: Subscription) -> UnitPolicy:
    """What its units know of a subscription."""
    isolated = sub.executor == "process" or sub.jobs is not None  # what a job does to its worker, its board finds out
    topic, group, buffered = parts.topics.source, parts.group, sub.flow.buffered
    hold = sub.dead_letter == "hold"
    policy = UnitPolicy(topic, group, sub.order, sub.retry, blocked=buffered, isolated=isolated, hold=hold)
    # What such a record waits for may be further up in its lane, which is stopped there (`Regulator`).
    return replace(policy, held_back=SPAN_MAX) if parts.transactional is not None else policy


@dataclass(slots=True)
class _Opening:
    """A partition whose lanes (and store) are being read, or whose epoch is being committed."""

    rebuild: Rebuild
    lanes: tuple[LaneSpec, ...]
    store: StoreScan | None = None
    unit: Unit | None = None

    @property
    def complete(self) -> bool:
        return self.rebuild.complete and (self.store is None or self.store.complete)

    def observe(self, lane: int, message: Message) -> None:
        if lane != IN_STORE:
            self.rebuild.observe(lane, message.offset(), message.key(), headers_in(message))
        elif self.store is not None:
            self.store.observe(message.offset(), message.key(), message.value(), headers_in(message))

    def reached(self, lane: int, offset: int) -> None:
        if lane != IN_STORE:
            self.rebuild.reached(lane, offset)
        elif self.store is not None:
            self.store.reached(offset)

    def unreadable(self, lane: int, first: int, until: int) -> None:
        if lane != IN_STORE:
            self.rebuild.unreadable(lane, first, until)
        elif self.store is not None:
            self.store.reached(until)


class Keeper(Protocol):
    """What the partitions' owner does for them: the engine."""

    fetcher: Fetcher

    def opened(self, unit: Unit) -> None:
        """Processed from now on."""

    def draining(self, unit: Unit) -> None:
        """It takes no more work: hand back what waits in memory."""

    def idle(self, unit: Unit) -> bool:
        """Nothing of it runs, nothing of it is being written."""
        ...

    def concluded(self, unit: Unit) -> bool:
        """May it be let go, now that nothing of it runs? (exactly_once: what it did is committed.)"""
        ...

    def give_up(self, reason: str) -> None:
        """What is not committed yet, of any unit, is done again (exactly_once)."""

    def cancel(self, unit: Unit) -> None:
        """Stop what runs for it."""

    def dropped(self, unit: Unit) -> None:
        """Forget everything about it."""

    def wake(self) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Ownership:
    """`units` is replaced, never changed in place, so that other threads may read it. `refused` says why a partition rests.

    `trusted` is False after a defect: what the units know is not committed any more.
    """

    def __init__(
        self,
        policy: UnitPolicy,
        committer: Committer,
        clock: Clock,
        drain_timeout_ms: int,
        log: Any,
        restored: Callable[[Unit, StoreScan], None] = lambda _unit, _scan: None,
    ) -> None:
        self.units: tuple[Unit, ...] = ()
        self.by_partition: dict[int, Unit] = {}
        self.refused: dict[int, PipelineError] = {}
        self.received = 0
        self._policy = policy
        self._committer = committer
        self._clock = clock
        self._drain_s, self._last_s = drain_timeout_ms * 0.8 / 1000, drain_timeout_ms * 0.15 / 1000
        self._log = log
        self._restored = restored
        self._openings: dict[int, _Opening] = {}
        self._routes: dict[tuple[str, int], tuple[Unit | _Opening, int]] = {}
        self._draining: dict[Unit, asyncio.TimerHandle] = {}
        self._forced: set[Unit] = set()
        self._emptied: asyncio.Future[None] | None = None
        self._stopping = False
        self._terms: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self.trusted = True
        self._keeper: Keeper
        self._loop: asyncio.AbstractEventLoop

    def connect(self, keeper: Keeper, loop: asyncio.AbstractEventLoop) -> None:
        self._keeper, self._loop = keeper, loop

    # -- fetched records

    def fetched(self, item: Fetched, ready: Any) -> None:
        """Hand each run of records of one partition to its unit."""
        messages = item.messages
        self.received += len(messages)
        start, topic, partition = 0, messages[0].topic(), messages[0].partition()
        for index, message in enumerate(messages):
            if message.partition() != partition or message.topic() != topic:
                self._route(topic, partition, messages[start:index], ready)
                start, topic, partition = index, message.topic(), message.partition()
        self._route(topic, partition, messages[start:] if start else messages, ready)

    def _route(self, topic: str, partition: int, messages: Sequence[Message], ready: Any) -> None:
        target, lane = self._routes.get((topic, partition), (None, 0))
        if isinstance(target, Unit):
            if lane == SOURCE:
                target.receive_source(messages, ready if target.care is None else target.care.inbox)
            else:
                target.receive_lane(lane, messages)
        elif target is not None and target.unit is None and lane != SOURCE:
            for message in messages:
                target.observe(lane, message)
            if target.complete:
                self._claim(partition, target)

    def ended(self, item: Ended) -> None:
        """Lanes were read to here; past their last record, which may lie before the fence, only this tells."""
        for tp, offset in item.offsets.items():
            target, lane = self._routes.get(tp, (None, SOURCE))
            if isinstance(target, _Opening) and target.unit is None and lane != SOURCE:
                target.reached(lane, offset)
                if target.complete:
                    self._claim(tp.partition, target)

    def unreadable(self, item: Unreadable) -> Unit | None:
        """A batch was passed over; gives the unit that has a pointer to write for it."""
        (topic, partition), damage = item.partition, item.damage
        self._log.error(
            "offsets can't be read and are passed over", topic=topic, partition=partition,
            first=damage.first, last=damage.next - 1, kind=damage.kind, text=damage.text,
        )  # fmt: skip
        target, lane = self._routes.get(item.partition, (None, SOURCE))
        if isinstance(target, Unit):
            if not target.draining and may_hold_ours(target, lane, damage):
                self._keeper.give_up("copies that were written to a lane may be in a batch that can't be read")
            return target if not target.draining and point_at(target, lane, damage) else None
        if target is not None and target.unit is None and lane != SOURCE:
            target.unreadable(lane, damage.first, damage.next)
            if target.complete:
                self._claim(partition, target)
        return None

    # -- becoming the owner

    def open(self, item: Opened) -> None:
        self._close_opening(item.partition)
        self._terms[item.partition] = item.term
        if self._stopping:
            return
        self.refused.pop(item.partition, None)
        self.refused.pop(NO_PARTITION, None)
        rebuild = Rebuild(item.source, [lane.name for lane in item.lanes], item.progress, item.ends)
        opening = _Opening(rebuild, item.lanes)
        self._openings[item.partition] = opening
        scan = {}
        if (place := item.store) is not None:
            opening.store = store = StoreScan(place.topic, item.source, place.begin, place.end)
            rebuild.fences[STORE] = store.fence
            tp = TopicPartition(store.topic, item.partition)
            self._routes[tp] = (opening, IN_STORE)
            if not store.complete:
                scan[tp] = store.at
        for index, lane in enumerate(item.lanes, start=1):
            tp = TopicPartition(lane.topic, item.partition)
            self._routes[tp] = (opening, index)
            if index in rebuild.scan_from:
                scan[tp] = rebuild.scan_from[index]
        if opening.complete:
            self._claim(item.partition, opening)
        else:
            self._request(self._keeper.fetcher.add, scan)

    def _claim(self, partition: int, opening: _Opening) -> None:
        if opening.store is not None:
            opening.rebuild.epoch = max(opening.rebuild.epoch, opening.store.epoch + 1)
        opening.unit = unit = Unit(partition, self._policy, opening.lanes, opening.rebuild)
        if opening.store is not None:
            unit.floor = opening.store.floor
        before = opening.rebuild.source
        take_care(unit, before.marks, self._clock.now_ms, before.epoch == self._epochs.get(partition))
        self._epochs[partition] = unit.epoch
        positions = self._committer.positions(unit, self._clock.now_ms)
        source = TopicPartition(self._policy.source, partition)
        lanes = {tp: position for tp, position in positions.items() if tp != source}
        self._request(self._keeper.fetcher.claim, partition, unit.epoch, lanes, {source: positions[source]})

    def claimed(self, item: Claimed) -> None:
        opening = self._openings.get(item.partition)
        if opening is None or opening.unit is None or opening.unit.epoch != item.epoch:
            return
        unit = opening.unit
        del self._openings[item.partition]
        self.by_partition[item.partition] = unit
        self.units = tuple(self.by_partition.values())
        for index, lane in enumerate(unit.lanes):
            self._routes[lane.spec.topic, item.partition] = (unit, index)
        if opening.store is not None:
            self._restored(unit, opening.store)
        self._keeper.opened(unit)
        zombies = opening.rebuild.zombies
        if zombies:
            self._log.warning("records of a zombie were found and set aside", partition=item.partition, count=zombies)
        self._log.info("partition open", partition=item.partition, epoch=unit.epoch, parked=len(unit.parking))

    def refuse(self, item: Refused) -> None:
        if item.error is None:
            self.refused.pop(item.partition, None)
            return
        self.refused[item.partition] = item.error
        self._log.error("partition can't be opened", partition=item.partition, error=str(item.error))

    # -- letting go

    def revoking(self, item: Revoking) -> None:
        for partition in item.partitions:
            unit = self.by_partition.get(partition)
            if unit is not None:
                self._drain(unit)
                continue
            self._close_opening(partition)
            self._keeper.fetcher.release(partition, {}, self._terms[partition])

    def _close_opening(self, partition: int) -> None:
        opening = self._openings.pop(partition, None)
        if opening is not None and opening.unit is not None:
            opening.unit.close()
            self._committer.forget(opening.unit)
        self._unroute(partition)

    def lost(self, item: Lost) -> None:
        for partition in item.partitions:
            self._log.warning("partition lost", partition=partition)
            self._close_opening(partition)
            unit = self.by_partition.get(partition)
            if unit is None:
                continue
            handle = self._draining.pop(unit, None)
            if handle is not None:
                handle.cancel()
            self._keeper.cancel(unit)
            self._drop(unit)

    async def drain_all(self) -> None:
        """Drain every partition; returns when the last one is released."""
        self._stopping = True
        for partition in tuple(self._openings):
            self._close_opening(partition)  # claimed now, it would begin to work, and never be drained
        if self.by_partition:
            self._emptied = self._loop.create_future()
            for unit in self.units:
                self._drain(unit)
            await self._emptied

    def _drain(self, unit: Unit) -> None:
        if unit not in self._draining:
            unit.drain()
            self._keeper.draining(unit)
            self._draining[unit] = self._loop.call_later(self._drain_s, guarded(self._keeper, self._force), unit)
            self._keeper.wake()

    @property
    def is_draining(self) -> bool:
        return bool(self._draining)

    def let_go_drained(self) -> None:
        for unit in tuple(self._draining):
            if (unit in self._forced or self._keeper.idle(unit)) and self._keeper.concluded(unit):
                self._let_go(unit)

    def _force(self, unit: Unit) -> None:
        self._log.warning("drain deadline reached: cancelling what still runs", partition=unit.partition)
        self._keeper.cancel(unit)
        if self._keeper.concluded(unit):
            self._let_go(unit)
            return
        self._forced.add(unit)
        give_up = guarded(self._keeper, self._keeper.give_up)
        self._draining[unit] = self._loop.call_later(self._last_s, give_up, "the drain deadline passed")
        self._keeper.wake()

    def restart(self) -> dict[int, int]:
        """Close every unit; those that were being let go are, the others are returned with their terms, to be opened again."""
        terms: dict[int, int] = {}
        for unit in self.units:
            handle = self._draining.pop(unit, None)
            if handle is None:
                terms[unit.partition] = self._terms[unit.partition]
            else:
                handle.cancel()
                self._keeper.fetcher.release(unit.partition, {}, self._terms[unit.partition])
            self._keeper.cancel(unit)
            self._drop(unit)
        return terms

    def _let_go(self, unit: Unit) -> None:
        self._draining.pop(unit).cancel()
        positions: dict[TopicPartition, Position] = {}
        if self.trusted:
            let_go(unit)
            self._epochs.pop(unit.partition, None)  # in order: whoever is next, also we, goes by what is written
            positions = self._committer.positions(unit, self._clock.now_ms, last=True)
        self._keeper.fetcher.release(unit.partition, positions, self._terms[unit.partition])
        self._drop(unit)

    def _drop(self, unit: Unit) -> None:
        unit.close()
        self._forced.discard(unit)
        self.by_partition.pop(unit.partition, None)
        self.units = tuple(self.by_partition.values())
        self._committer.forget(unit)
        self._unroute(unit.partition)
        self._keeper.dropped(unit)
        if self._emptied is not None and not self.by_partition and not self._emptied.done():
            self._emptied.set_result(None)  # also when the last one was lost while it drained

    def _unroute(self, partition: int) -> None:
        self._routes = {tp: target for tp, target in self._routes.items() if tp[1] != partition}
        self.refused.pop(partition, None)

    def abandon(self) -> None:
        """Everything stops here, as in a process that dies."""
        for handle in self._draining.values():
            handle.cancel()
        for unit in self.units:
            unit.close()
        self.units, self.by_partition, self._routes = (), {}, {}

    def _request(self, command: Callable[..., None], *arguments: object) -> None:
        self._keeper.fetcher.request(partial(command, *arguments))
