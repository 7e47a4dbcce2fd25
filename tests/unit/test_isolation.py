"""Records that may end their process: how their deaths are counted, who runs alone, and what the pool does with its children."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.care import STEADY_MS, let_go, marks_of, unclean_in_a_row
from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.effects import HandOff
from pipeline.core.unit import Unit
from pipeline.memory.log import MemoryMessage
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.control import Switches
from pipeline.model.errors import ConfigurationError, PipelineError
from pipeline.model.history import parse
from pipeline.model.outcome import Failure, FailureKind
from pipeline.model.policies import IsolationPolicy
from pipeline.worker import children as children_module
from pipeline.worker import isolation as isolation_module
from pipeline.worker.child_jobs import Answer, ChildSpec, Death, Job
from pipeline.worker.children import RESTARTS, Children
from pipeline.worker.execution import PROCESS_DIED
from pipeline.worker.health import health_of
from pipeline.worker.isolation import Isolation, ProcessRunners
from pipeline.worker.quarantine import Quarantine, _deaths_before
from tests.unit.test_core_care import third_life
from tests.unit.test_core_unit import NOW
from tests.unit.test_core_unit import unit as a_unit

CRASH = Death("killed by SIGSEGV", "the stack")
DONE = Answer({"kind": "done", "warning": None, "outputs": []}, [])


class Log:
    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda event, **more: self.said.append({"event": event, **more})


class Pool:
    """Stands for `Children`: keeps the jobs."""

    def __init__(self, _spec: object, size: int, *_more: object) -> None:
        self.size = size
        self.hopeless = False
        self.unloadable: str | None = None
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def abandon(self) -> None:
        self.jobs.clear()


class Engine:
    """What they use of the engine; `ended` is what was completed."""

    def __init__(self) -> None:
        policy = IsolationPolicy(deaths=3)
        flow = SimpleNamespace(concurrency=100)
        subscription = SimpleNamespace(isolation=policy, group="g", timeout_ms=500, handler=print, flow=flow)
        self.execution = SimpleNamespace(subscription=subscription, log=Log())
        self.clock = SimpleNamespace(now_ms=NOW, read=lambda: NOW)
        self.stats = SimpleNamespace(
            process_deaths=0,
            durations=SimpleNamespace(observe=lambda _s: None),
            took=lambda *_: None,
        )
        self.loop = None
        self.paused = False
        self.parts = SimpleNamespace(switches=Switches())
        self.ready: deque[Delivery] = deque()
        self.resumed: deque[Delivery] = deque()
        self.ended: list[tuple[int, Any]] = []

    def wake(self) -> None: ...

    def perform(self, _unit: Unit) -> None: ...

    def fail(self, error: BaseException) -> None:
        raise error

    def complete(self, delivery: Delivery, outcome: Any) -> None:
        self.ended.append((delivery.offset, outcome))

    def done(self, delivery: Delivery) -> Delivery | None:
        return delivery.unit.done(delivery, NOW)


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation_module, "Children", Pool)


def delivery(unit: Unit, offset: int, key: bytes) -> Delivery:
    return Delivery(unit, SOURCE, offset, key, message(offset, key))


def message(offset: int, key: bytes) -> MemoryMessage:
    return MemoryMessage(("t", 0, offset), key, b"v", None, NOW)


def isolation(engine: Engine, before: Callable[[Delivery], int] | None = None) -> tuple[Isolation, list[Job]]:
    more = () if before is None else (before,)
    made = Isolation(engine, ChildSpec("m:app", "g", 500), 4, lambda: None, *more)  # type: ignore[arg-type]
    return made, made.children.jobs  # type: ignore[return-value]


def test_a_record_runs_again_until_it_has_taken_so_many_processes_and_then_never() -> None:
    engine, unit = Engine(), a_unit()
    isolated, jobs = isolation(engine)
    killer, neighbour = delivery(unit, 0, b"a"), delivery(unit, 1, b"b")
    isolated.run(killer)
    isolated.run(neighbour)
    for deaths in (1, 2, 3):
        assert engine.ended == []
        assert isolated.deliveries.count(killer) == 1, f"it runs again after {deaths - 1}"
        jobs[0 if deaths == 1 else -1].ended(CRASH)
    ((offset, failure),) = engine.ended
    assert isinstance(failure, Failure)
    assert (offset, failure.kind, failure.error_class) == (0, FailureKind.TERMINAL, PROCESS_DIED)
    assert "has taken 3 with it" in failure.message
    assert failure.stack == "the stack"
    assert isolated.deliveries == [neighbour], "which heard nothing of it"
    assert engine.stats.process_deaths == 3


def test_owners_that_died_of_it_count_as_well() -> None:
    engine, unit = Engine(), a_unit()
    unit.unclean = 3
    isolated, jobs = isolation(engine, _deaths_before)
    isolated.run(delivery(unit, 0, b"a"))
    jobs[0].ended(CRASH)
    ((_, failure),) = engine.ended
    assert "has taken 3 with it" in failure.message


@pytest.mark.parametrize("target", [None, "m:app"])
def test_one_suspect_at_a_time_runs(target: str | None) -> None:
    """Side by side, a killer would take innocent ones with it, and their deaths would be counted."""
    engine, unit = Engine(), third_life()
    quarantine = Quarantine(engine, SimpleNamespace(marking=lambda _unit: 0))  # type: ignore[arg-type]
    quarantine.target = target
    inner = SimpleNamespace(pump=lambda: None)
    taken: object = quarantine.take(unit, inner)  # type: ignore[arg-type]
    assert taken is quarantine
    assert unit.care is not None
    unit.receive_source([message(10, b"a"), message(12, b"b"), message(21, b"c")], unit.care.inbox)
    for _ in range(3):
        quarantine.pump()
    assert [each.offset for each in engine.ready] == [21], "who is not suspected waits for nobody"
    assert quarantine.suspects(unit) == 2
    (first,) = quarantine._running_alone()
    if target is None:
        assert list(engine.resumed) == [first]
        unit.done(first, NOW)
    else:
        (job,) = quarantine._isolation.children.jobs  # type: ignore[union-attr, misc]
        job.ended(DONE)
    quarantine.pump()
    (second,) = quarantine._running_alone()
    assert (first.offset, second.offset) == (10, 12)


def test_suspects_of_several_partitions_take_turns() -> None:
    """A partition with many must not keep another one's records waiting until its last has run."""
    engine, units = Engine(), [third_life(), third_life()]
    quarantine = Quarantine(engine, SimpleNamespace(marking=lambda _unit: 0))  # type: ignore[arg-type]
    for unit in units:
        quarantine.take(unit, SimpleNamespace(pump=lambda: None))  # type: ignore[arg-type]
        assert unit.care is not None
        unit.receive_source([message(10, b"a"), message(12, b"b"), message(13, b"c")], unit.care.inbox)
    ran = []
    for _ in range(4):
        quarantine.pump()
        (one,) = quarantine._running_alone()
        ran.append((units.index(one.unit), one.offset))
        one.unit.done(one, NOW)
    assert ran == [(0, 10), (1, 10), (0, 12), (1, 12)]


def test_no_suspect_runs_before_it_is_known_whether_the_group_is_paused() -> None:
    """A crash loop is what groups are paused for; each start ran one before the control topic was read."""
    engine, unit = Engine(), third_life()
    quarantine = Quarantine(engine, SimpleNamespace(marking=lambda _unit: 0))  # type: ignore[arg-type]
    quarantine.target = "m:app"
    quarantine.take(unit, SimpleNamespace(pump=lambda: None))  # type: ignore[arg-type]
    assert unit.care is not None
    unit.receive_source([message(10, b"a")], unit.care.inbox)
    engine.parts.switches.read = False
    quarantine.pump()
    assert not quarantine._running_alone()
    engine.parts.switches.read = True
    quarantine.pump()
    assert len(quarantine._running_alone()) == 1


def test_a_drain_after_a_minute_forgets_no_suspects() -> None:
    """They wait while the group is paused: what the drain has put away is not over, and the next owner suspects the same."""
    engine, unit = Engine(), third_life()
    quarantine = Quarantine(engine, SimpleNamespace(marking=lambda _unit: 0))  # type: ignore[arg-type]
    quarantine.target = "m:app"
    quarantine.take(unit, SimpleNamespace(pump=lambda: None))  # type: ignore[arg-type]
    assert unit.care is not None
    unit.receive_source([message(10, b"a"), message(12, b"b")], unit.care.inbox)
    engine.paused = True
    engine.clock.now_ms = NOW + STEADY_MS
    quarantine.pump()
    assert quarantine.suspects(unit) == 2
    unit.drain()
    quarantine.pump()
    let_go(unit)
    assert unclean_in_a_row(marks_of(unit)) == 2, "as it was found"


def test_a_suspect_that_waited_or_comes_behind_its_key_still_runs_in_a_child() -> None:
    """It went on in the worker's own process, and killed it: its next owner began with the same, and so on without end."""
    engine, unit = Engine(), third_life()
    quarantine = Quarantine(engine, SimpleNamespace(marking=lambda _unit: 0))  # type: ignore[arg-type]
    quarantine.target = "m:app"
    quarantine.take(unit, SimpleNamespace(pump=lambda: None))  # type: ignore[arg-type]
    assert unit.care is not None
    unit.receive_source([message(10, b"a"), message(12, b"b"), message(21, b"c")], unit.care.inbox)
    quarantine.pump()
    (first,) = quarantine._running_alone()
    jobs: Any = quarantine._isolation.children.jobs  # type: ignore[union-attr]
    failure = {"kind": "retryable", "error_class": "E", "error_type": "E", "message": ""}
    jobs[0].ended(Answer({"kind": "failed", "failure": failure}, []))
    innocent = delivery(unit, 21, b"c")
    engine.resumed += [innocent, first]  # its wait in memory is over
    engine.paused = True
    quarantine.pump()
    assert list(engine.resumed) == [innocent, first]
    engine.paused = False
    quarantine.pump()
    assert list(engine.resumed) == [innocent]
    assert [each.offset for each in quarantine._running_alone()] == [12, 10]
    behind = delivery(unit, 13, b"a")
    engine.done = lambda _delivery: behind  # type: ignore[method-assign]
    jobs[-1].ended(DONE)
    assert list(engine.resumed) == [innocent]
    assert [each.offset for each in quarantine._running_alone()] == [12, 13]


def test_a_suspect_whose_schema_is_not_known_stays_in_its_child() -> None:
    """It went on in the worker's own process when the registry answered, and killed it."""
    engine, unit = Engine(), a_unit()
    isolated, jobs = isolation(engine)
    isolated.run(delivery(unit, 0, b"a"))
    jobs[0].ended(Answer({"kind": "schema", "id": 7}, []))
    assert len(jobs) == 2
    assert isolated.holds(unit)
    unit.draining = True
    jobs[1].ended(Answer({"kind": "schema", "id": 7}, []))
    assert len(jobs) == 2
    assert not isolated.holds(unit)


def draining(isolated_always: bool) -> tuple[Unit, Isolation, list[Job]]:
    """A subscription with a tier, whose unit drains while a record runs in a child."""
    engine, unit = Engine(), a_unit()
    unit.policy = replace(unit.policy, isolated=isolated_always)
    isolated, jobs = isolation(engine)
    ready: deque[Delivery] = deque()
    unit.receive_source([message(0, b"a")], ready)
    isolated.run(ready[0])
    unit.drain()
    return unit, isolated, jobs


def test_a_death_while_its_partition_drains_is_an_attempt_that_is_not_forgotten() -> None:
    unit, isolated, jobs = draining(isolated_always=True)
    jobs[0].ended(CRASH)
    assert not isolated.deliveries
    (effect,) = unit.effects
    assert isinstance(effect, HandOff)
    assert effect.headers.attempt == 1
    assert parse(effect.headers.history).attempts[0].error_class == PROCESS_DIED


def test_a_suspect_that_dies_while_its_partition_drains_stays_one_at_its_next_owner() -> None:
    """In a tier it would not be told from others."""
    unit, isolated, jobs = draining(isolated_always=False)
    jobs[0].ended(CRASH)
    assert not isolated.deliveries
    assert not unit.effects


def test_a_record_past_its_deadline_leaves_no_count_of_deaths_behind() -> None:
    engine, unit = Engine(), a_unit()
    isolated, jobs = isolation(engine)
    isolated.run(delivery(unit, 0, b"a"))
    jobs[0].ended(CRASH)
    jobs[-1].ended(replace(CRASH, late=True))
    assert len(engine.ended) == 1
    assert not isolated._deaths, "it went on to a tier, and comes back as another delivery"


def test_health_says_that_child_processes_can_not_be_started() -> None:
    """A deploy that changed the code under a running worker: its records waited for good, and it was said to be fine."""
    engine: Any = Engine()
    engine.execution.subscription.handler = print
    executor = ProcessRunners(engine, "m:app", 2)
    engine.__dict__.update(
        broken=None, refused={}, stuck={}, partitions={}, executor=executor, stalls=SimpleNamespace(seen=list)
    )
    engine.quarantine = SimpleNamespace(by_partition=dict)
    engine.stats.processed = 0
    running: Any = SimpleNamespace(engine=engine, driver=SimpleNamespace(done=False, recent=True))
    assert health_of(running)["consuming"]
    pool: Any = executor._isolation.children
    pool.hopeless, pool.unloadable = True, "importing 'm' failed: no module named 'x'"
    found = health_of(running)
    assert not found["consuming"]
    assert "no module named 'x'" in found["why"]


# -- the pool


class FakeChild:
    """A process that does what the test says."""

    made: list[FakeChild]
    dies = False

    def __init__(self, _spec: ChildSpec, loop: VirtualClockLoop, pool: Children) -> None:
        self.job: Job | None = None
        self.ready = self.late = self.killed = self.wrote = False
        self.started_s = loop.time()
        self.pid = len(self.made)
        self.alive = not self.dies
        self._loop, self._pool = loop, pool
        self.made.append(self)
        if self.dies:
            loop.call_soon(pool.hung_up, self)  # type: ignore[arg-type]

    def run(self, job: Job) -> None:
        self.job = job

    def write_stack(self) -> None:
        self.wrote = True

    def kill(self) -> None:
        self.killed, self.alive = True, False
        self._loop.call_soon(self._pool.hung_up, self)  # type: ignore[arg-type]

    def deafen(self) -> None: ...

    def close(self) -> None: ...

    def death(self) -> Death:
        return Death("killed by SIGKILL", "where it was" if self.wrote else "", self.late)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeChild]:
    monkeypatch.setattr(children_module, "Child", FakeChild)
    monkeypatch.setattr(FakeChild, "made", [], raising=False)
    return FakeChild.made


def test_a_child_past_its_deadline_writes_its_stack_and_is_killed(made: list[FakeChild]) -> None:
    ends: list[Answer | Death] = []

    async def main(loop: VirtualClockLoop) -> None:
        children = Children(ChildSpec("m:app", "g", 500), 1, loop, Log(), lambda: None)
        children.submit(Job(a_unit(), b"", ends.append))
        children.heard(made[0], {"kind": "ready"}, [])  # type: ignore[arg-type]
        await asyncio.sleep(0.4)
        assert not made[0].wrote
        await asyncio.sleep(0.6)
        children.abandon()

    run(main)
    assert ends == [Death("killed by SIGKILL", "where it was", late=True)]


def test_children_that_end_at_once_are_started_again_later_and_later(
    made: list[FakeChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeChild, "dies", True)

    async def main(loop: VirtualClockLoop) -> None:
        children = Children(ChildSpec("m:app", "g", 500), 1, loop, Log(), lambda: None)
        children.submit(Job(a_unit(), b"", lambda _how: None))
        await asyncio.sleep(3)
        assert children.hopeless
        children.abandon()

    run(main)
    starts = [child.started_s for child in made]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert len(gaps) >= 4
    assert all(
        gap >= RESTARTS.wait_s(number) * (1 - RESTARTS.jitter) - 0.001 for number, gap in enumerate(gaps, start=1)
    )


def test_a_first_child_that_ends_before_it_is_ready_is_followed_by_another(
    made: list[FakeChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry did not answer for a moment, or memory was short: nothing started a second one, and after a minute the worker ended."""
    monkeypatch.setattr(FakeChild, "dies", True)

    async def main(loop: VirtualClockLoop) -> None:
        children = Children(ChildSpec("m:app", "g", 500), 1, loop, Log(), lambda: None)
        warming = asyncio.ensure_future(children.warm())
        await asyncio.sleep(1)
        monkeypatch.setattr(FakeChild, "dies", False)
        number = len(made)
        await asyncio.sleep(10)
        assert number >= 3
        assert len(made) == number + 1
        children.heard(made[-1], {"kind": "ready"}, [])  # type: ignore[arg-type]
        await warming
        await children.warm()
        assert len(made) == number + 1, "one is ready"
        children.abandon()

    run(main)
    gaps = [after.started_s - before.started_s for before, after in itertools.pairwise(made)]
    assert all(
        gap >= RESTARTS.wait_s(number) * (1 - RESTARTS.jitter) - 0.001 for number, gap in enumerate(gaps, start=1)
    )


def test_children_that_all_end_before_they_are_ready_are_no_wrong_configuration(
    made: list[FakeChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On that (exit code 2) the supervisor stops all workers for good; on anything else it starts this one again."""
    monkeypatch.setattr(FakeChild, "dies", True)

    async def main(loop: VirtualClockLoop) -> None:
        children = Children(ChildSpec("m:app", "g", 500), 1, loop, Log(), lambda: None)
        with pytest.raises(PipelineError, match="the last one killed by SIGKILL") as raised:
            await children.warm()
        assert not isinstance(raised.value, ConfigurationError)
        children.abandon()

    run(main)


def test_an_application_that_a_child_can_not_load_is_a_wrong_configuration(made: list[FakeChild]) -> None:
    async def main(loop: VirtualClockLoop) -> None:
        children = Children(ChildSpec("m:app", "g", 500), 1, loop, Log(), lambda: None)
        warming = asyncio.ensure_future(children.warm())
        await asyncio.sleep(0)
        children.heard(made[0], {"kind": "unloadable", "why": "no module named 'x'"}, [])  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="no module named 'x'"):
            await warming
        children.abandon()
        assert len(made) == 1

    run(main)


def test_a_record_that_an_ending_child_has_not_read_is_spared_once(
    made: list[FakeChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle child that was killed just before it got a record counted as a death of that record, for which one may be enough."""
    ends: list[Answer | Death] = []
    unread = replace(CRASH, unread=True)
    monkeypatch.setattr(FakeChild, "death", lambda _child: unread)

    async def main(loop: VirtualClockLoop) -> None:
        children = Children(ChildSpec("m:app", "g", 60_000), 1, loop, Log(), lambda: None)
        children.submit(Job(a_unit(), b"", ends.append))
        for number in range(2):
            children.heard(made[number], {"kind": "ready"}, [])  # type: ignore[arg-type]
            assert made[number].job is not None
            made[number].kill()
            await asyncio.sleep(1)
            assert len(ends) == number
        children.abandon()

    run(main)
    assert ends == [unread]


READS = "import os, socket, sys; c = socket.socket(fileno=int(sys.argv[1])); d = b''\nwhile b'END' not in d: d += c.recv(99)\nos.abort()"


@pytest.mark.parametrize(("does", "unread"), [(READS, False), ("import time; time.sleep(60)", True)])
def test_a_child_tells_whether_it_had_read_its_record(monkeypatch: pytest.MonkeyPatch, does: str, unread: bool) -> None:
    popen: Any = children_module.subprocess.Popen

    def start(argv: list[str], **more: Any) -> Any:
        return popen([argv[0], "-I", "-S", "-c", does, *argv[3:]], stderr=children_module.subprocess.DEVNULL, **more)

    monkeypatch.setattr(children_module.subprocess, "Popen", start)

    async def main() -> Death:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        pool: Any = SimpleNamespace(hung_up=lambda _child: over.set())
        child = children_module.Child(ChildSpec("m:app", "g", 500), loop, pool)
        child.run(Job(a_unit(), b"a record END", lambda _how: None))
        if unread:
            child.kill()
        await asyncio.wait_for(over.wait(), 10)
        child.deafen()
        try:
            return child.death()
        finally:
            child.close()

    assert asyncio.run(main()).unread is unread
