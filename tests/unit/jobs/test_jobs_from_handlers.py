"""Jobs that handlers ask for: they go out with the outputs of the execution that asked, once, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from pipeline.model.errors import InvalidJob, JobUnsuccessful
from pipeline.model.job_ids import made_ms
from pipeline.model.job_policies import Fixed
from pipeline.model.outbox import derived_id
from pipeline.worker.jobs.context import JobContext
from tests.unit.jobs.worlds import World, application, play, until

INBOX, STATE = "jobs.default", "jobs.default.default.state"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def asked(world: World) -> list[bytes | None]:
    """Keys of what was asked for, one for each record."""
    return [message.key() for message in world.read(INBOX)]


@pytest.mark.parametrize("how", ["job.enqueue", "app.enqueue", "def"])
def test_b_e3_a_job_asks_for_the_next_ones_when_it_succeeds_and_only_then(how: str) -> None:
    app, ran, handles = application(), list[Any](), list[Any]()

    @app.job("first", attempts=3, backoff=Fixed("1s"))
    async def first(number: int, job: JobContext) -> str:
        enqueue = job.enqueue if how == "job.enqueue" else app.enqueue
        handles.append(await enqueue("next", number + 1, key="k"))
        handles.extend(await asyncio.gather(*(enqueue("next", number + n) for n in (2, 3))))
        if job.attempt < 3:
            raise RuntimeError("not yet")
        return "done"

    @app.job("in thread", attempts=3, backoff=Fixed("1s"))
    def in_thread(number: int, job: JobContext) -> str:
        handles.extend(app.enqueue_sync("next", number + n) for n in (1, 2, 3))
        if job.attempt < 3:
            raise RuntimeError("not yet")
        return "done"

    @app.job("next")
    async def following(number: int) -> int:
        ran.append(number)
        return number

    async def story(world: World) -> None:
        await world.start(app)
        parent = await app.enqueue("in thread" if how == "def" else "first", 0)
        assert await parent.result("30s") == "done"
        assert [await handle.result("30s") for handle in handles[-3:]] == [1, 2, 3]
        assert sorted(ran) == [1, 2, 3]
        assert len(asked(world)) == 4
        of = f"{'in thread' if how == 'def' else 'first'}:{parent.id}"
        wanted = [derived_id(of, n, made_ms(parent.id) or 0) for n in range(3)]
        assert [handle.id for handle in handles] == wanted * 3

    play(app, story)


def test_b_e3_a_job_that_fails_for_good_or_is_cancelled_has_asked_for_nothing() -> None:
    app, began = application(), list[str]()

    @app.job("first", attempts=2, backoff=Fixed("1s"))
    async def first(how: str, job: JobContext) -> None:
        await job.enqueue("next")
        began.append(how)
        if how == "fails":
            raise RuntimeError("no")
        await asyncio.sleep(3_600)

    @app.job("next")
    async def following(_given: None) -> None: ...

    async def story(world: World) -> None:
        await world.start(app)
        fails, hangs = await app.enqueue("first", "fails"), await app.enqueue("first", "hangs")
        with pytest.raises(JobUnsuccessful):
            await fails.result("30s")
        await until(lambda: "hangs" in began)
        await app.cancel("first", hangs.id)
        with pytest.raises(JobUnsuccessful):
            await hangs.result("30s")
        await asyncio.sleep(5)
        assert sorted(asked(world), key=str) == sorted(
            [fails.id.encode(), *3 * [hangs.id.encode()]],
            key=str,  # a cancel by id alone goes to both partitions
        )

    play(app, story)


def test_b_e3_the_ending_counts_when_what_was_asked_for_is_acknowledged_and_a_crash_in_between_asks_for_the_same() -> (
    None
):
    app, other, ran = application("one"), application("other"), list[Any]()
    for each in (app, other):

        @each.job("first")
        async def first(number: int, job: JobContext) -> int:
            ran.append("first")
            await job.enqueue("next", number + 1)
            return number

        @each.job("next")
        async def following(number: int) -> int:
            ran.append(number)
            return number

    async def story(world: World) -> None:
        worker = await world.start(app)
        await until(lambda: len(worker.running[0].engine.partitions) == 2)
        parent = await app.enqueue("first", 1)
        takes = world.cluster.admin().topics([STATE])[STATE].configs["max.message.bytes"]
        world.cluster.admin().set_configs(STATE, {"max.message.bytes": "10"})
        await until(lambda: len(asked(world)) == 2)
        assert world.read(STATE) == [], "what is asked for goes first"
        await until(lambda: 2 in ran)
        before = ran.count(2)
        world.kill(worker)
        world.cluster.admin().set_configs(STATE, {"max.message.bytes": takes})
        await world.start(other)
        assert await parent.result("60s") == 1
        await asyncio.sleep(10)
        keys = [key for key in asked(world) if key != parent.id.encode()]
        assert len(set(keys)) == 1, "the same job, however often it was asked for"
        assert ran.count("first") == 2
        assert len(keys) == 2
        assert ran.count(2) == before + 1, "and it is one job"
        other.jobs.close()

    play(app, story)


def test_b_e3_what_the_inbox_refuses_is_tried_again_and_what_it_never_takes_is_a_dead_letter() -> None:
    app = application()
    app.queue("other")

    @app.job("first")
    async def first(size: int, job: JobContext) -> str:
        for _ in range(5):
            await job.enqueue("next", "x" * size)
        return "done"

    @app.job("next", queue="other")
    async def following(_text: str) -> None: ...

    async def story(world: World) -> None:
        worker = await world.start(app)
        producer: Any = worker.running[0].engine.parts.producer
        await until(lambda: all(len(running.engine.partitions) == 2 for running in worker.running))
        producer.max_queued_records = 1
        assert await (await app.enqueue("first", 10)).result("60s") == "done"
        assert len(world.read("jobs.other")) == 5
        producer.max_queued_records = 1_000
        world.cluster.admin().set_configs("jobs.other", {"max.message.bytes": "1000"})
        with pytest.raises(JobUnsuccessful, match=r"larger than jobs\.other takes"):
            await (await app.enqueue("first", 5_000)).result("60s")
        await world.stop(worker)

    play(app, story)


def test_what_a_delayed_job_asks_for_is_new_and_the_same_in_every_round() -> None:
    app, ids = application(), list[str]()

    @app.job("first", attempts=1)
    async def first(_given: None, job: JobContext) -> None:
        ids.append((await job.enqueue("next", 1)).id)
        if len(ids) < 2:
            raise RuntimeError("not yet")

    @app.job("next")
    async def following(number: int) -> int:
        return number

    async def story(world: World) -> None:
        await world.start(app)
        parent = await app.enqueue("first", delay="1m")
        with pytest.raises(JobUnsuccessful):
            await parent.result("2m")
        now_ms = world.now_ms
        await asyncio.sleep(2)
        await app.retry("first", parent.id)
        await parent.result("2m")
        assert ids[0] == ids[1]
        assert now_ms - (made_ms(ids[0]) or 0) < 10_000, "else it would seem to be expired while it is new"

    play(app, story)


def test_b_e3_a_handle_has_no_result_before_its_handler_ends_and_left_behind_tasks_ask_directly() -> None:
    app, caught, left, results = application(), list[str](), list[Any](), list[Any]()
    released = list[bool]()

    @app.job("first", attempts=1)
    async def first(_given: None, job: JobContext) -> None:
        handle = await job.enqueue("next", 1)
        for ask in (handle.result, handle.status, handle.duplicate_of):
            try:
                await ask()
            except InvalidJob as error:
                caught.append(str(error))
        left.append(asyncio.create_task(later()))

    async def later() -> None:
        while not released:
            await asyncio.sleep(0.1)
        results.append(await (await app.enqueue("next", 2)).result("10s"))

    @app.job("next")
    async def following(number: int) -> int:
        return number

    async def story(world: World) -> None:
        await world.start(app)
        assert await (await app.enqueue("first")).result("10s") is None
        assert len(caught) == 3
        assert "when the handler that asks for it has succeeded" in caught[0]
        released.append(True)
        await left[0]
        assert results == [2]

    play(app, story)


@pytest.mark.parametrize("kind", ["async", "def"])
def test_b_e3_an_event_handler_asks_for_jobs_with_its_outputs(kind: str) -> None:
    app, ran, tries, ids = application(), list[Any](), list[int](), list[str]()

    @app.job("follow")
    async def follow(number: int) -> int:
        ran.append(number)
        return number

    arguments: dict[str, Any] = {"group": "g", "value": "json", "tiers": ("1s",), "attempts": 3}
    if kind == "async":

        @app.subscribe("events", **arguments)
        async def handle(event: dict[str, Any], ctx: Any) -> None:
            tries.append(event["n"])
            ctx.emit("out", None, event)
            ids.append((await app.enqueue(follow, event["n"])).id)
            if ctx.attempt < event["succeeds"]:
                raise RuntimeError("not yet")
    else:

        @app.subscribe("events", **arguments)
        def handle_in_thread(event: dict[str, Any], ctx: Any) -> None:
            tries.append(event["n"])
            ctx.emit("out", None, event)
            ids.append(app.enqueue_sync(follow, event["n"]).id)
            if ctx.attempt < event["succeeds"]:
                raise RuntimeError("not yet")

    async def story(world: World) -> None:
        from pipeline.model.cluster import TopicSpec

        world.cluster.admin().create_topics([TopicSpec("out", 1)])
        await world.start(app)
        producer = world.cluster.producer("p")
        for n, succeeds in ((1, 1), (2, 3), (3, 9)):
            producer.send("events", str(n).encode(), f'{{"n": {n}, "succeeds": {succeeds}}}'.encode())
        await until(lambda: tries.count(3) == 3)
        await until(lambda: sorted(ran) == [1, 2])
        await asyncio.sleep(5)
        assert len(tries) == 7
        assert sorted(ran) == [1, 2], "one failed for good"
        assert len(asked(world)) == len(world.read("out")) == 2
        assert len(set(ids)) == 3, "the same ids on every attempt"

    play(app, story)
