"""One execution of a job: its input decoded, its handler called, what came of it as an ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from pipeline.core.jobs.job import Job
from pipeline.model.headers import ErrorInfo, clip_error
from pipeline.model.job_types import JobType
from pipeline.model.jobs import Completed, JobEnding, JobProgress
from pipeline.model.outcome import Cancelled, Failure, FailureKind, Warn
from pipeline.model.permissions import Permissions
from pipeline.model.scrubbing import Sensitive
from pipeline.model.validation import first_fault
from pipeline.worker.execution import failure_of, timed_out
from pipeline.worker.jobs.blobs import PayloadBlobs
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.jobs.telling import Teller

THREADS_MAX = 64
BAD_INPUT, BAD_RESULT, NOT_PERMITTED = "BadInput", "BadResult", "PermissionMissing"


class Run:
    """A job that runs; `version` is what its ending names. `ended_by` says why it was stopped: "timeout", "cancelled", "let go"."""

    __slots__ = ("deadline", "ended_by", "host", "job", "task", "teller", "timeout_ms", "version")

    def __init__(self, host: Any, job: Job, timeout_ms: int) -> None:
        self.host = host
        self.job = job
        self.version = job.version
        self.timeout_ms = timeout_ms
        self.ended_by = ""
        self.task: asyncio.Task[None]
        self.teller: Teller | None = None
        self.deadline: asyncio.TimerHandle | None = None


class _Calls:
    """How handlers of one type are called."""

    __slots__ = ("dump", "read", "type")

    def __init__(self, declared: JobType) -> None:
        self.type = declared
        self.read: Callable[[bytes], Any] = TypeAdapter[Any](declared.takes).validate_json
        self.dump: Callable[[Any], bytes] = TypeAdapter[Any](declared.gives).dump_json


@dataclass(frozen=True, slots=True)
class Shell:
    """Where jobs run. `ended` hears of every ending, `told` of what handlers say (and whether it is to be written now), both in the loop's
    thread."""

    loop: asyncio.AbstractEventLoop
    ended: Callable[[Run, JobEnding], None]
    told: Callable[[Run, JobProgress, bool], None]
    now_ms: Callable[[], int]
    log: Any


class JobRuns:
    """Runs what it is given in tasks of the loop; `def` handlers in threads."""

    def __init__(
        self, types: Mapping[str, JobType], shell: Shell, permissions: Permissions, blobs: PayloadBlobs
    ) -> None:
        self._calls = {name: _Calls(declared) for name, declared in types.items()}
        self._shell = shell
        self._loop = shell.loop
        self._permissions = permissions
        self._blobs = blobs
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
            run.task.cancel()

    async def _run(self, run: Run) -> None:
        try:
            ending = await self._execute(run)
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
        if run.teller is not None:
            run.teller.close()
        del self.running[run]
        self._shell.ended(run, _masked(ending) if isinstance(ending, Failure) else ending)

    async def _execute(self, run: Run) -> JobEnding:
        request = run.job.request
        assert request is not None
        missing = self._permissions.missing(run.job.kind.policy.permissions)
        if missing:
            return _not_permitted(request.type, missing)
        calls = self._calls[request.type]
        payload = request.payload
        if request.payload_ref is not None:
            found = await self._blobs.input(request.payload_ref)
            if isinstance(found, Failure):
                return found
            payload = found
        try:
            given = calls.read(payload)
        except ValidationError as error:
            where, what = first_fault(error)
            text = f"the input does not fit what {request.type} takes: {where or 'the input'}: {what}"
            return Failure(FailureKind.TERMINAL, BAD_INPUT, "ValidationError", text)
        arguments = (given,) if calls.type.alone else (given, self._context(run))
        try:
            if calls.type.is_async:
                returned = await calls.type.handler(*arguments)  # type: ignore[misc]
            else:
                returned = await self._loop.run_in_executor(self._pool(), lambda: calls.type.handler(*arguments))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = failure_of(error, run.job.kind.policy.terminal)
            tail = run.teller.tail if run.teller is not None else None
            return replace(failure, log=tail.text()) if tail is not None else failure
        if isinstance(returned, Warn):
            return Completed(None, returned.reason)
        if returned is None:
            return Completed()
        try:
            result = calls.dump(returned)
        except PydanticSerializationError as error:
            text = f"{request.type} returned {type(returned).__name__}, which has no JSON form: {error}"
            return Failure(FailureKind.TERMINAL, BAD_RESULT, type(returned).__name__, text)
        return await self._blobs.completed(run.job, result)

    def _context(self, run: Run) -> JobContext:
        shell = self._shell
        run.teller = Teller(shell.loop, partial(shell.told, run), shell.now_ms)
        return JobContext(run.job, run.timeout_ms, run.teller, shell.log)

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
            if run.teller is not None:
                run.teller.abandon()
            if run.deadline is not None:
                run.deadline.cancel()
            run.task.cancel()
        self.running.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _not_permitted(type_name: str, missing: list[str]) -> Failure:
    text = (
        f"{type_name} needs the permission {', '.join(missing)}, which this worker is not granted: add it to PIPELINE_PERMISSIONS "
        "of the workers that may, then retry the job"
    )
    return Failure(FailureKind.TERMINAL, NOT_PERMITTED, NOT_PERMITTED, text)


def _masked(failure: Failure) -> Failure:
    """It is kept in the topics, and shown: nothing in it may look like a secret, and all of it must fit into an entry."""
    message, stack, log = Sensitive().scrub_all(failure.message, failure.stack, failure.log)
    told = clip_error(ErrorInfo(failure.error_class, failure.error_type, message, stack))
    return replace(
        failure,
        error_class=told.error_class,
        error_type=told.error_type,
        message=told.message,
        stack=told.stack,
        log=log,
        scrubbed=True,
    )
