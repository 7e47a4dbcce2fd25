"""The records that are measured with: 14-field ToolResult events of about 280 bytes, 12 partitions, 5,000 keys."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import fastavro
from confluent_kafka import Producer

from pipeline import Pipeline, Settings
from pipeline.codec import AvroCodec, product_catalogue
from pipeline.model.cluster import TopicSpec
from pipeline.model.events import ToolResult
from pipeline.topology.rules import source_rules

PARTITIONS = 12
KEYS = 5_000
FRAME_BYTES = 5
"""The Confluent prefix: a zero byte and the schema id."""

_TEXT = "Flight HAT204 on 2026-05-12 is confirmed, seat 14C, one checked bag; the refund is 212.50 USD, paid in 5 days."


def event(number: int, key: int, rng: random.Random) -> ToolResult:
    return ToolResult(
        event_id=str(uuid.UUID(int=rng.getrandbits(128))),
        run_id=f"run-{key:06d}",
        sequence=number,
        occurred_at=1_795_359_815_209 + number,
        agent="support",
        tenant="acme",
        parent_id=str(uuid.UUID(int=rng.getrandbits(128))),
        step=number % 40,
        tool="search_flights",
        call_id=f"call_{rng.getrandbits(96):024x}",
        status="OK",
        content=_TEXT,
        duration_ms=rng.randrange(40, 2_000),
    )


def events(count: int, keys: int = KEYS) -> Iterator[ToolResult]:
    """The same events on every run."""
    rng = random.Random(1)
    for number in range(count):
        yield event(number, rng.randrange(keys), rng)


def application(bootstrap: str, **settings: Any) -> Pipeline:
    return Pipeline("bench", settings=Settings(broker=bootstrap, **settings))


def schema() -> Any:
    """ToolResult's contract as fastavro wants it."""
    return fastavro.parse_schema(json.loads(product_catalogue().present[ToolResult.record_name].text))


def raw_producer(bootstrap: str, **more: Any) -> Producer:
    """librdkafka with the settings of our own producer."""
    settings = {
        "bootstrap.servers": bootstrap,
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "linger.ms": 5,
        "queue.buffering.max.messages": 100_000,
        "log_level": 2,
    }
    return Producer(settings | more)


def create(app: Pipeline, *topics: str, partitions: int = PARTITIONS) -> None:
    """Source topics as `pipeline topics apply` makes them."""
    configs = {rule.setting: rule.value for rule in source_rules()}
    app.cluster.admin().create_topics([TopicSpec(name, partitions, 1, configs) for name in topics])


def encoded(codec: AvroCodec, topic: str, count: int, keys: int = KEYS) -> list[tuple[bytes, bytes]]:
    """(key, framed value) pairs."""
    codec.prepare(topic)
    return [(e.run_id.encode(), codec.encode(e, topic=topic)) for e in events(count, keys)]


def load(
    bootstrap: str,
    topic: str,
    pairs: Sequence[tuple[bytes, bytes]],
    times: int = 1,
    headers: Sequence[tuple[str, bytes]] = (),
) -> int:
    """Write the pairs `times` over; returns the mean size of a value in bytes."""
    producer = raw_producer(bootstrap)
    for _ in range(times):
        for key, value in pairs:
            while True:
                try:
                    producer.produce(topic, value, key, headers=list(headers))
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    left = producer.flush(60)
    if left:
        raise RuntimeError(f"{left} records of {topic} were not acknowledged within 60 s: is the broker alive?")
    return sum(len(value) for _, value in pairs) // max(1, len(pairs))
