"""Dead letters out of nothing: a cluster whose records are made when they are read, so that a million cost no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.codec import AvroCodec
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.memory.log import MemoryMessage
from pipeline.model.cluster import Message, TopicPartition, TopicSpec
from pipeline.model.events import ToolCall
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers

SOURCE, GROUP = "agent.run.events", "billing"
DLQ = f"{SOURCE}.{GROUP}.dlq"
RESULTS = "_pipeline.replay.results"
START_MS = 1_790_000_000_000
CLASSES = ("retryable", "timed_out", "terminal", "RateLimit")
TYPES = ("TimeoutError", "RateLimitError", "ValueError", "KeyError")
Make = Callable[[int, int], MemoryMessage]


def registered() -> AvroCodec:
    """A codec whose registry knows this build's schemas."""
    from pipeline.codec import product_catalogue
    from pipeline.codec.registry import subject_of

    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    for name, schema in product_catalogue().present.items():
        registry.register(subject_of(SOURCE, name), schema)
    codec = AvroCodec(registry)
    assert codec.prepare(SOURCE) == []
    return codec


def tool_call(codec: AvroCodec, run: str, sequence: int, tenant: str) -> bytes:
    event = ToolCall(
        event_id=f"{run}-{sequence}", run_id=run, sequence=sequence, occurred_at=START_MS, agent="airline", tenant=tenant,
        call_id=f"c{sequence}", tool="search_flights", arguments='{"from": "JFK", "to": "SFO"}',
    )  # fmt: skip
    return codec.encode(event, topic=SOURCE)


def maker(codec: AvroCodec | None = None, salt: int = 0) -> Make:
    """Records as a worker writes them, told by partition and offset alone."""
    values = [tool_call(codec, f"run-{n}", n, f"tenant-{n % 20}") if codec else b"{}" for n in range(500)]
    schema = codec.fingerprint(SOURCE, values[0]) if codec else ""

    def make(partition: int, offset: int) -> MemoryMessage:
        n = (offset * 7 + partition * 13 + salt) % 500
        error = ErrorInfo(
            CLASSES[n % 4], TYPES[n % 3], f"model call {offset} of run-{n} failed after {n}.5 s", "Traceback ...\n" * 20
        )
        delivery = DeliveryHeaders(
            attempt=1 + n % 5, hop=n % 4, epoch=3, origin_topic=SOURCE, origin_partition=partition, origin_offset=offset * 3,
            origin_timestamp_ms=START_MS + offset, group=GROUP, first_failed_ms=START_MS + offset * 10, schema=schema, error=error,
        )  # fmt: skip
        headers = dead_letter_headers([("pl.event_id", b"e-%d-%d" % (partition, offset))], delivery)
        place = (DLQ, partition, offset)
        return MemoryMessage(place, b"run-%d" % n, values[n], headers, START_MS + offset * 10 + partition)

    return make


class SyntheticCluster:
    """`ends` per partition of one topic; `make` makes the record at a place. What is beyond an end does not exist yet."""

    def __init__(self, make: Make, ends: Sequence[int], topic: str = DLQ) -> None:
        self.address = "synthetic"
        self.make, self.ends, self.topic = make, list(ends), topic
        self.beginnings = [0] * len(ends)
        self.read = 0
        self.before_poll: Callable[[], None] = lambda: None

    def admin(self) -> Any:
        return _Admin(self)

    def reader(self, client_id: str = "") -> Any:
        return _Reader(self)


class _Admin:
    def __init__(self, cluster: SyntheticCluster) -> None:
        self._cluster = cluster

    def topics(self, names: Sequence[str]) -> dict[str, TopicSpec]:
        return {name: TopicSpec(name, len(self._cluster.ends)) for name in names if name == self._cluster.topic}

    def beginning_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self._cluster.beginnings[place.partition] for place in places}

    def end_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self._cluster.ends[place.partition] for place in places}

    def close(self) -> None: ...


class _Reader:
    def __init__(self, cluster: SyntheticCluster) -> None:
        self._cluster = cluster
        self._at: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._at = dict(positions)

    def remove(self, places: Sequence[TopicPartition]) -> None:
        for place in places:
            self._at.pop(place, None)

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        self._cluster.before_poll()
        for place, at in self._at.items():
            end = min(self._cluster.ends[place.partition], at + max_records)
            if at < end:
                self._at[place] = end
                self._cluster.read += end - at
                return [self._cluster.make(place.partition, offset) for offset in range(at, end)]
        return []

    def ended(self) -> dict[TopicPartition, int]:
        return {place: at for place, at in self._at.items() if at >= self._cluster.ends[place.partition]}

    def close(self) -> None: ...
