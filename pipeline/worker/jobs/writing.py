"""Entries of one partition's store, and dead letters of its jobs, on their way to the brokers, in the order that the board gave them.

What survives a crash must be a beginning of them. So when a write fails nothing more goes out until all that is under way was
answered; then everything from the failed one on is written again. What was written in between stands twice: dead letters name their
job, and of a job only the newest entry is written again, also in the place of an older one. (Else one that has its ending would
seem to run for a while, and run once more if its owner died just then.) One that is forgotten by then has its ending written before
its tombstone: whoever waits for it would hear that it is missing.

A schedule's entry goes out when all before it are acknowledged: written behind a tick's job whose own write fails, it would lose
that tick if its owner died just then. Those of several schedules that follow each other go out together: there is no job between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.core.jobs.entries import DeliveryWritten, DropBlobs, Entry, Letter, Settle
from pipeline.model.cluster import Acknowledgements, Headers, OutRecord
from pipeline.model.errors import BufferFull, ClusterError
from pipeline.model.store_keys import job_key, schedule_key
from pipeline.worker.sending import RESEND_MS

Behind = Settle | DropBlobs | DeliveryWritten
"""What is not sent: it is done when all before it is."""
Written = Entry | Letter | Behind
JOBS, SCHEDULES = job_key(""), schedule_key("")
ENTRY, LETTER, SCHEDULE = range(3)


class Outlet(Protocol):
    """What of a `RecordProducer` is needed here."""

    def send_many(
        self, topic: str, partition: int, records: Sequence[OutRecord], acknowledgements: Acknowledgements
    ) -> int: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition's records go. `headers` are of every entry, `again` of one that the store has further up; `letter` gives key,
    value and headers of a dead letter."""

    partition: int
    state: str
    dead_letters: str
    headers: Headers
    again: Headers
    letter: Callable[[Letter], OutRecord]


class _Item:
    """`sort`: one call sends items of one sort. SCHEDULE: it is not sent while anything is under way."""

    __slots__ = ("acknowledged", "sort", "what")

    def __init__(self, what: Written) -> None:
        self.what = what
        self.acknowledged = isinstance(what, Behind)
        self.sort = ENTRY
        if isinstance(what, Letter):
            self.sort = LETTER
        elif isinstance(what, Entry) and what.key.startswith(SCHEDULES):
            self.sort = SCHEDULE


@dataclass(slots=True)
class _Batch:
    """What went out in one call; the first `heard` of its answers were looked at."""

    items: list[_Item]
    answers: Acknowledgements
    heard: int = 0


class StoreWriter:
    """Owned by the engine's thread; answers come in any thread and are heard in `hear`. `wake` is called when a batch has all of them.

    `seen`: below this offset of the store everything is known, or in `gaps`: offsets from, up to before, that lie between our own
    acknowledged ones. What is there is a stranger's, or a write of ours that landed although it failed. `end`: where the store
    ended when it became ours. `issued`: how much was given to it in all.
    """

    def __init__(self, outlet: Outlet, place: Place, wake: Callable[[], None], end: int) -> None:
        self._outlet = outlet
        self._place = place
        self._wake = wake
        self._items: deque[_Item] = deque()
        self._batches: list[_Batch] = []
        self._unsent: deque[_Item] = deque()
        self._held: deque[_Item] = deque()
        self._under_way = 0
        self._tries = 0
        self._again_ms: int | None = None
        self.seen = end
        self.issued = 0
        self.gaps: deque[tuple[int, int]] = deque()
        self.last_error: Exception | None = None

    def __len__(self) -> int:
        """What is not acknowledged, and what waits for it."""
        return len(self._items)

    @property
    def acknowledged(self) -> int:
        """Of what was issued: so much from its beginning is done."""
        return self.issued - len(self._items)

    @property
    def troubled(self) -> bool:
        """A write failed and is not through yet."""
        return bool(self._unsent)

    def write(self, effects: Iterable[Written], now_ms: int) -> None:
        items, held = self._items, self._unsent or self._held
        for effect in effects:
            item = _Item(effect)
            items.append(item)
            if not item.acknowledged:
                held.append(item)
            self.issued += 1
        self._go_on(now_ms)

    def _go_on(self, now_ms: int) -> None:
        """Send what may go out now."""
        held = self._held
        while held and not (self._under_way and held[0].sort == SCHEDULE):
            batch = [held.popleft()]
            while held and held[0].sort == batch[0].sort:
                batch.append(held.popleft())
            if not self._send(batch, now_ms):
                return

    def _send(self, items: list[_Item], now_ms: int) -> bool:
        """Entries, or letters."""
        place = self._place
        entries = [what for item in items if isinstance(what := item.what, Entry)]
        records: list[OutRecord] = [
            (entry.key, entry.value, place.again if entry.again else place.headers) for entry in entries
        ]
        records += [place.letter(what) for item in items if isinstance(what := item.what, Letter)]
        topic = place.state if entries else place.dead_letters
        answers = Acknowledgements(count=len(items), done=self._wake)
        error: Exception | None = None
        try:
            taken = self._outlet.send_many(topic, place.partition, records, answers)
        except ClusterError as refused:
            taken, error = 0, refused
        if taken:
            self._under_way += taken
            self._batches.append(_Batch(items[:taken], answers))
        if taken == len(items):
            return True
        self._trouble(items[taken], error or BufferFull(f"the producer's buffer is full: {topic} waits"), now_ms)
        return False

    def _trouble(self, item: _Item, error: Exception, now_ms: int) -> None:
        """From this one on everything is written again, when what is under way was answered."""
        self.last_error = error
        if not self._unsent:
            self._unsent.append(item)
        self._held.clear()
        if self._again_ms is None:
            self._again_ms = now_ms + RESEND_MS[min(self._tries, len(RESEND_MS) - 1)]
            self._tries += 1

    def hear(self, now_ms: int) -> list[Written]:
        """What is done by now: everything up to the first that is not acknowledged, in order."""
        if self._batches:
            for batch in self._batches:
                self._answered(batch, now_ms)
            self._batches = [batch for batch in self._batches if batch.heard < len(batch.items)]
            self._go_on(now_ms)
        done: list[Written] = []
        items = self._items
        while items and items[0].acknowledged:
            done.append(items.popleft().what)
        return done

    def _answered(self, batch: _Batch, now_ms: int) -> None:
        answers, first, now = batch.answers, batch.heard, len(batch.answers.offsets)
        for index in range(first, now):
            item = batch.items[index]
            if index in answers.errors:
                self._trouble(item, answers.errors[index], now_ms)
            else:
                item.acknowledged = True
                if isinstance(item.what, Entry):
                    self._mind(answers.offsets[index])
                elif isinstance(item.what, Letter):
                    item.what = replace(item.what, offset=answers.offsets[index])
        batch.heard = now
        self._under_way -= now - first

    def _mind(self, offset: int) -> None:
        """Offsets of our own writes follow each other; a gap may be a stranger's record."""
        if offset > self.seen:
            self.gaps.append((self.seen, offset))
        self.seen = max(self.seen, offset + 1)

    def resend_due(self, now_ms: int) -> int | None:
        """Write again what is to be; gives when to ask again (None: nothing failed)."""
        if not self._unsent:
            return None
        assert self._again_ms is not None
        if self._under_way or now_ms < self._again_ms:
            return max(self._again_ms, now_ms + 1)
        self._again_ms = None
        self._unsent.clear()
        waiting = [item for item in self._items if not isinstance(item.what, Behind)]
        first = next((at for at, item in enumerate(waiting) if not item.acknowledged), len(waiting))
        again = waiting[first:]
        _newest(again)
        for item in again:
            item.acknowledged = False
        self._held.extend(again)
        self._go_on(now_ms)
        if self._unsent:
            return self._again_ms
        self._tries = 0
        return None


def _newest(items: Sequence[_Item]) -> None:
    """Each entry of a job is as its last one, or as the last before it was forgotten: whoever waits for its ending is told that before.
    (Windows and schedules stand for what was true of jobs around them.)"""
    values: dict[bytes, bytes] = {}
    for item in reversed(items):
        entry = item.what
        if not isinstance(entry, Entry) or not entry.key.startswith(JOBS):
            continue
        if entry.value is None:
            values.pop(entry.key, None)
        else:
            item.what = entry._replace(value=values.setdefault(entry.key, entry.value))
