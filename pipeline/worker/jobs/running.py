"""One execution of a job: its input decoded, its handler called, what came of it as an ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from pipeline.core.jobs.job import Job
from pipeline.model.job_types import JobType
from pipeline.model.jobs import Completed, JobEnding
from pipeline.model.outbox import UNDER_WAY
from pipeline.model.outcome import Cancelled, Failure, FailureKind, Warn
from pipeline.model.validation import first_fault
from pipeline.worker.execution import failure_of, timed_out
from pipeline.worker.jobs.context import Home, JobContext
from pipeline.worker.sending import OutRecord

THREADS_MAX = 64
BAD_INPUT, BAD_RESULT = "BadInput", "BadResult"


class Run:
    """A job that runs; `version` is what its ending names. `ended_by` says why it was stopped: "timeout", "cancelled", "let go".

    `begun`: its task has had its first turn. One that is cancelled before that never has one, and tells no ending. `asked`: records of
    jobs that it asked for.
    """

    __slots__ = ("asked", "begun", "deadline", "ended_by", "host", "job", "task", "timeout_ms", "version")

    def __init__(self, host: Any, job: Job, timeout_ms: int) -> None:
        self.host = host
        self.job = job
        self.version = job.version
        self.timeout_ms = timeout_ms
        self.ended_by = ""
        self.begun = False
        self.asked: list[OutRecord] = []
        self.task: asyncio.Task[None]
        self.deadline: asyncio.TimerHandle | None = None


class _Calls:
    """How handlers of one type are called."""

    __slots__ = ("dump", "read", "type")

    def __init__(self, declared: JobType) -> None:
        self.type = declared
        self.read: Callable[[bytes], Any] = TypeAdapter[Any](declared.takes).validate_json
        self.dump: Callable[[Any], bytes] = TypeAdapter[Any](declared.gives).dump_json


class JobRuns:
    """Runs what it is given in tasks of the loop; `def` handlers in threads. `ended` hears of every ending, in the loop's thread."""

    def __init__(
        self,
        types: Mapping[str, JobType],
        loop: asyncio.AbstractEventLoop,
        ended: Callable[[Run, JobEnding], None],
        log: Any,
        home: Home,
    ) -> None:
        self._home = home
        self._calls = {name: _Calls(declared) for name, declared in types.items()}
        self._loop = loop
        self._ended = ended
        self._log = log
        self._threads: ThreadPoolExecutor | None = None
        self.running: dict[Run, None] = {}  # a set that keeps its order

    def start(self, host: Any, job: Job) -> None:
        assert job.request is not None
        run = Run(host, job, job.request.timeout_ms or job.kind.policy.timeout_ms)
        self.running[run] = None
        run.deadline = self._loop.call_later(run.timeout_ms / 1000, self.interrupt, run, "timeout")
        run.task = self._loop.create_task(self._run(run))

    def interrupt(self, run: Run, reason: str) -> None:
        """Stop it, as far as it can be stopped: a thread goes on to its end, and what comes of it is not looked at."""
        if not run.ended_by:
            run.ended_by = reason
            if run.begun:
                run.task.cancel()

    async def _run(self, run: Run) -> None:
        run.begun = True
        try:
            ending = self._stopped(run) if run.ended_by else await self._execute(run)
        except asyncio.CancelledError:
            ending = self._stopped(run)
        except (SystemExit, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            ending = failure_of(error, run.job.kind.policy.terminal)
        if run.deadline is not None:
            run.deadline.cancel()
        if run.ended_by == "abandoned":
            return
        del self.running[run]
        self._ended(run, ending)

    async def _execute(self, run: Run) -> JobEnding:
        request = run.job.request
        assert request is not None
        calls = self._calls[request.type]
        context = JobContext(run.job, run.timeout_ms, self._log, self._home)
        UNDER_WAY.set(context)
        try:
            return await self._handle(run, calls, context, request.payload)
        finally:
            context.ended = True
            run.asked = context.asked

    async def _handle(self, run: Run, calls: _Calls, context: JobContext, payload: bytes) -> JobEnding:
        try:
            given = calls.read(payload)
        except ValidationError as error:
            where, what = first_fault(error)
            text = f"the input does not fit what {calls.type.name} takes: {where or 'the input'}: {what}"
            return Failure(FailureKind.TERMINAL, BAD_INPUT, "ValidationError", text)
        arguments = (given,) if calls.type.alone else (given, context)
        try:
            if calls.type.is_async:
                returned = await calls.type.handler(*arguments)  # type: ignore[misc]
            else:
                call = partial(copy_context().run, calls.type.handler, *arguments)
                returned = await self._loop.run_in_executor(self._pool(), call)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = failure_of(error, run.job.kind.policy.terminal)
            return replace(failure, log=context.tail.text()) if context.tail is not None else failure
        if isinstance(returned, Warn):
            return Completed(None, returned.reason)
        try:
            return Completed(None if returned is None else calls.dump(returned))
        except PydanticSerializationError as error:
            text = f"{calls.type.name} returned {type(returned).__name__}, which has no JSON form: {error}"
            return Failure(FailureKind.TERMINAL, BAD_RESULT, type(returned).__name__, text)

    def _stopped(self, run: Run) -> JobEnding:
        if run.ended_by == "timeout":
            return timed_out(run.timeout_ms)
        if run.ended_by:
            return Cancelled()
        return failure_of(RuntimeError("the handler was cancelled from inside: something it awaited was cancelled"), ())

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS_MAX, "pipeline-jobs")
        return self._threads

    def abandon(self) -> None:
        for run in self.running:
            run.ended_by = "abandoned"
            if run.deadline is not None:
                run.deadline.cancel()
            run.task.cancel()
        self.running.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
