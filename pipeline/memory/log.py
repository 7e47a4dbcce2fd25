"""One partition of the simulated cluster: records by offset, with the gaps that compaction and transactions leave.

What is read is what a reader of committed records sees: nothing at or past `stable`, where the first open transaction begins.
"""

from __future__ import annotations

from bisect import bisect_left

from pipeline.model.cluster import Headers

_CREATE_TIME = 1
_RECORD_OVERHEAD_BYTES = 70


class MemoryMessage:
    """A stored record with the methods of `confluent_kafka.Message` that the pipeline uses."""

    __slots__ = ("_headers", "_key", "_offset", "_partition", "_timestamp_ms", "_topic", "_value")

    def __init__(
        self,
        where: tuple[str, int, int],
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        timestamp_ms: int,
    ) -> None:
        self._topic, self._partition, self._offset = where
        self._key = key
        self._value = value
        self._headers = headers
        self._timestamp_ms = timestamp_ms

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Headers | None:
        return list(self._headers) if self._headers else None

    def timestamp(self) -> tuple[int, int]:
        return (_CREATE_TIME, self._timestamp_ms)

    def error(self) -> None:
        return None

    def __repr__(self) -> str:
        return f"<{self._topic}[{self._partition}]@{self._offset} key={self._key!r}>"


class PartitionLog:
    """Append, read, forget. `end` is the high watermark: the offset that the next record gets."""

    __slots__ = ("_offsets", "_open", "_records", "end", "partition", "start", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.start = 0
        self.end = 0
        self._offsets: list[int] = []
        self._records: list[MemoryMessage] = []
        self._open: dict[object, list[int]] = {}

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        timestamp_ms: int,
        transaction: object = None,
    ) -> int:
        offset = self.end
        if transaction is not None:
            self._open.setdefault(transaction, []).append(offset)
        where = (self.topic, self.partition, offset)
        self._records.append(MemoryMessage(where, key, value, headers, timestamp_ms))
        self._offsets.append(offset)
        self.end += 1
        return offset

    def skip(self, count: int) -> None:
        """Offsets that no reader ever sees: a transaction's markers, or its aborted records."""
        self.end += count

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return min((offsets[0] for offsets in self._open.values()), default=self.end)

    def finish(self, transaction: object, committed: bool) -> None:
        """Write its marker; what was aborted was never there."""
        offsets = self._open.pop(transaction, [])
        if not committed:
            gone = set(offsets)
            self._records = [record for record in self._records if record.offset() not in gone]
            self._offsets = [record.offset() for record in self._records]
        self.end += 1

    def read(self, offset: int, max_records: int) -> list[MemoryMessage]:
        first = bisect_left(self._offsets, offset)
        if self._open:
            max_records = min(max_records, bisect_left(self._offsets, self.stable) - first)
        return self._records[first : first + max(0, max_records)]

    def records(self) -> list[MemoryMessage]:
        """Those that are visible by now."""
        return self.read(0, len(self._records))

    def delete_before(self, offset: int) -> None:
        first = bisect_left(self._offsets, offset)
        del self._offsets[:first], self._records[:first]
        self.start = max(self.start, min(offset, self.end))

    def compact(self) -> None:
        """Keep the last record of each key. Start and end stay, as on a real log that keeps its segments' offsets."""
        last = {record.key(): record.offset() for record in self._records}
        self._records = [r for r in self._records if r.key() is None or last[r.key()] == r.offset()]
        self._offsets = [r.offset() for r in self._records]

    def first_at(self, time_ms: int) -> int:
        """The first offset with a timestamp >= `time_ms`, or the end."""
        return next((r.offset() for r in self._records if r.timestamp()[1] >= time_ms), self.end)


def size_bytes(key: bytes | None, value: bytes | None, headers: Headers | None) -> int:
    """About what a record takes in a batch of its own, for the topic's `max.message.bytes`."""
    in_headers = sum(len(name) + len(text or b"") + 2 for name, text in headers or ())
    return _RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"") + in_headers
