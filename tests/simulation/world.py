"""A seeded simulation of whole workers on the memory cluster, in virtual time: the same seed gives the same history.

Workers are killed, stopped, frozen (zombies) and started while records fail, wait and are retried; broker answers come late,
get lost or are refused. What must hold in the end is checked from what the handlers saw and from the topics themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import structlog

from pipeline import Context, Pipeline, Settings
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.faults import Faults
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.headers import decode as decode_headers
from pipeline.model.policies import FlowPolicy
from pipeline.topology import Defaults, execute, plan
from pipeline.worker.worker import Worker

TOPIC, GROUP = "sim.events", "sim"
TIERS = ("1s", "3s", "9s")
TIERS_MS = (1_000, 3_000, 9_000)
ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed is turned into. Chances are per second of virtual time; `patience_s`: for the end, once faults have healed."""

    seed: int
    records: int = 120
    keys: int = 8
    partitions: int = 3
    workers: int = 2
    seconds: float = 40.0
    kills: float = 0.08
    stops: float = 0.05
    freezes: float = 0.05
    order: str = "key"
    faulty_broker: bool = True
    patience_s: float = 900.0


@dataclass(slots=True)
class Attempt:
    """One execution as the handler saw it. `ended_ms` is 0 when its worker died first."""

    record: int
    key: bytes
    attempt: int
    began_ms: int
    worker: str
    ended_ms: int = 0
    failed: bool = False


@dataclass(slots=True)
class World:
    scenario: Scenario
    attempts: list[Attempt] = field(default_factory=list)
    disturbances: int = 0
    published: dict[int, int] = field(default_factory=dict)
    """Record -> its offset in the source topic: the order that its key's records must have."""
    problems: list[str] = field(default_factory=list)
    dead: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    events: list[str] = field(default_factory=list)

    def needed(self, record: int) -> int:
        """Executions that this record needs; more than ATTEMPTS means that it ends in the dead letters."""
        return random.Random(f"{self.scenario.seed}/{record}").choice((1, 1, 1, 1, 2, 2, 3, 99))


class _Fleet:
    """The workers of a simulation, by name; each is an application of its own, as separate processes would be."""

    def __init__(self, world: World, cluster: MemoryCluster, loop: VirtualClockLoop) -> None:
        self.world = world
        self.cluster = cluster
        self.loop = loop
        self.alive: dict[str, Worker] = {}
        self.frozen: set[str] = set()
        self.made = 0

    def app(self, name: str) -> Pipeline:
        app = Pipeline(name, settings=Settings(broker=self.cluster.address, session_timeout_s=6))
        rng = random.Random(f"{self.world.scenario.seed}/{name}")

        @app.subscribe(
            TOPIC,
            group=GROUP,
            value="bytes",
            order=self.world.scenario.order,
            tiers=TIERS,
            attempts=ATTEMPTS,
            flow=FlowPolicy(commit_interval_ms=200, drain_timeout_ms=5_000, look_ahead=10),
        )
        async def handle(value: bytes, ctx: Context) -> None:
            record = int(value)
            seen = Attempt(record, ctx.key or b"", ctx.attempt, self.cluster.clock(), name)
            self.world.attempts.append(seen)
            await asyncio.sleep(rng.choice((0, 0, 0.02, 0.3)))
            seen.ended_ms = self.cluster.clock()
            if ctx.attempt < self.world.needed(record):
                seen.failed = True
                raise ValueError("not yet")

        return app

    async def start(self) -> None:
        self.made += 1
        name = f"w{self.made}"
        worker = Worker(self.app(name), index=self.made)
        await worker.start()
        self.alive[name] = worker
        self.world.events.append(f"{self.loop.time():.2f} start {name}")

    def kill(self, name: str, late_ms: int | None) -> None:
        self.world.events.append(f"{self.loop.time():.2f} kill {name}")
        self.cluster.kill(name, late_ms)
        self.alive.pop(name).abandon()
        self.frozen.discard(name)

    async def stop(self, name: str) -> None:
        self.world.events.append(f"{self.loop.time():.2f} stop {name}")
        await self.alive.pop(name).stop()

    def freeze(self, name: str) -> None:
        self.world.events.append(f"{self.loop.time():.2f} freeze {name}")
        self.cluster.freeze(name)
        self.frozen.add(name)

    def thaw(self, name: str) -> None:
        self.world.events.append(f"{self.loop.time():.2f} thaw {name}")
        self.cluster.thaw(name)
        self.frozen.discard(name)


def _faults(scenario: Scenario) -> Faults:
    if not scenario.faulty_broker:
        return Faults(scenario.seed, land_delay_ms=(0, 3), ack_delay_ms=(0, 3))
    return Faults(
        scenario.seed,
        land_delay_ms=(0, 40),
        ack_delay_ms=(0, 40),
        send_failure=0.01,
        ack_lost=0.01,
        fetch_records=(1, 30),
        lost_as_revoked=0.2,
        commit_delay_ms=(0, 60),
        commit_partition_failure=0.03,
        commit_lost=0.02,
    )


@contextmanager
def _registered(cluster: MemoryCluster) -> Iterator[None]:
    memory.register(cluster)
    try:
        yield
    finally:
        memory.forget(cluster.address)


def simulate(scenario: Scenario) -> World:
    """Run the scenario to its end; `problems` of the result says what does not hold."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    world = World(scenario)

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster(
            f"sim-{scenario.seed}",
            clock=loop.clock,
            scheduler=loop.call_later_ms,
            seed=scenario.seed,
            faults=_faults(scenario),
        )
        with _registered(cluster):
            await _history(world, _Fleet(world, cluster, loop))
            check(world, cluster)

    run(main, scenario.seed)
    return world


async def _history(world: World, fleet: _Fleet) -> None:
    scenario, cluster = world.scenario, fleet.cluster
    rng = random.Random(scenario.seed)
    app, admin = fleet.app("planner"), cluster.admin()
    for action in plan(app.subscriptions, admin.topics(), Defaults(partitions=scenario.partitions)).actions:
        execute(admin, action)
    for _ in range(scenario.workers):
        await fleet.start()
    publishing = asyncio.create_task(_publish(world, cluster, rng.randrange(1 << 30)))
    await _chaos(world, fleet, rng)
    await publishing
    cluster.faults = Faults(scenario.seed)
    await asyncio.sleep(1)
    world.published = {int(m.value() or b"-1"): m.offset() for m in _messages(cluster, TOPIC)}
    for name in tuple(fleet.frozen):
        fleet.thaw(name)
    while len(fleet.alive) < scenario.workers:
        await fleet.start()
    await _settle(world, fleet)
    for name in tuple(fleet.alive):
        await fleet.stop(name)


async def _publish(world: World, cluster: MemoryCluster, seed: int) -> None:
    """Some sends fail or land without an answer, as for any producer: what is in the topic in the end is what counts."""
    scenario, rng = world.scenario, random.Random(seed)
    producer = cluster.producer("agents")
    for number in range(scenario.records):
        producer.send(TOPIC, b"key-%d" % rng.randrange(scenario.keys), b"%d" % number)
        await asyncio.sleep(rng.random() * scenario.seconds * 1.5 / scenario.records)


async def _chaos(world: World, fleet: _Fleet, rng: random.Random) -> None:
    scenario = world.scenario
    loop, step = fleet.loop, 0.1
    until = loop.time() + scenario.seconds
    thaw_at: dict[str, float] = {}
    while loop.time() < until:
        await asyncio.sleep(step)
        for name, at in tuple(thaw_at.items()):
            if loop.time() >= at and name in fleet.frozen:
                fleet.thaw(name)
                del thaw_at[name]
        awake = [name for name in fleet.alive if name not in fleet.frozen]
        if awake and rng.random() < scenario.kills * step:
            world.disturbances += 1
            fleet.kill(rng.choice(awake), rng.choice((None, 0, 50, 3_000, 12_000)))
        elif awake and rng.random() < scenario.stops * step:
            await fleet.stop(rng.choice(awake))
        elif awake and rng.random() < scenario.freezes * step:
            name = rng.choice(awake)
            world.disturbances += 1
            fleet.freeze(name)
            thaw_at[name] = loop.time() + rng.choice((2.0, 8.0, 15.0))
        if len(fleet.alive) < scenario.workers and rng.random() < 0.1:
            await fleet.start()


async def _settle(world: World, fleet: _Fleet) -> None:
    """Wait until every record has its ending: progress after the faults have healed (I7)."""
    deadline = fleet.loop.time() + world.scenario.patience_s
    while fleet.loop.time() < deadline:
        if endings(world, fleet.cluster) >= set(world.published):
            await asyncio.sleep(30)  # whatever is still in a lane gets its chance to run again, wrongly
            return
        await asyncio.sleep(1)
    missing = sorted(set(world.published) - endings(world, fleet.cluster))
    world.problems.append(
        f"no ending within {world.scenario.patience_s:.0f} s for records {missing[:10]} ({len(missing)} in all)"
    )
    world.events.extend(where(fleet, record) for record in missing[:5])


def where(fleet: _Fleet, record: int) -> str:
    """Where a record without an ending is, for the one who debugs."""
    lines = [f"record {record}:"]
    for topic in (TOPIC, *(f"{TOPIC}.{GROUP}.retry.{tier}" for tier in TIERS)):
        for message in _messages(fleet.cluster, topic):
            if int(message.value() or b"-1") == record:
                lines.append(f"  {topic}-{message.partition()} @ {message.offset()} key {message.key()!r}")
    for name, worker in fleet.alive.items():
        engine = worker.running[0].engine
        for unit in engine.partitions.values():
            spots = [
                (lane.spec.name, lane.tracker.position, lane.tracker.next_offset, len(lane.look_ahead))
                for lane in unit.lanes
            ]
            lines.append(
                f"  {name} partition {unit.partition} epoch {unit.epoch}: {spots} busy {unit.busy} parked {unit.parking.keys}"
            )
        lines.append(
            f"  {name}: paused {engine.paused} ready {len(engine.ready)} refused {engine.refused} broken {engine.broken!r}"
        )
    return "\n".join(lines)


def endings(world: World, cluster: MemoryCluster) -> set[int]:
    done = {a.record for a in world.attempts if a.ended_ms and not a.failed}
    return done | set(dead_letters(cluster))


def dead_letters(cluster: MemoryCluster) -> dict[int, int]:
    """Record -> how many dead letters it has."""
    found: dict[int, int] = defaultdict(int)
    for message in _messages(cluster, f"{TOPIC}.{GROUP}.dlq"):
        found[int(message.value() or b"-1")] += 1
    return found


def _messages(cluster: MemoryCluster, topic: str):  # type: ignore[no-untyped-def]
    reader, admin = cluster.reader(), cluster.admin()
    from pipeline.model.cluster import TopicPartition

    partitions = [TopicPartition(topic, p) for p in range(admin.topics([topic])[topic].partitions)]
    reader.assign(dict.fromkeys(partitions, 0))
    while batch := reader.poll(10_000, 0):
        yield from batch
    reader.close()


def check(world: World, cluster: MemoryCluster) -> None:
    """I1-I4 and I8, on what the handlers saw and what the topics hold."""
    _check_endings(world, cluster)
    _check_order(world)
    _check_delays(world, cluster)
    _check_repeats(world)


def _check_endings(world: World, cluster: MemoryCluster) -> None:
    dead = dead_letters(cluster)
    for record in world.published:
        done = any(a.record == record and a.ended_ms and not a.failed for a in world.attempts)
        if done and record in dead:
            world.problems.append(f"record {record} has two endings: done and dead letter")
        if world.needed(record) > ATTEMPTS and done:
            world.problems.append(f"record {record} was done although it never succeeds")
        if world.needed(record) <= ATTEMPTS and record in dead:
            world.problems.append(
                f"record {record} is in the dead letters although attempt {world.needed(record)} succeeds"
            )


def _check_order(world: World) -> None:
    """Per key, the first success or final failure of each record is in origin order."""
    if world.scenario.order != "key":
        return
    first: dict[int, int] = {}
    last_of_key: dict[bytes, int] = defaultdict(lambda: -1)
    for attempt in sorted((a for a in world.attempts if a.ended_ms), key=lambda a: a.ended_ms):
        final = not attempt.failed or attempt.attempt >= ATTEMPTS
        if not final or attempt.record in first:
            continue
        first[attempt.record] = attempt.ended_ms
        origin = world.published[attempt.record]
        if last_of_key[attempt.key] > origin:
            world.problems.append(f"key {attempt.key!r}: offset {origin} took effect after {last_of_key[attempt.key]}")
        last_of_key[attempt.key] = max(last_of_key[attempt.key], origin)


def _check_delays(world: World, cluster: MemoryCluster) -> None:
    """Attempt n + 1 never begins before the tier's delay after attempt n; due times never decrease inside a tier."""
    failed_ms: dict[tuple[int, int], int] = {}
    for attempt in world.attempts:
        if attempt.failed:
            at = failed_ms.setdefault((attempt.record, attempt.attempt), attempt.ended_ms)
            failed_ms[attempt.record, attempt.attempt] = min(at, attempt.ended_ms)
    for attempt in world.attempts:
        before = failed_ms.get((attempt.record, attempt.attempt - 1))
        if attempt.attempt == 1:
            continue
        delay = TIERS_MS[min(attempt.attempt - 2, len(TIERS_MS) - 1)]
        if before is None or attempt.began_ms < before + delay:
            world.problems.append(
                f"record {attempt.record}: attempt {attempt.attempt} began early ({before} + {delay} > {attempt.began_ms})"
            )
    for tier in TIERS:
        last: dict[tuple[int, int], int] = {}
        for message in _messages(cluster, f"{TOPIC}.{GROUP}.retry.{tier}"):
            headers = decode_headers(message.headers())
            owner = (message.partition(), headers.epoch)  # a zombie's late record may stand between two owners' own
            if headers.due_ms < last.get(owner, 0):
                world.problems.append(f"tier {tier}: due time went back at offset {message.offset()}")
            last[owner] = headers.due_ms


def _check_repeats(world: World) -> None:
    """Executions beyond the needed ones come from disturbances only (I4)."""
    runs: dict[int, int] = defaultdict(int)
    for attempt in world.attempts:
        runs[attempt.record] += 1
    extra = sum(max(0, count - min(world.needed(record), ATTEMPTS)) for record, count in runs.items())
    if extra and not world.disturbances and not world.scenario.faulty_broker:
        world.problems.append(f"{extra} executions were repeated without a cause")


def calm(scenario: Scenario) -> Scenario:
    """The same without kills, zombies and broker faults: graceful stops only."""
    return replace(scenario, kills=0.0, freezes=0.0, stops=0.3, faulty_broker=False)
