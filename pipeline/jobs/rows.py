"""A job, and a schedule, as the index of a queue has them: a row of plain values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from pipeline.model.jobs import JobDuplicate, JobRecord, ScheduleRecord
from pipeline.model.store_keys import JOB, SCHEDULE, parts_of

DUPLICATE: Final = "duplicate"
"""The state of an answer that another request of its dedup id came first."""
MESSAGE_CHARACTERS = 300
TAG_MARK = "\x1f"


@dataclass(frozen=True, slots=True)
class JobRow:
    """Times are milliseconds since the epoch, 0 for none. `partition`, `offset`: where its entry is in the store.

    `due_ms`: what was asked for; `ready_ms`: when it came due; `next_ms`: when it is due, or tried again. `attempts` is 0 where the
    type's policy counts. `of`: the job that came first, of a duplicate. `applied`: the last offset of the inbox that changed it.
    """

    id: str
    partition: int
    offset: int
    state: str
    type: str
    version: int
    number: int
    created_ms: int
    due_ms: int = 0
    ready_ms: int = 0
    next_ms: int = 0
    started_ms: int = 0
    finished_ms: int = 0
    expires_ms: int = 0
    attempt: int = 0
    attempts: int = 0
    stalls: int = 0
    priority: int = 0
    applied: int = -1
    cancelling: bool = False
    tenant: str = ""
    key: str | None = None
    dedup_id: str | None = None
    workflow_id: str | None = None
    schedule: str | None = None
    tags: str = ""
    error_class: str | None = None
    error_type: str | None = None
    message: str | None = None
    reason: str | None = None
    warning: str | None = None
    of: str | None = None

    @property
    def tag_list(self) -> tuple[str, ...]:
        return tuple(tag for tag in self.tags.split(TAG_MARK) if tag)


COLUMNS: Final = tuple(field.name for field in fields(JobRow))
TEXTS: Final = frozenset(
    field.name for field in fields(JobRow) if "str" in str(field.type)
)  # the others are whole numbers


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule and where it stands. Times as of a job; `misfire` is skip, once or all."""

    name: str
    partition: int
    cron: str
    zone: str
    misfire: str
    type: str
    key: str | None
    tenant: str
    priority: int
    paused: bool
    next_ms: int
    last_ms: int
    applied: int


def values_of(row: JobRow) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in COLUMNS)


def row_of(record: JobRecord | JobDuplicate, partition: int, offset: int) -> JobRow:
    if isinstance(record, JobDuplicate):
        return JobRow(
            record.id, partition, offset, DUPLICATE, record.type, 0, -1, record.at_ms,
            finished_ms=record.at_ms, applied=record.offset, of=record.of,
        )  # fmt: skip
    request, outcome = record.request, record.outcome
    error = outcome.error
    return JobRow(
        id=request.id,
        partition=partition,
        offset=offset,
        state=record.state.value,
        type=request.type,
        version=record.version,
        number=record.number,
        created_ms=request.created_ms,
        due_ms=request.due_ms,
        ready_ms=record.ready_ms,
        next_ms=record.next_ms,
        started_ms=record.started_ms,
        finished_ms=record.finished_ms,
        expires_ms=request.expires_ms,
        attempt=record.attempt,
        attempts=request.attempts,
        stalls=record.stalls,
        priority=request.priority,
        applied=record.offset,
        cancelling=record.cancelling,
        tenant=request.tenant,
        key=request.key,
        dedup_id=request.dedup_id,
        workflow_id=request.workflow_id,
        schedule=request.schedule,
        tags=TAG_MARK + TAG_MARK.join(request.tags) + TAG_MARK if request.tags else "",
        error_class=None if error is None else error.error_class,
        error_type=None if error is None else error.error_type,
        message=None if error is None else error.message[:MESSAGE_CHARACTERS],
        reason=outcome.reason,
        warning=outcome.warning,
    )


def schedule_row(record: ScheduleRecord, partition: int) -> ScheduleRow:
    schedule, request = record.schedule, record.schedule.request
    return ScheduleRow(
        schedule.name, partition, schedule.cron, schedule.zone, schedule.misfire.value, request.type, request.key,
        request.tenant, request.priority, record.paused, record.next_ms, record.last_ms, record.offset,
    )  # fmt: skip


def kind_of(key: bytes | None) -> tuple[str, str]:
    """Kind of an entry and its name; ("", "") for what no queue wrote, and for what is not indexed."""
    if key is None:
        return "", ""
    kind, name = parts_of(key)
    return (kind, name) if kind in (JOB, SCHEDULE) and name else ("", "")
