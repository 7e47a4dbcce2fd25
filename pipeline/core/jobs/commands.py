"""What operators and callers ask of jobs that are there: cancel, one more round, now and not later; and of schedules.

A command counts once, however often it is read from the inbox: each entry says which offset it has come to.
"""

from __future__ import annotations

from typing import cast

from pipeline.core.jobs import retention
from pipeline.core.jobs.board import RUNNING, SCHEDULED, Board
from pipeline.core.jobs.entries import Interrupt, Settle
from pipeline.core.jobs.job import Job
from pipeline.core.jobs.retrying import terminal
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import check_schedule
from pipeline.model.job_states import GIVEN_UP, TERMINAL, TIMED
from pipeline.model.jobs import (
    CancelJob,
    DropSchedule,
    JobCommand,
    JobOutcome,
    JobRecord,
    JobRequest,
    PauseSchedule,
    PutSchedule,
    RetryJob,
    RunJobNow,
    RunScheduleNow,
    ScheduleCommand,
)
from pipeline.model.outcome import Failure
from pipeline.model.store_keys import job_key

NOT_TAKEN = "NotTaken"
"""The error class of an edited request that came back while its job is not given up."""


def apply(board: Board, command: JobCommand, offset: int, now_ms: int) -> bool:
    """Did it change anything? It does not when its job is not there, or is past it, or when it is read a second time."""
    board.call(now_ms)
    if isinstance(command, CancelJob | RetryJob | RunJobNow):
        job = board.jobs.get(command.job_id)
        changed = isinstance(job, Job) and offset > job.offset and _to_job(board, command, job, offset, now_ms)
        board.ledger.effects.append(Settle(offset))
        return changed
    return _to_schedule(board, command, offset, now_ms)


def _to_job(board: Board, command: CancelJob | RetryJob | RunJobNow, job: Job, offset: int, now_ms: int) -> bool:
    if isinstance(command, RetryJob):
        return job.state in GIVEN_UP and another_round(board, job, offset, now_ms)
    if isinstance(command, RunJobNow):
        return job.state in TIMED and _now(board, job, offset, now_ms)
    return job.state not in TERMINAL and _cancel(board, job, command.reason, offset, now_ms)


def _cancel(board: Board, job: Job, reason: str, offset: int, now_ms: int) -> bool:
    job.offset = offset
    if job.state is not RUNNING:
        board.cancel(job, reason, now_ms)
    elif not job.cancelling:
        job.cancelling = True
        job.outcome = job.outcome._replace(reason=reason)
        board.ledger.write(job)
        board.ledger.effects.append(Interrupt(job, job.version))
    return True


def _now(board: Board, job: Job, offset: int, now_ms: int) -> bool:
    board.timers.clear(job)
    board.call_before(job.key, now_ms)
    board.ledger.open(job)
    job.offset = offset
    job.number, board.number = board.number, board.number + 1  # behind what came due before it
    if job.key is not None and job.state is SCHEDULED:
        board.keys.came_due(job.key)
        board.ledger.older_first(job.key)
    board.ready(job, now_ms)
    if job.dirty:
        board.ledger.write(job)
    return True


def another_round(board: Board, old: Job, offset: int, now_ms: int, come: JobRequest | None = None) -> bool:
    """Of a job that was given up, which has come to `offset`. A new job of the same id, in a higher version; what was left over of the
    old one says nothing any more. `come`: what is asked for from now on; None: what was."""
    board.call_before(old.key, now_ms)
    board.ledger.open(old)
    known = cast(JobRequest, old.request)
    request = renewed(known, known if come is None else come)
    job = Job(old.kind, request, offset, board.number)
    board.number += 1
    job.settles = -1
    job.version = old.version + 1
    job.rounds = old.rounds + 1
    job.outcome = JobOutcome(old.outcome.error, old.outcome.history)
    board.jobs[job.id] = job
    retention.another_round(old)
    board.ready(job, now_ms, last=come is not None)
    if job.key is not None:
        board.ledger.older_first(job.key)
    elif job.dirty:
        board.ledger.write(job)
    return True


def renewed(known: JobRequest, come: JobRequest) -> JobRequest:
    """What a new round is asked for: the input and the options that came. Which job it is, where its place is, when it was due and
    which dedup window it began was said when it was first asked for, and stays."""
    return come._replace(
        id=known.id, type=known.type, key=known.key, created_ms=known.created_ms, due_ms=known.due_ms, expires_ms=0,
        dedup_id=known.dedup_id, dedup_window_ms=known.dedup_window_ms, schedule=known.schedule,
    )  # fmt: skip


def redriven(board: Board, request: JobRequest, number: int, now_ms: int) -> Failure | None:
    """A dead letter that was sent back, under a number of its own: one more round of a job that was given up, or that is forgotten. It
    may have been edited: the round is of what came.

    Read twice it is one round, since it is settled behind the round's entry. A job that is not given up goes on; one that was edited
    would be lost there without a word, so it is not taken: gives why, and its number is left to the caller to settle. By when it was to
    start counted the first time: no round expires.
    """
    board.call(now_ms)
    known = board.jobs.get(request.id)
    if known is None:
        if request.dedup_id is None or not board.duplicate(request, number, now_ms):
            board.accept(request._replace(expires_ms=0), number, now_ms, rounds=1)
    elif isinstance(known, Job) and known.state in GIVEN_UP:
        another_round(board, known, known.offset, now_ms, request)
        board.ledger.effects.append(Settle(number))
    elif isinstance(known, Job) and _says_something_else(board, known, request):
        return terminal(NOT_TAKEN, _not_taken(known))
    else:
        board.seen(known, number)
    return None


def _says_something_else(board: Board, job: Job, come: JobRequest) -> bool:
    """Than what the job was asked for. It stays packed if it is."""
    known = job.request
    if known is None:
        known = cast(JobRecord, board.ledger.packing.unpack(job_key(job.id), cast(bytes, job.packed))).request
    return renewed(known, come) != renewed(known, known)


def _not_taken(job: Job) -> str:
    what = f"job {job.id} is {job.state.value}, and was asked for something else than this edited request"
    if job.state in TERMINAL:
        return f"{what}: it has its result; cancel this dead letter, or ask for a new job"
    return f"{what}: redrive this when the job was given up again, or cancel the job first"


def _to_schedule(board: Board, command: ScheduleCommand, offset: int, now_ms: int) -> bool:
    schedules = board.schedules
    name = command.schedule.name if isinstance(command, PutSchedule) else command.name
    known = schedules.by_name.get(name) or schedules.held.get(name)
    changed = offset > (-1 if known is None else known.offset)
    if isinstance(command, PutSchedule):
        changed = changed and _fits(command)
    elif isinstance(command, DropSchedule):
        changed = changed and known is not None
    else:
        changed = changed and name in schedules.by_name
    if not changed:
        board.ledger.effects.append(Settle(offset))
    elif isinstance(command, PutSchedule):
        schedules.put(command.schedule, offset, now_ms)
    elif isinstance(command, PauseSchedule):
        schedules.pause(name, command.paused, offset, now_ms)
    elif isinstance(command, RunScheduleNow):
        schedules.run_now(name, command.at_ms, offset, now_ms)
    else:
        schedules.drop(name, offset)
    return changed


def _fits(command: PutSchedule) -> bool:
    """Whoever asks checks it; what nobody checked changes nothing, and stops nobody."""
    try:
        check_schedule(command.schedule)
    except ConfigurationError:
        return False
    return True
