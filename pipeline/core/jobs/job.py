"""A job on its way through one owner, and what its type has in common with the others of it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING

from pipeline.model.job_policies import JobPolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import NOTHING_YET, JobDuplicate, JobRecord, JobRequest

if TYPE_CHECKING:
    from pipeline.core.jobs.fairness import Share


class Kept:
    """Finished jobs of one sort, oldest first: when they finished, with which version, and the job. `gone`: so many of them had another
    round since."""

    __slots__ = ("entries", "gone")

    def __init__(self) -> None:
        self.entries: deque[tuple[int, int, Finished]] = deque()
        self.gone = 0


class Kind:
    """A job type at work: how many run, which tenants' shares wait until fewer do (by lane), which finished jobs are kept.

    `known`: somebody declared it. `limit`: so many may run on this board, and `queued` of them stand in lanes; `served`: see
    `core.jobs.sharing`. `good`, `bad`, `again` of those that had another round, and `same` of duplicates. `ended`: how many since the
    board was made, by outcome, and how many executions stalled.
    """

    __slots__ = (
        "again",
        "bad",
        "ended",
        "good",
        "known",
        "limit",
        "name",
        "policy",
        "queued",
        "running",
        "same",
        "served",
        "waiting",
    )

    def __init__(self, name: str, policy: JobPolicy, known: bool = True) -> None:
        self.name = name
        self.policy = policy
        self.known = known
        self.limit = policy.concurrency or 1 << 60
        self.running = self.queued = self.served = 0
        self.waiting: tuple[OrderedDict[Share, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self.good = Kept()
        self.bad = Kept()
        self.again = Kept()
        self.same = Kept()
        self.ended: dict[str, int] = defaultdict(int)


class Job:
    """Made once per job, hence slots. What changes is here; what was asked for is `request`, or lies in `packed`, the bytes of its entry.

    `settles`: the offset of its request in the inbox, until its first entry is `written` (-1). `dirty`: what is true of it is not
    written. `gated`: it may not start before its entry is acknowledged. `laned`: it stands in a lane. `timer_ms`: when the timers
    call for it (0: never). `blobs`: its input or its result lies in one. `sweep`: that of the ledger when it was written last.
    `outcome` too is in the packed bytes while there are such.
    """

    __slots__ = (
        "attempt",
        "blobs",
        "cancelling",
        "dirty",
        "expires_ms",
        "finished_ms",
        "gated",
        "id",
        "key",
        "kind",
        "laned",
        "letter_due",
        "next_ms",
        "number",
        "offset",
        "outcome",
        "packed",
        "priority",
        "ready_ms",
        "request",
        "rounds",
        "settles",
        "stalls",
        "started_ms",
        "state",
        "sweep",
        "tenant",
        "timer_ms",
        "version",
        "webhook_due",
        "written",
    )

    packed: bytes | None
    request: JobRequest | None

    def __init__(self, kind: Kind, request: JobRequest, offset: int, number: int) -> None:
        self.kind = kind
        self.request = request
        self.packed = None
        self.id = request.id
        self.key = request.key
        self.tenant = request.tenant
        self.priority = request.priority
        self.expires_ms = request.expires_ms
        self.offset = self.settles = offset
        self.number = number
        self.version = self.attempt = self.stalls = self.rounds = self.sweep = 0
        self.ready_ms = self.next_ms = self.timer_ms = self.started_ms = self.finished_ms = 0
        self.blobs = request.payload_ref is not None
        self.cancelling = self.letter_due = self.webhook_due = False
        self.dirty = self.gated = self.laned = self.written = False
        self.outcome = NOTHING_YET
        self.state = JobState.QUEUED

    @property
    def attempts(self) -> int:
        """Executions in all that it may have. Only while its request is at hand."""
        assert self.request is not None
        return self.request.attempts or self.kind.policy.attempts

    def record(self) -> JobRecord:
        """All that is known of it. Only while its request is at hand."""
        assert self.request is not None
        return JobRecord._make(
            (
                self.request,
                self.state,
                self.version,
                self.number,
                self.attempt,
                self.stalls,
                self.ready_ms,
                self.next_ms,
                self.started_ms,
                self.finished_ms,
                self.offset,
                self.cancelling,
                self.letter_due,
                self.outcome,
                self.webhook_due,
                self.rounds,
            )
        )


def opened(job: Job, record: JobRecord) -> None:
    """It is about to run, or to change: what was packed is at hand again."""
    job.packed = None
    job.request = record.request
    job.outcome = record.outcome


def packed(job: Job, value: bytes) -> None:
    """It waits, or is finished: its entry is all that is kept of the large part of it."""
    job.packed = value
    job.request = None
    job.outcome = NOTHING_YET


def restored(kind: Kind, record: JobRecord, value: bytes) -> Job:
    """The job as its entry has it, packed."""
    job = Job(kind, record.request, record.offset, record.number)
    job.settles, job.written = -1, True
    job.blobs = job.blobs or record.outcome.result_ref is not None
    for name in _SMALL:
        setattr(job, name, getattr(record, name))
    packed(job, value)
    return job


_SMALL = (
    *("state", "version", "attempt", "stalls", "ready_ms", "next_ms", "started_ms", "finished_ms"),
    *("cancelling", "letter_due", "webhook_due", "rounds"),
)

Finished = Job | JobDuplicate
"""What retention is about."""
