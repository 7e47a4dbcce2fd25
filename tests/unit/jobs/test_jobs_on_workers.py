"""Jobs from `enqueue` to their result, through real workers on the memory cluster."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from pipeline import Batch, Pipeline
from pipeline.codec.jobs import InboxCodec
from pipeline.core.jobs import restoring
from pipeline.core.jobs.sweeping import Sweep
from pipeline.core.store_scan import StoreScan
from pipeline.core.unit import Unit
from pipeline.model.cluster import Message, Position, TopicPartition
from pipeline.model.control import Pause
from pipeline.model.control import encode as encode_switch
from pipeline.model.errors import (
    ConfigurationError,
    InvalidJob,
    JobMissing,
    JobUnsuccessful,
    PublishError,
    ResultTimeout,
)
from pipeline.model.headers import DeliveryHeaders, encode
from pipeline.model.job_ids import job_id
from pipeline.model.job_policies import Exponential, Fixed, RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import CancelJob, JobRecord, JobRequest
from pipeline.worker.jobs import boards
from pipeline.worker.jobs.context import JobContext
from tests.unit.jobs.worlds import World, application, play, until

INBOX, STATE, DEAD = "jobs.default", "jobs.default.default.state", "jobs.default.default.dlq"
REPLAY = "jobs.default.default.replay"


def redrive(world: World, letter: Message, replay_id: str = "r") -> None:
    """As a redrive of this dead letter does."""
    send_back(world, letter.partition(), letter.key(), letter.value(), replay_id=replay_id)


def send_back(
    world: World, partition: int, key: bytes | None, value: bytes | None, origin: int = 0, replay_id: str = "r"
) -> None:
    headers = DeliveryHeaders(0, 0, 0, INBOX, partition, origin, 1, "default", replay_id=replay_id)
    world.cluster.producer("desk").send(REPLAY, key, value, encode([], headers), partition)


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Ticket(BaseModel):
    id: str
    text: str = ""


class Label(BaseModel):
    label: str


def test_a_job_is_run_and_its_result_is_read() -> None:
    app = application()

    @app.job("classify")
    async def classify(ticket: Ticket) -> Label:
        return Label(label=ticket.id + "!")

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(classify, Ticket(id="a"))
        assert await handle.result(timeout="10s") == Label(label="a!")

    play(app, story)


def test_inputs_and_results_of_many_kinds_and_a_def_handler() -> None:
    app = application()

    @app.job("double")
    def double(number: int) -> int:
        return 2 * number

    @app.job("nothing")
    async def nothing(_given: dict[str, int], job: JobContext) -> None:
        assert job.attempt == 1

    async def story(world: World) -> None:
        await world.start(app)
        handles = await app.enqueue_many(double, range(50))
        assert [await handle.result("10s") for handle in handles] == list(range(0, 100, 2))
        assert await (await app.enqueue("nothing", {"a": 1})).result("10s") is None

    play(app, story)


def test_a_job_that_fails_is_tried_again_at_exact_times_and_given_up() -> None:
    app, began = application(), list[Any]()

    @app.job("fails", attempts=4, backoff=Exponential("100ms", factor=3), jitter=0)
    async def fails(_given: None) -> None:
        began.append(asyncio.get_running_loop().time())
        raise RuntimeError("no")

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(fails)
        with pytest.raises(JobUnsuccessful, match=r"given up after 4 attempts: RuntimeError: no") as caught:
            await handle.result("30s")
        assert caught.value.state == "dead_letter"
        waits = [round((b - a) * 1000) for a, b in itertools.pairwise(began)]
        assert [0 <= wait - wanted <= 15 for wait, wanted in zip(waits, (100, 300, 900), strict=True)] == [True] * 3, (
            waits
        )
        await until(lambda: len(world.read(DEAD)) == 1)
        (letter,) = world.read(DEAD)
        headers = dict(letter.headers() or ())
        assert headers["pl.attempt"] == b"4"
        assert headers["pl.error.message"] == b"no"
        assert letter.key() == handle.id.encode()
        status = await handle.status()
        assert (status.state, status.attempt) == (JobState.DEAD_LETTER, 4)

    play(app, story)


def test_a_delayed_job_runs_at_its_time_and_not_before() -> None:
    app, began = application(), list[Any]()

    @app.job("later")
    async def later(number: int) -> None:
        began.append((number, asyncio.get_running_loop().time()))

    async def story(world: World) -> None:
        await world.start(app)
        at = world.loop.time()
        await app.enqueue(later, 2, delay="2s")
        await app.enqueue(later, 1, run_at=world.now_ms + 1_000)
        await app.enqueue(later, 3, delay="3m")
        await app.enqueue(later, 0)
        await until(lambda: len(began) == 3)
        assert [number for number, _ in began] == [0, 1, 2]
        late_ms = [
            round((when - at) * 1000) - wanted for (_, when), wanted in zip(began, (0, 1_000, 2_000), strict=True)
        ]
        assert all(0 <= late <= 50 for late in late_ms), late_ms
        await asyncio.sleep(175)
        assert len(began) == 3
        await asyncio.sleep(5)
        assert began[-1][0] == 3

    play(app, story)


def test_requests_of_one_dedup_id_are_one_job_and_both_get_its_result() -> None:
    app, ran = application(), list[Any]()

    @app.job("once")
    async def once(number: int) -> int:
        ran.append(number)
        return number

    async def story(world: World) -> None:
        await world.start(app)
        first = await app.enqueue(once, 1, dedup_id="x", dedup_window="1m")
        second = await app.enqueue(once, 2, dedup_id="x", dedup_window="1m")
        assert (await first.result("10s"), await second.result("10s")) == (1, 1)
        assert await second.duplicate_of() == first.id
        assert await first.duplicate_of() is None
        await asyncio.sleep(61)
        third = await app.enqueue(once, 3, dedup_id="x", dedup_window="1m")
        assert await third.result("10s") == 3
        assert ran == [1, 3]

    play(app, story)


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs() -> None:
    app, seen = application(), list[Any]()

    @app.job("long")
    async def long(name: str) -> None:
        seen.append(name)
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            seen.append(f"{name} stopped")
            raise

    async def story(world: World) -> None:
        await world.start(app)
        waits, runs = await app.enqueue(long, "waits", delay="1h"), await app.enqueue(long, "runs")
        await until(lambda: "runs" in seen)
        for handle in (waits, runs):
            await app.cancel(long, handle.id, reason="not needed")
        for handle in (waits, runs):
            with pytest.raises(JobUnsuccessful, match="was cancelled: not needed"):
                await handle.result("10s")
        assert seen == ["runs", "runs stopped"]

    play(app, story)


def test_an_execution_that_takes_too_long_is_a_failed_attempt() -> None:
    app = application()

    @app.job("slow", timeout="2s", attempts=2, backoff=Fixed("1s"), jitter=0)
    async def slow(_given: None) -> None:
        await asyncio.sleep(3_600)

    async def story(world: World) -> None:
        await world.start(app)
        with pytest.raises(JobUnsuccessful, match="2 attempts") as caught:
            await (await app.enqueue(slow)).result("10s")
        assert caught.value.error_class == "Timeout"

    play(app, story)


def test_jobs_of_one_key_run_one_at_a_time_and_in_order_also_across_a_retry() -> None:
    app, ended, running = application(), list[Any](), list[Any]()

    @app.job("step", attempts=3, backoff=Fixed("1s"))
    async def step(number: int, job: JobContext) -> None:
        assert not running
        running.append(number)
        await asyncio.sleep(0.05)
        running.clear()
        if number == 1 and job.attempt == 1:
            raise RuntimeError("once")
        ended.append(number)

    async def story(world: World) -> None:
        await world.start(app)
        for number in range(4):
            await app.enqueue(step, number, key="k")
        await until(lambda: len(ended) == 4)
        assert ended == [0, 1, 2, 3]

    play(app, story)


def test_urgent_jobs_pass_those_that_wait_and_a_tenant_gets_its_share() -> None:
    app, order = application(), list[Any]()
    app.queue("default", concurrency=1)

    @app.job("work")
    async def work(name: str) -> None:
        order.append(name)
        await asyncio.sleep(0.01)

    async def story(world: World) -> None:
        await app.enqueue_many(work, ["big"] * 200, tenant="big")
        await app.enqueue(work, "small", tenant="small")
        await app.enqueue(work, "urgent", tenant="big", priority=10)
        await world.start(app)
        await until(lambda: len(order) == 202)
        assert order.index("urgent") < 5
        assert order.index("small") < 10

    play(app, story, partitions=1)


def test_b6_d1_concurrency_holds_for_a_process_whatever_the_number_of_its_partitions() -> None:
    app, running, most = application(), Counter[str](), Counter[str]()
    app.queue("default", concurrency=10)

    async def work(kind: str, job: JobContext) -> str:
        running.update((job.type, "all"))
        most.update({name: max(0, running[name] - most[name]) for name in (job.type, "all")})
        await asyncio.sleep(0.1)
        running.subtract((job.type, "all"))
        return kind

    app.job("limited", concurrency=3)(work)

    @app.job("free")
    async def free(kind: str, job: JobContext) -> str:
        return await work(kind, job)

    async def story(world: World) -> None:
        await world.start(app)
        handles = [*await app.enqueue_many("limited", ["a"] * 60), *await app.enqueue_many("free", ["b"] * 60)]
        began = world.loop.time()
        for handle in handles:
            await handle.result("60s")
        assert (most["limited"], most["all"]) == (3, 10), most
        assert world.loop.time() - began < 60 / 3 * 0.1 + 1, "and is used"

    play(app, story, partitions=8)


def test_a_caller_without_asyncio_and_one_that_is_refused() -> None:
    app = application()

    @app.job("double")
    async def double(number: int) -> int:
        return 2 * number

    async def story(world: World) -> None:
        await world.start(app)
        assert await app.enqueue_sync(double, 4).result("10s") == 8
        assert await app.enqueue_many(double, []) == []
        world.cluster.producers[-1].max_queued_records = 2
        handles = await app.enqueue_many(double, range(7))  # a full buffer is waited out
        assert [await handle.result("10s") for handle in handles] == list(range(0, 14, 2))
        with pytest.raises(ResultTimeout, match="no ending within 2s"):
            await (await app.enqueue(double, 1, delay="1m")).result("2s")
        world.cluster.admin().set_configs(INBOX, {"max.message.bytes": "10"})
        with pytest.raises(PublishError, match=f"refused by {INBOX}"):
            await app.enqueue(double, 1)

    play(app, story)


def test_a_restart_reads_a_swept_store_from_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time the worker is killed: what counts is known all the same, whoever comes next."""
    monkeypatch.setattr(Sweep, "every", 100)
    monkeypatch.setattr(Sweep, "times", 1)
    read = list[tuple[int, int]]()
    restore = boards.Boards.restore

    def restored(self: boards.Boards, unit: Unit, scan: StoreScan, now_ms: int) -> boards.Restore:
        read.append((scan.begin, scan.fence))
        return restore(self, unit, scan, now_ms)

    monkeypatch.setattr(boards.Boards, "restore", restored)
    app, ran = application(), list[int]()

    @app.job("step", retention=RetentionPolicy(completed=2))
    async def step(number: int) -> int:
        ran.append(number)
        return number

    async def story(world: World) -> None:
        worker = await world.start(app)
        later = await app.enqueue(step, -1, delay="1h", dedup_id="d", dedup_window="1d")
        for life in range(4):
            await app.enqueue_many(step, range(200 * life, 200 * life + 200))
            await until(lambda life=life: len(ran) == 200 * life + 200)
            await asyncio.sleep(5)
            if life % 2:
                world.kill(worker)
            else:
                await world.stop(worker)
            worker = await world.start(app)
            await asyncio.sleep(10)
            (begin, fence) = read[-1]
            assert begin > 200 * life
            assert fence - begin < 350
        for _ in range(2):  # its floor is the next one's, though nothing happens in between
            begin, _ = read[-1]
            world.kill(worker)
            worker = await world.start(app)
            await asyncio.sleep(10)
            assert read[-1][0] == begin
        again = await app.enqueue(step, -2, dedup_id="d")
        assert await again.result("2h") == -1
        assert ran == [*range(800), -1]
        assert (await later.status()).state is JobState.COMPLETED

    play(app, story, partitions=1)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_dead_letter_that_is_redriven_is_one_more_round_of_its_job(forgotten: bool) -> None:
    app, ran, healthy = application(), list[int](), list[bool]()
    kept = RetentionPolicy(failed=0 if forgotten else 500)

    @app.job("step", attempts=1, retention=kept)
    async def step(number: int, job: JobContext) -> int:
        ran.append(job.attempt)
        if not healthy:
            raise RuntimeError("down")
        return number

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(step, 7)
        with pytest.raises(JobUnsuccessful):
            await handle.result("10s")
        await until(lambda: len(world.read(DEAD)) == 1)
        await asyncio.sleep(2)
        (letter,) = world.read(DEAD)
        healthy.append(True)
        redrive(world, letter)
        await until(lambda: len(ran) == 2)
        await asyncio.sleep(2)
        assert ran == [1, 1]
        assert (await handle.status()).state is JobState.COMPLETED
        assert await app.job_handle("step", handle.id).result("10s") == 7
        at = TopicPartition(REPLAY, letter.partition())
        assert world.cluster.admin().group_positions("default")[at].offset == 1, "it is settled"

    play(app, story)


def edited(app: Pipeline, letter: Message, payload: bytes) -> bytes:
    """Its value with another input."""
    codec = InboxCodec(app.codec, INBOX)
    request = codec.read(letter.value(), 1)
    assert isinstance(request, JobRequest)
    return codec.request(request._replace(payload=payload))


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_edited_dead_letter_that_is_redriven_runs_with_the_new_input(forgotten: bool) -> None:
    app, ran = application(), list[int]()

    @app.job("step", attempts=1, retention=RetentionPolicy(failed=0 if forgotten else 500))
    async def step(number: int) -> int:
        ran.append(number)
        if number == 7:
            raise RuntimeError("no seven")
        return number

    async def story(world: World) -> None:
        worker = await world.start(app)
        handle = await app.enqueue(step, 7)
        await until(lambda: len(world.read(DEAD)) == 1)
        await asyncio.sleep(2)
        (letter,) = world.read(DEAD)
        send_back(world, letter.partition(), letter.key(), edited(app, letter, b"8"))
        await until(lambda: len(ran) == 2)
        world.kill(worker)  # the lane may be read again
        await world.start(app)
        await asyncio.sleep(20)
        assert set(ran) == {7, 8}
        assert ran[:2] == [7, 8]
        record = await app.desk().job(handle.id)
        assert isinstance(record, JobRecord)
        assert (record.state, record.request.payload, record.rounds) == (JobState.COMPLETED, b"8", 1)
        assert await app.job_handle("step", handle.id).result("10s") == 8

    play(app, story)


def test_an_edited_dead_letter_of_a_job_that_runs_again_already_is_a_dead_letter_again_with_the_reason() -> None:
    app, ran, letting = application(), list[int](), list[bool]()

    @app.job("step", attempts=1)
    async def step(number: int) -> int:
        ran.append(number)
        if len(ran) == 1:
            raise RuntimeError("down")
        while not letting:
            await asyncio.sleep(1)
        return number

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(step, 7)
        await until(lambda: len(world.read(DEAD)) == 1)
        (letter,) = world.read(DEAD)
        await app.retry(step, handle.id)
        await until(lambda: len(ran) == 2)
        send_back(world, letter.partition(), letter.key(), edited(app, letter, b"8"))
        redrive(world, letter)  # not edited: it is the round that runs
        await until(lambda: len(world.read(DEAD)) == 2)
        await asyncio.sleep(5)
        again = world.read(DEAD)[-1]
        told = dict(again.headers() or ())
        assert len(world.read(DEAD)) == 2
        assert again.value() == edited(app, letter, b"8")
        assert told["pl.error.class"] == b"NotTaken"
        assert b"is running" in (told["pl.error.message"] or b"")
        letting.append(True)
        assert await handle.result("10s") == 7
        assert ran == [7, 7]
        at = TopicPartition(REPLAY, letter.partition())
        assert world.cluster.admin().group_positions("default")[at].offset == 2, "it is settled"

    play(app, story)


@pytest.mark.parametrize("options", [{}, {"key": "k"}, {"dedup_id": "d", "dedup_window": "1h"}])
def test_a_job_is_cancelled_by_its_id_alone_wherever_it_is(options: dict[str, str]) -> None:
    app, ran = application(), list[int]()

    @app.job("step")
    async def step(number: int) -> None:
        ran.append(number)

    async def story(world: World) -> None:
        await world.start(app)
        handles = [await app.enqueue(step, number, delay="1m", **options) for number in range(1 if options else 6)]
        for handle in handles:
            await app.cancel(step, handle.id, reason="not needed")
        await asyncio.sleep(120)
        assert [(await handle.status()).state for handle in handles] == [JobState.CANCELLED] * len(handles)
        assert ran == []

    play(app, story, partitions=5)


def test_a_command_that_is_redriven_counts_by_where_it_stood_in_the_inbox() -> None:
    """One that could not be read at first, say: it is a dead letter, and sent back when workers understand it."""
    app, ran = application(), list[int]()

    @app.job("step")
    async def step(number: int) -> None:
        ran.append(number)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(step, 1, delay="1h")
        await asyncio.sleep(2)
        command = InboxCodec(app.codec, INBOX).command(CancelJob(handle.id, "not needed"))
        partition = world.read(STATE)[0].partition()
        send_back(world, partition, handle.id.encode(), command, origin=700)
        await asyncio.sleep(5)
        assert (await handle.status()).state is JobState.CANCELLED
        at = TopicPartition(REPLAY, partition)
        assert world.cluster.admin().group_positions("default")[at].offset == 1, "it is settled"

    play(app, story)


def test_redriven_jobs_of_a_key_run_in_the_order_of_their_letters_though_some_are_forgotten() -> None:
    app, ran, healthy = application(), list[int](), list[bool]()

    @app.job("step", attempts=1, retention=RetentionPolicy(completed=0, failed=1))
    async def step(number: int) -> None:
        if not healthy:
            raise RuntimeError("down")
        ran.append(number)

    async def story(world: World) -> None:
        await world.start(app)
        for number in range(3):
            await app.enqueue(step, number, key="k")
        await until(lambda: len(world.read(DEAD)) == 3)
        await asyncio.sleep(2)
        healthy.append(True)
        for again in range(2):  # the second time after a redrive that was killed
            for letter in world.read(DEAD):
                redrive(world, letter, f"r{again}")
            at = TopicPartition(REPLAY, letter.partition())
            wanted = 3 * (1 + again)
            await until(lambda at=at, wanted=wanted: positions(world)[at].offset == wanted)
            await asyncio.sleep(2)
        assert ran == [0, 1, 2]

    def positions(world: World) -> Mapping[TopicPartition, Any]:
        return world.cluster.admin().group_positions("default")

    play(app, story)


def test_a_job_that_was_redriven_can_be_cancelled_at_once() -> None:
    app, ran = application(), list[int]()

    @app.job("step", attempts=1)
    async def step(_given: None) -> None:
        ran.append(1)
        if len(ran) == 1:
            raise RuntimeError("down")
        await asyncio.sleep(3_600)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(step)
        await until(lambda: len(world.read(DEAD)) == 1)
        (letter,) = world.read(DEAD)
        redrive(world, letter)
        await until(lambda: len(ran) == 2)
        await app.cancel(step, handle.id)
        await asyncio.sleep(2)
        assert (await handle.status()).state is JobState.CANCELLED

    play(app, story)


def test_another_process_reads_a_result_by_the_jobs_id() -> None:
    app, reader = application(), application("reader")
    for each in (app, reader):

        @each.job("double")
        async def double(number: int) -> int:
            return 2 * number

    async def story(world: World) -> None:
        await world.start(app)
        first = await app.enqueue("double", 4, dedup_id="d")
        second = await app.enqueue("double", 5, dedup_id="d")
        assert await second.result("10s") == 8
        later = await app.enqueue("double", 6, delay="5s")
        await asyncio.sleep(1)
        for known, result in ((first, 8), (second, 8), (later, 12)):
            assert await reader.job_handle("double", known.id).result("10s") == result
        with pytest.raises(JobMissing, match="not known"):
            await reader.job_handle("double", job_id(world.now_ms, b"0123456789")).result("10s")
        reader.jobs.close()

    play(app, story)


def test_a_queue_that_is_paused_with_records_at_hand_rests_and_goes_on() -> None:
    app = application()

    @app.job("double")
    async def double(number: int) -> int:
        return 2 * number

    async def story(world: World) -> None:
        worker = await world.start(app)
        world.cluster.faults.denied_topics.add(STATE)
        handles = [await app.enqueue(double, number, delay="10ms") for number in range(2)]
        await asyncio.sleep(0.1)
        handles += await app.enqueue_many(double, range(20))  # fetched, and not taken while the store refuses
        switches, (key, value) = world.cluster.producer("operator"), encode_switch(Pause("default"))
        switches.send("_pipeline.control", key, value)
        await until(lambda: worker.running[0].engine.paused)
        world.cluster.faults.denied_topics.clear()
        with pytest.raises(ResultTimeout):
            await handles[-1].result("20s")
        switches.send("_pipeline.control", key, None)
        assert await handles[-1].result("2s") == 38

    play(app, story)


# -- owners that come and go


def test_what_waits_is_there_for_the_next_owner() -> None:
    app, other, ran = application("one"), application("other"), list[Any]()
    for each in (app, other):

        @each.job("step", attempts=3, backoff=Fixed("20s"), jitter=0)
        async def step(name: str, job: JobContext) -> str:
            ran.append((name, job.attempt))
            if name == "fails" and job.attempt == 1:
                raise RuntimeError("once")
            return name

    async def story(world: World) -> None:
        worker = await world.start(app)
        later, fails = await app.enqueue("step", "later", delay="30s"), await app.enqueue("step", "fails")
        done = await app.enqueue("step", "done", dedup_id="d")
        assert await done.result("10s") == "done"
        await until(lambda: ("fails", 1) in ran)
        await asyncio.sleep(1)
        await world.stop(worker)
        await world.start(other)
        again = await app.enqueue("step", "again", dedup_id="d")
        assert await later.result("60s") == "later"
        assert await fails.result("60s") == "fails"
        assert await again.result("60s") == "done"
        assert sorted(ran) == [("done", 1), ("fails", 1), ("fails", 2), ("later", 1)]
        other.jobs.close()

    play(app, story)


def test_a_job_whose_owner_is_killed_runs_again_and_that_is_a_stall_and_no_attempt() -> None:
    app, seen = application("one"), list[Any]()
    others = [application(f"other{number}") for number in range(5)]
    for each in (app, *others):

        @each.job("killer", attempts=2, max_stalled_count=2)
        async def killer(_given: None, job: JobContext) -> None:
            seen.append((job.attempt, job.stalls))
            await asyncio.sleep(3_600)

    async def story(world: World) -> None:
        worker = await world.start(app)
        handle = await app.enqueue("killer")
        for round_, next_app in enumerate(others, start=1):
            await until(lambda round_=round_: len(seen) >= min(round_, 3))  # type: ignore[misc]
            await asyncio.sleep(2)  # it is written that it runs
            world.kill(worker)
            worker = await world.start(next_app)
            if round_ == 3:
                break
        with pytest.raises(JobUnsuccessful, match="died or hung 3 times") as caught:
            await handle.result("120s")
        assert caught.value.error_class == "Stalled"
        assert seen == [(1, 0), (1, 1), (1, 2)]

    play(app, story)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_job_that_runs_longer_than_a_drain_may_take_is_let_go_and_that_is_no_stall(stubborn: bool) -> None:
    apps, seen = [application(f"app{number}") for number in range(6)], list[Any]()
    for each in apps:

        @each.job("long", timeout="2h")
        async def long(_given: None, job: JobContext) -> str:
            seen.append((job.attempt, job.stalls))
            for _ in range(600):
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    if not stubborn:
                        raise
            return "done"

    async def story(world: World) -> None:
        handle = await apps[0].enqueue("long")
        for count, each in enumerate(apps[:4], start=1):
            worker = await world.start(each)
            await until(lambda count=count: len(seen) == count)  # type: ignore[misc]
            await asyncio.sleep(5)
            began = world.loop.time()
            await world.stop(worker)
            assert world.loop.time() - began < 20 + 5, "in the time of a drain and a stop"
        if stubborn:
            assert seen == [(1, 0), (1, 1), (1, 2), (1, 3)]
            return
        await world.start(apps[4])
        assert await handle.result("20m") == "done"
        assert seen == [(1, 0)] * 5

    play(apps[0], story)


def test_a_job_that_ends_its_worker_at_once_is_found_out() -> None:
    """Nothing says that it ran where the first one died; after that, owners write it before they start anything."""
    apps, seen = [application(f"app{number}") for number in range(5)], list[Any]()
    for each in apps:

        @each.job("killer", max_stalled_count=2)
        async def killer(_given: None, job: JobContext) -> None:
            seen.append(job.stalls)
            await asyncio.sleep(3_600)

    async def story(world: World) -> None:
        handle = await apps[0].enqueue("killer")
        for count, each in enumerate(apps[:4], start=1):
            worker = await world.start(each)
            await until(lambda count=count: len(seen) == count)  # type: ignore[misc]
            world.kill(worker)
        await world.start(apps[4])
        with pytest.raises(JobUnsuccessful, match="died or hung 3 times"):
            await handle.result("120s")
        assert seen == [0, 0, 1, 2]

    play(apps[0], story)


def test_a_partition_is_let_go_when_what_ended_is_written() -> None:
    app, other, ran = application("one"), application("other"), list[Any]()
    for each in (app, other):

        @each.job("step")
        async def step(number: int) -> int:
            await asyncio.sleep(1)
            ran.append(number)
            return number

    async def story(world: World) -> None:
        worker = await world.start(app)
        handles = await app.enqueue_many("step", range(20))
        await asyncio.sleep(0.5)
        world.cluster.faults.land_delay_ms = (3_000, 3_000)
        takes_over = await world.start(other)
        await until(lambda: bool(takes_over.running[0].engine.partitions))
        assert len(worker.running[0].engine.partitions) == 1
        assert [await handle.result("120s") for handle in handles] == list(range(20))
        await asyncio.sleep(5)
        assert sorted(ran) == list(range(20))

    play(app, story)


def test_short_jobs_of_a_killed_owner_are_done_by_the_next_one() -> None:
    app, other, ran = application("one"), application("other"), Counter[int]()
    for each in (app, other):

        @each.job("short")
        async def short(number: int) -> int:
            await asyncio.sleep(0.04)
            ran[number] += 1
            return number

    async def story(world: World) -> None:
        app.queue("default", concurrency=5)
        worker = await world.start(app)
        handles = await app.enqueue_many("short", range(300))
        await until(lambda: len(ran) > 90)  # offsets were committed by now, and what waits has no entries yet
        world.kill(worker)
        await world.start(other)
        assert [await handle.result("120s") for handle in handles] == list(range(300))
        assert set(ran) == set(range(300))
        assert max(ran.values()) <= 2

    play(app, story)


def test_what_a_worker_writes_late_that_was_taken_for_dead_is_not_believed_and_is_written_over() -> None:
    app, other = application("one"), application("other")
    for each in (app, other):

        @each.job("later")
        async def later(name: str) -> str:
            return name

    async def story(world: World) -> None:
        worker = await world.start(app)
        handle = await app.enqueue("later", "a", delay="60s")
        await until(lambda: len(world.read(STATE)) == 1)
        (entry,) = world.read(STATE)
        await world.stop(worker)
        worker = await world.start(other)
        await until(lambda: bool(worker.running[0].engine.partitions))
        stranger = world.cluster.producer("stranger")
        stranger.send(STATE, entry.key(), None, entry.headers(), entry.partition())
        stranger.send(STATE, b"rubbish", b"x", None, entry.partition())
        stranger.send(STATE, b"j/rubbish", b"x", None, 1 - entry.partition())
        await asyncio.sleep(1)
        world.kill(worker)
        third = application("third")
        third.job("later")(later)
        await world.start(third)
        assert await handle.result("120s") == "a"
        again = [each.value() for each in world.read(STATE) if each.key() == entry.key()]
        assert again[:3] == [entry.value(), None, entry.value()], "the stranger's tombstone is written over"
        other.jobs.close()

    play(app, story)


@pytest.mark.parametrize("when", ["between entries", "before the first", "behind the last"])
def test_what_a_zombie_writes_to_a_store_while_its_owner_works_is_written_over(when: str) -> None:
    app, other = application("one"), application("other")
    for each in (app, other):

        @each.job("later")
        async def later(name: str) -> str:
            return name

    async def story(world: World) -> None:
        worker = await world.start(app)
        handle = await app.enqueue("later", "a", delay="2h", key="k")
        await until(lambda: len(world.read(STATE)) == 1)
        (entry,) = world.read(STATE)
        await world.stop(worker)
        worker = await world.start(other)
        await until(lambda: len(worker.running[0].engine.partitions) == 2)
        own = {"between entries": 2, "before the first": 1, "behind the last": 1}[when]
        if when != "before the first":
            await app.enqueue("later", "b", delay="2h", key="k")
            await until(lambda: len(world.read(STATE)) == 2)
        zombie = world.cluster.producer("zombie")
        zombie.send(STATE, entry.key(), None, entry.headers(), entry.partition())
        zombie.send(STATE, b"j/never-heard-of", entry.value(), entry.headers(), entry.partition())
        if when == "behind the last":
            await asyncio.sleep(660)
        else:
            await app.enqueue("later", "c", delay="2h", key="k")
        await until(lambda: len(world.read(STATE)) == own + 1 + (2 + 2), 5)
        written = [(each.key(), each.value()) for each in world.read(STATE) if each.partition() == entry.partition()]
        assert written[-2:] == [(entry.key(), entry.value()), (b"j/never-heard-of", None)]
        assert (await handle.status()).state is JobState.SCHEDULED
        await asyncio.sleep(1_300)
        assert len(world.read(STATE)) == own + 5, "what is ours is no stranger's"

    play(app, story)


def test_a_write_of_ours_that_landed_although_it_failed_is_no_strangers() -> None:
    app = application()

    @app.job("later")
    async def later(name: str) -> str:
        return name

    async def story(world: World) -> None:
        worker = await world.start(app)
        await app.enqueue("later", "a", delay="1h", key="k")
        await until(lambda: len(world.read(STATE)) == 1)
        (entry,) = world.read(STATE)
        ours = [(name, value) for name, value in entry.headers() or ()]
        world.cluster.producer("late").send(STATE, entry.key(), entry.value(), ours, entry.partition())
        await app.enqueue("later", "b", delay="1h", key="k")
        await asyncio.sleep(30)
        assert len(world.read(STATE)) == 3
        executor: Any = worker.running[0].engine.executor
        assert [host.strangers for host in executor._hosts.values()] == [0, 0]

    play(app, story)


def test_a_store_outlives_the_offsets_of_its_group() -> None:
    app, others = application("one"), [application("other"), application("third")]
    for each in (app, *others):

        @each.job("later")
        async def later(name: str) -> str:
            return name

    async def story(world: World) -> None:
        worker = await world.start(app)
        for _ in range(3):  # epochs grow
            await world.stop(worker)
            worker = await world.start(app)
        handle = await app.enqueue("later", "a", delay="60s", key="k")
        await until(lambda: len(world.read(STATE)) == 1)
        await world.stop(worker)
        world.cluster.admin().set_group_positions(
            "default", {TopicPartition(INBOX, number): Position(0) for number in range(2)}
        )
        worker = await world.start(others[0])
        changed = await app.enqueue("later", "b", delay="60s", key="k")
        await until(lambda: len(world.read(STATE)) >= 2)
        await world.stop(worker)
        await world.start(others[1])
        assert [await each.result("120s") for each in (handle, changed)] == ["a", "b"]
        epochs = [int(dict(each.headers() or ())["pl.epoch"] or 0) for each in world.read(STATE)]
        assert epochs == sorted(epochs)
        assert len(set(epochs)) == 3

    play(app, story)


# -- bad input


def test_what_can_be_known_is_said_to_the_caller() -> None:
    app = application()

    @app.job("classify")
    async def classify(ticket: Ticket) -> Label:
        return Label(label=ticket.id)

    wrong: list[tuple[type[Exception], str, dict[str, object]]] = [
        (InvalidJob, "job 'unknown' is not declared", {"job": "unknown"}),
        (InvalidJob, "id: Field required", {"given": {"text": "no id"}}),
        (InvalidJob, "more than 900000", {"given": Ticket(id="a", text="x" * 1_000_000)}),
        (
            InvalidJob,
            "looks as if it held a secret in text,",
            {"given": Ticket(id="a", text="sk-" + "proj-" + "a1B2c3D4" * 6)},
        ),
        (ConfigurationError, "delay", {"delay": -1}),
        (ConfigurationError, "attempts", {"attempts": 0}),
        (ConfigurationError, "without dedup_id", {"dedup_window": "1h"}),
        (ConfigurationError, "no argument 'piority'", {"piority": 1}),
    ]

    async def story(world: World) -> None:
        await world.start(app)
        for kind, text, arguments in wrong:
            asked = {"job": "classify", "given": Ticket(id="a"), **arguments}
            with pytest.raises(kind, match=text):
                await app.enqueue(asked.pop("job"), asked.pop("given"), **asked)  # type: ignore[arg-type]
        assert world.read(INBOX) == []
        old = job_id(world.now_ms - 30 * 86_400_000, b"0123456789")
        for missing, expired in ((job_id(world.now_ms, b"0123456789"), False), (old, True)):
            with pytest.raises(JobMissing) as caught:
                await app.job_handle("classify", missing).status()
            assert caught.value.expired is expired

    play(app, story)


def test_what_only_the_worker_can_know_is_a_dead_letter_with_the_reason_and_stops_nobody() -> None:
    app, caller = application(), application("caller")

    @app.job("classify")
    async def classify(ticket: Ticket) -> Label:
        return Label(label=ticket.id)

    @caller.job("classify")
    @caller.job("unheard")
    async def lenient(_given: dict[str, str]) -> None: ...

    async def story(world: World) -> None:
        for number in range(2):
            world.cluster.producer("stranger").send(STATE, b"j/x", b"not an entry", None, number)
        await asyncio.sleep(1)
        await world.start(app)
        world.cluster.producer("stranger").send(INBOX, b"k", b"not a job")
        misfit, unknown = await caller.enqueue("classify", {"no": "id"}), await caller.enqueue("unheard", {})
        for handle, error_class in ((misfit, "BadInput"), (unknown, "UnknownJobType")):
            with pytest.raises(JobUnsuccessful) as caught:
                await handle.result("10s")
            assert caught.value.error_class == error_class
        assert await (await app.enqueue(classify, Ticket(id="a"))).result("10s") == Label(label="a")
        await until(lambda: len(world.read(DEAD)) == 3)
        classes = {dict(letter.headers() or ())["pl.error.class"] for letter in world.read(DEAD)}
        assert classes == {b"BadInput", b"UnknownJobType", b"Undecodable"}
        caller.jobs.close()

    play(app, story)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"attempts": 0}, "attempts"), ({"timeout": "x"}, "timeout"), ({"concurency": 1}, "no argument 'concurency'")],
)
def test_a_declaration_that_means_nothing_is_refused(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        application().job("j", **arguments)


def test_two_jobs_of_one_name_are_refused() -> None:
    app = application()

    async def handler(_given: None) -> None: ...

    app.job("j")(handler)
    with pytest.raises(ConfigurationError, match="declared twice"):
        app.job("j")(handler)


def test_a_large_store_is_restored_in_slices_and_other_partitions_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the engine makes a part of a board; what comes for that partition meanwhile is admitted afterwards, in order."""
    monkeypatch.setattr(boards, "SLICE_S", 0.0)
    monkeypatch.setattr(restoring, "SLICE", 10)
    slices, proceed = list[int](), boards.Restore.proceed

    def counted(self: boards.Restore, until_s: float, clock: Any) -> bool:
        (worker,) = world_of[0].workers
        executor: Any = worker.running[0].engine.executor
        slices.append(sum(map(len, executor._admission._kept.values())))
        return proceed(self, until_s, clock)

    monkeypatch.setattr(boards.Restore, "proceed", counted)
    world_of = list[World]()
    app, other, ran = application("one"), application("other"), list[Any]()
    for each in (app, other):

        @each.job("later")
        async def later(number: int) -> int:
            ran.append(number)
            return number

    async def story(world: World) -> None:
        world_of.append(world)
        worker = await world.start(app)
        waiting = await app.enqueue_many("later", range(2_000), delay="1h")
        await until(lambda: len(world.read(STATE)) == 2_000)
        await world.stop(worker)
        early = [await app.enqueue("later", -number, key="k") for number in range(1, 30)]
        worker = await world.start(other)
        executor: Any = worker.running[0].engine.executor
        await until(lambda: len(executor._hosts) == 2)
        assert len(slices) > 150
        assert max(slices) == 29, "came before the board was there"
        assert [await handle.result("60s") for handle in early] == [-number for number in range(1, 30)]
        assert ran == [-number for number in range(1, 30)]
        await asyncio.sleep(3_700)
        assert sorted(ran[29:]) == list(range(2_000))
        assert await waiting[0].result("10s") == 0
        other.jobs.close()

    play(app, story)


def test_a_queue_has_room_for_what_its_types_may_run_at_once_unless_it_is_told_otherwise() -> None:
    app = application()

    async def handler(_given: None) -> None: ...

    async def many(_given: list[int]) -> list[Any]:
        return []

    app.job("one", queue="plain", concurrency=5)(handler)
    app.job("two", queue="wide", concurrency=300)(handler)
    app.job("three", queue="batches", batch=Batch(size=500))(many)
    app.job("four", queue="told", concurrency=300)(handler)
    app.queue("told", concurrency=20)
    found = {each.group: each.flow.concurrency for each in app.subscriptions}
    assert found == {"plain": 100, "wide": 300, "batches": 500, "told": 20}
