"""Jobs as values: what was asked for, what became of it, and what a partition's owner keeps of both.

Times are milliseconds since the epoch; 0 stands for "none".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.model.cron import Misfire
from pipeline.model.job_states import JobState
from pipeline.model.outcome import Cancelled, Failure
from pipeline.model.policies import Backoff


class JobRequest(NamedTuple):
    """What somebody asked for: only a redrive of its edited dead letter changes it. (A tuple: one is made for each call and each record.)

    `created_ms` is the time of its record in the inbox.
    `payload` is the encoded input, or `payload_ref` says where it lies. `key`: jobs of one key run one at a time, in order.
    `due_ms`: not before; `expires_ms`: not started by then, never. `attempts`, `backoff`, `timeout_ms` take the place of
    the type's where they are given. `schedule`: the schedule whose tick it is. `webhook`: the name of the one that hears of its ending.
    """

    id: str
    type: str
    payload: bytes = b""
    payload_ref: str | None = None
    created_ms: int = 0
    key: str | None = None
    tenant: str = ""
    workflow_id: str | None = None
    priority: int = 0
    due_ms: int = 0
    expires_ms: int = 0
    attempts: int = 0
    backoff: Backoff | None = None
    timeout_ms: int = 0
    dedup_id: str | None = None
    dedup_window_ms: int = 0
    tags: tuple[str, ...] = ()
    traceparent: str | None = None
    schedule: str | None = None
    webhook: str | None = None

    @property
    def record_key(self) -> bytes:
        """Of its record in the inbox, and of its dead letter, which goes back there: what decides its partition. Jobs of a key are
        together, and requests of one dedup id."""
        return (self.key or self.dedup_id or self.id).encode()


@dataclass(frozen=True, slots=True)
class JobProgress:
    """What a running job says of itself: how far it is, what it is at, and the last lines it logged. `total` is 0 when it does not
    know; `at_ms`: when it said so. What an execution said last is kept when it ends, and is there for the next one."""

    processed: int = 0
    total: int = 0
    note: str = ""
    log: str = ""
    at_ms: int = 0

    @property
    def percentage(self) -> float | None:
        """0 to 100; None when it is not known how much there is."""
        return min(100.0, 100 * self.processed / self.total) if self.total > 0 else None


class JobOutcome(NamedTuple):
    """What came of a job so far. `error`: of the last attempt that failed, `history` of all of them, as `model.history` writes it.

    `warning` is of a job that completed, `reason` of one that was cancelled; `result` is encoded, or `result_ref` says where it lies.
    """

    error: Failure | None = None
    history: bytes = b""
    warning: str | None = None
    reason: str | None = None
    result: bytes | None = None
    result_ref: str | None = None
    progress: JobProgress | None = None


NOTHING_YET = JobOutcome()


class JobRecord(NamedTuple):
    """A job with all that is known of it: what its entry in the store holds. (A tuple, since one is made for each write.)

    `version` grows with each change of its state that others may be late for: an ending for another version changes nothing. `attempt`
    counts executions of this round, `stalls` those that ended with their worker and count apart. `number`: its place among the
    jobs that the partition admitted; `ready_ms`: when it came due. `next_ms`: when it is due, or tried again. `offset`: of its last
    record in the inbox that was applied. `cancelling`: cancelled while it runs; `letter_due`: its dead letter is not acknowledged;
    `webhook_due`: its ending is not yet on its way to its webhook. `rounds`: so many more it was given, by a retry or a redrive.
    """

    request: JobRequest
    state: JobState
    version: int = 0
    number: int = 0
    attempt: int = 0
    stalls: int = 0
    ready_ms: int = 0
    next_ms: int = 0
    started_ms: int = 0
    finished_ms: int = 0
    offset: int = -1
    cancelling: bool = False
    letter_due: bool = False
    outcome: JobOutcome = NOTHING_YET
    webhook_due: bool = False
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class JobDuplicate:
    """The answer to a request that another one of its dedup id came before: its own id, and `of`, the first one's."""

    id: str
    type: str
    of: str
    at_ms: int
    offset: int = -1


@dataclass(frozen=True, slots=True)
class DedupWindow:
    """From `from_ms` until before `until_ms` a request of this type and dedup id is the same as the job `job_id`."""

    type: str
    dedup_id: str
    job_id: str
    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job for each tick of a cron expression. `request` is what each of them asks for, but for its id and times."""

    name: str
    cron: str
    request: JobRequest
    zone: str = "UTC"
    misfire: Misfire = Misfire.ONCE


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule and where it stands. `last_ms`: the last tick that fired; `offset` as of a job."""

    schedule: Schedule
    next_ms: int
    last_ms: int = 0
    paused: bool = False
    offset: int = -1


JobEntry = JobRecord | JobDuplicate | DedupWindow | ScheduleRecord
"""What the store holds."""


class Completed(NamedTuple):
    """An execution that ended well, with a warning worth counting or without."""

    result: bytes | None = None
    warning: str | None = None
    result_ref: str | None = None


STALLED = "Stalled"
"""The error class of a job that was given up since its worker died with it too often."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The process that ran it ended, or hung and was killed; `how` in words."""

    how: str


JobEnding = Completed | Failure | Cancelled | Stalled
"""How an execution ended; `Cancelled`: the handler was stopped, because its job was cancelled or its worker let go of it."""


@dataclass(frozen=True, slots=True)
class CancelJob:
    job_id: str
    reason: str = "cancelled"


@dataclass(frozen=True, slots=True)
class RetryJob:
    """One more round for a job that was given up."""

    job_id: str


@dataclass(frozen=True, slots=True)
class RunJobNow:
    """A job that waits for its time does not."""

    job_id: str


@dataclass(frozen=True, slots=True)
class PutSchedule:
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class DropSchedule:
    name: str


@dataclass(frozen=True, slots=True)
class PauseSchedule:
    """`paused=False`: it goes on with the next tick; those of the pause are not missed ones."""

    name: str
    paused: bool = True


@dataclass(frozen=True, slots=True)
class RunScheduleNow:
    """One job beside the ticks. `at_ms`: when it was asked for."""

    name: str
    at_ms: int


ScheduleCommand = PutSchedule | DropSchedule | PauseSchedule | RunScheduleNow
JobCommand = CancelJob | RetryJob | RunJobNow | ScheduleCommand
