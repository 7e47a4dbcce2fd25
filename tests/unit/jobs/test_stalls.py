"""C5 for jobs: one whose worker or process ended with it is told as stalled and counted apart; too often, and it is a dead letter."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from structlog.testing import capture_logs

from pipeline.core.jobs.entries import Letter
from pipeline.model.job_policies import JobPolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import Stalled
from tests.unit.jobs.worlds import World, application, play, until
from tests.unit.test_core_jobs_board import Bench


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def test_c5_a_job_whose_worker_died_is_counted_and_told_by_the_next_one() -> None:
    app, other, ran = application("one"), application("two"), list[str]()

    async def slow(_given: None) -> None:
        ran.append("ran")
        if len(ran) == 1:
            await asyncio.sleep(1_000)

    for each in (app, other):
        each.job("slow")(slow)

    async def story(world: World) -> None:
        worker = await world.start(app)
        handle = await app.enqueue("slow")
        await until(lambda: ran == ["ran"])
        async for _ in handle.updates():
            break  # its entry says that it runs
        world.kill(worker)
        with capture_logs() as logs:
            following = await world.start(other)
            assert await handle.result("60s") is None
        told = [line for line in logs if line["event"] == "job stalled"]
        assert [(line["job"], line["type"], line["stalls"]) for line in told] == [(handle.id, "slow", 1)]
        assert sum(running.engine.stats.stalled_jobs for running in following.running) == 1
        assert (await handle.status()).stalls == 1

    play(app, story)


def test_c5_a_process_that_ends_with_its_job_too_often_makes_it_a_dead_letter() -> None:
    bench = Bench(t=JobPolicy(attempts=5, max_stalled_count=2))
    bench.ask("a")
    for stalls in (1, 2, 3):
        (job,) = bench.take()
        assert job.attempt == 1
        bench.board.ended([(job, job.version, Stalled("killed by SIGKILL"))], bench.now_ms)
        assert bench.board.lost == [("a", "t", stalls)]
        bench.board.lost = []
    effects = bench.effects()
    (letter,) = [effect for effect in effects if isinstance(effect, Letter)]
    assert letter.record.state is JobState.DEAD_LETTER
    assert letter.record.outcome.error is not None
    assert letter.record.outcome.error.error_class == "Stalled"
