"""One simulated history of whole workers on the memory cluster, in virtual time: the same scenario gives the same history."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

import structlog

from pipeline.core import unit as unit_module
from pipeline.core.blocked import Blocked
from pipeline.core.unit import Unit
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.faults import Faults
from pipeline.memory.loop import START_MS, VirtualClockLoop, run
from pipeline.model.cluster import TopicPartition, TopicSpec
from tests.simulation.checker import Checker, Terms
from tests.simulation.facts import Began, Facts, Landed, Seen, recorded, told
from tests.simulation.fleet import OUT, Fleet, faults_of
from tests.simulation.scenario import ATTEMPTS, GROUP, TOPIC, Scenario

PATIENCE_S = 90.0
"""From the moment all is well again until every record must have its ending (I7)."""
WATCH_S = 0.1
"""Between two looks of the reader of outputs."""
QUIET_S = 2.0
"""Longer than any wait in a tier: whatever is still in a lane gets its chance to run again, wrongly."""


@dataclass(slots=True)
class World:
    """What became of a scenario. `seen`: how often each situation was met."""

    scenario: Scenario
    problems: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    facts: Facts = field(default_factory=lambda: Facts(lambda: 0))
    repeats: int = 0
    checker: Checker = field(init=False)
    checked: int = 0
    """So many facts the checker has had."""

    def check(self) -> Checker:
        """With all facts up to now."""
        looked, self.checked = self.checked, len(self.facts)
        self.checker.take(self.facts[looked:])
        return self.checker

    def told(self) -> list[str]:
        return [told(fact, START_MS) for fact in self.facts]


Disturb = Callable[["World", Fleet], Awaitable[None]]


def cluster_of(world: World, loop: VirtualClockLoop, ahead_ms: Callable[[], int]) -> MemoryCluster:
    """The history's cluster, of which the world keeps the facts. `ahead_ms`: how far its clock is ahead of the loop's."""
    scenario = world.scenario
    cluster = MemoryCluster(
        f"sim-{scenario.seed}",
        clock=lambda: loop.clock() + ahead_ms(),
        scheduler=loop.call_later_ms,
        seed=scenario.seed,
        faults=faults_of(scenario, world.seen),
    )
    world.facts = Facts(cluster.clock)
    return cluster


def simulate(scenario: Scenario, disturb: Disturb | None = None) -> World:
    """Run it to its end; `problems` says what does not hold. `disturb`: what happens instead of the scenario's events."""
    world = World(scenario)
    world.checker = Checker(_terms(scenario, moved=disturb is not None))

    async def main(loop: VirtualClockLoop) -> None:
        ahead = SimpleNamespace(clock_ahead_ms=0)
        cluster = cluster_of(world, loop, lambda: ahead.clock_ahead_ms)
        fleet = ahead = Fleet(scenario, cluster, loop, world.facts)
        with _known(cluster), recorded(cluster, GROUP, world.facts), _counted(world.seen), _timed(loop):
            try:
                await _history(world, fleet, disturb or _events)
            finally:
                for name in tuple(fleet.alive):
                    fleet.kill(name, None)
                fleet.forget()
            world.seen += fleet.stats

    try:
        run(main, scenario.seed)
    except Exception as error:
        world.problems.append(f"defect: {type(error).__name__}: {error}")
    checker = world.checker
    try:
        world.check()
        checker.check_end()
    except (LookupError, ValueError) as error:
        world.problems.append(f"unreadable: {type(error).__name__}: {error}")
    world.problems += checker.problems
    world.seen += checker.seen
    world.repeats = checker.repeats
    world.seen["published"] += published(world)
    world.seen["execution"] += sum(isinstance(fact, Began) for fact in world.facts)
    return world


def _terms(scenario: Scenario, moved: bool) -> Terms:
    return Terms(
        TOPIC, GROUP, OUT, ATTEMPTS, scenario.order, calm=scenario.calm, moved=moved, whole=scenario.executor == "whole",
        exactly_once=scenario.delivery == "exactly_once", hold=scenario.dead_letter == "hold",
    )  # fmt: skip


@contextmanager
def _known(cluster: MemoryCluster) -> Iterator[None]:
    memory.register(cluster)
    try:
        yield
    finally:
        memory.forget(cluster.address)


@contextmanager
def _timed(loop: VirtualClockLoop) -> Iterator[None]:
    """The pool of threads looks at this clock too."""
    with patch("pipeline.worker.threads.time", SimpleNamespace(monotonic=loop.time, perf_counter=loop.time)):
        yield


@contextmanager
def _counted(seen: Counter[str]) -> Iterator[None]:
    """Count what workers log, and branches of the core that nothing outside tells."""

    def logged(_logger: object, _name: str, event: dict[str, object]) -> str:
        seen[f"log: {event.get('event')}"] += 1
        seen["careful"] += event.get("careful") is True
        return ""

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[logged])
    add, shed, hand_back, not_yet = Blocked.add, unit_module.shed, Unit.hand_back, Unit._not_yet

    def added(self: Blocked, delivery: object) -> None:
        seen["blocked"] += 1
        add(self, delivery)  # type: ignore[arg-type]

    def shedding(self: Unit, lane: object, now_ms: int) -> None:
        before = self.blocked.count
        shed(self, lane, now_ms)  # type: ignore[arg-type]
        seen["blocked shed"] += before - self.blocked.count

    def handed_back(self: Unit, delivery: object, now_ms: int) -> None:
        seen["handed back"] += 1
        hand_back(self, delivery, now_ms)  # type: ignore[arg-type]

    def hopped(self: Unit, delivery: object, now_ms: int) -> None:
        seen["due, but not yet to run"] += 1
        not_yet(self, delivery, now_ms)  # type: ignore[arg-type]

    with (
        patch.object(Blocked, "add", added),
        patch.object(unit_module, "shed", shedding),
        patch.object(Unit, "hand_back", handed_back),
        patch.object(Unit, "_not_yet", hopped),
    ):
        yield


async def _history(world: World, fleet: Fleet, disturb: Disturb) -> None:
    scenario, cluster = world.scenario, fleet.cluster
    fleet.prepare(scenario.partitions)
    cluster.admin().create_topics([TopicSpec(OUT, 1, 1, {})])
    for _ in range(scenario.workers):
        await fleet.start()
    publishing = asyncio.create_task(_publish(fleet))
    watching = asyncio.create_task(_watch(fleet)) if scenario.delivery == "exactly_once" else None
    await disturb(world, fleet)
    await publishing
    await _heal(world, fleet)
    await _settle(world, fleet)
    for name in tuple(fleet.alive):
        await fleet.stop(name)
    if watching is not None:
        await asyncio.sleep(2 * WATCH_S)
        if watching.done():
            watching.result()
        watching.cancel()


async def _watch(fleet: Fleet) -> None:
    """Somebody who reads the outputs while they are written, committed ones only."""
    reader = fleet.cluster.reader("observer")
    reader.assign({TopicPartition(OUT, 0): 0})
    while True:
        for message in reader.poll(100, 0):
            place = (message.topic() or "", message.partition() or 0, message.offset() or 0)
            fleet.facts.append(Seen(fleet.cluster.clock(), place))
        await asyncio.sleep(WATCH_S)


async def _publish(fleet: Fleet) -> None:
    """Some sends fail or land without an answer, as for any producer: what is in the topic is what counts."""
    producer = fleet.cluster.producer("agents")
    began = fleet.loop.time()
    for record in fleet.scenario.records:
        await asyncio.sleep(max(0.0, began + record.at_ms / 1000 - fleet.loop.time()))
        producer.send(TOPIC, record.key, b"%d" % record.number)


async def _events(_world: World, fleet: Fleet) -> None:
    """Each at its time; a stop that takes long does not hold up what comes after it."""
    began = fleet.loop.time()
    under_way = []
    for event in fleet.scenario.events:
        await asyncio.sleep(max(0.0, began + event.at_ms / 1000 - fleet.loop.time()))
        under_way.append(asyncio.create_task(fleet.happen(event)))
    await asyncio.sleep(max(0.0, began + fleet.scenario.ends_ms / 1000 - fleet.loop.time()))
    await asyncio.gather(*under_way)


async def _heal(world: World, fleet: Fleet) -> None:
    fleet.facts.happened("heal")
    fleet.cluster.faults = Faults(world.scenario.seed)
    fleet.cluster.wake_all()
    fleet.resume()
    for name in sorted(fleet.frozen):
        fleet.thaw(name)
    while len(fleet.alive) < world.scenario.workers:
        await fleet.start()
    await asyncio.sleep(0.5)
    if world.scenario.dead_letter == "hold":
        await fleet.operator.finish()


async def _settle(world: World, fleet: Fleet) -> None:
    """I7: progress once all is well again."""
    until = fleet.loop.time() + PATIENCE_S
    while fleet.loop.time() < until:
        if _all_ended(world):
            await asyncio.sleep(QUIET_S)
            if _all_ended(world):  # nothing landed meanwhile that was on its way
                return
        broken = [m.worker.running[0].engine.broken for m in fleet.alive.values() if m.worker.running]
        if any(broken):
            world.problems.append(f"defect: an engine stopped working: {next(filter(None, broken))!r}")
            return
        await asyncio.sleep(0.3)
    left = [identity for identity, story in world.checker.stories.items() if not story.ended]
    world.problems.append(f"I7: no ending within {PATIENCE_S:.0f} s of peace for {left[:5]} ({len(left)} in all)")


def _all_ended(world: World) -> bool:
    """With exactly_once only what is committed has happened, and a worker may wait for seconds before it begins another transaction."""
    checker = world.check()
    committed = world.scenario.delivery != "exactly_once" or checker.all_settled
    return committed and all(story.ended for story in checker.stories.values())


def published(world: World) -> int:
    return sum(isinstance(fact, Landed) and fact.place[0] == TOPIC for fact in world.facts)
