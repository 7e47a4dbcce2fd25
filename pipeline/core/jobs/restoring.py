"""A board as its last owner left it: made again from the entries of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pipeline.core.jobs import retention
from pipeline.core.jobs.board import QUEUED, RUNNING, SCHEDULED, Board
from pipeline.core.jobs.dedup import Name, window_of
from pipeline.core.jobs.delivering import deliver
from pipeline.core.jobs.entries import Entry, Letter
from pipeline.core.jobs.job import Job, restored
from pipeline.model.errors import CodecError
from pipeline.model.job_states import SUCCEEDED, TERMINAL, JobState
from pipeline.model.job_webhooks import DELIVERY
from pipeline.model.jobs import DedupWindow, JobDuplicate, JobEntry, JobRecord
from pipeline.model.store_keys import dedup_key

_Due = tuple[bool, int, int, int, Job]
"""Has it not begun yet; when it did, when it came due, its number: by these they are sorted."""
SLICE = 200
"""Entries to a step."""


class Restoring:
    """Give it all entries in the order of the store, tombstones included; then `finish` once, or all `steps`, before anything is admitted.

    `kept`: entries by key, where that is known already. `unreadable` is told of those that no queue wrote or a disk spoilt: they stay
    where they are, and the others are jobs all the same. `board.committed` and `board.read_ms` are set by the caller, from what is
    committed.
    """

    def __init__(
        self,
        board: Board,
        kept: dict[bytes, bytes] | None = None,
        unreadable: Callable[[bytes, CodecError], None] | None = None,
    ) -> None:
        self._board = board
        self._entries: dict[bytes, bytes] = {} if kept is None else kept
        self._unreadable = unreadable

    def entries(self, entries: Iterable[tuple[bytes, bytes | None]]) -> None:
        kept = self._entries
        for key, value in entries:
            if value is None:
                kept.pop(key, None)
            else:
                kept[key] = value

    def finish(self, now_ms: int) -> None:
        """All steps at once."""
        for _ in self.steps(now_ms):
            pass

    def steps(self, now_ms: int) -> Iterator[None]:
        """What ran has lost its worker: it runs again, counted as a stall. What came due meanwhile is due, in its order.

        In slices of some milliseconds, or a million jobs would hold up all that their process does.
        """
        board = self._board
        finished: list[tuple[int, Job | JobDuplicate]] = []
        due: list[_Due] = []
        windows: dict[Name, DedupWindow] = {}
        begun: list[tuple[DedupWindow, bool]] = []
        for count, (key, value) in enumerate(self._entries.items(), start=1):
            if not count % SLICE:
                yield
            entry = self._read(key, value)
            if entry is None:
                continue
            if isinstance(entry, JobRecord):
                self._job(entry, value, now_ms, finished, due)
                board.read_ms = max(board.read_ms, _read_ms(entry, board.committed))
                if entry.request.dedup_id is not None:
                    begun.append((window_of(entry.request, entry.request.dedup_id), self._lets_go(entry)))
            elif isinstance(entry, JobDuplicate):
                board.jobs[entry.id] = entry
                finished.append((entry.at_ms, entry))
            elif isinstance(entry, DedupWindow):
                windows[entry.type, entry.dedup_id] = entry
            else:
                board.schedules.keep_or_hold(entry)
        self._entries = {}
        finished.sort(key=lambda each: each[0])
        for at_ms, job in finished:
            good = isinstance(job, JobDuplicate) or job.state in SUCCEEDED
            retention.finished(
                board.kind(job.type if isinstance(job, JobDuplicate) else job.kind.name), job, at_ms, good
            )
        for window in windows.values():
            self._window(window)
        for window, let_go in begun:
            written = windows.get((window.type, window.dedup_id))
            if written is not None or not let_go:
                self._begun(window, written)
        due.sort(key=lambda each: each[:4])
        for count, (waits, _, at_ms, _, job) in enumerate(due, start=1):
            if not count % SLICE:
                yield
            while waits and job.key is not None and board.schedules.due(now_ms, at_ms - 1):
                yield  # ticks of its key that came due before it come before it
            self._due(job, now_ms)
        for _, job in finished:
            if isinstance(job, Job) and job.webhook_due:
                deliver(board, job, now_ms)
        board.restored_to = max(
            (job.offset for *_, job in due if job.key is not None and not job.started_ms), default=0
        )

    def _read(self, key: bytes, value: bytes) -> JobEntry | None:
        try:
            return self._board.ledger.packing.unpack(key, value)
        except CodecError as error:
            if self._unreadable is None:
                raise
            self._unreadable(key, error)
            return None

    def _job(
        self,
        record: JobRecord,
        value: bytes,
        now_ms: int,
        finished: list[tuple[int, Job | JobDuplicate]],
        due: list[_Due],
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
        due.append(
            (not job.started_ms, job.started_ms, job.next_ms if state is SCHEDULED else job.ready_ms, job.number, job)
        )

    def _due(self, job: Job, now_ms: int) -> None:
        """In order: those that have run first, since each holds its key. Of several of a key it is the one that began first: the others
        came behind an ending whose write was lost, and wait until it has that again."""
        board = self._board
        if job.state is RUNNING:
            board.ledger.open(job)
            if job.key is None or board.keys.enter(job.key, job):
                board.run_again(job, now_ms)
            else:
                self._behind(job, now_ms)
        elif job.state is JobState.RETRYING:
            if job.key is None or board.keys.enter(job.key, job):
                board.time(job)
        elif job.state is QUEUED:
            board.ready(job, job.ready_ms, written=True)
        else:
            board.called(job, now_ms)

    def _behind(self, job: Job, now_ms: int) -> None:
        """It was to begin, behind another one of its key, and did not: neither an attempt nor a stall."""
        if job.cancelling:
            self._board.finish(job, JobState.CANCELLED, now_ms)
        else:
            job.started_ms = 0
            self._board.requeue(job)
            self._board.time(job)

    def _window(self, window: DedupWindow) -> None:
        """One whose job ended so that it is released, and the tombstone is missing, is released now."""
        board = self._board
        if self._released(window):
            board.ledger.effects.append(Entry(dedup_key(window.type, window.dedup_id), None))
        else:
            board.dedup.keep(window)

    def _released(self, window: DedupWindow) -> bool:
        job = self._board.jobs.get(window.job_id)
        failed = isinstance(job, Job) and job.state in TERMINAL and job.state not in SUCCEEDED
        return failed and self._board.kind(window.type).policy.release_on_failure

    def _lets_go(self, record: JobRecord) -> bool:
        """It had another round: was its window released before that?"""
        return record.rounds > 0 and self._board.kind(record.request.type).policy.release_on_failure

    def _begun(self, window: DedupWindow, written: DedupWindow | None) -> None:
        """A job without the window that it began: writing that failed, and its owner died before it could again."""
        board = self._board
        known = board.dedup.windows.get((window.type, window.dedup_id), written)
        older = known is not None and known.from_ms >= window.from_ms
        if not older and window.until_ms > board.read_ms and not self._released(window):
            board.dedup.keep(window)
            key = dedup_key(window.type, window.dedup_id)
            board.ledger.effects.append(Entry(key, board.ledger.packing.pack(window)))


def _read_ms(record: JobRecord, committed: int) -> int:
    """A time up to which the inbox is not read again, as this record tells it. Those of which the inbox did not say when they were asked
    for tell none: ticks, deliveries, what was redriven. (Commands give these too an offset.)"""
    request = record.request
    from_inbox = request.schedule is None and request.type != DELIVERY and not record.rounds
    return request.created_ms if from_inbox and 0 <= record.offset < committed else 0
