"""Jobs in a pool of long-lived tasks: what one leaves behind is not the next one's."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable

import pytest

from pipeline.core.jobs.job import Job, Kind
from pipeline.model.job_policies import JobPolicy
from pipeline.model.jobs import JobRequest
from pipeline.worker.jobs.pool import RUNS_PER_TURN, Pool
from pipeline.worker.jobs.runs import Run

SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="")


def run_of(name: str) -> Run:
    return Run(None, Job(Kind("t", JobPolicy()), JobRequest(name, "t"), 0, 0), 1_000)


def play(execute: Callable[[Run], Awaitable[None]], story: Callable[[Pool], Awaitable[None]]) -> list[BaseException]:
    failed: list[BaseException] = []

    async def main() -> None:
        pool = Pool(asyncio.get_running_loop(), execute, failed.append)
        await story(pool)
        pool.abandon()
        for task in pool.tasks():
            task.cancel()
        if tasks := pool.tasks():
            assert not (await asyncio.wait(tasks, timeout=1.0))[1]

    asyncio.run(main())
    return failed


def test_jobs_that_never_suspend_share_a_runner_and_each_that_does_has_its_own() -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def execute(run: Run) -> None:
        order.append(run.job.id)
        if run.job.id.startswith("s"):
            await gate.wait()
            order.append(f"{run.job.id} on")

    async def story(pool: Pool) -> None:
        for name in ("a", "b", "c"):
            pool.add(run_of(name))
        await asyncio.sleep(0.01)
        assert len(pool.tasks()) <= 2, "one that runs, one that was asked whether there is more"
        for name in ("s1", "s2", "d"):
            pool.add(run_of(name))
        await asyncio.sleep(0.01)
        assert order == ["a", "b", "c", "s1", "s2", "d"]
        gate.set()
        await asyncio.sleep(0.01)
        assert order[6:] == ["s1 on", "s2 on"]
        before = len(pool.tasks())
        pool.add(run_of("e"))
        await asyncio.sleep(0.01)
        assert len(pool.tasks()) == before, "they are kept"

    assert play(execute, story) == []


def test_a_runner_lets_the_loop_have_a_turn_among_many() -> None:
    ran: list[int] = []

    async def execute(run: Run) -> None:
        ran.append(0)

    async def story(pool: Pool) -> None:
        for number in range(10 * RUNS_PER_TURN):
            pool.add(run_of(str(number)))
        await asyncio.sleep(0)
        assert 0 < len(ran) < 10 * RUNS_PER_TURN
        await asyncio.sleep(0.05)
        assert len(ran) == 10 * RUNS_PER_TURN

    assert play(execute, story) == []


def test_a_variable_that_a_handler_left_behind_is_not_the_next_one_s() -> None:
    seen: list[str] = []

    async def execute(run: Run) -> None:
        seen.append(SEEN.get())
        SEEN.set(run.job.id)

    async def story(pool: Pool) -> None:
        for name in ("a", "b", "c"):
            pool.add(run_of(name))
        await asyncio.sleep(0.01)
        pool.add(run_of("d"))
        await asyncio.sleep(0.01)

    assert play(execute, story) == []
    assert seen == ["", "", "", ""]


def test_a_cancellation_is_not_seen_by_the_job_that_runs_next() -> None:
    """`asyncio.timeout` and task groups look at how often their task was asked to end."""
    ended: list[str] = []

    async def execute(run: Run) -> None:
        try:
            if run.ended_by:
                await asyncio.sleep(60)
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
        except TimeoutError:
            ended.append("timed out")

    async def story(pool: Pool) -> None:
        first = run_of("stopped")
        first.ended_by = "cancelled"
        pool.add(first)
        await asyncio.sleep(0.005)
        assert first.task is not None
        first.task.cancel()
        await asyncio.sleep(0.005)
        assert first.task is None
        pool.add(run_of("next"))
        await asyncio.sleep(0.05)
        assert len(pool.tasks()) == 1

    assert play(execute, story) == []
    assert ended == ["cancelled", "timed out"]


@pytest.mark.timeout(10)
def test_a_loop_that_ends_ends_what_runs_in_it() -> None:
    ended: list[str] = []

    async def execute(run: Run) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(run.job.id)

    async def main() -> Pool:
        pool = Pool(asyncio.get_running_loop(), execute, lambda _error: None)
        pool.add(run_of("a"))
        pool.add(run_of("b"))
        await asyncio.sleep(0.01)
        return pool

    assert asyncio.run(main()).tasks() == []
    assert sorted(ended) == ["a", "b"]


def test_what_was_not_begun_when_all_is_given_up_does_not_begin() -> None:
    began: list[str] = []

    async def execute(run: Run) -> None:
        began.append(run.job.id)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    async def story(pool: Pool) -> None:
        pool.add(run_of("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pool.add(run_of("b"))

    assert play(execute, story) == []
    assert began == ["a"]


def test_a_defect_of_our_own_is_told() -> None:
    async def execute(_run: Run) -> None:
        raise LookupError("a defect")

    async def story(pool: Pool) -> None:
        pool.add(run_of("a"))
        await asyncio.sleep(0.01)

    (error,) = play(execute, story)
    assert isinstance(error, LookupError)


def test_a_job_that_comes_while_the_loop_closes_is_no_defect() -> None:
    """Its runner rests, and the loop has cancelled that."""
    failed: list[BaseException] = []

    async def execute(_run: Run) -> None: ...

    async def main() -> None:
        pool = Pool(asyncio.get_running_loop(), execute, failed.append)
        pool.add(run_of("a"))
        await asyncio.sleep(0.01)
        (task,) = pool.tasks()
        task.cancel()
        pool.add(run_of("b"))
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert failed == []
