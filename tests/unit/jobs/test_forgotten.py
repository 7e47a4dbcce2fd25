"""A job that is forgotten when somebody waits for it the first time is missing; one that no worker has come to yet is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from pipeline import Pipeline, RetentionPolicy
from pipeline.inspect.scan import read_to_end
from pipeline.jobs.handle import JobHandle
from pipeline.jobs.inbox import FRESH_S, Inbox
from pipeline.memory.admin import MemoryAdmin
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import Message, Position, TopicPartition
from pipeline.model.errors import ClusterUnavailable, JobMissing, NotAuthorized, PipelineError, ResultTimeout
from pipeline.model.store_keys import job_key
from tests.unit.jobs.worlds import World, application, play

STATE, INBOX = "jobs.default.default.state", "jobs.default"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def some_are_kept(most: int = 1) -> Pipeline:
    app = application()

    @app.job("echo", retention=RetentionPolicy(completed=most, failed=most))
    async def echo(number: int) -> int:
        return number

    return app


def left(world: World) -> list[Message]:
    admin = world.cluster.admin()
    places = [TopicPartition(STATE, number) for number in range(admin.topics([STATE])[STATE].partitions)]
    return list(read_to_end(world.cluster, admin.beginning_offsets(places), admin.end_offsets(places)))


async def forgotten(world: World, app: Pipeline) -> JobHandle:
    """Of a job that ended, and of which nothing is left in the store."""
    handle = await app.enqueue("echo", 0, key="k")
    for number in range(1, 5):
        await asyncio.sleep(5)
        await app.enqueue("echo", number, key="k")
    await asyncio.sleep(5)
    world.cluster.compact(STATE)
    assert not any(message.value() for message in left(world) if message.key() == job_key(handle.id))
    return handle


async def first_update(handle: JobHandle) -> object:
    async for status in handle.updates():
        return status
    return None


@pytest.mark.parametrize(
    "ask", [lambda handle: handle.result("60s"), first_update, lambda handle: handle.duplicate_of()]
)
def test_who_waits_first_when_a_job_is_forgotten_is_told_that_it_is_missing(ask: Any) -> None:
    """They waited for ever: the entry that told the ending is compacted away."""
    app = some_are_kept()

    async def story(world: World) -> None:
        await world.start(app)
        handle = await forgotten(world, app)
        with pytest.raises(JobMissing):
            await asyncio.wait_for(ask(handle), 60)

    play(app, story)


def test_a_job_that_no_worker_has_come_to_is_waited_for() -> None:
    """However long that takes, and also where other jobs of the queue had their endings long ago."""
    app = some_are_kept()

    async def story(world: World) -> None:
        worker = await world.start(app)
        await (await app.enqueue("echo", 1)).result("60s")
        await world.stop(worker)
        handle = await app.enqueue("echo", 2)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(120)
        assert not waiting.done()
        await world.start(app)
        assert await asyncio.wait_for(waiting, 60) == 2

    play(app, story)


def test_a_job_that_waits_behind_others_is_waited_for() -> None:
    app = application()
    app.queue("default", concurrency=1)

    @app.job("slow")
    async def slow(number: int) -> int:
        await asyncio.sleep(8)
        return number

    async def story(world: World) -> None:
        await world.start(app)
        handles = await app.enqueue_many(slow, range(5), key="k")
        assert await asyncio.gather(*(handle.result() for handle in handles)) == list(range(5))

    play(app, story)


def test_a_job_that_went_to_a_partition_that_its_caller_did_not_know_is_found() -> None:
    """The inbox was given more of them meanwhile: the caller reads the one that the key had before, and waited for ever."""
    app = some_are_kept(10)

    async def story(world: World) -> None:
        worker = await world.start(app)
        await (await app.enqueue("echo", 1)).result("60s")
        await world.stop(worker)
        admin = world.cluster.admin()
        admin.add_partitions(INBOX, 7)
        world.make_topics(app)
        handles = await app.enqueue_many("echo", range(10))
        await world.start(app)
        assert await asyncio.gather(*(handle.result("60s") for handle in handles)) == list(range(10))

    play(app, story)


@pytest.mark.parametrize("error", [NotAuthorized("no right to the group"), ClusterUnavailable("away")], ids=repr)
def test_who_can_not_look_at_the_group_waits_as_before(error: PipelineError, monkeypatch: pytest.MonkeyPatch) -> None:
    app = some_are_kept()
    asked: list[str] = []

    def refuse(_self: MemoryAdmin, group: str, _timeout_s: float = 10.0) -> dict[TopicPartition, Position]:
        asked.append(group)
        raise error

    async def story(world: World) -> None:
        await world.start(app)
        handle = await forgotten(world, app)
        monkeypatch.setattr(MemoryAdmin, "group_positions", refuse)
        with pytest.raises(ResultTimeout):
            await handle.result("2m")
        assert set(asked) == {"default"}
        assert len(asked) < 8
        monkeypatch.undo()
        with pytest.raises(JobMissing):
            await handle.result("60s")

    play(app, story)


class Committed(MemoryAdmin):
    def __init__(self, cluster: MemoryCluster, *offsets: int) -> None:
        super().__init__(cluster)
        self.offsets = list(offsets)
        self.asked = 0

    def group_positions(self, group: str, timeout_s: float = 10.0) -> dict[TopicPartition, Position]:
        self.asked += 1
        return {TopicPartition(INBOX, number): Position(at) for number, at in enumerate(self.offsets)}


def test_what_every_partition_is_committed_beyond_is_settled() -> None:
    app = application()
    app.job("echo")(lambda number: number)

    async def story(world: World) -> None:
        for number in range(20):
            await app.enqueue("echo", number, key=str(number))
        admin = Committed(world.cluster)
        inbox = Inbox(world.cluster, INBOX, "default")
        inbox._admin = admin
        ends = inbox.ends()
        one, two = ends.values()
        assert one > 0 < two
        for told, offsets in ((False, []), (False, [one, two - 1]), (False, [one]), (True, [one, two])):
            admin.offsets = offsets
            assert inbox.settled(ends, admin.asked * FRESH_S) is told
        admin.offsets = [one, two + 1]
        assert not inbox.settled(ends, admin.asked * FRESH_S), "nobody commits beyond the end: that was another topic"
        admin.offsets, asked = [one, two], admin.asked
        assert not inbox.settled(ends, asked * FRESH_S - 1), "just asked"
        assert admin.asked == asked
        inbox = Inbox(world.cluster, "jobs.gone", "default")
        with pytest.raises(PipelineError, match="does not exist"):
            inbox.ends()

    play(app, story)
