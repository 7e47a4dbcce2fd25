"""Retry tiers and parking: how late a retry is, what waiting costs, what order through retries costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import uvloop

import pipeline.kafka.consumer
from bench.events import PARTITIONS, application, load
from bench.ours import ready
from pipeline import Context, FlowPolicy, Pipeline, Retry
from pipeline.worker.worker import Running

SOURCE_BYTES = 300
"""A record of `pairs` on the wire: value, key and Kafka's own fields."""
QUIET = FlowPolicy(dead_letter_flood=0)


def pairs(count: int, keys: int, prefix: str = "key") -> list[tuple[bytes, bytes]]:
    return [(f"{prefix}-{number % keys:06d}".encode(), b"x" * 280) for number in range(count)]


async def until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def running(app: Pipeline) -> Running:
    assert app.worker is not None
    return app.worker.running[0]


def is_open(app: Pipeline) -> Callable[[], bool]:
    return lambda: len(running(app).engine.partitions) == PARTITIONS


def lateness(bootstrap: str, topic: str, records: int, per_s: int, tier_s: float) -> dict[str, Any]:
    """Every record fails once and comes back from a tier: how long after it was due does its second attempt start?"""
    app, late_ms, kept_ms = application(bootstrap), list[float](), dict[bytes, float]()
    early_ms = [0.0]

    @app.subscribe(topic, group="bench-late", value="bytes", tiers=(tier_s,), attempts=3, flow=QUIET)
    async def handle(value: bytes, ctx: Context) -> None:
        now_ms = time.time_ns() / 1e6
        key = ctx.key or b""
        if ctx.attempt == 1:
            kept_ms[key] = now_ms
            raise Retry("once")
        assert ctx.delivery is not None
        late_ms.append(now_ms - ctx.delivery.due_ms)
        early_ms[0] = max(early_ms[0], tier_s * 1_000 - (now_ms - kept_ms[key]))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ready(app)
        await app.start()
        await until(is_open(app), 30)
        made = pairs(records, records)
        slice_ = max(1, per_s // 10)
        for start in range(0, records, slice_):
            began = time.monotonic()
            await loop.run_in_executor(None, load, bootstrap, topic, made[start : start + slice_])
            await asyncio.sleep(max(0, 0.1 - (time.monotonic() - began)))
        await until(lambda: len(late_ms) == records, 60 + tier_s)
        await app.stop()

    uvloop.run(main())
    late = sorted(late_ms)
    return {
        "p50_ms": late[len(late) // 2],
        "p99_ms": late[len(late) * 99 // 100],
        "early_ms": early_ms[0],
        "records": len(late),
    }


def waiting(bootstrap: str, topic: str, records: int, watch_s: float) -> dict[str, Any]:
    """CPU of a worker while `records` wait in a ten-minute tier, beside the same worker when nothing waits."""
    app = application(bootstrap)

    @app.subscribe(topic, group="bench-wait", value="bytes", tiers=("10m",), attempts=3, flow=QUIET)
    async def handle(value: bytes, ctx: Context) -> None:
        raise Retry("later")

    async def busy_ms_per_s() -> float:
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(watch_s)
        return (time.process_time() - cpu) * 1_000 / (time.monotonic() - began)

    async def main() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        ready(app)
        await app.start()
        await until(is_open(app), 30)
        await asyncio.sleep(2)
        idle = await busy_ms_per_s()
        await loop.run_in_executor(None, load, bootstrap, topic, pairs(records, 5_000))
        engine = running(app).engine
        parked_s = await until(lambda: sum(len(u.parking) for u in engine.partitions.values()) >= records, 150)
        await asyncio.sleep(3)
        waits = await busy_ms_per_s()
        await app.stop()
        return {"idle_ms_per_s": idle, "waiting_ms_per_s": waits, "parked_s": parked_s, "records": records}

    return uvloop.run(main())


class _Statistics:
    """Bytes that this process's consumers have read and written, from librdkafka's own statistics."""

    def __init__(self) -> None:
        self._read: dict[str, int] = {}
        adapter: Any = pipeline.kafka.consumer
        real = adapter.Consumer
        settings = {"statistics.interval.ms": 200, "stats_cb": self._take}
        adapter.Consumer = lambda given: real({**given, **settings})

    def _take(self, text: str) -> None:
        found = json.loads(text)
        self._read[found["name"]] = found["rx_bytes"]

    @property
    def read_bytes(self) -> int:
        return sum(self._read.values())


def traffic(bootstrap: str, topic: str, records: int, tier_s: float) -> dict[str, Any]:
    """Bytes that the worker reads from its tier for each record that comes due, all waiting before the first is due."""
    statistics, app, seen = _Statistics(), application(bootstrap), [0, 0]

    @app.subscribe(topic, group="bench-bytes", value="bytes", tiers=(tier_s,), attempts=3, flow=QUIET)
    async def handle(value: bytes, ctx: Context) -> None:
        seen[ctx.attempt - 1] += 1
        if ctx.attempt == 1:
            raise Retry("once")

    async def main() -> dict[str, Any]:
        await asyncio.get_running_loop().run_in_executor(None, load, bootstrap, topic, pairs(records, records))
        ready(app)
        await app.start()
        await until(lambda: seen[0] >= records, 60)
        await asyncio.sleep(0.5)
        if seen[1]:
            raise RuntimeError(
                f"the tier of {tier_s} s is too short for this machine: {seen[1]} came due before all failed"
            )
        await until(lambda: seen[1] > 0, tier_s + 30)
        drain_s = await until(lambda: seen[1] >= records, 120)
        await asyncio.sleep(0.5)
        # Everything read since the start, less the source's records, which were read once.
        read = statistics.read_bytes - records * SOURCE_BYTES
        await app.stop()
        return {"bytes_per_record": read / records, "drain_s": drain_s, "records": records}

    return uvloop.run(main())


def parking(bootstrap: str, topic: str, successors: int, others: int, fails: bool) -> dict[str, Any]:
    """One key whose head fails four times (or not at all) before many successors; the other keys' handlers wait 20 ms."""
    app = application(bootstrap)
    done: dict[str, int] = {"hot": 0, "others": 0}
    times: dict[str, float] = {}
    order: list[int] = []

    @app.subscribe(
        topic, group="bench-park", value="bytes", tiers=(0.5, 1, 1.5, 2), attempts=5, concurrency=200, flow=QUIET
    )
    async def handle(value: bytes, ctx: Context) -> None:
        times.setdefault("began", time.monotonic())
        if ctx.key == b"hot":
            if fails and value == b"0" and ctx.attempt < 5:
                raise Retry("head")
            order.append(int(value))
            done["hot"] += 1
            if done["hot"] == successors + 1:
                times["hot"] = time.monotonic()
            return
        await asyncio.sleep(0.02)
        done["others"] += 1
        if done["others"] == others:
            times["others"] = time.monotonic()

    async def main() -> dict[str, Any]:
        hot = [(b"hot", str(number).encode()) for number in range(successors + 1)]
        plain = pairs(others, 2_000, "other")
        step = max(1, len(plain) // len(hot))
        mixed: list[tuple[bytes, bytes]] = []
        for number, record in enumerate(hot):
            mixed.append(record)
            mixed.extend(plain[number * step : (number + 1) * step])
        mixed.extend(plain[len(hot) * step :])
        await asyncio.get_running_loop().run_in_executor(None, load, bootstrap, topic, mixed)
        ready(app)
        await app.start()
        await until(lambda: done["hot"] > successors and done["others"] >= others, 150)
        hops = sum(running(app).engine.stats.hops.values())
        await app.stop()
        if order != sorted(order):
            raise RuntimeError("successors ran out of order")
        return {
            "hot_s": times["hot"] - times["began"],
            "others_s": times["others"] - times["began"],
            "hops": hops,
            "records": successors,
        }

    return uvloop.run(main())
