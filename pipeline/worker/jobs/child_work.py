"""Jobs of one type in a child process: the same handler and context, and frames instead of a board."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from pipeline.core.jobs.job import Job, Kind
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobOutcome, JobProgress, JobRequest
from pipeline.model.outbox import UNDER_WAY
from pipeline.model.outcome import Failure, Warn
from pipeline.worker.child_frames import Blobs, Head, pack
from pipeline.worker.execution import failure_of
from pipeline.worker.jobs.context import Home, JobContext
from pipeline.worker.jobs.processes import progress_in, said
from pipeline.worker.jobs.telling import TELL_EVERY_S, Said
from pipeline.worker.jobs.values import WARNING_CHARS, dump_of, kept, plain_text, reader_of
from pipeline.worker.logs import logger

if TYPE_CHECKING:
    from pipeline.app import Pipeline


class ChildTeller(Said):
    """What the handler says, to the parent: at most every 500 ms, the last of it before the answer, and nothing after that: it would be
    taken for what the next job says. Threads of the handler may say it, also such as outlive it."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self._channel = channel
        self._last_s = -TELL_EVERY_S
        self._new = self._closed = False
        self._lock = threading.Lock()

    def said(self) -> None:
        with self._lock:
            self._new = True
            if time.monotonic() - self._last_s >= TELL_EVERY_S:
                self._flush()

    def close(self) -> None:
        with self._lock:
            self._flush()
            self._closed = True

    def _flush(self) -> None:
        if self._new and not self._closed:
            self._new, self._last_s = False, time.monotonic()
            self._channel.sendall(pack({"kind": "told", "progress": said(self.now(time.time_ns() // 1_000_000))}))


class JobWork:
    """One type of job, ready to run."""

    def __init__(self, app: Pipeline, name: str, channel: socket.socket) -> None:
        self._type: JobType = app.job_types[name]
        self._channel = channel
        self._read = reader_of(self._type)
        self._dump = dump_of(self._type)
        self._log = logger(app=app.name, pid=os.getpid(), job_type=name)
        self._runner = asyncio.Runner()
        self._home = Home(app.cluster.address, app.settings.prefix, app.enqueue)

    def run(self, head: Head, blobs: Blobs) -> bytes:
        """The frame that answers for this job."""
        teller = ChildTeller(self._channel)
        context = JobContext(_job(head, self._type), head["timeout_ms"], lambda: teller, self._log, self._home)
        UNDER_WAY.set(context)
        outcome = self._outcome(context, head["timeout_ms"], blobs[0] or b"")
        context.ended = True
        teller.close()
        if isinstance(outcome, Failure):
            log = teller.tail.text() if teller.tail is not None else ""
            found = dataclasses.asdict(kept(dataclasses.replace(outcome, log=log)))
            return pack({"kind": "failed", "failure": {**found, "kind": outcome.kind.value}})
        result, warning = outcome
        asked = [record.topic for record in context.asked]
        parts = [part for record in context.asked for part in (record.key, record.value)]
        return pack({"kind": "done", "warning": warning, "asked": asked}, [result, *parts])

    def _outcome(
        self, context: JobContext, timeout_ms: int, payload: bytes
    ) -> Failure | tuple[bytes | None, str | None]:
        given = self._read(payload)
        if isinstance(given, Failure):
            return given
        arguments = (given.value,) if self._type.alone else (given.value, context)
        try:
            returned: Any = self._type.handler(*arguments)
            if self._type.is_async:
                returned = self._runner.run(self._in_time(returned, timeout_ms), context=copy_context())
        except BaseException as error:  # also SystemExit: nobody would answer for the job
            return failure_of(error, self._type.policy.terminal)
        if isinstance(returned, Warn):  # a frame takes nothing but text
            return None, None if returned.reason is None else plain_text(returned.reason, WARNING_CHARS)
        if returned is None:
            return None, None
        result = self._dump(returned)
        return result if isinstance(result, Failure) else (result, None)

    @staticmethod
    async def _in_time(running: Any, timeout_ms: int) -> Any:
        async with asyncio.timeout(timeout_ms / 1000):
            return await running


def _job(head: Head, declared: JobType) -> Job:
    """As much of it as a context shows."""
    request = JobRequest(
        head["id"],
        head["type"],
        key=head["key"],
        tenant=head["tenant"],
        workflow_id=head["workflow_id"],
        tags=tuple(head["tags"]),
        attempts=head["attempts"],
    )
    job = Job(Kind(declared.name, declared.policy), request, 0, 0)
    job.attempt, job.stalls = head["attempt"], head["stalls"]
    progress: JobProgress | None = None if head["progress"] is None else progress_in(head)
    job.outcome = JobOutcome(progress=progress)
    return job
