"""Latency from `publish` to the start of the handler at a steady rate: two processes, one clock (this machine's)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import uvloop

from bench.bare import client
from bench.events import application, events, raw_producer
from bench.ours import ready
from pipeline import Context, ToolResult

LEAD_S = 3.0
"""Time for the consumer to join before the first event."""


WARM_UP_S = 1.0
"""Not counted, on either side: the first record waits for its topic's metadata, and hundreds behind it with it."""


def _quantiles(seen_ms: list[float], per_s: int) -> dict[str, Any]:
    seen = sorted(seen_ms[round(WARM_UP_S * per_s) :])
    return {
        "p50_ms": seen[len(seen) // 2],
        "p99_ms": seen[len(seen) * 99 // 100],
        "p999_ms": seen[len(seen) * 999 // 1000],
        "records": len(seen),
    }


def produce(bootstrap: str, topic: str, records: int, per_s: int, raw: bool, linger_ms: float = 0) -> dict[str, Any]:
    """Publish at an even pace; each event carries its time of publishing, in nanoseconds, as call_id."""
    app = application(bootstrap)
    app.codec.prepare(topic)
    made = list(events(records))
    producer = raw_producer(bootstrap, **{"linger.ms": linger_ms}) if raw else None
    publisher = None if raw else app.publisher(topic=topic)
    time.sleep(LEAD_S)
    began = time.monotonic()
    for number, event in enumerate(made):
        due = began + number / per_s
        while (left := due - time.monotonic()) > 0:
            time.sleep(left)
        stamped = event.model_copy(update={"call_id": str(time.time_ns())})
        if publisher is not None:
            publisher.publish(stamped)
        elif producer is not None:
            producer.produce(topic, app.codec.encode(stamped, topic=topic), event.run_id.encode())
            producer.poll(0)
    if publisher is not None:
        publisher.close()
    elif producer is not None:
        producer.flush(10)
    return {}


def _start_producer(arguments: dict[str, Any]) -> subprocess.Popen[bytes]:
    import json

    command = [sys.executable, "-m", "bench.child", "bench.latency:produce", json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def raw(bootstrap: str, topic: str, records: int, per_s: int, linger_ms: float = 0) -> dict[str, Any]:
    """A librdkafka producer that does not linger, and a poll loop."""
    consumer = client(bootstrap)
    consumer.subscribe([topic])
    codec = application(bootstrap).codec
    codec.prepare(topic)
    child = _start_producer(
        {
            "bootstrap": bootstrap,
            "topic": topic,
            "records": records,
            "per_s": per_s,
            "raw": True,
            "linger_ms": linger_ms,
        }
    )
    seen: list[float] = []
    deadline = time.monotonic() + LEAD_S + records / per_s + 20
    while len(seen) < records and time.monotonic() < deadline:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            _, event = codec.decode_dict(topic, message.value())
            seen.append((time.time_ns() - int(event["call_id"])) / 1e6)
    child.wait(20)
    consumer.close()
    return _quantiles(seen, per_s)


def ours(bootstrap: str, topic: str, records: int, per_s: int) -> dict[str, Any]:
    """Our publisher with its defaults, and an `async def` handler."""
    app, seen = application(bootstrap), list[float]()

    @app.subscribe(topic, group="bench-latency", tiers=("10s",))
    async def handle(event: ToolResult, ctx: Context) -> None:
        seen.append((time.time_ns() - int(event.call_id)) / 1e6)

    async def main() -> None:
        ready(app)
        await app.start()
        child = _start_producer(
            {"bootstrap": bootstrap, "topic": topic, "records": records, "per_s": per_s, "raw": False}
        )
        deadline = time.monotonic() + LEAD_S + records / per_s + 20
        while len(seen) < records and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        await app.stop()
        child.wait(20)

    uvloop.run(main())
    return _quantiles(seen, per_s)
