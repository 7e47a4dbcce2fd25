"""What a handler says or does harms neither its worker nor the jobs beside it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from pipeline import Warn
from pipeline.model.errors import NotAuthorized
from pipeline.model.job_states import JobState
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.jobs.values import WARNING_CHARS
from tests.unit.jobs.worlds import World, application, play, until

STATE = "jobs.default.default.state"
NOT_UTF8 = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
"""A file's name as `os.listdir` gives it."""


class Textless:
    def __str__(self) -> str:
        raise RuntimeError("no text")


WORDS = {
    "a warning": lambda _job: Warn(f"skipped {NOT_UTF8}"),
    "a warning that is no text": lambda _job: Warn(ValueError("partly done")),  # type: ignore[arg-type]
    "a warning without text": lambda _job: Warn(Textless()),  # type: ignore[arg-type]
    "a warning without end": lambda _job: Warn("x" * 3_000_000),
    "a note": lambda job: job.progress(1, 2, NOT_UTF8),
    "a line of the log": lambda job: job.log(f"skipped {NOT_UTF8}"),
}


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


@pytest.mark.parametrize("how", WORDS)
def test_words_that_no_store_takes_do_not_stop_the_worker(how: str) -> None:
    app = application()

    @app.job("lists")
    async def lists(_given: None, job: JobContext) -> Any:
        said = WORDS[how](job)
        await asyncio.sleep(1)  # what it said is written meanwhile
        return said

    @app.job("innocent", max_stalled_count=0)
    async def innocent(given: int) -> int:
        await asyncio.sleep(3)
        return given

    async def story(world: World) -> None:
        worker = await world.start(app)
        beside = await app.enqueue_many(innocent, range(10))
        handle = await app.enqueue(lists)
        await handle.result("60s")
        status = await handle.status()
        warned = JobState.COMPLETED_WITH_WARNING if "warning" in how else JobState.COMPLETED
        assert status.state is warned
        assert len(status.warning or "") <= WARNING_CHARS
        assert [await each.result("60s") for each in beside] == list(range(10))
        assert worker.running[0].engine.broken is None

    play(app, story)


@pytest.mark.parametrize("plain", [False, True])
def test_a_handler_that_exits_has_failed_and_those_beside_it_go_on(plain: bool) -> None:
    app, ran = application(), list[int]()

    async def asks(_given: None) -> None:
        ran.append(1)
        sys.exit(3)

    def calls(_given: None) -> None:
        ran.append(1)
        sys.exit(3)

    app.job("leaves", attempts=2)(calls if plain else asks)

    @app.job("innocent", attempts=1, max_stalled_count=0)
    async def innocent(given: int) -> int:
        await asyncio.sleep(30)
        return given

    async def story(world: World) -> None:
        worker = await world.start(app)
        beside = await app.enqueue_many(innocent, range(4))
        handle = await app.enqueue("leaves")
        await until(lambda: len(ran) == 2)
        assert [await each.result("60s") for each in beside] == list(range(4))
        status = await handle.status()
        assert (status.state, status.error_class, status.error) == (JobState.DEAD_LETTER, "SystemExit", "3")
        assert worker.running[0].engine.broken is None

    play(app, story)


class Refusing:
    """An outlet that may not write to one topic, as long as it is `shut`."""

    def __init__(self, outlet: Any, error: Callable[[], Exception]) -> None:
        self._outlet = outlet
        self._error = error

    def send(self, topic: str, *more: Any) -> None:
        if topic == "jobs.other":
            more[-1](self._error(), -1)
        else:
            self._outlet.send(topic, *more)


@pytest.mark.parametrize("final", [True, False])
def test_a_job_whose_own_jobs_are_refused_fails_or_can_be_cancelled(final: bool) -> None:
    """A right that is missing is its failure; anything else passes, and is waited for until somebody cancels it."""
    app = application()

    @app.job("asks", attempts=2)
    async def asks(_given: None, job: JobContext) -> None:
        await job.enqueue("asked")

    @app.job("asked", queue="other")
    async def asked(_given: None) -> None: ...

    async def story(world: World) -> None:
        worker = await world.start(app)
        executor: Any = next(each.engine.executor for each in worker.running if each.layout.group == "default")
        error = NotAuthorized("no right") if final else OSError("for now")
        executor._hand_ons._outlet = Refusing(executor._hand_ons._outlet, lambda: error)
        handle = await app.enqueue(asks)
        await asyncio.sleep(60)
        status = await handle.status()
        if final:
            assert (status.state, status.attempt, status.error_class) == (JobState.DEAD_LETTER, 2, "OutputRefused")
            assert "may not be written to jobs.other: no right" in status.error
        else:
            assert (status.state, len(executor._hand_ons)) == (JobState.RUNNING, 1)
            await app.cancel(asks, handle.id)
            await asyncio.sleep(5)
            assert (await handle.status()).state is JobState.CANCELLED
        assert len(executor._hand_ons) == 0

    play(app, story)


def test_a_store_that_takes_no_writes_is_told() -> None:
    app = application()

    @app.job("double")
    async def double(number: int) -> int:
        return 2 * number

    async def story(world: World) -> None:
        worker = await world.start(app)
        engine: Any = worker.running[0].engine
        await asyncio.sleep(5)
        world.cluster.faults.denied_topics.add(STATE)
        handle = await app.enqueue(double, 4)
        await asyncio.sleep(5)
        denied = f"writing to {STATE} is not allowed; grant the ACL or correct the credentials"
        assert [str(error) for error in engine.stuck.values()] == [denied]
        world.cluster.faults.denied_topics.clear()
        assert await handle.result("60s") == 8
        await asyncio.sleep(5)
        assert engine.stuck == {}

    play(app, story)
