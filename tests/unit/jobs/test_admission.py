"""What comes through the inbox is admitted in its order, also where a record waits for its schema."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import structlog

from pipeline import FlowPolicy, Pipeline
from pipeline.codec import wire
from pipeline.codec.catalogue import product_catalogue
from pipeline.codec.jobs import REQUEST, InboxCodec
from pipeline.codec.registry import subject_of
from pipeline.codec.registry_local import LocalRegistry
from pipeline.codec.schema import parse
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.job_ids import job_id
from pipeline.model.job_states import JobState
from pipeline.model.jobs import CancelJob, JobDuplicate, JobRecord, JobRequest
from tests.unit.jobs.worlds import World, application, play, until

INBOX, STATE, DEAD = "jobs.default", "jobs.default.default.state", "jobs.default.default.dlq"
REPLAY = "jobs.default.default.replay"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Registry:
    """That of the application. While it is `away` it does not tell what it has under an id; `asked`: how often it did not."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.away, self.asked = True, 0
        found = LocalRegistry.schema_by_id

        def schema_by_id(registry: LocalRegistry, schema_id: int) -> str:
            if self.away:
                self.asked += 1
                raise SchemaUnavailable("the registry does not answer", schema_id)
            return found(registry, schema_id)

        patch.setattr(LocalRegistry, "schema_by_id", schema_by_id)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(monkeypatch)


class Inbox:
    """Written to as callers do, those with a `newer` build too: it registers its own version of the contract."""

    def __init__(self, world: World, app: Pipeline) -> None:
        self._world = world
        self._codec = InboxCodec(app.codec, INBOX)
        self._count = 0
        node = json.loads(product_catalogue().present[REQUEST].text)
        newer = parse(json.dumps({**node, "doc": "as a newer build has it"}))
        self._newer = wire.key_of_id(app.codec._registry.register(subject_of(INBOX, REQUEST), newer))

    def ask(self, number: int, newer: bool = False, partition: int = 0, **more: object) -> str:
        self._count += 1
        asked = JobRequest(job_id(self._world.now_ms, self._count.to_bytes(10)), "step", b"%d" % number)
        value = self._codec.request(asked._replace(**more))
        if newer:
            value = self._newer + value[wire.PREFIX_BYTES :]
        self._send(asked.id, value, partition)
        return asked.id

    def cancel(self, job: str) -> None:
        self._send(job, self._codec.command(CancelJob(job, "not needed")), 0)

    def foreign(self) -> None:
        self._send("x", wire.key_of_id(4711) + b"nobody knows", 0)

    def _send(self, key: str, value: bytes, partition: int) -> None:
        self._world.cluster.producer("caller").send(INBOX, key.encode(), value, [], partition)


def steps(app: Pipeline) -> list[int]:
    ran = list[int]()

    @app.job("step")
    async def step(number: int) -> int:
        ran.append(number)
        return number

    return ran


async def waits_for(registry: Registry) -> None:
    """It was asked in vain, and all that is in the inbox had time to come."""
    await until(lambda: registry.asked > 0)
    await asyncio.sleep(5)


def test_what_comes_behind_a_record_that_waits_for_its_schema_does_not_pass_it(registry: Registry) -> None:
    """Its key, what is asked of its job, its dedup window: nobody knows them before the registry has answered."""
    app = application()
    ran = steps(app)

    async def story(world: World) -> None:
        await world.start(app)
        inbox = Inbox(world, app)
        inbox.ask(0)
        await until(lambda: ran == [0])
        inbox.ask(1, newer=True, key="k")
        inbox.ask(2, key="k")
        cancelled = inbox.ask(3, newer=True, due_ms=world.now_ms + 20_000)
        inbox.cancel(cancelled)
        first = inbox.ask(4, newer=True, key="l", dedup_id="d", dedup_window_ms=60_000)
        second = inbox.ask(5, key="m", dedup_id="d", dedup_window_ms=60_000)
        inbox.ask(6, partition=1)
        await waits_for(registry)
        assert ran == [0, 6], "of the other partition"
        registry.away = False
        await until(lambda: len(ran) == 5, 60)
        inbox.ask(7)
        await asyncio.sleep(30)
        assert [number for number in ran if number in (1, 2)] == [1, 2]
        assert sorted(ran) == [0, 1, 2, 4, 6, 7]
        record, duplicate = await app.desk().job(cancelled), await app.desk().job(second)
        assert isinstance(record, JobRecord)
        assert record.state is JobState.CANCELLED
        assert isinstance(duplicate, JobDuplicate)
        assert duplicate.of == first

    play(app, story)


def test_one_that_the_registry_does_not_have_is_a_dead_letter_and_all_behind_it_goes_on(registry: Registry) -> None:
    app = application()
    ran = steps(app)

    async def story(world: World) -> None:
        await world.start(app)
        inbox = Inbox(world, app)
        inbox.foreign()
        inbox.ask(1)
        inbox.ask(2, newer=True)
        await waits_for(registry)
        inbox.ask(3)
        assert ran == []
        registry.away = False
        await until(lambda: len(ran) == 3)
        assert ran == [1, 2, 3]
        await until(lambda: len(world.read(DEAD)) == 1)

    play(app, story, partitions=1)


@pytest.mark.parametrize("how", ["killed", "drained"])
def test_a_partition_that_waits_for_a_schema_is_its_next_owner_s_in_the_same_order(
    registry: Registry, how: str
) -> None:
    app, other = application("one"), application("other")
    ran, later = steps(app), steps(other)

    async def story(world: World) -> None:
        worker = await world.start(app)
        inbox = Inbox(world, app)
        inbox.ask(1, newer=True, key="k")
        inbox.ask(2, key="k")
        await waits_for(registry)
        began_ms = world.now_ms
        if how == "killed":
            world.kill(worker)
        else:
            await world.stop(worker)
            assert world.now_ms - began_ms < 5_000, "nothing runs that a drain waits for"
        await world.start(other)
        await asyncio.sleep(20)
        assert later == []
        registry.away = False
        await until(lambda: len(later) == 2)
        assert (ran, later) == ([], [1, 2])
        other.jobs.close()

    play(app, story, partitions=1)


def test_a_partition_that_waits_is_read_no_further_than_it_has_room_and_the_others_go_on(registry: Registry) -> None:
    """They stood still where there was much in the one."""
    app = application()
    app.queue("default", flow=FlowPolicy(buffered=50))
    ran = steps(app)

    async def story(world: World) -> None:
        await world.start(app)
        inbox = Inbox(world, app)
        inbox.ask(0, newer=True)
        for number in range(1, 1_000):
            inbox.ask(number)
        await waits_for(registry)
        inbox.ask(-1, partition=1)
        await until(lambda: ran == [-1])
        assert 100 <= kept(world) < 400
        registry.away = False
        await until(lambda: len(ran) == 1_001)
        assert ran == [-1, *range(1_000)]
        assert kept(world) == 0

    play(app, story)


def kept(world: World) -> int:
    executors: list[Any] = [worker.running[0].engine.executor for worker in world.workers]
    return sum(len(records) for executor in executors for records in executor._admission._kept.values())


def test_what_was_kept_for_a_partition_that_is_another_s_by_now_is_let_go(registry: Registry) -> None:
    app, other = application("one"), application("other")
    ran, later = steps(app), steps(other)

    async def story(world: World) -> None:
        await world.start(app)
        inbox = Inbox(world, app)
        for partition in (0, 1):
            inbox.ask(partition, newer=True, partition=partition)
            for _ in range(10):
                inbox.ask(2, partition=partition)
        await waits_for(registry)
        assert kept(world) == 20
        await world.start(other)
        await asyncio.sleep(20)
        assert kept(world) == 20
        registry.away = False
        await until(lambda: len(ran) == len(later) == 11)
        for partition in (0, 1):
            inbox.ask(3, partition=partition)
        await until(lambda: 3 in ran and 3 in later)
        other.jobs.close()

    play(app, story)
