"""Other libraries with the same decoding (fastavro, then pydantic), a commit every half second, and their own best batching.

None of them orders by key or tracks what is done out of order; their handlers do nothing, as ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import uuid
from io import BytesIO
from typing import Any

from fastavro import schemaless_reader

from bench.events import FRAME_BYTES, schema
from bench.meter import Meter
from pipeline.model.events import ToolResult

COMMIT_S = 0.5
Fields = dict[str, Any]
_node = schema()


def fields_of(value: bytes) -> Fields:
    body = BytesIO(value)
    body.seek(FRAME_BYTES)
    found: Fields = schemaless_reader(body, _node)  # type: ignore[assignment]
    return found


def _group() -> str:
    return f"peer-{uuid.uuid4().hex[:8]}"


def faststream(bootstrap: str, topic: str, records: int, kind: str, batch: bool = False) -> dict[str, Any]:
    """FastStream on confluent-kafka. ACK_FIRST leaves commits to librdkafka's timer; its other policies commit every record."""
    import uvloop
    from faststream import AckPolicy, Context
    from faststream.confluent import KafkaBroker

    async def main() -> dict[str, Any]:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        meter = Meter(records, lambda: loop.call_soon_threadsafe(done.set))
        broker = KafkaBroker(bootstrap, logger=None)
        options: dict[str, Any] = {
            "group_id": _group(),
            "auto_offset_reset": "earliest",
            "auto_commit_interval_ms": round(COMMIT_S * 1_000),
            "ack_policy": AckPolicy.ACK_FIRST,
            "fetch_max_wait_ms": 10,
        }

        async def decode(message: Any, original: Any = Context()) -> Any:  # noqa: B008
            return fields_of(message.body)

        async def decode_many(message: Any, original: Any = Context()) -> Any:  # noqa: B008
            return [fields_of(body) for body in message.body]

        if batch:

            async def handle_many(events: list[Any]) -> None:
                meter.add(len(events))

            handle_many.__annotations__["events"] = list[ToolResult] if kind == "typed" else list[Fields]
            broker.subscriber(topic, batch=True, max_records=500, decoder=decode_many, **options)(handle_many)
        else:

            async def handle(event: Any) -> None:
                meter.tick()

            handle.__annotations__["event"] = ToolResult if kind == "typed" else Fields
            broker.subscriber(topic, decoder=decode, **options)(handle)
        await broker.start()
        await asyncio.wait_for(done.wait(), 100)
        return meter.result()

    return uvloop.run(main())


def faust(bootstrap: str, topic: str, records: int, kind: str) -> dict[str, Any]:
    """Faust on aiokafka, in its own worker."""
    import faust as library

    app = library.App(
        _group(),
        broker=[f"kafka://{bootstrap}"],
        datadir=tempfile.mkdtemp(prefix="bench-faust-"),
        topic_partitions=12,
        topic_allow_declare=False,
        topic_disable_leader=True,
        broker_commit_interval=COMMIT_S,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
        autodiscover=False,
        worker_redirect_stdouts=False,
    )
    worker: Any = None
    meter = Meter(records, lambda: None)

    async def agent(stream: Any) -> None:
        async for value in stream:
            fields = fields_of(value)
            if kind == "typed":
                ToolResult.model_validate(fields)
            meter.tick()
            if meter.count == records:
                _leave(meter)

    app.agent(app.topic(topic, key_serializer="raw", value_serializer="raw"))(agent)
    app.finalize()
    worker = library.Worker(app, loglevel="ERROR", quiet=True, redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()
    return meter.result()


def _leave(meter: Meter) -> None:
    """Faust's worker owns the process until its end."""
    import json

    print(json.dumps(meter.result()), flush=True)
    os._exit(0)


def arroyo(bootstrap: str, topic: str, records: int, kind: str) -> dict[str, Any]:
    """Sentry's arroyo: one strategy that decodes and calls, then its commit strategy."""
    from arroyo.backends.kafka import KafkaConsumer
    from arroyo.commit import CommitPolicy
    from arroyo.processing.processor import StreamProcessor
    from arroyo.processing.strategies import CommitOffsets, ProcessingStrategyFactory, RunTask
    from arroyo.types import Topic

    logging.disable(logging.CRITICAL)
    meter = Meter(records, lambda: None)

    def handle(message: Any) -> None:
        fields = fields_of(message.payload.value)
        if kind == "typed":
            ToolResult.model_validate(fields)
        meter.tick()
        if meter.count == records:
            processor.signal_shutdown()

    class Factory(ProcessingStrategyFactory):  # type: ignore[type-arg]
        def create_with_partitions(self, commit: Any, partitions: Any) -> Any:
            return RunTask(handle, CommitOffsets(commit))

    consumer = KafkaConsumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": _group(),
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "fetch.wait.max.ms": 10,
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 20_000,
        }
    )
    processor: Any = StreamProcessor(consumer, Topic(topic), Factory(), CommitPolicy(COMMIT_S, None))
    processor.run()
    return meter.result()
