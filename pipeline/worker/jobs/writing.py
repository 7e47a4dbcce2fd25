"""Entries of one partition's store, and dead letters of its jobs, on their way to the brokers, in the order that the board gave them.

What survives a crash must be a beginning of them. So when a write fails nothing more goes out until all that is under way was
answered; then everything from the failed one on is written again. What was written in between stands twice: dead letters name their
job, and of a job only the newest entry is written again, also in the place of an older one. (Else one that has its ending would
seem to run for a while, and run once more if its owner died just then.)

A schedule's entry goes out when all before it are acknowledged: written behind a tick's job whose own write fails, it would lose
that tick if its owner died just then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from pipeline.core.jobs.entries import DropBlobs, Entry, Letter, Settle
from pipeline.model.cluster import Headers
from pipeline.model.errors import BufferFull, ClusterError
from pipeline.model.store_keys import job_key, schedule_key
from pipeline.worker.sending import RESEND_MS, Outlet

Written = Entry | Letter | Settle | DropBlobs
JOBS, SCHEDULES = job_key(""), schedule_key("")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition's records go. `headers` are of every entry; `letter` gives key, value and headers of a dead letter."""

    partition: int
    state: str
    dead_letters: str
    headers: Headers
    letter: Callable[[Letter], tuple[bytes, bytes, Headers]]


class _Item:
    """`alone`: it is not sent while anything is under way. `sent`: the number of its last sending, 0 once that was answered: an answer
    that comes again says nothing."""

    __slots__ = ("acknowledged", "alone", "sent", "what")

    def __init__(self, what: Written) -> None:
        self.what = what
        self.acknowledged = isinstance(what, Settle | DropBlobs)
        self.alone = isinstance(what, Entry) and what.key.startswith(SCHEDULES)
        self.sent = 0


class StoreWriter:
    """Owned by the engine's thread; answers come in any thread and are heard in `hear`. `wake` is called with each.

    `seen`: below this offset of the store everything is known, or in `gaps`: offsets from, up to before, that lie between our own
    acknowledged ones. What is there is a stranger's, or a write of ours that landed although it failed. `end`: where the store
    ended when it became ours.
    """

    def __init__(self, outlet: Outlet, place: Place, wake: Callable[[], None], end: int) -> None:
        self._outlet = outlet
        self._place = place
        self._wake = wake
        self._items: deque[_Item] = deque()
        self._answers: deque[tuple[_Item, int, ClusterError | None, int]] = deque()
        self._sendings = 0
        self._unsent: deque[_Item] = deque()
        self._held: deque[_Item] = deque()
        self._under_way = 0
        self._tries = 0
        self._again_ms: int | None = None
        self.seen = end
        self.gaps: deque[tuple[int, int]] = deque()
        self.last_error: Exception | None = None

    def __len__(self) -> int:
        """What is not acknowledged, and what waits for it."""
        return len(self._items)

    @property
    def troubled(self) -> bool:
        """A write failed and is not through yet."""
        return bool(self._unsent)

    def write(self, effects: Iterable[Written], now_ms: int) -> None:
        for effect in effects:
            item = _Item(effect)
            self._items.append(item)
            if item.acknowledged:
                continue
            if self._unsent:
                self._unsent.append(item)
            else:
                self._held.append(item)
                self._go_on(now_ms)

    def _go_on(self, now_ms: int) -> None:
        """Send what may go out now."""
        held = self._held
        while held and not (self._under_way and held[0].alone):
            if not self._send(held.popleft(), now_ms):
                return

    def _send(self, item: _Item, now_ms: int) -> bool:
        what, place = item.what, self._place
        self._sendings += 1
        answered = partial(self._answered, item, self._sendings)
        try:
            if isinstance(what, Entry):
                self._outlet.send(place.state, what.key, what.value, place.headers, place.partition, 0, answered)
            elif isinstance(what, Letter):
                key, value, headers = place.letter(what)
                self._outlet.send(place.dead_letters, key, value, headers, place.partition, 0, answered)
        except (BufferFull, ClusterError) as error:
            self._trouble(item, error, now_ms)
            return False
        item.sent = self._sendings
        self._under_way += 1
        return True

    def _answered(self, item: _Item, sending: int, error: ClusterError | None, offset: int) -> None:
        self._answers.append((item, sending, error, offset))
        self._wake()

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
        while self._answers:
            item, sending, error, offset = self._answers.popleft()
            if item.sent != sending:
                continue
            item.sent = 0
            self._under_way -= 1
            if error is not None:
                self._trouble(item, error, now_ms)
            else:
                item.acknowledged = True
                if isinstance(item.what, Entry):
                    self._mind(offset)
        self._go_on(now_ms)
        done: list[Written] = []
        items = self._items
        while items and items[0].acknowledged:
            done.append(items.popleft().what)
        return done

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
        waiting = [item for item in self._items if not isinstance(item.what, Settle | DropBlobs)]
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


def _newest(items: Iterable[_Item]) -> None:
    """Each entry of a job is as its last one. (Windows and schedules stand for what was true of jobs around them.)"""
    values: dict[bytes, bytes | None] = {}
    jobs = [(item, item.what) for item in items if isinstance(item.what, Entry) and item.what.key.startswith(JOBS)]
    for _, entry in jobs:
        values[entry.key] = entry.value
    for item, entry in jobs:
        item.what = entry._replace(value=values[entry.key])
