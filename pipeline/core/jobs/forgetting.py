"""Finished jobs that are kept no longer, and the blobs that go with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from pipeline.core.jobs import retention
from pipeline.core.jobs.entries import DropBlobs, Entry
from pipeline.core.jobs.job import Job
from pipeline.model.blobs import is_queues
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRecord
from pipeline.model.store_keys import job_key

if TYPE_CHECKING:
    from pipeline.core.jobs.board import Board


def forget(board: Board, now_ms: int) -> None:
    effects, packing = board.ledger.effects, board.ledger.packing
    for kind in board.kinds.values():
        for job in retention.forgotten(kind, now_ms, board.committed):
            if board.jobs.get(job.id) is not job:
                continue
            del board.jobs[job.id]
            key = job_key(job.id)
            effects.append(Entry(key, None))
            if isinstance(job, Job) and job.blobs and job.packed is not None:
                effects.extend(dropped(_refs(cast(JobRecord, packing.unpack(key, job.packed)))))


def _refs(record: JobRecord) -> tuple[str | None, str | None]:
    """The blobs that nobody needs once the job is forgotten. A dead letter still refers to its input: that stays, for a redrive."""
    given = None if record.state is JobState.DEAD_LETTER else record.request.payload_ref
    return given, record.outcome.result_ref


def dropped(refs: Iterable[str | None]) -> list[DropBlobs]:
    """What deletes those of them that the queue deletes."""
    found = tuple(ref for ref in refs if ref is not None and is_queues(ref))
    return [DropBlobs(found)] if found else []
