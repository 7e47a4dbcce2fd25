"""Executions are stopped at their time, in whatever order they began, and one timer is enough for those of a timeout."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.worker.jobs.deadlines import Deadlines
from pipeline.worker.jobs.runs import Run


def execution(timeout_ms: int) -> Run:
    job: Any = SimpleNamespace(version=1)
    return Run(None, job, timeout_ms)


def test_each_is_late_at_its_own_time_and_those_that_ended_are_not() -> None:
    late = list[tuple[int, int]]()

    async def main(loop: VirtualClockLoop) -> None:
        began_s = loop.time()
        deadlines = Deadlines(loop, lambda run: late.append((run.timeout_ms, round(1000 * (loop.time() - began_s)))))
        ended = execution(300)
        deadlines.begin(ended)
        for wait_s in (0.0, 0.1, 0.15):
            await asyncio.sleep(wait_s)
            for timeout_ms in (300, 1_000):
                deadlines.begin(execution(timeout_ms))
        deadlines.end(ended)
        deadlines.end(ended)
        await asyncio.sleep(5)
        assert late == [(300, 300), (300, 400), (300, 550), (1_000, 1_000), (1_000, 1_100), (1_000, 1_250)]
        deadlines.begin(execution(300))
        await asyncio.sleep(0.3)
        assert late[-1] == (300, 5_550)

    run(main)


def test_one_timer_for_all_of_a_timeout_and_none_for_nothing() -> None:
    set_at: Counter[float] = Counter()

    async def main(loop: VirtualClockLoop) -> None:
        later = loop.call_later

        def counted(delay: float, *given: Any, **more: Any) -> Any:
            set_at[round(delay, 3)] += 1
            return later(delay, *given, **more)

        deadlines = Deadlines(loop, lambda _run: None)
        loop.call_later = counted  # type: ignore[method-assign]
        for _ in range(1_000):
            one = execution(30_000)
            deadlines.begin(one)
            deadlines.end(one)
        assert set_at == {30.0: 1}
        await asyncio.sleep(31)
        assert not deadlines._lines
        assert not deadlines._timers
        deadlines.begin(execution(200))
        deadlines.stop()
        await asyncio.sleep(1)

    run(main)


def test_who_is_late_may_begin_another() -> None:
    late = list[Run]()

    async def main(loop: VirtualClockLoop) -> None:
        def again(run: Run) -> None:
            late.append(run)
            if len(late) < 3:
                deadlines.begin(execution(100))

        deadlines = Deadlines(loop, again)
        deadlines.begin(execution(100))
        await asyncio.sleep(1)
        assert len(late) == 3

    run(main)
