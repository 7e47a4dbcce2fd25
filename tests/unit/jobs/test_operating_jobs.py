"""What people do about jobs and schedules, through the application's interface, on whole workers in virtual time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from pipeline import Pipeline
from pipeline.cli.jobs_showing import explanation_lines, print_details
from pipeline.jobs.finding import WantedJobs
from pipeline.jobs.rows import JobRow, ScheduleRow
from pipeline.jobs.scheduling import schedule_of
from pipeline.model.errors import (
    ConfigurationError,
    InvalidJob,
    JobMissing,
    JobStateError,
    JobUnsuccessful,
    ScheduleMissing,
)
from pipeline.model.job_ids import job_id
from pipeline.model.job_policies import Fixed, RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobDuplicate, JobRecord, Schedule
from pipeline.worker.jobs.context import JobContext
from tests.unit.jobs.worlds import World, application, play, until


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Report(BaseModel):
    customer: str


def milliseconds(text: str) -> int:
    """Milliseconds since the epoch of a moment in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


async def state_of(app: Pipeline, job: str) -> str:
    page = await app.desk().jobs(WantedJobs())
    return next((row.state for row in page.jobs if row.id == job), "")


async def until_state(app: Pipeline, job: str, state: str) -> None:
    async with asyncio.timeout(120):
        while await state_of(app, job) != state:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("key", [None, "ticket-7"])
def test_a_job_that_was_given_up_is_retried_and_completes(key: str | None) -> None:
    app, healthy, ran = application(), list[bool](), list[int]()

    @app.job("step", attempts=1)
    async def step(_given: None, job: JobContext) -> str:
        ran.append(job.attempt)
        if not healthy:
            raise RuntimeError("down")
        return "fine"

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(step, key=key)
        with pytest.raises(JobUnsuccessful):
            await handle.result("10s")
        healthy.append(True)
        await app.retry(step, handle.id)
        assert await handle.result("10s") == "fine", "a handle waits for the new round"
        assert ran == [1, 1], "a new round counts its attempts anew"
        await until_state(app, handle.id, "completed")
        assert await app.job_handle(step, handle.id).result("10s") == "fine"
        with pytest.raises(
            JobStateError, match=rf"job {handle.id} is completed: only a job that was given up"
        ) as caught:
            await app.retry(step, handle.id)
        assert caught.value.state == "completed"

    play(app, story, partitions=3)


def test_a_job_that_waits_for_its_time_or_its_retry_is_run_now() -> None:
    app, ran = application(), list[Any]()

    @app.job("later", backoff=Fixed("1h"), attempts=2)
    async def later(number: int, job: JobContext) -> None:
        ran.append((number, job.attempt))
        if number == 2 and job.attempt == 1:
            raise RuntimeError("once")

    async def story(world: World) -> None:
        await world.start(app)
        first = await app.enqueue(later, 1, delay="30d", key="k")
        second = await app.enqueue(later, 2)
        await until_state(app, first.id, "scheduled")
        await until_state(app, second.id, "retrying")
        for handle in (first, second):
            await app.run_now("later", handle.id)
            await until_state(app, handle.id, "completed")
        assert ran == [(2, 1), (1, 1), (2, 2)]
        with pytest.raises(JobStateError, match="is completed: only one that is scheduled or waits for its retry"):
            await app.run_now(later, first.id)

    play(app, story, partitions=3)


def test_what_is_asked_of_a_job_that_is_not_there_is_told_at_once() -> None:
    app = application()

    @app.job("step", retention=RetentionPolicy(age_ms=3_600_000))
    async def step(_given: None) -> None: ...

    async def story(world: World) -> None:
        await world.start(app)
        never = job_id(world.now_ms - 60_000, b"0123456789")
        long_ago = job_id(world.now_ms - 7_200_000, b"0123456789")
        for ask in (app.retry, app.run_now):
            with pytest.raises(JobMissing, match=f"job {never} is not in the store of queue 'default'") as missing:
                await ask(step, never)
            assert not missing.value.expired
            with pytest.raises(JobMissing, match="is expired") as expired:
                await ask(step, long_ago)
            assert expired.value.expired
        with pytest.raises(JobMissing):
            await app.desk().cancel(long_ago)
        with pytest.raises(InvalidJob, match="'nothing' is not declared"):
            await app.retry("nothing", never)
        with pytest.raises(ConfigurationError, match=r"queue 'other' is not on this cluster .*jobs.other.other.state"):
            await app.desk("other").jobs()

    play(app, story)


def test_a_duplicate_names_the_job_that_came_first() -> None:
    app = application()

    @app.job("once", attempts=1)
    async def once(_given: None) -> None:
        raise RuntimeError("no")

    async def story(world: World) -> None:
        await world.start(app)
        first = await app.enqueue(once, dedup_id="d", dedup_window="1h")
        second = await app.enqueue(once, dedup_id="d", dedup_window="1h")
        assert await second.duplicate_of() == first.id
        await until_state(app, second.id, "duplicate")
        entry = await app.desk().job(second.id)
        assert isinstance(entry, JobDuplicate)
        assert entry.of == first.id
        with pytest.raises(JobStateError, match=f"the same as job {first.id}, which came first"):
            await app.retry(once, second.id)

    play(app, story)


def test_jobs_of_any_partition_are_cancelled_by_their_id_alone_ticks_too() -> None:
    app = application()

    @app.job("later")
    async def later(_given: None) -> None:
        await asyncio.sleep(3_600)

    async def story(world: World) -> None:
        await world.start(app)
        keyed = await app.enqueue(later, key="k", delay="1h")
        await until_state(app, keyed.id, "scheduled")
        await app.desk().cancel(keyed.id, "not needed")
        await until_state(app, keyed.id, "cancelled")
        record = await app.desk().job(keyed.id)
        assert isinstance(record, JobRecord)
        assert record.outcome.reason == "not needed"
        with pytest.raises(JobStateError, match="it has had its ending"):
            await app.desk().cancel(keyed.id)
        await app.schedule("hourly", later, cron="0 * * * *", key="other")
        await app.desk().run_schedule_now("hourly")
        await until(lambda: bool(world.read("jobs.default.default.state")))
        tick: JobRow | None = None
        async with asyncio.timeout(60):
            while tick is None:
                await asyncio.sleep(0.5)
                found = (await app.desk().jobs(WantedJobs(schedules=("hourly",)))).jobs
                tick = found[0] if found and found[0].state == "running" else None
        await app.desk().cancel(tick.id)
        await until_state(app, tick.id, "cancelled")
        fresh = await app.enqueue(later)
        await app.desk().cancel(fresh.id)  # it may have no entry yet
        await until_state(app, fresh.id, "cancelled")

    play(app, story, partitions=3)


# -- schedules


def test_a_schedule_ticks_in_its_zone_and_survives_that_it_is_declared_again() -> None:
    app, ticks = application(), list[Any]()

    @app.job("report")
    async def report(given: Report, job: JobContext) -> None:
        ticks.append((job.id, given.customer))

    async def declare() -> None:
        await app.schedule("daily", report, Report(customer="a"), cron="20 23 * * *", zone="Europe/Berlin")

    async def story(world: World) -> None:
        await world.start(app)
        await declare()
        row = await until_scheduled(app, "daily")
        assert (row.cron, row.zone, row.misfire) == ("20 23 * * *", "Europe/Berlin", "once")
        assert (row.type, row.paused) == ("report", False)
        first_ms = milliseconds("2023-11-14T22:20:00")
        assert row.next_ms == first_ms, "23:20 in Berlin, in winter"
        await declare()
        await asyncio.sleep((first_ms - world.now_ms) / 1000 + 1)
        await declare()
        await asyncio.sleep(5)
        assert ticks == [(f"daily@{first_ms}", "a")]
        (row,) = await app.desk().schedules()
        assert (row.last_ms, row.next_ms) == (first_ms, first_ms + 86_400_000)

    play(app, story)


def test_the_same_words_give_an_equal_schedule_whenever_they_are_said() -> None:
    """Each deploy says it again: one that differed would be a new one, and forget what it missed."""
    app = application()

    @app.job("report")
    async def report(given: Report) -> None: ...

    def said() -> Schedule:
        return schedule_of(app.jobs.asker("report"), "daily", Report(customer="a"), "20 23 * * *", "UTC", "once", {})

    first = said()
    time.sleep(0.002)
    assert said() == first


async def until_scheduled(app: Pipeline, name: str) -> ScheduleRow:
    async with asyncio.timeout(60):
        while True:
            found = [row for row in await app.desk().schedules() if row.name == name]
            if found:
                return found[0]
            await asyncio.sleep(0.2)


def test_a_schedule_is_paused_resumed_run_now_and_removed() -> None:
    app, ran = application(), list[str]()

    @app.job("report")
    async def report(_given: None, job: JobContext) -> None:
        ran.append(job.id)

    async def story(world: World) -> None:
        await world.start(app)
        desk = app.desk()
        await app.schedule("often", report, cron="* * * * *")
        await desk.pause_schedule("often")  # at once: it may not be in the store yet
        await asyncio.sleep(130)
        assert ran == []
        assert (await until_scheduled(app, "often")).paused
        await desk.run_schedule_now("often")
        await until(lambda: len(ran) == 1)
        await desk.resume_schedule("often")
        await asyncio.sleep(125)
        assert len(ran) == 3, "what would have ticked in the pause is not missed"
        await desk.remove_schedule("often")
        await asyncio.sleep(5)
        before = len(ran)
        await asyncio.sleep(125)
        assert len(ran) == before
        assert await desk.schedules() == []
        for ask in (desk.pause_schedule, desk.resume_schedule, desk.remove_schedule, desk.run_schedule_now):
            with pytest.raises(ScheduleMissing, match="queue 'default' has no schedule 'often'"):
                await ask("often")

    play(app, story, partitions=3)


def test_a_schedule_can_be_paused_as_soon_as_it_is_put() -> None:
    """No worker has taken it into the store yet."""
    app, ran = application(), list[str]()

    @app.job("report")
    async def report(_given: None, job: JobContext) -> None:
        ran.append(job.id)

    async def story(world: World) -> None:
        await app.schedule("often", report, cron="* * * * *")
        assert await app.desk().schedules() == []
        await app.desk().pause_schedule("often")
        with pytest.raises(ScheduleMissing):
            await app.desk().pause_schedule("seldom")
        await world.start(app)
        await asyncio.sleep(61)
        assert [row.paused for row in await app.desk().schedules()] == [True]
        assert not ran

    play(app, story)


def test_a_schedule_whose_key_changes_moves_to_the_partition_of_its_key() -> None:
    app, ran = application(), list[str]()

    @app.job("report")
    async def report(_given: None, job: JobContext) -> None:
        ran.append(f"{job.key} {job.id}")

    async def story(world: World) -> None:
        await world.start(app)
        seen = set[int]()
        for key in ("a", "b", "c", "d", "e", None):
            await app.schedule("often", report, cron="* * * * *", key=key)
            await asyncio.sleep(61)
            rows = await app.desk().schedules()
            assert [row.key for row in rows] == [key], "there is one of it"
            seen.add(rows[0].partition)
        assert len(seen) > 1
        assert len(ran) == len({each.split()[1] for each in ran}) == 6

    play(app, story, partitions=3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cron": "61 * * * *"}, r"cron='61 \* \* \* \*' is not a cron expression"),
        ({"cron": "0 0 30 2 *"}, "is not a cron expression"),
        ({"zone": "Europe/Berlon"}, "zone='Europe/Berlon' is not a time zone"),
        ({"misfire": "twice"}, "misfire='twice' must be skip, once or all"),
        ({"delay": "1h"}, "may not have delay: each of its ticks is one job"),
        ({"dedup_id": "x"}, "may not have dedup_id"),
        ({"colour": "red"}, "schedule has no argument 'colour'"),
        ({"attempts": 0}, "attempts=0 must be a whole number from 1"),
        ({"key": ""}, "key='' must be a text"),
        ({"name": ""}, "name='' must be a text"),
    ],
)
def test_what_no_schedule_can_be_is_told_at_the_caller(arguments: dict[str, Any], text: str) -> None:
    app = application()

    @app.job("report")
    async def report(_given: None) -> None: ...

    async def story(world: World) -> None:
        given: dict[str, Any] = {"name": "n", "cron": "0 9 * * *", **arguments}
        with pytest.raises(ConfigurationError, match=text):
            await app.schedule(given.pop("name"), report, **given)
        assert world.read("jobs.default") == []

    play(app, story)


def test_the_input_and_the_type_of_a_schedule_are_checked_at_the_caller() -> None:
    app = application()

    @app.job("report")
    async def report(given: Report) -> None: ...

    async def story(world: World) -> None:
        with pytest.raises(InvalidJob, match="the input does not fit job 'report': customer"):
            await app.schedule("n", report, {"name": "a"}, cron="0 9 * * *")
        with pytest.raises(InvalidJob, match="job 'raport' is not declared"):
            await app.schedule("n", "raport", cron="0 9 * * *")
        assert world.read("jobs.default") == []

    play(app, story)


# -- looking


def test_jobs_are_found_by_what_is_known_of_them_a_page_at_a_time() -> None:
    app = application()

    @app.job("good")
    async def good(number: int) -> int:
        return number

    @app.job("bad", attempts=1)
    async def bad(_given: None) -> None:
        raise KeyError("gone")

    async def story(world: World) -> None:
        await world.start(app)
        for number in range(10):
            await app.enqueue(
                good, number, tenant=f"t{number % 2}", tags=("even",) if number % 2 == 0 else ("odd", "even-not")
            )
            await asyncio.sleep(0.01)
        failed = await app.enqueue(bad, key="k", workflow_id="w")
        waiting = await app.enqueue(good, 11, delay="1h")
        await until_state(app, failed.id, "dead_letter")
        await until_state(app, waiting.id, "scheduled")
        desk = app.desk()

        async def ids(**wanted: Any) -> list[str]:
            return [row.id for row in (await desk.jobs(WantedJobs(**wanted))).jobs]

        everything = await ids()
        assert len(everything) == 12
        assert set(everything[:2]) == {waiting.id, failed.id}, "newest first"
        assert await ids(states=("dead_letter",)) == await ids(types=("bad",)) == await ids(keys=("k",)) == [failed.id]
        assert (
            await ids(workflows=("w",))
            == await ids(error_classes=("KeyError",))
            == await ids(text="gone")
            == [failed.id]
        )
        assert len(await ids(tenants=("t0",))) == len(await ids(tags=("even",))) == 5
        assert await ids(types=("good",), states=("scheduled",)) == [waiting.id]
        assert await ids(to_ms=world.now_ms - 10_000_000) == []
        pages, after = list[str](), ""
        while True:
            page = await desk.jobs(limit=5, after=after)
            pages += [row.id for row in page.jobs]
            after = page.cursor
            if not after:
                break
        assert pages == everything
        record = await desk.job(failed.id)
        assert isinstance(record, JobRecord)
        assert record.state is JobState.DEAD_LETTER
        assert record.outcome.error is not None
        with pytest.raises(ConfigurationError, match="state='done' must be one of scheduled"):
            await ids(states=("done",))
        for wrong in ("x", f"{10**20}.x", "\u00b2.x"):
            with pytest.raises(ConfigurationError, match="is no cursor"):
                await desk.jobs(after=wrong)

    play(app, story, partitions=3)


def test_d1_a_job_that_is_asked_for_beyond_the_calendar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`run_at` goes further than that: it was a stack trace."""
    app = application()

    @app.job("far")
    async def far(_given: None) -> None: ...

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(far, run_at=10**15)
        await until(lambda: bool(world.read("jobs.default.default.state")))
        print_details(await app.desk().job(handle.id), False, world.now_ms)
        explanation = await app.desk().why(handle.id)
        assert "after the year 9999" in explanation_lines(explanation, world.now_ms)[0]

    play(app, story)
    assert "for          after the year 9999 (in " in capsys.readouterr().out
