"""Units whose last owners died: what may have killed them runs alone, in a child process, and nothing else waits for it.

It stands before the executor for as long as there is such a unit (`core.care` says which records are suspects). A suspect whose
child dies too goes to the dead letters, with what it did; every other one simply is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.care import HEALTHY, SUSPECTED, Care, runs_alone
from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.unit import Unit
from pipeline.model.policies import FlowPolicy
from pipeline.worker.committing import Committer
from pipeline.worker.parts import Executor

if TYPE_CHECKING:
    from pipeline.worker.engine import Engine
    from pipeline.worker.isolation import Isolation

COMMIT_MS = 50
"""While a unit is watched: the horizon moves with each commit, and what a death leaves in doubt is what ran since the last."""


class Quarantine:
    """An `Executor` around another one. `target` is how children find the application; without it suspects run here, one by one."""

    def __init__(self, engine: Engine, committer: Committer) -> None:
        self.target: str | None = None
        self._engine = engine
        self._committer = committer
        self._units: dict[Unit, None] = {}  # a set that keeps its order: a history can be repeated
        self._isolation: Isolation | None = None
        self._alone: tuple[Delivery, int] | None = None
        self._said = False
        self._inner: Executor

    def take(self, unit: Unit, executor: Executor) -> Executor:
        """A unit was just opened. Returns the executor to be used from now on: this, when it has to be looked after."""
        if unit.care is None:
            return executor
        if executor is not self:
            self._inner = executor
        self._units[unit] = None
        log = self._engine.execution.log
        if unit.unclean >= SUSPECTED:
            log.error(
                "the last owners of a partition died: what they were running runs alone now",
                partition=unit.partition,
                owners=unit.unclean - 1,
            )
        else:
            log.warning("the last owner of a partition did not let it go in order", partition=unit.partition)
        return self

    def commit_interval_s(self, flow: FlowPolicy) -> float:
        moves = any(unit.care is not None and unit.care.moving for unit in self._units)
        return (min(COMMIT_MS, flow.commit_interval_ms) if moves else flow.commit_interval_ms) / 1000

    def suspects(self, unit: Unit) -> int:
        """How many are still to be run alone. From any thread, as what it asks."""
        care = unit.care
        waiting = len(care.suspects) if care is not None else 0
        return waiting + sum(delivery.unit is unit for delivery in self._running_alone())

    def by_partition(self) -> dict[int, int]:
        """Partition -> suspects that are still to be run alone."""
        counts = {unit.partition: self.suspects(unit) for unit in tuple(self._units)}
        return {partition: count for partition, count in counts.items() if count}

    def _running_alone(self) -> list[Delivery]:
        alone, isolation = self._alone, self._isolation
        found = [alone[0]] if alone is not None else []
        return found if isolation is None else [*found, *isolation.deliveries]

    # -- work

    def pump(self) -> None:
        engine = self._engine
        if self._isolation is not None and self._isolation.children.hopeless:
            self._without_children()
        at_once = engine.execution.subscription.flow.concurrency
        idle = engine.paused or not engine.parts.switches.read
        for unit in tuple(self._units):
            care = unit.care
            if not unit.open or care is None:
                self._units.pop(unit, None)
                continue
            stored = self._committer.marking(unit)
            care.stored(0 if stored is None else stored)
            care.sort(engine.ready, at_once, unit.lanes[SOURCE].tracker.under_way)
            if care.suspects and not idle and not unit.draining and self._run_suspects(unit, care):
                self._units[unit] = self._units.pop(unit)  # the next place is another unit's
            positions = [lane.tracker.position for lane in unit.lanes]
            if not unit.draining and care.over(engine.clock.now_ms, positions, self.suspects(unit) > 0):
                self._let_go(unit, care)
        if self.target is not None and engine.resumed and not idle:
            self._stay_alone(self.target)
        self._inner.pump()
        if not self._units:
            self._rest()

    def _stay_alone(self, target: str) -> None:
        """Suspects that were admitted before, and waited in memory or for others of their key: they go on in a child too."""
        resumed = self._engine.resumed
        alone = [one for one in resumed if runs_alone(one) and not one.unit.draining]
        if alone:
            others = [one for one in resumed if one not in alone]
            resumed.clear()
            resumed.extend(others)
            isolation = self._started(target)
            for delivery in alone:
                isolation.run(delivery)

    def _let_go(self, unit: Unit, care: Care) -> None:
        care.leave(self._engine.ready)
        unit.care, unit.unclean = None, HEALTHY
        self._units.pop(unit, None)
        self._engine.execution.log.info("a partition is healthy again", partition=unit.partition)

    def _rest(self) -> None:
        if self._isolation is not None:
            if self._isolation.running():
                return
            self._isolation.abandon()
            self._isolation = None
        self._engine.executor = self._inner

    def _run_suspects(self, unit: Unit, care: Care) -> bool:
        """As many as there is room for; did one begin?"""
        engine, began = self._engine, False
        while self._has_room():
            delivery = care.next_suspect(lambda one: one.key is None or not unit.by_key or one.key not in unit.busy)
            if delivery is None:
                break
            if unit.admit(delivery, engine.clock.now_ms):
                self._run(delivery)
                began = True
            elif unit.effects:
                engine.perform(unit)
        return began

    def _has_room(self) -> bool:
        if self.target is not None:
            return self._started(self.target).room
        if self._alone is not None:
            delivery, attempt = self._alone
            lanes = delivery.unit.lanes
            if (
                delivery.unit.open
                and delivery.attempt == attempt
                and delivery.offset in lanes[delivery.lane].tracker.open
            ):
                return False
            self._alone = None
        return True

    def _run(self, delivery: Delivery) -> None:
        if self._isolation is not None:
            self._isolation.run(delivery)
            return
        if not self._said:
            self._said = True
            self._engine.execution.log.warning(
                "suspects run one by one in this process: a child process can't load the application, so one that kills its process "
                "kills this one; keep the application in a variable of a module and start it with `pipeline run MODULE:APP`"
            )
        self._alone = (delivery, delivery.attempt)
        self._engine.resumed.append(delivery)

    def _started(self, target: str) -> Isolation:
        if self._isolation is None:
            from pipeline.worker.isolation import Isolation, child_spec

            spec = child_spec(self._engine.execution.subscription, target)
            self._isolation = Isolation(self._engine, spec, 1, self._engine.wake, _deaths_before)
        return self._isolation

    def _without_children(self) -> None:
        """They can't be started: go on here."""
        assert self._isolation is not None
        left, self._isolation = self._isolation, None
        self.target = None
        self._engine.resumed.extend(left.deliveries)
        left.abandon()

    # -- of an executor

    def holds(self, unit: Unit) -> bool:
        return self._inner.holds(unit) or (self._isolation is not None and self._isolation.holds(unit))

    def cancel(self, unit: Unit) -> None:
        self._inner.cancel(unit)
        if self._isolation is not None:
            self._isolation.cancel(unit)

    def running(self) -> int:
        return self._inner.running() + (self._isolation.running() if self._isolation is not None else 0)

    def abandon(self) -> None:
        self._inner.abandon()
        if self._isolation is not None:
            self._isolation.abandon()

    async def stop(self) -> None:
        self.abandon()
        await self._inner.stop()


def _deaths_before(delivery: Delivery) -> int:
    """Owners in a row that died while it was among what they ran."""
    return delivery.unit.unclean - 1
