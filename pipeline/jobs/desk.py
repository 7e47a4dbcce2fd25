"""One queue at hand, for those who operate it: look at its jobs and schedules, and ask its workers to do something about them.

What is asked for is a command in the queue's inbox: it returns when the brokers have it, and a worker applies it in its turn. What
can be told before is told here: a job that is not there, a state that does not fit, an expression that is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pipeline.codec import AvroCodec
from pipeline.codec.jobs import InboxCodec, prepare_queue
from pipeline.jobs.client import JobClient
from pipeline.jobs.explaining import JobExplanation, explain
from pipeline.jobs.finding import JobPage, WantedJobs
from pipeline.jobs.health import QueueHealth, health_of
from pipeline.jobs.monitor import QueueStats
from pipeline.jobs.reading import QueueReader
from pipeline.jobs.rows import DUPLICATE, JobRow, ScheduleRow
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import JobMissing, JobStateError, ScheduleMissing
from pipeline.model.job_ids import absent, made_ms
from pipeline.model.job_policies import RetentionPolicy, check_schedule, check_written
from pipeline.model.job_states import GIVEN_UP, TERMINAL, TIMED, JobState
from pipeline.model.jobs import (
    CancelJob,
    DropSchedule,
    JobCommand,
    JobDuplicate,
    JobEntry,
    JobRecord,
    PauseSchedule,
    PutSchedule,
    RetryJob,
    RunJobNow,
    RunScheduleNow,
    Schedule,
)
from pipeline.model.partitioner import partition_of

T = TypeVar("T")
FRESH_MS = 3_600_000
"""A job that was asked for so recently may have no entry: it is short, or no worker has come to it."""


@dataclass(frozen=True, slots=True)
class DeskParts:
    """What the composition root hands in. `kept_ms`: for how long finished jobs are kept at most; `now_ms` as of `ClientParts`."""

    reader: QueueReader
    codec: AvroCodec
    client: JobClient
    now_ms: Callable[[], int]
    control_topic: str
    kept_ms: int = RetentionPolicy().age_ms


class QueueDesk:
    """Close it (`app.stop` does)."""

    def __init__(self, parts: DeskParts) -> None:
        self.topics = parts.reader.topics
        self._parts = parts
        self.reader = parts.reader
        self._inbox = InboxCodec(parts.codec, self.topics.inbox)
        self._prepared = False
        self._partitions = 0
        self._put: dict[str, int] = {}

    def unpack(self, key: bytes, value: bytes) -> JobEntry:
        """An entry of the store. May wait. Raises CodecError."""
        return self.reader.unpack(key, value)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, work)

    async def _fresh(self, work: Callable[[], T]) -> T:
        def refreshed() -> T:
            self.reader.refresh()
            return work()

        return await self._off_loop(refreshed)

    # -- looking

    async def jobs(self, wanted: WantedJobs | None = None, *, limit: int = 50, after: str = "") -> JobPage:
        """A page, newest first; `JobPage.cursor` is `after` of the next. Raises ConfigurationError."""
        return await self._fresh(partial(self.reader.page, wanted or WantedJobs(), limit, after))

    async def job(self, job_id: str) -> JobRecord | JobDuplicate:
        """All that is known of it, with its input and its result as they are encoded. Raises JobMissing."""
        found = await self._fresh(partial(self.reader.record, job_id))
        if found is None:
            raise self.missing(job_id)
        return found

    async def why(self, job_id: str) -> JobExplanation:
        """Where it is, what it waits for, which worker would run it."""
        topic = self._parts.control_topic
        return await self._fresh(lambda: explain(self.reader, job_id, topic, self._parts.now_ms()))

    async def stats(self, last: str | float = "5m") -> QueueStats:
        """Counts, rates and ages, by type. `last`: what rates and latencies are about, 1m to 60m."""
        span_ms = parse_duration_ms(last, "last")
        return await self._fresh(lambda: self.reader.stats(self._parts.now_ms(), span_ms))

    async def schedules(self) -> list[ScheduleRow]:
        """By name, with the next and the last tick of each."""
        return await self._fresh(self.reader.schedules)

    async def health_check(self, timeout: str | float = "10s") -> QueueHealth:
        """Of the connection and the queue. Never raises for what is wrong with them: it says so."""
        timeout_s = parse_duration_ms(timeout, "timeout") / 1000
        reader = self.reader
        return await self._off_loop(lambda: health_of(reader.cluster, self.topics, self._parts.now_ms(), timeout_s))

    # -- jobs

    async def retry(self, job_id: str) -> JobRow:
        """One more round for a job that was given up or cancelled; handles wait for its end. Gives the job as it was; a dead letter of it
        stays as it is. Raises JobMissing, JobStateError, PublishError."""
        row = await self._found(job_id)
        _check(row, GIVEN_UP, "only a job that was given up or cancelled can be retried")
        await self._command(RetryJob(job_id), row.partition)
        self._parts.client.again(self.topics.inbox, job_id, row.version)
        return row

    async def run_now(self, job_id: str) -> None:
        """A job that waits for its time, or for its retry, does not. Raises JobMissing, JobStateError, PublishError."""
        row = await self._found(job_id)
        _check(row, TIMED, "only one that is scheduled or waits for its retry can be run now")
        await self._command(RunJobNow(job_id), row.partition)

    async def cancel(self, job_id: str, reason: str = "cancelled", key: str | None = None) -> None:
        """`key`: the key, else the dedup_id, that it was asked for with: finds a job that has no entry yet.

        Raises JobMissing, JobStateError, PublishError.
        """
        check_written("reason", reason)
        row = await self._fresh(partial(self.reader.job, job_id))
        if row is not None:
            _check(row, frozenset(JobState) - TERMINAL, "it has had its ending")
            return await self._command(CancelJob(job_id, reason), row.partition)
        at_ms = made_ms(job_id)
        if key is None and (at_ms is None or self._parts.now_ms() - at_ms > FRESH_MS):
            raise self.missing(job_id)
        return await self._command(
            CancelJob(job_id, reason), await self._partition_of(check_written("key", key or job_id))
        )

    async def _found(self, job_id: str) -> JobRow:
        row = await self._fresh(partial(self.reader.job, job_id))
        if row is None:
            raise self.missing(job_id)
        return row

    def missing(self, job_id: str) -> JobMissing:
        """What there is to say of an id that the store has no job of."""
        if absent(job_id, self._parts.now_ms(), self._parts.kept_ms) == "expired":
            return JobMissing(f"job {job_id} is expired: finished jobs are not kept for so long", expired=True)
        return JobMissing(
            f"job {job_id} is not in the store of queue {self.topics.name!r}: check id and queue; one that was only just asked "
            "for has no entry until it ends or a second has passed"
        )

    # -- schedules

    async def put_schedule(self, schedule: Schedule) -> None:
        """New, or changed; the same again changes nothing. Raises ConfigurationError naming what is wrong with it."""
        check_schedule(schedule)
        home = await self._partition_of(schedule.request.key or schedule.name)
        for partition in range(self._partitions):
            if partition != home:  # where it was before its key was changed
                await self._command(DropSchedule(schedule.name), partition)
        await self._command(PutSchedule(schedule), home)
        self._put[schedule.name] = home

    async def pause_schedule(self, name: str) -> None:
        """It does not tick until it is resumed; what would have ticked meanwhile is not missed. Raises ScheduleMissing."""
        await self._to_schedule(name, PauseSchedule(name))

    async def resume_schedule(self, name: str) -> None:
        """It goes on with its next tick. Raises ScheduleMissing."""
        await self._to_schedule(name, PauseSchedule(name, paused=False))

    async def remove_schedule(self, name: str) -> None:
        """Its ticks that are jobs already stay. Raises ScheduleMissing."""
        await self._to_schedule(name, DropSchedule(name))
        self._put.pop(name, None)

    async def run_schedule_now(self, name: str) -> None:
        """One job beside its ticks, also while it is paused. Raises ScheduleMissing."""
        await self._to_schedule(name, RunScheduleNow(name, self._parts.now_ms()))

    async def _to_schedule(self, name: str, command: JobCommand) -> None:
        rows = await self._fresh(partial(self.reader.schedules, name))
        partitions = {row.partition for row in rows}
        if name in self._put:
            partitions.add(self._put[name])  # which may not be in the store yet
        if not partitions:
            raise ScheduleMissing(
                f"queue {self.topics.name!r} has no schedule {name!r}: `pipeline schedules list` shows those that there are"
            )
        for partition in sorted(partitions):
            await self._command(command, partition)

    # -- commands

    async def _partition_of(self, key: str) -> int:
        await self._prepare()
        return partition_of(key.encode(), self._partitions)

    async def _prepare(self) -> None:
        if not self._prepared:
            await self._off_loop(self._look_up)
            self._prepared = True

    def _look_up(self) -> None:
        self._partitions = len(self.topics.places(self.reader.cluster))
        prepare_queue(self._parts.codec, self.topics.inbox, self.topics.state)

    async def _command(self, command: JobCommand, partition: int) -> None:
        await self._prepare()
        name = command.schedule.name if isinstance(command, PutSchedule) else getattr(command, "name", "")
        key = name or getattr(command, "job_id", "")
        await self._parts.client.write(self.topics.inbox, [(key.encode(), self._inbox.command(command))], partition)

    def close(self) -> None:
        self.reader.close()


def _check(row: JobRow, states: frozenset[JobState], text: str) -> None:
    if row.state == DUPLICATE:
        raise JobStateError(f"job {row.id} is the same as job {row.of}, which came first: ask for that one", row.state)
    if row.state not in {state.value for state in states}:
        raise JobStateError(f"job {row.id} is {row.state}: {text}", row.state)
