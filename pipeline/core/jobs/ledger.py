"""What a board writes: entries in the order in which they must get to the store, and which jobs have none yet.

A job that does not run is kept as the bytes of its entry, so that one that waits for months, or behind a hundred thousand others,
costs little more than those.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import cast

from pipeline.core.jobs.dedup import Dedup
from pipeline.core.jobs.entries import Effect, Entry, Letter, Packing
from pipeline.core.jobs.job import Job, opened, packed
from pipeline.core.jobs.keys import KeyOrder
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRecord
from pipeline.model.store_keys import dedup_key, job_key

RUNNING = JobState.RUNNING
QUEUED_SYNCS, BEGUN_SYNCS = 4, 2
"""A job that waits for its turn, or runs, is written by the call of `sync` with this number after it began to."""


class Ledger:
    """`sweep`: how often all that counts was written again (see `sweeping`)."""

    __slots__ = ("_begun", "_dedup", "_keys", "_queued", "effects", "packing", "sweep")

    def __init__(self, packing: Packing, keys: KeyOrder, dedup: Dedup) -> None:
        self.packing = packing
        self.effects: list[Effect] = []
        self.sweep = 0
        self._keys = keys
        self._dedup = dedup
        self._queued: deque[list[Job]] = deque([] for _ in range(QUEUED_SYNCS))
        self._begun: deque[list[Job]] = deque([] for _ in range(BEGUN_SYNCS))

    def taken(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    def queued(self, job: Job) -> None:
        """It waits for its turn, and that is not written; it will be, unless it is finished by then."""
        job.dirty = True
        self._queued[-1].append(job)

    def begun(self, job: Job) -> None:
        """The same of one that runs: sooner, since it has to be found out when its worker dies with it."""
        job.dirty = True
        self._begun[-1].append(job)

    def sync(self) -> None:
        for jobs in (self._queued, self._begun):
            jobs.append([])
            for job in jobs.popleft():
                if job.dirty:
                    self.write(job)

    def older_first(self, key: str) -> None:
        """The entries of all that came due of this key and have none."""
        for job in self._keys.unwritten(key):
            self.write(job)

    def at_once(self, job: Job) -> None:
        """Its first entry, if it has none, behind those of all that wait for their turn since before: the next owner would take those
        from the inbox when it has this one already, and run them after it."""
        if job.written:
            return
        for older in chain.from_iterable(self._queued):
            if not older.written:
                self.write(older)
            if older is job:
                return

    def write(self, job: Job, gates: bool = True) -> None:
        """Its entry as it is now, behind the dedup window that it began; a dead letter behind it. `gates`: a job that may not start
        before an entry of it is acknowledged waits for this one."""
        if job.request is None:
            self.open(job)
        request = job.request
        assert request is not None
        if not job.written:
            job.written = True
            if request.dedup_id is not None:
                self._window(job, request.type, request.dedup_id)
        record = job.record()
        value = self.packing.pack(record)
        self.effects.append(Entry(job_key(job.id), value, job.settles, job if gates and job.gated else None))
        job.settles = -1
        job.dirty = False
        job.sweep = self.sweep
        if job.state is not RUNNING:
            packed(job, value)
        if job.letter_due:
            self.effects.append(Letter(record))

    def write_again(self, job: Job) -> None:
        """What the store has of it, once more."""
        if job.packed is None:
            self.write(job, gates=False)
            return
        self.effects.append(Entry(job_key(job.id), job.packed, again=True))
        job.sweep = self.sweep

    def _window(self, job: Job, type_name: str, dedup_id: str) -> None:
        window = self._dedup.windows.get((type_name, dedup_id))
        if window is not None and window.job_id == job.id:
            self.effects.append(Entry(dedup_key(type_name, dedup_id), self.packing.pack(window)))

    def open(self, job: Job) -> None:
        """What is packed is at hand again."""
        if job.packed is not None:
            opened(job, cast(JobRecord, self.packing.unpack(job_key(job.id), job.packed)))
