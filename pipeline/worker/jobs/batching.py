"""Jobs of one type gathered for a batch handler: one call, and an ending of its own for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pipeline.model.durations import parse_duration_ms
from pipeline.model.job_batches import by_job
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobEnding
from pipeline.model.outcome import Failure, FailureKind, Reject
from pipeline.worker.execution import failure_of, text_of
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.jobs.runs import Run
from pipeline.worker.jobs.values import Values

NO_RESULT = "NoResult"


class Runner(Protocol):
    """What a batch needs of `running.JobRuns`."""

    running: dict[Run, None]

    def watch(self, run: Run) -> None: ...

    def finish(self, run: Run, ending: JobEnding) -> None: ...

    def call(
        self, declared: JobType, arguments: tuple[object, ...], contexts: Sequence[JobContext], runs: Sequence[Run]
    ) -> Awaitable[object]: ...

    def context(self, run: Run) -> JobContext: ...

    def failed(self, run: Run, error: BaseException) -> Failure: ...

    def stopped(self, run: Run) -> JobEnding: ...


class Batches:
    """Of one type. A batch goes out when it is full, or its first job waited for long enough; each job's time begins then.

    A job that is stopped (cancelled, let go, out of time) has its ending at once, and the others go on; with the last one the
    call itself is stopped. Those of a call in a thread, which can't be stopped, have it when that returns.
    """

    def __init__(self, declared: JobType, runner: Runner, loop: asyncio.AbstractEventLoop, values: Values) -> None:
        batch = declared.policy.batch
        assert batch is not None
        self._declared = declared
        self._runner = runner
        self._loop = loop
        self._values = values
        self._size = batch.size
        self._wait_s = batch.wait_ms / 1000
        self._gathered: list[Run] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, run: Run) -> None:
        self._gathered.append(run)
        if len(self._gathered) >= self._size:
            self._go()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._wait_s, self._go)

    def left(self, run: Run) -> None:
        """It has its ending before its batch has."""
        if run in self._gathered:
            self._gathered.remove(run)
        elif run.task is not None and not any(other.task is run.task for other in self._runner.running):
            run.task.cancel()

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._gathered = self._gathered, []
        if batch:
            task = self._loop.create_task(self._run(batch))
            for run in batch:
                run.task = task
                self._runner.watch(run)

    async def _run(self, batch: list[Run]) -> None:
        try:
            await self._execute(batch)
        except asyncio.CancelledError:
            for run in batch:
                self._runner.finish(run, self._runner.stopped(run))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            for run in batch:
                self._runner.finish(run, failure_of(error, run.job.kind.policy.terminal))

    async def _execute(self, batch: list[Run]) -> None:
        runner = self._runner
        runs: list[Run] = []
        inputs: list[Any] = []
        for run in batch:
            given = await self._values.given(run.job)
            if isinstance(given, Failure):
                runner.finish(run, given)
            elif run in runner.running:
                runs.append(run)
                inputs.append(given.value)
        if not runs:
            return
        contexts = [runner.context(run) for run in runs]
        arguments = (inputs,) if self._declared.alone else (inputs, contexts)
        try:
            returned = await runner.call(self._declared, arguments, contexts, runs)
            results = by_job(returned, [run.job.id for run in runs])
        except asyncio.CancelledError:
            raise
        except (Exception, SystemExit) as error:
            for run in runs:
                runner.finish(run, runner.stopped(run) if run.ended_by else runner.failed(run, error))
            return
        finally:
            if self._declared.is_async:
                for context in contexts:
                    context.ended = True
        for run in runs:
            if run in runner.running:
                item = results.get(run.job.id)
                runner.finish(run, runner.stopped(run) if run.ended_by else await self._ending(run, item))

    async def _ending(self, run: Run, item: Mapping[str, Any] | None) -> JobEnding:
        if item is None:
            return Failure(
                FailureKind.RETRYABLE, NO_RESULT, NO_RESULT, "the batch handler returned no result for this job"
            )
        status, error = item["status"], item.get("error")
        if status == "completed":
            return await self._completed(run, item, None)
        if status == "completed_with_warning":
            return await self._completed(run, item, _words(error, "no reason given"))
        if isinstance(error, Exception):
            failure = self._runner.failed(run, error)
        elif status == "rejected":
            failure = self._runner.failed(run, Reject(_words(error, "the batch handler rejected the job")))
        else:
            failure = Failure(
                FailureKind.RETRYABLE, "Failed", "Failed", _words(error, "the batch handler gave no error")
            )
        if status == "rejected" and failure.kind is not FailureKind.TERMINAL:
            failure = self._runner.failed(run, Reject(failure.message))
        return self._again(failure, item.get("after"), run) if status == "failed" else failure

    async def _completed(self, run: Run, item: Mapping[str, Any], warning: str | None) -> JobEnding:
        return await self._values.stored_if_large(run.job, self._values.completed(run.job, item.get("result"), warning))

    def _again(self, failure: Failure, after: Any, run: Run) -> Failure:
        if after is None:
            return failure
        try:
            return replace(failure, after_ms=parse_duration_ms(after, "after"))
        except Exception as error:  # also of what can't be shown
            return self._runner.failed(run, error)

    def abandon(self) -> None:
        self._gathered.clear()
        if self._timer is not None:
            self._timer.cancel()


def _words(said: object, otherwise: str) -> str:
    return text_of(said) if said is not None and said != "" else otherwise
