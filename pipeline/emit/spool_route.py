"""The way over the disk, for when the broker is away: memory -> spool -> Kafka, oldest first.

    spill: copies of what is in flight, then what waits -> spool        resend: spool -> client, a batch at a time
    keep: what is acknowledged is forgotten, what is written is synced, what dead publishers left is taken over

No thread and no clock of its own: `Sender.step` calls each in its turn.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.emit.buffer import BATCH, Buffer, Outgoing
from pipeline.emit.send_route import SendRoute
from pipeline.emit.stats import Counters

if TYPE_CHECKING:  # file locks are not everywhere: only who has a spool imports it
    from pipeline.emit.spool import Spool

log = logging.getLogger("pipeline.emit")

RESEND_RECORDS, RESEND_BYTES = 1_000, 4 * 1024 * 1024
DISK_RETRY_MS = 1_000
ADOPT_EVERY_MS = 30_000


class SpoolRoute:
    """Owner of the spool. `size_bytes` and `drained` are for any thread, under the lock: how much is on disk, and
    that nothing is and nothing from there is in flight. `resend_open`: sent from the spool, not answered yet."""

    def __init__(
        self, spool: Spool, buffer: Buffer, lock: threading.Condition, counters: Counters, send_route: SendRoute
    ) -> None:
        self.size_bytes = spool.size_bytes
        self.drained = spool.empty
        self.resend_open = 0
        self._spool = spool
        self._buffer = buffer
        self._lock = lock
        self._counters = counters
        self._send_route = send_route
        self._to_resend: deque[Outgoing] = deque()
        self._resend_failed: list[Outgoing] = []
        self._settled_copies: set[int] = set()
        self._disk_retry_at_ms = 0
        self._synced_at_ms = 0
        self._adopted_at_ms = 0

    @property
    def empty(self) -> bool:
        """Nothing older than what is in memory is left here."""
        return self._spool.empty and not self._resending

    @property
    def _resending(self) -> bool:
        return bool(self._to_resend or self.resend_open or self._resend_failed)

    def disk_works(self, now_ms: int) -> bool:
        """False for a while after the disk did not take everything."""
        return now_ms >= self._disk_retry_at_ms

    def ask_disk_again(self) -> None:
        """It may have failed lately: the next `spill` tries all the same."""
        self._disk_retry_at_ms = 0

    def spill(self, now_ms: int) -> bool:
        """Write to the spool: copies of what is in flight first, then what waits. True: memory may have room again."""
        if not self.disk_works(now_ms):
            return False
        with self._lock:
            chunk = [record for record in self._buffer.in_flight.values() if not record.copied][:BATCH]
            from_flight = bool(chunk)
            if not from_flight:
                chunk = self._buffer.peek(BATCH)
        if not chunk:
            return False
        written = self._write(chunk)
        if written < len(chunk):
            self._disk_retry_at_ms = now_ms + DISK_RETRY_MS
        self._counters.spooled += written
        with self._lock:
            self.drained = self.drained and not written
            if from_flight:
                self._copied(chunk[:written])
            else:
                self._buffer.unload(written)
            self._lock.notify_all()
        return written > 0

    def resend(self) -> bool:
        """Send from the spool, a batch at a time: the next is read when the last is acknowledged to its end."""
        worked = False
        if not self.resend_open:
            if self._resend_failed:  # before those of the batch that were not sent yet
                self._to_resend.extendleft(sorted(self._resend_failed, key=_place, reverse=True))
                self._resend_failed.clear()
            elif not self._to_resend and not self._spool.empty:
                worked = self._read()
        while self._to_resend and not self._resend_failed:
            record = self._to_resend[0]
            record.error = None
            if not self._send_route.hand_over(record):
                break
            self._to_resend.popleft()
            self.resend_open += 1
            worked = True
        return worked

    def settled(self, record: Outgoing) -> None:
        """Kafka has it, or refused it for good: what is on disk of it is not needed any more."""
        if record.resent:
            self.resend_open -= 1
        elif record.copied:
            self._settled_copies.add(record.number)

    def failed(self, record: Outgoing) -> None:
        """A resent record failed in a way that may heal: it goes again."""
        self.resend_open -= 1
        self._resend_failed.append(record)

    def commit(self) -> None:
        """What was read is acknowledged to its end: forget it."""
        if not self._resending and self._spool.uncommitted:
            self._spool.commit()
            if self._spool.empty:
                self._settled_copies.clear()

    def keep(self, now_ms: int) -> None:
        """Sync and take over what is due, and tell the other threads how much there is."""
        spool = self._spool
        if spool.unsynced and now_ms - self._synced_at_ms >= self._buffer.policy.fsync_interval_ms:
            self._synced_at_ms = now_ms
            spool.sync()
        if now_ms - self._adopted_at_ms >= ADOPT_EVERY_MS:
            self._adopted_at_ms = now_ms
            spool.adopt()
        size_bytes, drained = spool.size_bytes, self.empty
        with self._lock:
            self.size_bytes, self.drained = size_bytes, drained
            if drained:
                self._lock.notify_all()

    def close(self) -> int:
        """Give up the spool; returns the bytes left in it for the next publisher."""
        self.commit()
        size_bytes = self._spool.size_bytes
        self._spool.close()
        return size_bytes

    def _write(self, chunk: Sequence[Outgoing]) -> int:
        try:
            return self._spool.append(chunk)
        except OSError as error:
            log.error(
                "the spool in %s can't be written: %s; keeping records in memory", self._spool.root, error.strerror
            )
            return 0

    def _copied(self, records: Sequence[Outgoing]) -> None:
        for record in records:
            record.copied = True
            if self._send_route.failed.pop(record.number, None) is not None:
                self._buffer.settle(record)

    def _read(self) -> bool:
        records, own = self._spool.read(RESEND_RECORDS, RESEND_BYTES)
        for place, record in enumerate(records):
            record.resent, record.place = True, place
            if not own or record.number not in self._settled_copies:
                self._to_resend.append(record)
        return bool(records)


def _place(record: Outgoing) -> int:
    return record.place
