"""A job that was asked for: its state, and its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from pipeline.jobs.endings import result_of
from pipeline.jobs.followed import NOWHERE, Answer, Followed
from pipeline.jobs.following import Ends, Found
from pipeline.model.blobs import Blobs
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import InvalidJob, JobMissing, ResultTimeout, UndecodableError
from pipeline.model.job_ids import absent, made_ms
from pipeline.model.job_policies import check_written
from pipeline.model.job_states import TERMINAL, JobState
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobDuplicate, JobProgress, JobRecord
from pipeline.model.validation import first_fault

LOOK_AGAIN_S = 0.1
"""And twice as long each time."""


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


class Following(Protocol):
    """What a handle follows: `following.Follower`, or a queue in memory. `look_up` may wait.

    `settling_ms`: so long may a job that was asked for not be found yet.
    """

    settling_ms: int
    since: Ends

    def watch(self, job_id: str) -> Followed: ...

    def partition_of(self, record_key: bytes) -> int: ...

    def follow(self, followed: Followed, partition: int, since: Ends) -> None: ...

    def look_up(self, job_id: str, partition: int | None = None) -> Found: ...


@dataclass(frozen=True, slots=True)
class Reach:
    """How a handle gets to its queue. `off_loop` runs what may wait; `now_ms` as of `ClientParts`."""

    follower: Following
    type: JobType | None
    off_loop: Callable[[Callable[[], Any]], Awaitable[Any]]
    now_ms: Callable[[], int]
    blobs: Blobs | None = None


class JobHandle:
    """Follows one job. `id` is that of the request; where another of its dedup id came first, the result is that one's.

    `record_key`: of its request, which says where its entries are. Without one it is looked for in the store first. `sent` says of
    one that a handler asked for whether that handler has ended: before that nobody is asked.
    """

    __slots__ = ("_absent", "_first", "_followed", "_reach", "_record_key", "_sent", "_since")

    def __init__(
        self, reach: Reach, job_id: str, record_key: bytes | None = None, sent: Callable[[], bool] | None = None
    ) -> None:
        self._reach = reach
        self._record_key = record_key
        self._sent = sent
        self._since = reach.follower.since
        self._followed: Followed = reach.follower.watch(check_written("job_id", job_id))
        self._first: Followed | None = None
        self._absent: str | None = None

    @property
    def id(self) -> str:
        return self._followed.job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    async def status(self) -> JobStatus:
        """As it stands in the store. A job that was only just asked for may not be there yet: `JobMissing`."""
        await self._begin(wait=False)
        record = await self._record_now(self._followed)
        return _status(record)

    async def result(self, timeout: str | float | None = None) -> Any:
        """What its handler returned, when it has. Raises JobUnsuccessful, JobMissing, ResultTimeout, BlobError, UndecodableError when
        it does not fit what the caller declares, and PipelineError when the application was stopped meanwhile."""
        seconds = None if timeout is None else parse_duration_ms(timeout, "timeout") / 1000
        try:
            async with asyncio.timeout(seconds):
                await self._begin()
                record = await self._ending()
        except TimeoutError:
            if self._absent is not None:
                raise self._missing(self._absent) from None
            if (
                self._followed.entry is None
            ):  # it waits, or has only just begun; or its entries were compacted away before we looked
                so_far = f"job {self.id} had no ending within {timeout}, and nothing was heard of it"
                raise ResultTimeout(
                    f"{so_far}: it goes on, ask again, unless it is forgotten (`status()` looks)"
                ) from None
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

    async def _begin(self, wait: bool = True) -> None:
        if self._sent is not None and not self._sent():
            raise InvalidJob(
                f"job {self.id} goes out when the handler that asks for it has succeeded: it has no state and no result before, "
                "so let that handler end, and ask in another job"
            )
        follower, followed = self._reach.follower, self._followed
        if self._record_key is not None:
            follower.follow(followed, follower.partition_of(self._record_key), self._since)
        elif followed.entry is None or followed.partition == NOWHERE:
            await (self._find_soon(followed) if wait else self._find(followed))

    async def _find_soon(self, followed: Followed) -> None:
        """It may have been asked for a moment ago, and is not unknown for not being in the store yet."""
        clock, pause_s = asyncio.get_running_loop().time, LOOK_AGAIN_S
        until_s = clock() + self._reach.follower.settling_ms / 1000
        while True:
            try:
                await self._find(followed)
                self._absent = None
                return
            except JobMissing as missing:
                self._absent = followed.job_id
                if missing.expired or made_ms(followed.job_id) is None or clock() >= until_s:
                    raise
            await asyncio.sleep(min(pause_s, max(0.0, until_s - clock())))
            pause_s *= 2

    async def _find(self, followed: Followed) -> Answer:
        """In the store as it is; what comes later is followed."""
        follower = self._reach.follower
        known = None if followed.partition == NOWHERE else followed.partition
        found: Found = await self._reach.off_loop(lambda: follower.look_up(followed.job_id, known))
        if found.entry is None or found.partition is None:
            raise self._missing(followed.job_id)
        follower.follow(followed, found.partition, found.ends)
        followed.tell(found.entry, found.epoch)
        return found.entry

    async def _ending(self) -> JobRecord:
        entry = await self._followed.wait(_has_ending)
        if isinstance(entry, JobRecord):
            return entry
        ended = await (await self._first_of(entry)).wait(_has_ending)
        if isinstance(ended, JobDuplicate):
            raise self._missing(entry.of)
        return ended

    async def _first_of(self, duplicate: JobDuplicate) -> Followed:
        """The job that came first. What points to it may be in the store before it is: a write that failed is repeated."""
        if self._first is None:
            first = self._reach.follower.watch(duplicate.of)
            first.partition = self._followed.partition
            if first.entry is None:
                await self._find_soon(first)
            if isinstance(first.entry, JobDuplicate):
                raise self._missing(duplicate.of)
            self._first = first
        return self._first

    async def _record_now(self, followed: Followed) -> JobRecord:
        entry = await self._find(followed)
        if isinstance(entry, JobDuplicate):
            first = self._reach.follower.watch(entry.of)
            first.partition = followed.partition
            return await self._record_now(first)
        return entry

    def _missing(self, job_id: str) -> JobMissing:
        kept_ms = self._reach.type.policy.retention.age_ms if self._reach.type is not None else 0
        expired = absent(job_id, self._reach.now_ms(), kept_ms) == "expired"
        if expired:
            return JobMissing(f"job {job_id} is expired: finished jobs are not kept for so long", expired=True)
        return JobMissing(f"job {job_id} is not known: it is not in the store of its queue")

    async def _result(self, record: JobRecord) -> Any:
        blobs = self._reach.blobs
        result = (
            result_of(record, blobs)
            if record.outcome.result_ref is None
            else await self._reach.off_loop(lambda: result_of(record, blobs))
        )
        if result is None:
            return None
        declared = self._reach.type
        try:
            return TypeAdapter[Any](declared.gives if declared is not None else Any).validate_json(result)
        except ValidationError as error:
            where, what = first_fault(error)
            raise UndecodableError(
                f"the result of job {record.request.id} does not fit what {record.request.type} declares here: "
                f"{where or 'it'}: {what}: declare what its worker declares"
            ) from None


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
