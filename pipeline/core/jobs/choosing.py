"""Jobs that were chosen and have not started: after a crash one starts only when an entry that says so is acknowledged, so that a job
that ends its worker is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.jobs.job import Job
from pipeline.model.job_states import JobState

if TYPE_CHECKING:
    from pipeline.core.jobs.board import Board

EXPIRED = "expired"


class Chosen:
    """Those of one board; they have their places. `confirmed`: acknowledged, they wait for a call of `Board.take`."""

    __slots__ = ("_before_ms", "_board", "confirmed")

    def __init__(self, board: Board) -> None:
        self._board = board
        self._before_ms: dict[Job, int] = {}  # when each had started before (0: never)
        self.confirmed: list[Job] = []

    def __len__(self) -> int:
        return len(self._before_ms)

    def add(self, job: Job, started_before_ms: int) -> None:
        """Its entry says that it runs."""
        job.gated = True
        self._before_ms[job] = started_before_ms
        self._board.ledger.write(job)

    def started(self, room: int, now_ms: int) -> list[Job]:
        """Of the confirmed ones, those that start now."""
        started = []
        for job in self.confirmed[:room]:
            if not self._called_off(job, self._before_ms.pop(job), now_ms):
                job.started_ms = now_ms
                started.append(job)
        del self.confirmed[:room]
        return started

    def _called_off(self, job: Job, started_before_ms: int, now_ms: int) -> bool:
        """It is chosen no more. Was it cancelled, or has it expired, meanwhile? Then it has its ending."""
        job.started_ms = started_before_ms
        expired = bool(job.expires_ms) and job.expires_ms <= now_ms and not started_before_ms
        if not job.cancelling and not expired:
            return False
        job.kind.running -= 1
        self._board.finish(job, JobState.CANCELLED, now_ms, EXPIRED if expired else None)
        return True

    def give_back(self, now_ms: int) -> None:
        """Nothing is taken any more. They never ran: they wait for their turn as before, and that is written, or the next owner would
        count a stall for each."""
        before, self._before_ms, self.confirmed = self._before_ms, {}, []
        for job, before_ms in before.items():
            if not self._called_off(job, before_ms, now_ms):
                job.kind.running -= 1
                job.gated = False
                self._board.again(job)
                self._board.time(job)
