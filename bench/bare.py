"""The bare loops: the least code that consumes, decodes and commits the same records, and asyncio with no Kafka at all."""

from __future__ import annotations

import asyncio
import time
import uuid
from io import BytesIO
from typing import Any

import uvloop
from confluent_kafka import Consumer
from fastavro import schemaless_reader

from bench.events import FRAME_BYTES, events, schema
from bench.meter import Meter
from pipeline.kafka.settings import consumer_settings
from pipeline.model.cluster import ConsumerPolicy
from pipeline.model.events import ToolResult

BATCH = 500
COMMIT_S = 0.5


def client(bootstrap: str, group: str = "") -> Consumer:
    """A group member with the settings of our own consumer, from the start of the topic."""
    policy = ConsumerPolicy(group=group or f"bare-{uuid.uuid4().hex[:8]}", client_id="bench")
    return Consumer(consumer_settings(bootstrap, policy, {}) | {"auto.offset.reset": "earliest", "log_level": 2})


def consume(bootstrap: str, topic: str, records: int, kind: str) -> dict[str, Any]:
    """`kind`: "raw", "dict" (fastavro), "typed" (fastavro, then pydantic). Offsets are committed every half second."""
    consumer = client(bootstrap)
    consumer.subscribe([topic])
    meter, node, validate = Meter(records, lambda: None), schema(), ToolResult.model_validate
    committed = time.monotonic()
    while meter.count < records:
        messages = consumer.consume(BATCH, 0.1)
        for message in messages:
            if message.error() is not None:
                raise RuntimeError(f"{topic}: {message.error()}")
            value = message.value()
            if kind != "raw":
                body = BytesIO(value or b"")
                body.seek(FRAME_BYTES)
                fields = schemaless_reader(body, node)
                if kind == "typed":
                    validate(fields)
            meter.tick()
        if messages and time.monotonic() - committed >= COMMIT_S:
            committed = time.monotonic()
            last = {(m.topic(), m.partition()): m for m in messages}
            for message in last.values():
                consumer.commit(message=message, asynchronous=True)
    consumer.close()
    return meter.result()


def tasks(records: int) -> dict[str, Any]:
    """uvloop alone: one task per record that suspends once, 1,000 at a time."""

    async def main() -> dict[str, Any]:
        meter, loop = Meter(records, lambda: None), asyncio.get_running_loop()

        async def one() -> None:
            await asyncio.sleep(0)
            meter.tick()

        while meter.count < records:
            await asyncio.gather(*[loop.create_task(one()) for _ in range(1_000)])
        return meter.result()

    return uvloop.run(main())


def waiting(records: int, running: int, wait_s: float) -> dict[str, Any]:
    """uvloop alone: `running` tasks that each wait `wait_s` per record."""

    async def main() -> dict[str, Any]:
        meter = Meter(records, lambda: None)

        async def worker() -> None:
            while meter.count < records:
                await asyncio.sleep(wait_s)
                meter.tick()

        await asyncio.gather(*[worker() for _ in range(running)])
        return meter.result()

    return uvloop.run(main())


def by_key(records: int, running: int, wait_s: float) -> dict[str, Any]:
    """asyncio alone, on uvloop, with order by key: up to `running` tasks take a list of keys in order, a record whose key is
    being handled waits behind it, and the handler is `asyncio.sleep` (or nothing). No Kafka, no values, no bound, no offsets."""

    async def main() -> dict[str, Any]:
        meter, behind = Meter(records, lambda: None), dict[str, int]()
        keys = iter([event.run_id for event in events(records)])

        async def handle() -> None:
            if wait_s:
                await asyncio.sleep(wait_s)
            meter.tick()

        async def worker() -> None:
            for key in keys:
                if key in behind:
                    behind[key] += 1
                    continue
                behind[key] = 1
                while behind[key]:
                    await handle()
                    behind[key] -= 1
                del behind[key]

        await asyncio.gather(*[worker() for _ in range(running)])
        return meter.result()

    return uvloop.run(main())
