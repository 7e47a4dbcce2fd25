"""A job that was asked for: its state, and its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from pipeline.jobs.following import Answer, Followed, Follower
from pipeline.model.blobs import Blobs
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import BlobError, InvalidJob, JobMissing, JobUnsuccessful, ResultTimeout
from pipeline.model.job_ids import absent
from pipeline.model.job_states import SUCCEEDED, TERMINAL, JobState
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobDuplicate, JobProgress, JobRecord


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as its queue has it now. `attempt` counts executions; times are milliseconds since the epoch, 0 for none.

    `input_ref`, `result_ref`: blobs in which they lie where they are large, and who deletes them (see `model.blobs`).
    """

    id: str
    state: JobState
    attempt: int
    stalls: int
    next_ms: int
    finished_ms: int
    error_class: str = ""
    error: str = ""
    warning: str | None = None
    reason: str | None = None
    progress: JobProgress | None = None
    input_ref: str | None = None
    result_ref: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True, slots=True)
class Reach:
    """How a handle gets to its queue. `off_loop` runs what may wait; `now_ms` is the cluster's time."""

    follower: Follower
    type: JobType | None
    off_loop: Callable[[Callable[[], Any]], Awaitable[Any]]
    now_ms: Callable[[], int]
    blobs: Blobs | None = None


class JobHandle:
    """Follows one job. `id` is that of the request; where another of its dedup id came first, the result is that one's.

    One that was not made by `enqueue` is looked for in the store first, where a short job stands when it has its ending. `sent` says
    of one that a handler asked for whether that handler has ended: before that nobody is asked.
    """

    def __init__(self, reach: Reach, job_id: str, asked: bool = False, sent: Callable[[], bool] | None = None) -> None:
        self._reach = reach
        self._sent = sent
        self._seen_from_the_start = asked
        self._followed: Followed = reach.follower.watch(job_id)
        self._first: Followed | None = None

    @property
    def id(self) -> str:
        return self._followed.job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    async def status(self) -> JobStatus:
        """As it stands in the store. A job that was only just asked for may not be there yet: `JobMissing`."""
        await self._begin()
        record = await self._record_now(self._followed)
        return _status(record)

    async def result(self, timeout: str | float | None = None) -> Any:
        """What its handler returned, when it has. Raises JobUnsuccessful, JobMissing, ResultTimeout, BlobError."""
        await self._begin()
        seconds = None if timeout is None else parse_duration_ms(timeout, "timeout") / 1000
        try:
            async with asyncio.timeout(seconds):
                record = await self._ending()
        except TimeoutError:
            raise ResultTimeout(f"job {self.id} had no ending within {timeout}: it goes on, ask again") from None
        return await self._result(record)

    async def updates(self) -> AsyncIterator[JobStatus]:
        """How it stands, each time when that has changed, ending with its ending. For a follower that is slow, the newest counts.

        What is written of a job is told: progress at most every 500 ms, and of a short job nothing but its ending. Raises JobMissing.
        """
        await self._begin()
        followed, last = self._followed, None
        while True:
            seen = last
            entry = await followed.wait(lambda entry: entry is not seen)  # noqa: B023
            if isinstance(entry, JobDuplicate):
                followed = await self._first_of(entry)
                continue
            last = entry
            yield _status(entry)
            if entry.state in TERMINAL:
                return

    async def duplicate_of(self) -> str | None:
        """The id of the job that came first, when this request was the same as another; waits until the queue has looked at it."""
        await self._begin()
        entry = await self._followed.wait(lambda _entry: True)
        return entry.of if isinstance(entry, JobDuplicate) else None

    async def _begin(self) -> None:
        if self._sent is not None and not self._sent():
            raise InvalidJob(
                f"job {self.id} goes out when the handler that asks for it has succeeded: it has no state and no result before, "
                "so let that handler end, and ask in another job"
            )
        follower = self._reach.follower
        if not follower.begun:
            await self._reach.off_loop(follower.begin)
        follower.follow()
        if not self._seen_from_the_start and self._followed.entry is None:
            found = await self._look_up(self.id)
            if found is None:
                raise self._missing(self.id)
            self._followed.tell(*found)
            self._seen_from_the_start = True

    async def _look_up(self, job_id: str) -> tuple[Answer, int] | None:
        found: tuple[Answer, int] | None = await self._reach.off_loop(lambda: self._reach.follower.look_up(job_id))
        return found

    async def _ending(self) -> JobRecord:
        entry = await self._followed.wait(_has_ending)
        if isinstance(entry, JobRecord):
            return entry
        ended = await (await self._first_of(entry)).wait(_has_ending)
        if isinstance(ended, JobDuplicate):
            raise self._missing(entry.of)
        return ended

    async def _first_of(self, duplicate: JobDuplicate) -> Followed:
        """The job that came first."""
        if self._first is None:
            first = self._reach.follower.watch(duplicate.of)
            if first.entry is None:
                found = await self._look_up(duplicate.of)
                if found is None:
                    raise self._missing(duplicate.of)
                first.tell(*found)
            if isinstance(first.entry, JobDuplicate):
                raise self._missing(duplicate.of)
            self._first = first
        return self._first

    async def _record_now(self, followed: Followed) -> JobRecord:
        found = await self._look_up(followed.job_id)
        if found is None:
            raise self._missing(followed.job_id)
        followed.tell(*found)
        entry, _ = found
        if isinstance(entry, JobDuplicate):
            return await self._record_now(self._reach.follower.watch(entry.of))
        return entry

    async def _stored(self, ref: str) -> bytes:
        blobs = self._reach.blobs
        if blobs is None:
            raise BlobError(
                f"the result of job {self.id} lies in a blob store: set PIPELINE_BLOBS to the one its workers have"
            )
        found: bytes = await self._reach.off_loop(lambda: blobs.get(ref))
        return found

    def _missing(self, job_id: str) -> JobMissing:
        kept_ms = self._reach.type.policy.retention.age_ms if self._reach.type is not None else 0
        expired = absent(job_id, self._reach.now_ms(), kept_ms) == "expired"
        if expired:
            return JobMissing(f"job {job_id} is expired: finished jobs are not kept for so long", expired=True)
        return JobMissing(f"job {job_id} is not known: it is not in the store of its queue")

    async def _result(self, record: JobRecord) -> Any:
        outcome = record.outcome
        if record.state in SUCCEEDED:
            result = outcome.result if outcome.result_ref is None else await self._stored(outcome.result_ref)
            if result is None:
                return None
            gives = self._reach.type.gives if self._reach.type is not None else Any
            return TypeAdapter[Any](gives).validate_json(result)
        job_id, state = record.request.id, record.state.value
        if record.state is JobState.CANCELLED:
            raise JobUnsuccessful(f"job {job_id} was cancelled: {outcome.reason or 'no reason given'}", state)
        error = outcome.error
        text = f"{error.error_type}: {error.message}" if error is not None else "no error is kept"
        raise JobUnsuccessful(
            f"job {job_id} was given up after {record.attempt} attempts: {text}",
            state,
            error.error_class if error is not None else "",
        )


def _has_ending(entry: JobRecord | JobDuplicate) -> bool:
    return isinstance(entry, JobDuplicate) or entry.state in TERMINAL


def _status(record: JobRecord) -> JobStatus:
    error = record.outcome.error
    return JobStatus(
        record.request.id,
        record.state,
        record.attempt,
        record.stalls,
        record.next_ms,
        record.finished_ms,
        error.error_class if error is not None else "",
        error.message if error is not None else "",
        record.outcome.warning,
        record.outcome.reason,
        record.outcome.progress,
        record.request.payload_ref,
        record.outcome.result_ref,
    )
