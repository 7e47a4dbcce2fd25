"""A board as its last owner left it: made again from the entries of the store."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.core.jobs import retention
from pipeline.core.jobs.board import QUEUED, RUNNING, SCHEDULED, Board
from pipeline.core.jobs.delivering import deliver
from pipeline.core.jobs.entries import Entry, Letter
from pipeline.core.jobs.job import Job, restored
from pipeline.model.job_states import SUCCEEDED, TERMINAL, JobState
from pipeline.model.jobs import DedupWindow, JobDuplicate, JobEntry, JobRecord
from pipeline.model.store_keys import dedup_key


class Restoring:
    """Give it all entries in the order of the store, tombstones included; then `finish` once, before anything is admitted.

    `board.committed` and `board.read_ms` are set by the caller, from what is committed.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._entries: dict[bytes, bytes] = {}

    def entries(self, entries: Iterable[tuple[bytes, bytes | None]]) -> None:
        kept = self._entries
        for key, value in entries:
            if value is None:
                kept.pop(key, None)
            else:
                kept[key] = value

    def finish(self, now_ms: int) -> None:
        """What ran has lost its worker: it runs again, counted as a stall. What came due meanwhile is due, in its order."""
        board = self._board
        finished: list[tuple[int, Job | JobDuplicate]] = []
        due: list[tuple[bool, int, int, Job]] = []
        windows: list[DedupWindow] = []
        for key, value in self._entries.items():
            entry: JobEntry = board.ledger.packing.unpack(key, value)
            if isinstance(entry, JobRecord):
                self._job(entry, value, now_ms, finished, due)
            elif isinstance(entry, JobDuplicate):
                board.jobs[entry.id] = entry
                finished.append((entry.at_ms, entry))
            elif isinstance(entry, DedupWindow):
                windows.append(entry)
            else:
                board.schedules.keep_or_hold(entry)
        self._entries = {}
        finished.sort(key=lambda each: each[0])
        for at_ms, job in finished:
            good = isinstance(job, JobDuplicate) or job.state in SUCCEEDED
            retention.finished(
                board.kind(job.type if isinstance(job, JobDuplicate) else job.kind.name), job, at_ms, good
            )
        for window in windows:
            self._window(window)
        due.sort(key=lambda each: each[:3])
        for _, _, _, job in due:
            self._due(job, now_ms)
        for _, job in finished:
            if isinstance(job, Job) and job.webhook_due:
                deliver(board, job, now_ms)

    def _job(
        self,
        record: JobRecord,
        value: bytes,
        now_ms: int,
        finished: list[tuple[int, Job | JobDuplicate]],
        due: list[tuple[bool, int, int, Job]],
    ) -> None:
        board = self._board
        job = board.jobs[record.request.id] = restored(board.kind(record.request.type), record, value)
        board.number = max(board.number, job.number + 1)
        state = job.state
        if state in TERMINAL:
            finished.append((job.finished_ms, job))
            if job.letter_due:
                board.ledger.effects.append(Letter(record))
            return
        if state is SCHEDULED:
            if job.key is not None:
                board.keys.scheduled(job.key)
            if job.next_ms > now_ms:
                board.time(job)
                return
        due.append((not job.started_ms, job.next_ms if state is SCHEDULED else job.ready_ms, job.number, job))

    def _due(self, job: Job, now_ms: int) -> None:
        """In order: those that have run first, since each is the one that holds its key."""
        board = self._board
        if job.state is RUNNING:
            if job.key is not None:
                board.keys.enter(job.key, job)
            board.ledger.open(job)
            board.run_again(job, now_ms)
        elif job.state is JobState.RETRYING:
            if job.key is not None:
                board.keys.enter(job.key, job)
            board.time(job)
        elif job.state is QUEUED:
            board.ready(job, job.ready_ms, written=True)
        else:
            board.called(job, now_ms)

    def _window(self, window: DedupWindow) -> None:
        """One whose job ended so that it is released, and the tombstone is missing, is released now."""
        board = self._board
        job = board.jobs.get(window.job_id)
        lost = isinstance(job, Job) and job.state in TERMINAL and job.state not in SUCCEEDED
        if lost and board.kind(window.type).policy.release_on_failure:
            board.ledger.effects.append(Entry(dedup_key(window.type, window.dedup_id), None))
        else:
            board.dedup.keep(window)
