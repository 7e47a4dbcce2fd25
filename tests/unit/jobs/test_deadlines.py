"""Deadlines of executions: who is late hears of it once, at its time; what has ended is not kept."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

from pipeline.core.jobs.job import Job
from pipeline.jobs.drawing import MANY, random_bytes
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.job_ids import RANDOM_BYTES
from pipeline.worker.jobs.deadlines import SLACK, Deadlines
from pipeline.worker.jobs.runs import Run


class _Job:
    version = 1


def run_of(timeout_ms: int) -> Run:
    return Run(None, cast(Job, _Job()), timeout_ms)


def test_each_is_late_at_its_time_and_once_whatever_the_others_do() -> None:
    async def story(_loop: VirtualClockLoop) -> None:
        loop = asyncio.get_running_loop()
        late: list[tuple[int, float]] = []
        names: dict[Run, int] = {}
        deadlines = Deadlines(loop, lambda run: late.append((names[run], loop.time() - began)))
        began = loop.time()

        def begin(name: int, timeout_ms: int) -> Run:
            run = run_of(timeout_ms)
            names[run] = name
            deadlines.begin(run)
            return run

        begin(1, 1_000)
        two = begin(2, 1_000)
        begin(3, 300)
        await asyncio.sleep(0.5)
        begin(4, 1_000)
        five = begin(5, 1_000)
        deadlines.end(two)
        await asyncio.sleep(0.6)
        deadlines.end(five)
        deadlines.end(five)
        await asyncio.sleep(5)
        begin(6, 1_000)
        await asyncio.sleep(5)
        assert [name for name, _ in late] == [3, 1, 4, 6]
        for (_, at_s), due_s in zip(late, (0.3, 1.0, 1.5, 7.1), strict=True):
            assert due_s <= at_s < due_s + 0.01
        assert not deadlines._lines, "no line is kept, and no timer, when nothing runs"

    run(story)


def test_what_has_ended_behind_one_that_runs_long_is_let_go() -> None:
    async def story(_loop: VirtualClockLoop) -> None:
        deadlines = Deadlines(asyncio.get_running_loop(), lambda _run: None)
        deadlines.begin(run_of(30_000))
        for _ in range(10 * SLACK):
            run = run_of(30_000)
            deadlines.begin(run)
            deadlines.end(run)
        (line,) = deadlines._lines.values()
        assert len(line.runs) <= SLACK + 2
        deadlines.stop()

    run(story)


def test_after_a_stop_nobody_is_late() -> None:
    async def story(_loop: VirtualClockLoop) -> None:
        late: list[Any] = []
        deadlines = Deadlines(asyncio.get_running_loop(), late.append)
        run = run_of(100)
        deadlines.begin(run)
        deadlines.stop()
        await asyncio.sleep(1)
        assert late == []

    run(story)


def test_random_bytes_are_never_the_same_not_in_a_fork_either() -> None:
    drawn = [random_bytes() for _ in range(3 * MANY)]
    assert {len(each) for each in drawn} == {RANDOM_BYTES}
    assert len(set(drawn)) == len(drawn)
    assert len(random_bytes(16)) == 16
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"".join(random_bytes() for _ in range(MANY)))
        os._exit(0)
    os.waitpid(child, 0)
    other = os.read(reader, 1 << 20)
    theirs = {other[at : at + RANDOM_BYTES] for at in range(0, len(other), RANDOM_BYTES)}
    assert len(theirs) == MANY
    assert not theirs & {random_bytes() for _ in range(MANY)}
