"""Memory of a worker process, as the operating system counts it (resident set)."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.events import PARTITIONS, application, encoded, load
from bench.ours import ready, until_set
from pipeline import Context

PAGE_BYTES = 4_096


def resident_bytes() -> int:
    """Linux only, like the figures."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def in_flight(bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    """Handlers of `records` different keys, all suspended at once: resident bytes for each beyond the idle worker."""
    app = application(bootstrap)
    waiting = [0]
    release = asyncio.Event()

    @app.subscribe(topic, group="bench-flight", tiers=("10s",), concurrency=records)
    async def handle(event: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        waiting[0] += 1
        await release.wait()

    async def main() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        ready(app)
        await app.start()
        assert app.worker is not None
        engine, deadline = app.worker.running[0].engine, time.monotonic() + 90
        while len(engine.partitions) < PARTITIONS and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        pairs = encoded(app.codec, topic, records, keys=10**9)
        first = [(f"first-{number}".encode(), pairs[0][1]) for number in range(200)]
        await loop.run_in_executor(None, load, bootstrap, topic, first)
        while waiting[0] < len(first) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        unique = [(f"k{number}".encode(), value) for number, (_, value) in enumerate(pairs[len(first) :])]
        gc.collect()
        before = resident_bytes()
        await loop.run_in_executor(None, load, bootstrap, topic, unique)
        while waiting[0] < records and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        gc.collect()
        after = resident_bytes()
        count = waiting[0]
        release.set()
        await asyncio.sleep(0.5)
        await app.stop()
        if count < records:
            raise RuntimeError(f"{count} of {records} handlers were suspended at once")
        return {"bytes_each": (after - before) / len(unique), "records": count}

    return uvloop.run(main())


def over_time(bootstrap: str, topic: str, records: int, stalled: bool) -> dict[str, Any]:
    """Resident bytes at a fifth of the way and at the end. `stalled`: the first record's handler never returns."""
    app, count, marks = application(bootstrap), [0], list[int]()
    never, done = asyncio.Event(), asyncio.Event()
    group = "bench-stalled" if stalled else "bench-flat"
    stuck: list[int] = []

    @app.subscribe(topic, group=group, tiers=("10s",))
    async def handle(event: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        if stalled and not stuck:
            stuck.append(ctx.partition)
            await never.wait()
        count[0] += 1
        if count[0] == records // 5:
            marks.append(resident_bytes())
        elif count[0] == records:
            done.set()

    async def main() -> dict[str, Any]:
        await asyncio.get_running_loop().run_in_executor(None, ready, app)
        await app.start()
        await until_set(app, done)
        marks.append(resident_bytes())
        peak = marks[1]
        never.set()
        await app.stop()
        return {"early_bytes": marks[0], "late_bytes": peak, "records": records}

    return uvloop.run(main())
