"""The sending side of a publisher: what its one thread does, step by step. No thread of its own and no
clock: call `step(now_ms)`.

    reports -> buffer (delivered / failed)      waiting -> producer, or -> spool      spool -> producer

Order per key is kept because everything is one sequence: after a failure nothing newer is sent until all in flight is
answered, then the failed go again first; the spool, once used, holds everything newer, and is read only when nothing
older is in flight. The moment it is first used it takes copies of what is in flight, so that a killed process
loses none of that; a copy whose record is acknowledged after all is skipped when it is read back.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pipeline.emit.buffer import Buffer, Link, Outgoing, Route
from pipeline.emit.spool import Spool
from pipeline.emit.stats import Counters, Leftover
from pipeline.model.cluster import RecordProducer
from pipeline.model.errors import (
    BufferFull,
    ClusterError,
    ClusterUnavailable,
    FencedError,
    NotAuthorized,
    PipelineError,
)
from pipeline.model.headers import event_id_of

log = logging.getLogger("pipeline.emit")

BATCH = 256
"""Records handled under one hold of the lock: bounds how long an agent may wait for it."""
RESEND_RECORDS, RESEND_BYTES = 1_000, 4 * 1024 * 1024
DISK_RETRY_MS = 1_000
ADOPT_EVERY_MS = 30_000
EVENT_IDS_MAX = 100

_HEALING = (ClusterUnavailable, NotAuthorized, FencedError)


def may_heal(error: ClusterError) -> bool:
    """By itself or by an operator (an ACL, a topic that is missing); every other refusal concerns the record
    and is final."""
    return isinstance(error, _HEALING) or "UNKNOWN_TOPIC" in str(error)


class Sender:
    """Owner of the producer and the spool. One thread calls it; the buffer is shared with publishers, under
    `lock`."""

    def __init__(
        self,
        producer: RecordProducer,
        buffer: Buffer,
        lock: threading.Condition,
        counters: Counters,
        spool: Spool | None,
    ) -> None:
        self.link = Link(buffer.policy.away_after_ms)
        self.reports: deque[Outgoing] = deque()
        self.encode_late: Callable[[Outgoing], None] | None = None
        self.on_room: Callable[[], None] = _nothing
        self.spool_bytes = spool.size_bytes if spool is not None else 0
        self.drained = spool is None or spool.empty
        self._producer = producer
        self._buffer = buffer
        self._lock = lock
        self._counters = counters
        self._spool = spool
        self._turn = threading.Lock()  # held from numbering to handing over: who sends next sends newer records
        self._failed: dict[int, Outgoing] = {}
        self._to_resend: deque[Outgoing] = deque()
        self._resend_failed: list[Outgoing] = []
        self._resend_open = 0
        self._settled_copies: set[int] = set()
        self._disk_retry_at_ms = 0
        self._synced_at_ms = 0
        self._adopted_at_ms = 0
        self._dropped_logged = 0
        self._was_away = False

    def step(self, now_ms: int) -> bool:
        """Do what can be done now without waiting. False: nothing to do until a report or a record comes."""
        worked = self._take_reports(now_ms)
        self.link.watch(now_ms, len(self._buffer.in_flight) + self._resend_open)
        self._retry_failed(now_ms)
        match self._route(now_ms):
            case Route.SPOOL:
                worked |= self._spill(now_ms)
            case Route.SEND:
                worked |= self._send(now_ms)
            case Route.HOLD:
                pass
        if self._spool is not None:
            self._commit_spool(self._spool)
            worked |= self._resend(self._spool, now_ms)
            self._commit_spool(self._spool)
            self._keep_spool(self._spool, now_ms)
        self._tell()
        return worked

    @property
    def idle(self) -> bool:
        """Nothing is left to do. For any thread, under the lock."""
        return not self._buffer.records and self.drained

    @property
    def safe(self) -> bool:
        """What is left is better kept on disk than waited for: the broker is away and there is a spool."""
        return self._spool is not None and self.link.away

    def finish(self, now_ms: int, timeout_s: float) -> Leftover:
        """The last call: what can't be sent is spooled where there is a spool; the producer is closed (it
        gets `timeout_s`)."""
        if self._spool is not None:
            self._disk_retry_at_ms = 0
            while self._spill(now_ms):
                pass
        self._producer.close(timeout_s)
        while self._take_reports(now_ms):
            pass
        with self._lock:
            lost = [record for record in (*self._buffer.in_flight.values(), *self._buffer.waiting) if not record.copied]
        spool_bytes = 0
        if self._spool is not None:
            self._commit_spool(self._spool)
            spool_bytes = self._spool.size_bytes
            self._spool.close()
        if lost:
            log.error("%d records were not delivered when the publisher closed", len(lost))
        return leftover(lost, spool_bytes)

    @property
    def _spool_empty(self) -> bool:
        return self._spool is None or (self._spool.empty and not self._resend_busy)

    @property
    def _resend_busy(self) -> bool:
        return bool(self._to_resend or self._resend_open or self._resend_failed)

    def _route(self, now_ms: int) -> Route:
        with self._lock:
            return self._buffer.route(
                away=self.link.away, spool_empty=self._spool_empty, disk_works=self._disk_works(now_ms)
            )

    def _disk_works(self, now_ms: int) -> bool:
        return self._spool is not None and now_ms >= self._disk_retry_at_ms

    def _take_reports(self, now_ms: int) -> bool:
        reports, batch = self.reports, list[Outgoing]()
        while reports and len(batch) < BATCH:
            batch.append(reports.popleft())
        if not batch:
            return False
        in_flight, counters, buffer = self._buffer.in_flight, self._counters, self._buffer
        last: ClusterError | None = None
        failed = False
        with self._lock:
            for record in batch:
                last = record.error
                if last is None:
                    if record.resent or record.copied:
                        self._delivered(record)
                    elif in_flight.pop(record.number, None) is not None:  # nearly every record goes this way
                        counters.delivered += 1
                        buffer.held_bytes -= record.size_bytes
                elif may_heal(last):
                    failed = True
                    self._failed_for_now(record)
                else:
                    self._given_up(record)
            self._lock.notify_all()
        self.on_room()
        if failed:
            self.link.failed(now_ms)
        if last is None or not may_heal(last):  # an answer after a failure means that the broker is back
            self.link.delivered(now_ms)
        return True

    def _delivered(self, record: Outgoing) -> None:
        self._counters.delivered += 1
        if record.resent:
            self._resend_open -= 1
            self._counters.resent += 1
            return
        self._buffer.settle(record)
        if record.copied:
            self._settled_copies.add(record.number)

    def _failed_for_now(self, record: Outgoing) -> None:
        if record.resent:
            self._resend_open -= 1
            self._resend_failed.append(record)
        elif record.copied:
            self._buffer.settle(record)
        else:
            self._failed[record.number] = record

    def _given_up(self, record: Outgoing) -> None:
        self._counters.failed += 1
        log.error("Kafka refused event %s on %s for good: %s", event_id_of(record.headers), record.topic, record.error)
        if record.resent:
            self._resend_open -= 1
            return
        self._buffer.settle(record)
        if record.copied:
            self._settled_copies.add(record.number)

    def _retry_failed(self, now_ms: int) -> None:
        """Once nothing else is in flight, failed records go back to the front (unless the spool is to take them)."""
        if not self._failed or not self.link.may_send(now_ms):
            return
        with self._lock:
            if (
                len(self._failed) == len(self._buffer.in_flight)
                and self._spool_empty
                and not (self.safe and self._disk_works(now_ms))
            ):
                self._buffer.put_back(self._failed.values())
                self._failed.clear()

    def send_direct(self, records: Sequence[Outgoing]) -> int:
        """For bulk, in the caller's thread: hand over what may go at once; returns how many were taken (0: use the buffer).

        Only while nothing older waits or has failed, and one thread at a time, so that nothing is overtaken. May wait as
        long as the Kafka client does when it has to be rebuilt, so it is not for agents.
        """
        if self._spool is not None or not self._turn.acquire(blocking=False):
            return 0
        try:
            with self._lock:
                if self._buffer.waiting or self._failed or self.link.away:
                    return 0
                taken = self._buffer.launch(records)
                self._counters.published += taken
            self._hand_over_all(records[:taken])
        finally:
            self._turn.release()
        return taken

    def _send(self, now_ms: int) -> bool:
        if self._failed or not self.link.may_send(now_ms):
            return False
        with self._turn:
            with self._lock:
                batch = self._buffer.take(BATCH)
            return self._hand_over_all(batch) > 0

    def _hand_over_all(self, batch: Sequence[Outgoing]) -> int:
        """How many the client took; the rest waits again."""
        for index, record in enumerate(batch):
            if not self._hand_over(record):
                with self._lock:
                    self._buffer.put_back(batch[index:])
                return index
        return len(batch)

    def _hand_over(self, record: Outgoing) -> bool:
        """Give it to the Kafka client; False when the client is full."""
        record.reports = self.reports
        try:
            if record.event is not None and self.encode_late is not None:
                self.encode_late(record)
            self._producer.send(record.topic, record.key, record.value, record.headers, delivered=record)
        except BufferFull:
            return False
        except ClusterError as error:
            record(error, -1)
        except PipelineError as error:
            record(ClusterError(str(error)), -1)
        return True

    def _spill(self, now_ms: int) -> bool:
        """Write to the spool: copies of what is in flight first, then what waits."""
        if self._spool is None or now_ms < self._disk_retry_at_ms:
            return False
        with self._lock:
            chunk = [record for record in self._buffer.in_flight.values() if not record.copied][:BATCH]
            from_flight = bool(chunk)
            if not from_flight:
                chunk = self._buffer.peek(BATCH)
        chunk = list(_encoded(chunk))
        if not chunk:
            return False
        try:
            written = self._spool.append(chunk)
        except OSError as error:
            log.error(
                "the spool in %s can't be written: %s; keeping records in memory", self._spool.root, error.strerror
            )
            written = 0
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
        self.on_room()
        return written > 0

    def _copied(self, records: Sequence[Outgoing]) -> None:
        for record in records:
            record.copied = True
            if self._failed.pop(record.number, None) is not None:
                self._buffer.settle(record)

    def _resend(self, spool: Spool, now_ms: int) -> bool:
        """Send from the spool, a batch at a time: the next is read when the last is acknowledged to its end."""
        if self._buffer.in_flight and len(self._buffer.in_flight) > len(self._failed):
            return False
        if not self.link.may_send(now_ms):
            return False
        worked = False
        if not self._resend_open:
            if self._resend_failed:  # before those of the batch that were not sent yet
                self._to_resend.extendleft(sorted(self._resend_failed, key=_place, reverse=True))
                self._resend_failed.clear()
            elif not self._to_resend and not spool.empty:
                worked = self._read_spool(spool)
        while self._to_resend and not self._resend_failed:
            record = self._to_resend[0]
            record.error = None
            if not self._hand_over(record):
                break
            self._to_resend.popleft()
            self._resend_open += 1
            worked = True
        return worked

    def _read_spool(self, spool: Spool) -> bool:
        records, own = spool.read(RESEND_RECORDS, RESEND_BYTES)
        for place, record in enumerate(records):
            record.resent, record.place = True, place
            if not own or record.number not in self._settled_copies:
                self._to_resend.append(record)
        return bool(records)

    def _commit_spool(self, spool: Spool) -> None:
        """What was read is acknowledged to its end: forget it."""
        if not self._resend_busy and spool.uncommitted:
            spool.commit()
            if spool.empty:
                self._settled_copies.clear()

    def _keep_spool(self, spool: Spool, now_ms: int) -> None:
        if spool.unsynced and now_ms - self._synced_at_ms >= self._buffer.policy.fsync_interval_ms:
            self._synced_at_ms = now_ms
            spool.sync()
        if now_ms - self._adopted_at_ms >= ADOPT_EVERY_MS:
            self._adopted_at_ms = now_ms
            spool.adopt()
        spool_bytes, drained = spool.size_bytes, self._spool_empty
        with self._lock:
            self.spool_bytes, self.drained = spool_bytes, drained
            if drained:
                self._lock.notify_all()

    def _tell(self) -> None:
        """Log what an operator should know, once."""
        if self.link.away != self._was_away:
            self._was_away = self.link.away
            if self._was_away:
                log.warning("the broker does not answer; buffer mode is %s", self._buffer.policy.mode)
            else:
                log.warning("the broker answers again; %d bytes are spooled", self.spool_bytes)
        dropped = self._buffer.dropped
        if dropped >= 2 * self._dropped_logged + 1 or (dropped > self._dropped_logged and not self._buffer.waiting):
            log.warning(
                "%d records dropped so far, since the buffer of %d is full", dropped, self._buffer.policy.max_records
            )
            self._dropped_logged = dropped


def _nothing() -> None:
    """Nobody waits for room."""


def _place(record: Outgoing) -> int:
    return record.place


def leftover(records: Sequence[Outgoing], spool_bytes: int) -> Leftover:
    """What these records amount to."""
    ids = (event_id_of(record.headers) for record in records[:EVENT_IDS_MAX])
    return Leftover(len(records), tuple(name for name in ids if name), spool_bytes)


def _encoded(records: Sequence[Outgoing]) -> Sequence[Outgoing]:
    """The leading records that have their bytes: one without can't go to disk, nor what is behind it."""
    for index, record in enumerate(records):
        if record.event is not None:
            return records[:index]
    return records
