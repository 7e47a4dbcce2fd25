"""Endings on their way to webhooks: a job of its own behind each, exactly one however often a crash comes between.

The ending's entry says that its delivery is due; then the delivery is written, and when that is acknowledged, that it is not due any more.
(Sooner, the delivery's write could fail and that one land.) An owner that finds it due makes the delivery again, which is the same job by
its id. It starts when its own entry is acknowledged: so no owner tells of an ending before that is stored, and no delivery is done with,
and forgotten, while its job's entry says that it is due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.core.jobs.entries import DeliveryWritten
from pipeline.core.jobs.job import Job
from pipeline.model.job_webhooks import delivery_of
from pipeline.model.jobs import JobRecord
from pipeline.model.store_keys import job_key

if TYPE_CHECKING:
    from pipeline.core.jobs.board import Board


def deliver(board: Board, job: Job, now_ms: int) -> None:
    """Of a job whose ending is written."""
    assert job.packed is not None
    record = cast(JobRecord, board.ledger.packing.unpack(job_key(job.id), job.packed))
    delivery = delivery_of(record, now_ms)
    if delivery.id not in board.jobs:
        made = board.accept(delivery, -1, now_ms)
        if not made.written:
            board.lanes.remove(made)
            made.gated = True
            board.ledger.write(made)
    board.ledger.effects.append(DeliveryWritten(job.id, job.version))


def written(board: Board, told: DeliveryWritten) -> None:
    job = board.jobs.get(told.job_id)
    if isinstance(job, Job) and job.version == told.version and job.webhook_due:
        job.webhook_due = False
        board.ledger.write(job)
