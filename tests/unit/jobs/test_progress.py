"""E5: what a job says of itself while it runs: kept, streamed, throttled, there for the next execution, and nothing after the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from pipeline.codec.jobs import StoreCodec
from pipeline.jobs.handle import JobStatus
from pipeline.model.job_policies import Fixed
from pipeline.model.job_states import TERMINAL, JobState
from pipeline.model.jobs import JobProgress, JobRecord
from pipeline.worker.jobs.context import JobContext
from tests.unit.jobs.worlds import World, application, play

STATE = "jobs.default.default.state"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def records(world: World, app: Any) -> list[JobRecord]:
    """Every entry of a job that was ever written, in order."""
    codec = StoreCodec(app.codec, STATE)
    entries = [codec.unpack(m.key() or b"", value) for m in world.read(STATE) if (value := m.value()) is not None]
    return [entry for entry in entries if isinstance(entry, JobRecord)]


def test_e5_progress_and_log_are_kept_with_the_job_and_streamed_to_its_followers() -> None:
    app = application()

    @app.job("count")
    async def count(items: int, job: JobContext) -> str:
        for number in range(items):
            job.progress(number + 1, items, note=f"item {number + 1}")
            job.log("looked at", item=number + 1)
            await asyncio.sleep(1)
        return "done"

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(count, 4)
        seen: list[JobStatus] = [update async for update in handle.updates()]
        told = [update.progress for update in seen if update.progress is not None]
        assert [p.processed for p in told] == sorted(p.processed for p in told)
        assert {p.processed for p in told} == {1, 2, 3, 4}
        assert [p.percentage for p in told][-1] == 100.0
        assert told[0].note == "item 1"
        assert "looked at item=4" in told[-1].log
        assert "looked at item=1" in told[-1].log
        assert [update.ended for update in seen] == [False] * (len(seen) - 1) + [True]
        status = await handle.status()
        assert (status.state, status.progress) == (JobState.COMPLETED, told[-1])
        assert [update.state async for update in handle.updates()][-1] is JobState.COMPLETED

    play(app, story)


def test_e5_progress_is_written_at_most_every_500_ms_and_the_last_of_it_before_the_ending() -> None:
    app = application()

    @app.job("busy")
    async def busy(items: int, job: JobContext) -> None:
        for number in range(items):
            job.progress(number + 1, items)
            await asyncio.sleep(0.002)
        job.progress(items, items, "at the end")

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(busy, 1_000)
        await handle.result("30s")
        written = [r for r in records(world, app) if r.outcome.progress is not None]
        assert 4 <= len(written) <= 7, len(written)
        assert [r.state in TERMINAL for r in written] == [False] * (len(written) - 1) + [True]
        last = written[-1].outcome.progress
        assert last is not None
        assert (last.processed, last.total, last.note) == (1_000, 1_000, "at the end")

    play(app, story)


def test_e5_nothing_is_told_after_the_end() -> None:
    app = application()
    jobs: list[JobContext] = []

    @app.job("slow", timeout="200ms", attempts=1)
    async def slow(_given: None, job: JobContext) -> None:
        job.progress(1, 9)
        jobs.append(job)
        await asyncio.sleep(3)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(slow)
        states = [update.state async for update in handle.updates()]
        assert states[-1] is JobState.DEAD_LETTER
        await asyncio.sleep(3)  # its dead letter is acknowledged
        count = len(records(world, app))
        jobs[0].progress(5, 9)
        jobs[0].log("too late")
        await asyncio.sleep(3)
        told = [r.outcome.progress for r in records(world, app)]
        assert len(told) == count
        assert {p.processed for p in told if p is not None} == {1}

    play(app, story)


def test_e5_an_execution_after_a_crash_sees_what_the_one_before_it_said_last() -> None:
    app, other = application("one"), application("two")
    found: list[JobProgress | None] = []

    async def resume(_given: None, job: JobContext) -> int:
        found.append(job.last_progress)
        begin = job.last_progress.processed if job.last_progress is not None else 0
        for number in range(begin, 10):
            job.progress(number + 1, 10)
            await asyncio.sleep(1)
        return begin

    app.job("resume")(resume)
    other.job("resume")(resume)

    async def story(world: World) -> None:
        worker = await world.start(app)
        handle = await app.enqueue("resume")
        async for update in handle.updates():
            if update.progress is not None and update.progress.processed == 6:
                break
        world.kill(worker)
        await world.start(other)
        assert await handle.result("60s") == 6
        assert found[0] is None
        assert found[1] is not None
        assert (found[1].processed, found[1].total) == (6, 10)
        assert (await handle.status()).stalls == 1

    play(app, story)


def test_e5_an_attempt_after_a_failure_sees_it_too_and_a_def_handler_may_tell() -> None:
    app = application()
    found: list[JobProgress | None] = []

    @app.job("fails", attempts=2, backoff=Fixed("1s"))
    def fails(_given: None, job: JobContext) -> None:
        found.append(job.last_progress)
        job.progress(3, 5)
        job.log.warning("password=hunter2222 is wrong")
        raise RuntimeError("Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(fails)
        states = [update async for update in handle.updates()]
        assert [p and (p.processed, p.total) for p in found] == [None, (3, 5)]
        last = states[-1].progress
        assert last is not None
        assert "password=[secret] is wrong" in last.log
        assert states[-1].error == "Authorization: Basic [secret]"

    play(app, story)


@pytest.mark.parametrize("numbers", [(-1, 0), (1.5, 2), (True, 2), (1, -2)])
def test_e5_numbers_that_are_none_are_told_to_the_handler(numbers: tuple[Any, Any]) -> None:
    app = application()

    @app.job("wrong", attempts=1)
    async def wrong(_given: None, job: JobContext) -> str:
        with pytest.raises(
            ValueError, match=r"job\.progress: (processed|total)=.* must be a whole number of at least 0"
        ):
            job.progress(*numbers)
        return "told"

    async def story(world: World) -> None:
        await world.start(app)
        assert await (await app.enqueue(wrong)).result("10s") == "told"

    play(app, story)


def test_e5_a_follower_of_an_older_job_and_of_a_duplicate_hears_of_the_first() -> None:
    app = application()

    @app.job("once")
    async def once(_given: None, job: JobContext) -> None:
        job.progress(1, 1)

    async def story(world: World) -> None:
        await world.start(app)
        first = await app.enqueue(once, dedup_id="d")
        await first.result("10s")
        second = await app.enqueue(once, dedup_id="d")
        seen = [update async for update in second.updates()]
        assert [(update.id, update.state) for update in seen] == [(first.id, JobState.COMPLETED)]
        again = app.job_handle(once, first.id)
        assert [update.state async for update in again.updates()] == [JobState.COMPLETED]

    play(app, story)
