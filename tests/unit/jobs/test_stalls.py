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
from pipeline.worker.jobs.hosting import JobExecutor
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


def test_a_job_that_was_about_to_start_when_its_worker_stopped_in_order_is_no_stall() -> None:
    """After a crash a job starts when the entry that says so is acknowledged. The worker stops before that."""
    apps, ran = [application(name) for name in ("one", "two", "three")], list[int]()

    async def slow(given: int) -> None:
        ran.append(given)
        if given < 0:
            await asyncio.sleep(1_000)

    for each in apps:
        each.job("slow", max_stalled_count=0)(slow)

    async def story(world: World) -> None:
        crashed = await world.start(apps[0])
        first = await apps[0].enqueue("slow", -1)
        await until(lambda: ran == [-1])
        async for _ in first.updates():
            break
        world.kill(crashed)
        careful = await world.start(apps[1])
        executor = careful.running[0].engine.executor
        assert isinstance(executor, JobExecutor)
        await until(lambda: len(executor.boards()) == 2)
        await asyncio.sleep(5)
        world.cluster.faults.ack_delay_ms = (20, 20)
        asking = asyncio.create_task(apps[2].enqueue_many("slow", range(20)))
        await until(lambda: sum(len(board.chosen) for board in executor.boards()) == 20)
        await world.stop(careful)
        handles = await asking
        assert ran == [-1]
        world.cluster.faults.ack_delay_ms = (0, 0)
        await world.start(apps[2])
        for handle in handles:
            assert await handle.result("60s") is None
            assert (await handle.status()).stalls == 0
        assert sorted(ran) == [-1, *range(20)]

    play(apps[0], story)


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
