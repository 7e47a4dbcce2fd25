"""One simulated history of job queues on the memory cluster, in virtual time: the same scenario gives the same history."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import count
from types import SimpleNamespace
from unittest.mock import patch

from pipeline.core.jobs.sweeping import Sweep
from pipeline.memory.faults import Faults
from pipeline.memory.loop import START_MS, VirtualClockLoop, run
from pipeline.model.errors import JobMissing
from tests.simulation.facts import Fact, Landed, Stored, recorded, told
from tests.simulation.jobs.checker import JobChecker
from tests.simulation.jobs.fleet import JobFleet, codec
from tests.simulation.jobs.reading import Entry, described, read_entry
from tests.simulation.jobs.scenario import INBOX, LONG_MS, QUEUE, STORE, Asked, JobScenario
from tests.simulation.world import World, _counted, _known, cluster_of

PATIENCE_S = 90.0
QUIET_S = 1.5
HEARD_S = 5.0
LOOK_MS = 2_000


@dataclass(slots=True)
class Standing:
    """What is still to come, from the facts alone: jobs of the store without an ending, requests that are not there, offsets, and
    entries of strangers that nobody wrote over."""

    inbox: dict[tuple[int, int], str] = field(default_factory=dict)
    settled: dict[int, tuple[int, str]] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    strangers: dict[str, None] = field(default_factory=dict)
    looked: int = 0

    def look(self, facts: list[Fact]) -> None:
        for fact in facts[self.looked :]:
            if isinstance(fact, Landed) and fact.place[0] == INBOX:
                name, fields = codec().decode_dict(INBOX, fact.value)
                self.inbox[fact.place[1:]] = fields["id"] if name.endswith("JobRequest") else ""
            elif isinstance(fact, Stored) and fact.partition[0] == INBOX:
                self.settled[fact.partition[1]] = fact.offset, fact.metadata
            elif isinstance(fact, Landed) and fact.place[0] == STORE:
                entry = read_entry(fact)
                key = f"{entry.kind}/{entry.name}"
                if entry.epoch < self.epochs.get(entry.partition, 0):
                    self.strangers[key] = None
                    continue
                self.strangers.pop(key, None)
                self.epochs[entry.partition] = entry.epoch
                if entry.kind == "j":
                    self.entries[entry.name] = entry
        self.looked = len(facts)

    def left(self) -> list[str]:
        """What has no ending; "" for a command that is not settled."""
        found = [
            job_id
            for (partition, offset), job_id in self.inbox.items()
            if offset >= self.settled.get(partition, (0, ""))[0] or (job_id and job_id not in self.entries)
        ]
        return [*found, *(name for name, entry in self.entries.items() if not entry.over), *self.strangers]


@contextmanager
def _bounded() -> Iterator[None]:
    """Stores are looked at soon and swept often, and a partition without a leader is given up after so many tries."""
    turns = count()
    clock = SimpleNamespace(monotonic=lambda: float(next(turns)))
    with (
        patch("pipeline.worker.jobs.strangers.LOOK_MS", LOOK_MS),
        patch("pipeline.worker.jobs.strangers.time", clock),
        patch.multiple(Sweep, every=12, times=0, at_once=3),
    ):
        yield


def simulate_jobs(scenario: JobScenario) -> World:
    """Run it to its end; `problems` says what does not hold."""
    world = World(scenario)
    checker = JobChecker(scenario)
    world.checker = checker  # type: ignore[assignment]

    async def main(loop: VirtualClockLoop) -> None:
        ahead = SimpleNamespace(clock_ahead_ms=0)
        cluster = cluster_of(world, loop, lambda: ahead.clock_ahead_ms)
        with _known(cluster), recorded(cluster, QUEUE, world.facts), _counted(world.seen), _bounded():
            fleet = ahead = JobFleet(scenario, cluster, loop, world.facts)
            try:
                await _history(world, fleet)
            finally:
                for name in tuple(fleet.alive):
                    fleet.kill(name, None)
                fleet.forget()
                for task in fleet.waiting:
                    task.cancel()
                fleet.caller.jobs.close()
            world.seen += fleet.stats

    try:
        run(main, scenario.seed)
    except Exception as error:
        world.problems.append(f"defect: {type(error).__name__}: {error}")
    try:
        world.problems += checker.check(world.facts)
    except (LookupError, ValueError) as error:
        world.problems.append(f"unreadable: {type(error).__name__}: {error}")
    world.seen = Counter({f"jobs: {name}": times for name, times in (world.seen + checker.seen).items()})
    world.seen += Counter({"published": checker.published, "execution": checker.executions})
    world.repeats = checker.repeats
    return world


async def _history(world: World, fleet: JobFleet) -> None:
    fleet.prepare(fleet.scenario.partitions)
    fleet.open()
    for _ in range(fleet.scenario.workers):
        await fleet.start()
    asking = asyncio.create_task(_ask(fleet))
    await _events(fleet)
    await asking
    await _heal(fleet)
    await _settle(world, fleet)
    if fleet.waiting:
        await asyncio.wait(fleet.waiting, timeout=HEARD_S)
    await _read_back(fleet)
    for name in tuple(fleet.alive):
        await fleet.stop(name)


async def _ask(fleet: JobFleet) -> None:
    began = fleet.loop.time()
    under_way = []
    scenario = fleet.scenario
    assert isinstance(scenario, JobScenario)
    for asked in sorted(scenario.asked, key=lambda each: (each.at_ms, each.number)):
        await asyncio.sleep(max(0.0, began + asked.at_ms / 1000 - fleet.loop.time()))
        under_way.append(asyncio.create_task(fleet.ask(asked)))
    if under_way:
        await asyncio.gather(*under_way)


async def _events(fleet: JobFleet) -> None:
    began = fleet.loop.time()
    under_way = []
    for event in fleet.scenario.events:
        await asyncio.sleep(max(0.0, began + event.at_ms / 1000 - fleet.loop.time()))
        under_way.append(asyncio.create_task(fleet.happen(event)))
    await asyncio.sleep(max(0.0, began + fleet.scenario.ends_ms / 1000 - fleet.loop.time()))
    await asyncio.gather(*under_way)


async def _heal(fleet: JobFleet) -> None:
    fleet.facts.happened("heal")
    fleet.cluster.faults = Faults(fleet.scenario.seed)
    fleet.cluster.wake_all()
    fleet.resume()
    for name in sorted(fleet.frozen):
        fleet.thaw(name)
    while len(fleet.alive) < fleet.scenario.workers:
        await fleet.start()
    names = {asked.name: asked for asked in fleet.asked.values() if asked.name and asked.kind == "!put"}
    await asyncio.sleep(2.5)  # whoever is to tick does
    for number, put in enumerate(names.values()):
        await fleet.ask(Asked(-1 - number, 0, "!drop", name=put.name, key=put.key))


async def _settle(world: World, fleet: JobFleet) -> None:
    """Progress once all is well again; what is due in hours is due by then."""
    until = fleet.loop.time() + PATIENCE_S
    standing, jumped = Standing(), False
    while fleet.loop.time() < until:
        standing.look(world.facts)
        if not standing.left():
            await asyncio.sleep(QUIET_S)
            standing.look(world.facts)
            if not standing.left():  # nothing landed meanwhile that was on its way
                return
        waits = [standing.entries.get(job_id) for job_id in standing.left()]
        if not jumped and all(entry is not None and entry.far(fleet.cluster.clock()) for entry in waits):
            jumped = True
            fleet.facts.happened("jump", LONG_MS)
            fleet.clock_ahead_ms += LONG_MS
        broken = [m.worker.running[0].engine.broken for m in fleet.alive.values() if m.worker.running]
        if any(broken):
            world.problems.append(f"defect: an engine stopped working: {next(filter(None, broken))!r}")
            return
        await asyncio.sleep(0.3)
    left = standing.left()
    world.problems.append(f"J7: no ending within {PATIENCE_S:.0f} s of peace for {left[:5]} ({len(left)} in all)")


async def _read_back(fleet: JobFleet) -> None:
    """What callers are told who ask in the end."""
    for number, handle in fleet.handles.items():
        try:
            state = (await handle.status()).state.value
        except JobMissing:
            state = "missing"
        fleet._asked(number, handle.id, f"is {state}")


def shown(asked: Asked) -> str:
    """What is asked, where it is not as by default."""
    plain = Asked(asked.number, asked.at_ms, asked.kind)
    named = {each.name: getattr(asked, each.name) for each in fields(asked)}
    more = ", ".join(f"{name} {value}" for name, value in named.items() if value != getattr(plain, name))
    return f"{asked.kind} at {asked.at_ms} ms" + (f", {more}" if more else "")


def lines(world: World) -> list[str]:
    """The history, line by line."""
    return [described(fact, START_MS) if isinstance(fact, Landed) else told(fact, START_MS) for fact in world.facts]
