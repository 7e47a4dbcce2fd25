"""The way from memory to Kafka: records go to the client in their order, and those that failed go again before
anything newer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.emit.buffer import BATCH, Buffer, Link, Outgoing, Reports
from pipeline.emit.stats import Counters
from pipeline.model.cluster import RecordProducer
from pipeline.model.errors import BufferFull, ClusterError, PipelineError

DIRECT_IN_FLIGHT = 32
"""Records without an answer: below, each new one goes alone; from here on batches pay."""


class SendRoute:
    """Owner of the producer. `reports`: what the client answered and nobody has looked at yet; `failed`: records in
    flight whose answer was a refusal that may heal. `encode` makes bytes of an event still to be encoded, or says "not
    yet"; `cold`, `warmed`: it did the one or the other since somebody last cleared the flags."""

    def __init__(
        self, producer: RecordProducer, buffer: Buffer, lock: threading.Condition, counters: Counters, link: Link
    ) -> None:
        self.reports = Reports()
        self.failed: dict[int, Outgoing] = {}
        self.encode: Callable[[Outgoing], bool] = _not_yet
        self.cold = self.warmed = False
        self._producer = producer
        self._buffer = buffer
        self._lock = lock
        self._counters = counters
        self._link = link
        self._turn: Any = threading.RLock()  # held from numbering to handing over: who sends next sends newer records

    @property
    def unanswered(self) -> bool:
        """Something from memory is in flight whose answer is still to come."""
        return len(self._buffer.in_flight) > len(self.failed)

    @property
    def few_under_way(self) -> bool:
        return len(self._buffer.in_flight) - len(self.reports) < DIRECT_IN_FLIGHT

    @property
    def _must_wait(self) -> bool:
        """A new record, behind older ones that wait or have failed."""
        return bool(self._buffer.waiting or self.failed or self._link.away)

    def send(self, now_ms: int) -> bool:
        """The next batch of what waits; nothing while something older has failed."""
        if self.failed or not self._link.may_send(now_ms):
            return False
        with self._turn:
            with self._lock:
                batch = self._buffer.take(BATCH)
            return self._hand_over_all(batch) > 0

    def send_direct(self, records: Sequence[Outgoing]) -> int:
        """New records straight to the client, in the caller's thread; returns how many were taken.

        Only while nothing older waits or has failed, and one thread at a time, so that nothing is overtaken.
        """
        if self.at_it or not self._turn.acquire(blocking=False):
            return 0
        try:
            with self._lock:
                if self._must_wait:
                    return 0
                taken = self._buffer.launch(records)
                self._counters.published += taken
            self._hand_over_all(records[:taken])
            self._producer.hear()
        finally:
            self._turn.release()
        return taken

    def launch(self, record: Outgoing) -> bool:
        """Under the lock: put one new record in flight, past the sending thread, if nothing older waits or has failed and few are
        on their way (of many, the thread makes batches). After True the caller hands it over: `hand_over_launched`."""
        if self._must_wait or not self.few_under_way or self.at_it:
            return False
        if not self._turn.acquire(blocking=False):
            return False
        if self._buffer.launch((record,)):
            return True
        self._turn.release()
        return False

    def hand_over_launched(self, record: Outgoing) -> bool:
        """To the client, in the caller's thread; False when the client is full: then it waits for the thread. If it raises: `take_back`."""
        gone = self._hand_over_all((record,)) > 0
        self._turn.release()
        return gone

    @property
    def at_it(self) -> bool:
        """Whether the calling thread is handing over."""
        return bool(self._turn._is_owned())

    def take_back(self, record: Outgoing) -> None:
        """What a signal handler raised came between: it waits for the thread. (If the client has it already, it is sent twice.)"""
        if not self.at_it:
            return
        with self._lock:
            if record.number in self._buffer.in_flight:
                self._buffer.put_back((record,))
        self._turn.release()

    def retry_failed(self) -> None:
        """Once nothing else is in flight, failed records go back to the front."""
        with self._lock:
            if len(self.failed) == len(self._buffer.in_flight):
                self._buffer.put_back(self.failed.values())
                self.failed.clear()

    def hand_over(self, record: Outgoing) -> bool:
        """Give it to the Kafka client; False when the client is full, or its schema id not known yet."""
        record.reports = self.reports
        try:
            if record.unencoded is not None:
                if not self.encode(record):
                    self.cold = True
                    return False
                self.warmed = True
            self._producer.send(record.topic, record.key, record.value, record.headers, delivered=record)
        except BufferFull:
            return False
        except ClusterError as error:
            record(error, -1)
        except PipelineError as error:
            record(ClusterError(str(error)), -1)
        except Exception as error:
            # The client can't take it: without an answer it would stay in flight, and hold up all that follows.
            record(ClusterError(f"{type(error).__name__}: {error}"), -1)
        return True

    def close(self, timeout_s: float) -> None:
        """Close the producer; what it still held is reported."""
        self._producer.close(timeout_s)

    def _hand_over_all(self, batch: Sequence[Outgoing]) -> int:
        """How many the client took; the rest waits again: nothing passes an older one that has failed, also when nobody has looked at that
        answer yet."""
        for index, record in enumerate(batch):
            if self.failed or self.reports.refused or not self.hand_over(record):
                with self._lock:
                    self._buffer.put_back(batch[index:])
                return index
        return len(batch)


def _not_yet(record: Outgoing) -> bool:
    """Nobody knows any schema ids."""
    return False
