"""Dead letters of jobs are told like any others, and too many of them pause their queue."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from pipeline import DeadLetterAlert, FlowPolicy, Reject
from pipeline.model.alerts import Alert
from pipeline.model.headers import LOG
from pipeline.worker.jobs.context import JobContext
from tests.unit.jobs.worlds import World, application, play, until

DEAD = "jobs.default.default.dlq"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def test_c4_a_job_that_is_given_up_is_told_to_the_hooks_of_its_application() -> None:
    app, told = application(), list[Alert]()
    app.on_dead_letter(told.append)

    @app.job("fails", attempts=2)
    async def fails(_given: str, job: JobContext) -> None:
        job.log("about to")
        raise RuntimeError("no luck")

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(fails, "personal", key="k")
        await until(lambda: bool(told))
        (alert,) = told
        (letter,) = world.read(DEAD)
        assert isinstance(alert, DeadLetterAlert)
        assert (alert.topic, alert.partition, alert.offset) == (DEAD, letter.partition(), letter.offset())
        assert (alert.group, alert.key, alert.event_id, alert.record) == ("default", "k", handle.id, "fails")
        assert (alert.attempt, alert.attempts, alert.input) == (2, 2, None)
        assert (alert.error.error_type, alert.error.message) == ("RuntimeError", "no luck")
        assert [attempt.number for attempt in alert.history.attempts] == [1, 2]
        assert alert.handler.endswith("fails")
        assert "about to" in alert.log[0]
        headers = dict(letter.headers() or [])
        assert b"about to" in headers[LOG]
        assert int(headers["pl.first_failed"]) == alert.history.attempts[0].failed_ms < alert.failed_ms

    play(app, story)


def test_too_many_of_them_pause_the_queue_until_somebody_resumes_it() -> None:
    app, ran = application(), list[int]()
    app.queue("default", flow=FlowPolicy(concurrency=1, dead_letter_flood=5))

    @app.job("fails", attempts=1)
    async def fails(given: int) -> None:
        ran.append(given)
        raise Reject("never")

    async def story(world: World) -> None:
        worker = await world.start(app)
        await app.enqueue_many(fails, range(50))
        await asyncio.sleep(30)
        engine = worker.running[0].engine
        assert engine.paused
        assert 6 <= len(ran) < 12, "those that were under way end"
        engine.resume()
        await asyncio.sleep(30)
        assert len(ran) > 11

    play(app, story)
