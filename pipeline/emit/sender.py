"""The sending side of a publisher: what its one thread does, step by step. No thread of its own and no
clock: call `step(now_ms)`.

    reports -> buffer (delivered / failed)      waiting -> producer, or -> spool      spool -> producer

Order per key is kept because everything is one sequence: after a failure nothing newer is sent until all in flight is
answered, then the failed go again first (`send_route`); the spool, once used, holds everything newer, and is read only
when nothing older is in flight (`spool_route`). The moment it is first used it takes copies of what is in flight, so
that a killed process loses none of that; a copy whose record is acknowledged after all is skipped when it is read back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.emit.buffer import BATCH, Buffer, Link, Outgoing, Route
from pipeline.emit.send_route import SendRoute
from pipeline.emit.spool_route import ADOPT_EVERY_MS, DISK_RETRY_MS, RESEND_BYTES, RESEND_RECORDS, SpoolRoute
from pipeline.emit.stats import Counters, Leftover
from pipeline.model.cluster import RecordProducer
from pipeline.model.errors import ClusterError, ClusterUnavailable, FencedError, NotAuthorized
from pipeline.model.headers import event_id_of

if TYPE_CHECKING:  # file locks are not everywhere: only who has a spool imports it
    from pipeline.emit.spool import Spool

__all__ = [
    "ADOPT_EVERY_MS",
    "BATCH",
    "DISK_RETRY_MS",
    "EVENT_IDS_MAX",
    "RESEND_BYTES",
    "RESEND_RECORDS",
    "Sender",
    "leftover",
    "may_heal",
]

log = logging.getLogger("pipeline.emit")

EVENT_IDS_MAX = 100

_MISSING = ("UNKNOWN_TOPIC", "is unknown: create the topic")
"""Kafka's code, and how the memory cluster says it."""
_HEALING = (ClusterUnavailable, NotAuthorized, FencedError)


def topic_missing(error: ClusterError) -> bool:
    """Whether it says that the topic does not exist."""
    return any(mark in str(error) for mark in _MISSING)


def may_heal(error: ClusterError) -> bool:
    """By itself or by an operator (an ACL, a topic that is missing); every other refusal concerns the record
    and is final."""
    return isinstance(error, _HEALING) or topic_missing(error)


class Sender:
    """Owner of both routes: reads the reports and decides which route the waiting records take. One thread calls it;
    the buffer is shared with publishers, under `lock`. `trouble`: while nothing gets through, why, in one sentence."""

    def __init__(
        self,
        producer: RecordProducer,
        buffer: Buffer,
        lock: threading.Condition,
        counters: Counters,
        spool: Spool | None,
    ) -> None:
        self.link = Link(buffer.policy.away_after_ms)
        self.send_route = SendRoute(producer, buffer, lock, counters, self.link)
        self.reports = self.send_route.reports
        self.on_room: Callable[[], None] = _nothing
        self.why_cold: Callable[[], str] = str
        self.first_look_up: Callable[[], bool] = bool
        self.trouble = ""
        self._buffer = buffer
        self._lock = lock
        self._counters = counters
        self._spool_route = SpoolRoute(spool, buffer, lock, counters, self.send_route) if spool is not None else None
        self._dropped_logged = 0
        self._refused: tuple[str, ClusterError] | None = None
        self._told = ""

    def step(self, now_ms: int) -> bool:
        """Do what can be done now without waiting. False: nothing to do until a report or a record comes."""
        spool_route = self._spool_route
        worked = self._take_reports(now_ms)
        resending = spool_route.resend_open if spool_route is not None else 0
        cold, warmed = self.send_route.cold, self.send_route.warmed
        self.send_route.cold = self.send_route.warmed = False
        if warmed:
            self.link.heard(now_ms)
        self.link.watch(now_ms, len(self._buffer.in_flight) + resending + cold)
        self._retry_failed(now_ms)
        match self._route(now_ms):
            case Route.SPOOL:
                worked |= self._spill(now_ms)
            case Route.SEND:
                worked |= self.send_route.send(now_ms)
            case Route.HOLD:
                pass
        if spool_route is not None:
            spool_route.commit()
            if self.link.may_send(now_ms) and not self.send_route.unanswered:
                worked |= spool_route.resend()
            spool_route.commit()
            spool_route.keep(now_ms)
        self._tell(cold)
        return worked

    def send_direct(self, records: Sequence[Outgoing]) -> int:
        """For bulk, in the caller's thread: hand over what may go at once; returns how many were taken (0: use the buffer).

        May wait as long as the Kafka client does when it has to be rebuilt, so it is not for agents.
        """
        return self.send_route.send_direct(records) if self._spool_route is None else 0

    def launch(self, record: Outgoing) -> bool:
        """For one record of an agent, under the lock: see `SendRoute.launch`. Never waits."""
        return self._spool_route is None and record.unencoded is None and self.send_route.launch(record)

    @property
    def few_under_way(self) -> bool:
        """So few that each record goes alone, past the sending thread. For any thread, under the lock."""
        return self._spool_route is None and self.send_route.few_under_way

    @property
    def missing_topic(self) -> str:
        """The topic that was refused last because it does not exist; empty when it is not that."""
        refused = self._refused
        return refused[0] if refused is not None and topic_missing(refused[1]) else ""

    @property
    def denied(self) -> bool:
        """What was refused last, and is not through since, lacks a right."""
        return self._refused is not None and isinstance(self._refused[1], NotAuthorized)

    @property
    def spool_bytes(self) -> int:
        """What is on disk. For any thread, under the lock."""
        return self._spool_route.size_bytes if self._spool_route is not None else 0

    @property
    def drained(self) -> bool:
        """Nothing is on disk, or on its way from there. For any thread, under the lock."""
        return self._spool_route is None or self._spool_route.drained

    @property
    def idle(self) -> bool:
        """Nothing is left to do. For any thread, under the lock."""
        return not self._buffer.records and self.drained

    @property
    def safe(self) -> bool:
        """What is left is better kept on disk than waited for: there is a spool, the broker is away, and no first look-up
        of schema ids is under way (which may take longer than `away_after` allows an acknowledgement)."""
        return self._spool_route is not None and self.link.away and not self.first_look_up()

    def finish(self, now_ms: int, timeout_s: float) -> Leftover:
        """The last call: what can't be sent is spooled where there is a spool; the producer is closed (it
        gets `timeout_s`)."""
        if self._spool_route is not None:
            self._spool_route.ask_disk_again()
            while self._spill(now_ms):
                pass
        self.send_route.close(timeout_s)
        while self._take_reports(now_ms):
            pass
        with self._lock:
            lost = [record for record in (*self._buffer.in_flight.values(), *self._buffer.waiting) if not record.copied]
        spool_bytes = self._spool_route.close() if self._spool_route is not None else 0
        why = f": {self.trouble}" if self.trouble else ""
        if lost:
            log.error("%d records were not delivered when the publisher closed, and are lost%s", len(lost), why)
        if spool_bytes:
            log.warning("%d bytes of records are left in the spool for the next publisher%s", spool_bytes, why)
        refused = self._counters.failed
        if refused:
            log.error("%d records were refused by Kafka for good, and are lost: see the log above for each", refused)
        return leftover(lost, spool_bytes, self.trouble, refused)

    @property
    def _spool_empty(self) -> bool:
        return self._spool_route is None or self._spool_route.empty

    def _disk_works(self, now_ms: int) -> bool:
        return self._spool_route is not None and self._spool_route.disk_works(now_ms)

    def _route(self, now_ms: int) -> Route:
        with self._lock:
            return self._buffer.route(
                away=self.link.away, spool_empty=self._spool_empty, disk_works=self._disk_works(now_ms)
            )

    def _retry_failed(self, now_ms: int) -> None:
        """Failed records go again, unless the spool is to take them."""
        if not self.send_route.failed or not self.link.may_send(now_ms):
            return
        spooling = self._spool_route is not None and self.link.away
        if self._spool_empty and not (spooling and self._disk_works(now_ms)):
            self.send_route.retry_failed()

    def _spill(self, now_ms: int) -> bool:
        if self._spool_route is None or not self._spool_route.spill(now_ms):
            return False
        self.on_room()
        return True

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
                else:
                    if may_heal(last):
                        failed, self._refused = True, (record.topic, last)
                        self._failed_for_now(record)
                    else:
                        self._given_up(record)
                    reports.refused.popleft()
            self._lock.notify_all()
        self.on_room()
        if failed:
            self.link.failed(now_ms)
        if last is None or not may_heal(last):  # an answer after a failure means that the broker is back
            self.link.delivered(now_ms)
            self._refused = None
        return True

    def _delivered(self, record: Outgoing) -> None:
        self._counters.delivered += 1
        if record.resent:
            self._counters.resent += 1
        self._settle(record)

    def _failed_for_now(self, record: Outgoing) -> None:
        if record.resent and self._spool_route is not None:
            self._spool_route.failed(record)
        elif record.copied:
            self._buffer.settle(record)
        else:
            self.send_route.failed[record.number] = record

    def _given_up(self, record: Outgoing) -> None:
        self._counters.failed += 1
        log.error("Kafka refused event %s on %s for good: %s", event_id_of(record.headers), record.topic, record.error)
        self._settle(record)

    def _settle(self, record: Outgoing) -> None:
        if not record.resent:
            self._buffer.settle(record)
        if self._spool_route is not None:
            self._spool_route.settled(record)

    def _tell(self, cold: bool) -> None:
        """Log what an operator should know, once."""
        self.trouble = "" if not self.link.away else self._why_away(cold)
        if self.trouble and self.trouble != self._told:
            log.warning("%s; buffer mode is %s", self.trouble, self._buffer.policy.mode)
        elif self._told and not self.trouble:
            log.warning("Kafka takes records again; %d bytes are spooled", self.spool_bytes)
        self._told = self.trouble
        dropped = self._buffer.dropped
        if dropped >= 2 * self._dropped_logged + 1 or (dropped > self._dropped_logged and not self._buffer.waiting):
            log.warning(
                "%d records dropped so far, since the buffer of %d is full", dropped, self._buffer.policy.max_records
            )
            self._dropped_logged = dropped

    def _why_away(self, cold: bool) -> str:
        topic = self.missing_topic
        if topic:
            return f"topic {topic} does not exist: make it with `pipeline topics apply --topic {topic}`"
        if self.denied and self._refused is not None:
            return str(self._refused[1])
        if cold:
            return self.why_cold() or "neither broker nor registry has answered yet, so the schema ids are not known"
        return "the broker does not answer"


def leftover(records: Sequence[Outgoing], spool_bytes: int, trouble: str, refused: int) -> Leftover:
    """What these records amount to, beside those that were refused."""
    ids = (event_id_of(record.headers) for record in records[:EVENT_IDS_MAX])
    return Leftover(len(records), tuple(name for name in ids if name), spool_bytes, trouble, refused)


def _nothing() -> None:
    """Nobody waits for room."""
