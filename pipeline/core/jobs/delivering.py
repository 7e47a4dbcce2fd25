"""Endings on their way to webhooks: a job of its own behind each, exactly one however often a crash comes between.

The ending's entry says that its delivery is due; then the delivery is written, then that it is not due any more. An owner that finds
it due makes the delivery again, which is the same job by its id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

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
            board.ledger.write(made)
    job.webhook_due = False
    if not job.letter_due:  # else its entry is written again in any case, when the letter is acknowledged
        board.ledger.write(job)
