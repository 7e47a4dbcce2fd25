"""Jobs of one type in child processes: killed at their deadline, bounded in memory and processors, and dead without their worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobProgress
from pipeline.model.outcome import Failure, FailureKind
from pipeline.worker.child_frames import Head, pack
from pipeline.worker.child_jobs import Answer, ChildSpec, Death
from pipeline.worker.child_jobs import Job as ChildJob
from pipeline.worker.children import Children
from pipeline.worker.jobs.runs import Run
from pipeline.worker.sending import OutRecord

UNLOADABLE = "ProcessUnloadable"
UNREADY_LOOK_S = 1.0


def with_places(types: Mapping[str, JobType]) -> dict[str, JobType]:
    """The same types; of those in processes no more run at once than there are processes for."""
    return {
        name: replace(declared, policy=replace(declared.policy, concurrency=places(declared)))
        if declared.policy.executor == "process"
        else declared
        for name, declared in types.items()
    }


def places(declared: JobType) -> int:
    """Processes of a type at once: as many as it may run, and as its share of the processors is there for."""
    processors = os.cpu_count() or 1
    most = declared.policy.concurrency or processors
    return declared.policy.resources.at_once(most, processors)


class JobProcesses:
    """Of one type. `target` is how a child finds the application."""

    def __init__(self, declared: JobType, target: str, group: str, loop: asyncio.AbstractEventLoop, log: Any) -> None:
        policy = declared.policy
        resources = policy.resources
        spec = ChildSpec(
            target,
            group,
            policy.timeout_ms,
            declared.is_async,
            resources.memory_bytes,
            declared.name,
            resources.processors,
        )
        self._loop = loop
        self._children = Children(spec, places(declared), loop, log, lambda: None)

    async def call(self, run: Run, payload: bytes, told: Callable[[JobProgress], None]) -> Answer | Death | Failure:
        """What became of it. Cancelled, the child is killed."""
        if self._children.unloadable is not None:
            return Failure(FailureKind.RETRYABLE, UNLOADABLE, UNLOADABLE, self._children.unloadable)
        ended: asyncio.Future[Answer | Death | Failure] = self._loop.create_future()

        def hear(how: Answer | Death) -> None:
            if not ended.done():
                ended.set_result(how)

        frame = pack(head_of(run.job, run.timeout_ms), [payload])
        job = ChildJob(run.host.unit, frame, hear, 0.0, run.timeout_ms, lambda head: told(progress_in(head)))
        self._children.submit(job)
        waiting = self._loop.create_task(self._while_it_waits(job, run.timeout_ms / 1000, ended))
        try:
            return await ended
        except asyncio.CancelledError:
            self._children.withdraw(job)
            raise
        finally:
            waiting.cancel()

    async def _while_it_waits(
        self, job: ChildJob, seconds: float, ended: asyncio.Future[Answer | Death | Failure]
    ) -> None:
        """Its deadline is the child's, from when it begins. When children end before they are ready, none may ever."""
        await asyncio.sleep(seconds)
        while self._children.waits(job):
            if self._children.hopeless and not ended.done():
                self._children.withdraw(job)
                text = f"no child process was ready within {seconds:g} s: they end before that, see this worker's log"
                ended.set_result(Failure(FailureKind.RETRYABLE, UNLOADABLE, UNLOADABLE, text))
                return
            await asyncio.sleep(UNREADY_LOOK_S)

    def abandon(self) -> None:
        self._children.abandon()


def head_of(job: Job, timeout_ms: int) -> Head:
    """What a child is told of a job, beside its input."""
    request, progress = job.request, job.outcome.progress
    assert request is not None
    return {
        "id": request.id,
        "type": request.type,
        "key": request.key,
        "tenant": request.tenant,
        "workflow_id": request.workflow_id,
        "tags": list(request.tags),
        "attempts": job.attempts,
        "attempt": job.attempt,
        "stalls": job.stalls,
        "timeout_ms": timeout_ms,
        "progress": None if progress is None else said(progress),
    }


def said(progress: JobProgress) -> dict[str, Any]:
    return {part: getattr(progress, part) for part in progress.__slots__}


def asked_in(answer: Answer) -> list[OutRecord]:
    """Records of jobs that it asked for."""
    parts = iter(answer.blobs[1:])
    return [OutRecord(topic, next(parts), next(parts), []) for topic in answer.head["asked"]]


def progress_in(head: Head) -> JobProgress:
    return JobProgress(**head["progress"])
