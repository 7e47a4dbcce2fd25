"""How long a new worker needs until it is open for work when 100,000 records of its keys are parked in a tier."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvloop

from bench.events import application, load
from bench.lab import Lab, Row
from bench.ours import ready
from bench.retries import QUIET, is_open, pairs, running, until
from pipeline import Context, Pipeline, Retry

RESTORE_S = 5.0


def _parking_app(bootstrap: str, topic: str, group: str) -> Pipeline:
    app = application(bootstrap)

    @app.subscribe(topic, group=group, value="bytes", tiers=("10m",), attempts=3, flow=QUIET)
    async def handle(value: bytes, ctx: Context) -> None:
        raise Retry("later")

    return app


def _parked(app: Pipeline) -> Callable[[], int]:
    return lambda: sum(len(unit.parking) for unit in running(app).engine.partitions.values())


def park(bootstrap: str, topic: str, group: str, records: int) -> dict[str, Any]:
    """Every record fails and waits in a tier of ten minutes; then the worker stops in order."""
    app = _parking_app(bootstrap, topic, group)
    parked = _parked(app)

    async def main() -> dict[str, Any]:
        load(bootstrap, topic, pairs(records, 5_000))
        ready(app)
        await app.start()
        await until(is_open(app), 30)
        took_s = await until(lambda: parked() >= records, 150)
        await asyncio.sleep(1)
        await app.stop()
        return {"parked_s": took_s}

    return uvloop.run(main())


def restore(bootstrap: str, topic: str, group: str, records: int) -> dict[str, Any]:
    """Seconds from the start of a new worker until every partition is open for work, with what is parked known again."""
    app = _parking_app(bootstrap, topic, group)
    parked = _parked(app)

    async def main() -> dict[str, Any]:
        ready_at, cpu = time.monotonic(), time.process_time()
        await app.start()
        await until(is_open(app), 120)
        took = {"open_s": time.monotonic() - ready_at, "cpu_s": time.process_time() - cpu, "parked": parked()}
        await app.stop()
        if took["parked"] != records:
            raise RuntimeError(f"{took['parked']:,} of {records:,} parked records are known after the start")
        return took

    return uvloop.run(main())


def rows(lab: Lab) -> Iterator[Row]:
    """Beside the same start with nothing parked."""
    records, found = lab.sized(100_000, 30_000), []
    for count in (0, records):
        where = {"topic": lab.new_topic("restore"), "group": f"bench-restore-{count}", "records": count}
        lab.on_kafka("restoring:park", **where)
        found.append(lab.on_kafka("restoring:restore", **where))
    empty, full = found
    yield Row(
        "restore-parked", f"start of a worker until it is open for work, {records:,} records parked",
        empty["open_s"] / full["open_s"], f"<= {RESTORE_S:g} s", full["open_s"] <= RESTORE_S,
        full["open_s"], empty["open_s"], "s", None,
        f"against the same start with nothing parked; 12 partitions, one worker; {full['cpu_s']:.1f} s of CPU beside {empty['cpu_s']:.1f}",
        {"parked": records},
    )  # fmt: skip
