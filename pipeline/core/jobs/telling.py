"""What a running job says of itself: kept with it, for who follows it and for the execution after a crash."""

from __future__ import annotations

from pipeline.core.jobs.board import RUNNING, Board
from pipeline.core.jobs.job import Job
from pipeline.model.jobs import JobProgress


def told(board: Board, job: Job, version: int, progress: JobProgress, write: bool) -> bool:
    """Did it count? Not what comes late: the job has ended, or runs again. `write`: now, else with what is written next of it."""
    if job.version != version or job.state is not RUNNING:
        return False
    job.outcome = job.outcome._replace(progress=progress)
    if write:
        board.ledger.write(job)
    elif not job.dirty:
        board.ledger.begun(job)
    return True
