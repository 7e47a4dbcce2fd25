"""Decisions of the publisher's buffer: what is let in, what is dropped, what is sent next. Pure: the shell
brings lock and clock.

    admitted -> waiting -> in flight -> delivered
                   |           `-> failed: back to waiting (may heal) or given up (never will)
                   |-> dropped (drop_oldest)
                   `-> spooled -> waiting for its turn on disk -> in flight ...

Everything leaves in the order it came in, so each key's order is kept. Once something is spooled, whatever is newer
queues behind it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence

from pipeline.emit.policy import BufferPolicy
from pipeline.model.cluster import Headers
from pipeline.model.errors import ClusterError

RECORD_OVERHEAD_BYTES = 256
"""What one record costs in memory beside its own bytes, roughly."""
BATCH = 256
"""Records handled under one hold of the lock: bounds how long an agent may wait for it."""


class Reports(deque["Outgoing"]):
    """Records that the Kafka client has answered, not looked at yet; `refused` are those among them whose answer is an
    error, until that is known to whoever sends: nothing newer may pass them."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: deque[Outgoing] = deque()


class Outgoing:
    """A record on its way. It is its own delivery callback: reporting appends it to `reports`, from any thread.

    `number` counts a publisher's records, `place` those of one batch read from the spool; `copied` = the
    spool holds it too; `resent` = it came from there;
    `unencoded` = the record name of an event whose value is still JSON, since its schema id is not known (`schema_wait`).
    """

    __slots__ = (
        "copied",
        "error",
        "headers",
        "key",
        "number",
        "place",
        "reports",
        "resent",
        "size_bytes",
        "topic",
        "unencoded",
        "value",
    )

    def __init__(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        self.topic = topic
        self.key = key
        self.value = value
        self.headers = headers
        size_bytes = RECORD_OVERHEAD_BYTES + len(topic)
        if key is not None:
            size_bytes += len(key)
        if value is not None:
            size_bytes += len(value)
        for name, content in headers:
            size_bytes += len(name) + (len(content) if content else 0)
        self.size_bytes = size_bytes
        self.number = -1
        self.place = 0
        self.copied = False
        self.resent = False
        self.unencoded: str | None = None
        self.error: ClusterError | None = None
        self.reports: Reports | None = None

    def __call__(self, error: ClusterError | None, offset: int) -> None:
        self.error = error
        if self.reports is not None:
            if error is not None:
                self.reports.refused.append(self)
            self.reports.append(self)


class Route(enum.Enum):
    """What happens to the waiting records now."""

    SEND = "send"
    SPOOL = "spool"
    HOLD = "hold"


class Buffer:
    """Waiting and in-flight records within the policy's bounds. Not thread-safe: one lock around every call."""

    def __init__(self, policy: BufferPolicy) -> None:
        self.policy = policy
        self.waiting: deque[Outgoing] = deque()
        self.in_flight: dict[int, Outgoing] = {}
        self.held_bytes = 0
        self.next_number = 0
        self.dropped = 0

    @property
    def records(self) -> int:
        """How many are in memory."""
        return len(self.waiting) + len(self.in_flight)

    def has_room(self, size_bytes: int, dropped: int = 0, freed_bytes: int = 0) -> bool:
        """Whether one more of that size fits (once so many are dropped); an empty buffer takes any size."""
        held = len(self.waiting) + len(self.in_flight) - dropped
        policy = self.policy
        return not held or (
            held < policy.max_records and self.held_bytes - freed_bytes + size_bytes <= policy.max_bytes
        )

    def admit(self, record: Outgoing) -> bool:
        """Let it in if it fits; with "drop_oldest" make room first. False: the caller has to wait."""
        size_bytes = record.size_bytes
        if not self.has_room(size_bytes) and not self._make_room(size_bytes):
            if self.policy.mode != "drop_oldest":
                return False
            self.next_number += 1  # all of it is in flight and can't be taken back: the newest gives way
            self.dropped += 1
            return True
        record.number = self.next_number
        self.next_number += 1
        self.waiting.append(record)
        self.held_bytes += size_bytes
        return True

    def _make_room(self, size_bytes: int) -> bool:
        if self.policy.mode != "drop_oldest":
            return False
        count = freed_bytes = 0
        for record in self.waiting:
            if self.has_room(size_bytes, count, freed_bytes):
                break
            count, freed_bytes = count + 1, freed_bytes + record.size_bytes
        if not self.has_room(size_bytes, count, freed_bytes):
            return False  # what is in flight alone leaves none: to drop the others too would be for nothing
        for _ in range(count):
            self.waiting.popleft()
        self.held_bytes -= freed_bytes
        self.dropped += count
        return True

    def take(self, limit: int) -> list[Outgoing]:
        """The next records to send, now in flight; never more than the window leaves."""
        count = min(limit, len(self.waiting), self.policy.window - len(self.in_flight))
        taken = [self.waiting.popleft() for _ in range(count)]
        for record in taken:
            self.in_flight[record.number] = record
        return taken

    def launch(self, records: Sequence[Outgoing]) -> int:
        """Put new records in flight at once, as far as bounds and window go; only right while nothing waits. Returns how many."""
        room = self.policy.window - len(self.in_flight)
        for index, record in enumerate(records[:room] if room > 0 else ()):
            if not self.has_room(record.size_bytes):
                return index
            record.number = self.next_number
            self.next_number += 1
            self.in_flight[record.number] = record
            self.held_bytes += record.size_bytes
        return min(len(records), max(0, room))

    def settle(self, record: Outgoing) -> bool:
        """It is delivered or given up and leaves memory. False when it was already gone."""
        if self.in_flight.pop(record.number, None) is None:
            return False
        self.held_bytes -= record.size_bytes
        return True

    def put_back(self, records: Iterable[Outgoing]) -> None:
        """Records that were in flight wait again, before everything newer and in their own order."""
        again = sorted(records, key=lambda record: record.number, reverse=True)
        for record in again:
            self.in_flight.pop(record.number, None)
            record.error = None
            self.waiting.appendleft(record)

    def unload(self, limit: int) -> list[Outgoing]:
        """Waiting records that have just been written to the spool leave memory: call with what was `peek`ed."""
        gone = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        self.held_bytes -= sum(record.size_bytes for record in gone)
        return gone

    def peek(self, limit: int) -> list[Outgoing]:
        """The oldest waiting records, left where they are."""
        return [self.waiting[index] for index in range(min(limit, len(self.waiting)))]

    def route(self, *, away: bool, spool_empty: bool, disk_works: bool) -> Route:
        """What to do with waiting records. In "spool" mode disk takes over when the broker is away or memory
        is three quarters full.

        A disk that does not take records leaves memory alone, until something is on it that has to go first.
        """
        window_full = len(self.in_flight) >= self.policy.window
        if self.policy.mode != "spool" or (spool_empty and not disk_works):
            return Route.HOLD if window_full else Route.SEND
        if not spool_empty or away:
            return Route.SPOOL
        pressed = 4 * self.records >= 3 * self.policy.max_records or 4 * self.held_bytes >= 3 * self.policy.max_bytes
        if window_full:
            return Route.SPOOL if pressed else Route.HOLD
        return Route.SEND


class Link:
    """Whether the broker answers, from what was reported. Times in milliseconds on any one clock.

    Away: a delivery failed in a way that may heal, or something is in flight and nothing came back for
    `away_after_ms`.
    Back: something was delivered.
    """

    def __init__(self, away_after_ms: int, backoff_ms: int = 100, backoff_max_ms: int = 5_000) -> None:
        self.away = False
        self.away_since_ms = 0
        self.resume_at_ms = 0
        self._away_after_ms = away_after_ms
        self._backoff_first_ms = backoff_ms
        self._backoff_max_ms = backoff_max_ms
        self._backoff_ms = backoff_ms
        self._quiet_since_ms: int | None = None

    def delivered(self, now_ms: int) -> None:
        """Something was acknowledged."""
        self._quiet_since_ms = now_ms
        self._backoff_ms = self._backoff_first_ms
        self.away = False
        self.resume_at_ms = 0

    def heard(self, now_ms: int) -> None:
        """The registry has answered, so what was silence until now need not mean that the broker is away."""
        self._quiet_since_ms = now_ms
        if not self.resume_at_ms:
            self.away = False

    def failed(self, now_ms: int) -> None:
        """A delivery failed that may heal: wait before the next, each time longer."""
        if now_ms >= self.resume_at_ms:
            self.resume_at_ms = now_ms + self._backoff_ms
            self._backoff_ms = min(self._backoff_max_ms, 2 * self._backoff_ms)
        self._mark(now_ms)

    def watch(self, now_ms: int, in_flight: int) -> None:
        """Look at the clock: call regularly."""
        if not in_flight:
            self._quiet_since_ms = None
        elif self._quiet_since_ms is None:
            self._quiet_since_ms = now_ms
        elif now_ms - self._quiet_since_ms >= self._away_after_ms:
            self._mark(now_ms)

    def may_send(self, now_ms: int) -> bool:
        """False during the back-off after a failure."""
        return now_ms >= self.resume_at_ms

    def _mark(self, now_ms: int) -> None:
        if not self.away:
            self.away, self.away_since_ms = True, now_ms
