"""A producer whose broker is the test: what is sent is held until it is answered. tests/conformance holds it to the real ones."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.model.cluster import Acknowledgements, DeliveryCallback, Headers, OutRecord
from pipeline.model.errors import BufferFull, ClusterError, ClusterUnavailable


class Sent(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int
    delivered: DeliveryCallback | None


class FakeProducer:
    """See `BulkProducer`. Answers at once while `up`; `log` is what was acknowledged, `held` what is not answered yet."""

    def __init__(self, capacity: int = 100_000, up: bool = True) -> None:
        self.up = up
        self.capacity = capacity
        self.log: list[Sent] = []
        self.held: deque[Sent] = deque()
        self.closed = False
        self._ends: Counter[tuple[str, int]] = Counter()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        if self.closed:
            raise ClusterError(f"the producer is closed: nothing can be sent to {topic} any more")
        if len(self.held) >= self.capacity:
            raise BufferFull(f"a record for {topic} was not taken: the buffer is full")
        self.take(Sent(topic, key, value, headers or [], partition, delivered))

    def take(self, record: Sent) -> None:
        self.held.append(record)
        self.serve(0)

    def send_many(self, topic: str, partition: int, records: Sequence[OutRecord], into: Acknowledgements) -> int:
        for taken, (key, value, headers) in enumerate(records):
            try:
                self.send(topic, key, value, headers, partition, delivered=into.add)
            except BufferFull:
                return taken
        return len(records)

    def answer(self, count: int | None = None, error: ClusterError | None = None) -> None:
        """The oldest ones (all when no count is given) are acknowledged, or refused with the error."""
        for _ in range(len(self.held) if count is None else min(count, len(self.held))):
            record = self.held.popleft()
            offset = -1
            if error is None:
                place = (record.topic, max(record.partition, 0))
                offset, self._ends[place] = self._ends[place], self._ends[place] + 1
                self.log.append(record)
            if record.delivered is not None:
                record.delivered(error, offset)

    def come_back(self) -> None:
        self.up = True
        self.answer()

    def serve(self, timeout_s: float) -> None:
        if self.up:
            self.answer()

    def hear(self) -> None:
        self.serve(0)

    def flush(self, timeout_s: float) -> int:
        self.serve(timeout_s)
        return len(self.held)

    def close(self, timeout_s: float) -> None:
        """What it holds is reported as failed."""
        self.flush(timeout_s)
        self.closed = True
        self.answer(error=ClusterUnavailable("the producer was closed before the record was written"))
