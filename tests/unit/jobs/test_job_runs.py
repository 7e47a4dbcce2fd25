"""Executions of jobs, without a worker around them."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from pipeline.core.jobs.job import Job, Kind
from pipeline.model.job_policies import JobPolicy
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobEnding, JobRequest
from pipeline.model.outcome import Cancelled
from pipeline.model.permissions import Permissions
from pipeline.worker.jobs.blobs import PayloadBlobs
from pipeline.worker.jobs.context import Home
from pipeline.worker.jobs.running import JobRuns, Shell
from pipeline.worker.jobs.runs import Run
from pipeline.worker.jobs.values import Values


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_one_that_is_stopped_ends_also_before_its_first_turn(turns: int) -> None:
    began: list[None] = []
    ended: list[tuple[Run, JobEnding]] = []
    failed: list[BaseException] = []

    async def handler(_given: object) -> None:
        began.append(None)
        await asyncio.sleep(3_600)

    async def never(*_: object) -> None:
        raise AssertionError("it asks for nothing")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        declared = JobType("j", handler, alone=True)
        home = Home("memory://", "", never)
        shell = Shell(
            loop,
            lambda run, ending: ended.append((run, ending)),
            lambda *_: None,
            lambda: 0,
            structlog.get_logger(),
            home,
            failed.append,
        )
        values = Values({"j": declared}, Permissions(), PayloadBlobs("jobs.q", None))
        runs = JobRuns({"j": declared}, shell, values, {})
        runs.start(None, Job(Kind("j", JobPolicy()), JobRequest("1", "j", b"null"), 0, 0))
        for _ in range(turns):
            await asyncio.sleep(0)
        (run,) = runs.running
        runs.interrupt(run, "cancelled")
        for _ in range(5):
            await asyncio.sleep(0)
        assert ended == [(run, Cancelled())]
        assert not runs.running
        assert not failed

    asyncio.run(main())
    assert len(began) == (turns > 0)
