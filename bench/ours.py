"""The pipeline's own side of the throughput rows: one handler, one group, a fresh worker in this process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import uvloop

from bench.events import PARTITIONS, application
from bench.meter import Meter
from pipeline import BatchPolicy, Context, FlowPolicy, Pipeline, ToolResult
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import PipelineError
from pipeline.topology import Defaults, apply

BATCH = 500


def ready(app: Pipeline, partitions: int = PARTITIONS) -> None:
    """Lanes exist, and every group stands at the start of its topic."""
    admin = app.cluster.admin()
    apply(admin, app.subscriptions, Defaults(partitions=partitions))
    for subscription in app.subscriptions:
        with contextlib.suppress(PipelineError):  # a group that never was has nothing to reset
            start = {TopicPartition(subscription.topic, p): Position(0) for p in range(partitions)}
            if admin.group_positions(subscription.group):
                admin.set_group_positions(subscription.group, start)


async def until_set(app: Pipeline, done: asyncio.Event, timeout_s: float = 120.0) -> None:
    """Wait for `done`, or raise what broke the worker."""
    assert app.worker is not None
    assert app.worker.broken is not None
    either: set[asyncio.Future[Any]] = {asyncio.ensure_future(done.wait()), app.worker.broken}
    await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if app.worker.broken.done():
        raise app.worker.broken.result()
    if not done.is_set():
        raise TimeoutError(f"not finished within {timeout_s:g} s: {app.worker.health()}")


def run(app: Pipeline, meter: Meter, partitions: int = PARTITIONS) -> dict[str, Any]:
    """Run the application until its meter has counted to the end."""

    async def main() -> dict[str, Any]:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        meter.finished = partial(loop.call_soon_threadsafe, done.set)
        await loop.run_in_executor(None, ready, app, partitions)
        gc.collect()
        await app.start()
        await until_set(app, done)
        await app.stop()
        return meter.result()

    return uvloop.run(main())


def throughput(
    bootstrap: str, topic: str, records: int, kind: str, partitions: int = PARTITIONS, **more: Any
) -> dict[str, Any]:
    """`kind`: one of HANDLERS; `more` goes to `subscribe`, but for what the handler takes out of it."""
    app, meter = application(bootstrap), Meter(records, lambda: None)
    arguments: dict[str, Any] = {"group": f"bench-{kind}", "tiers": ("10s",), "attempts": 2, **more}
    HANDLERS[kind](app, topic, meter, arguments)
    return run(app, meter, partitions)


def _async_dict(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick = meter.tick

    @app.subscribe(topic, **arguments)
    async def handle(event: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        tick()


def _async_typed(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick = meter.tick

    @app.subscribe(topic, **arguments)
    async def handle(event: ToolResult, ctx: Context) -> None:
        tick()


def _def_dict(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick = meter.tick

    @app.subscribe(topic, **arguments)
    def handle(event: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        tick()


def _def_typed(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick = meter.tick

    @app.subscribe(topic, **arguments)
    def handle(event: ToolResult, ctx: Context) -> None:
        tick()


def _batch_dict(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    @app.subscribe(topic, batch=BatchPolicy(BATCH, whole=True), **arguments)
    def handle(events: list[dict], contexts: list[Context]) -> None:  # type: ignore[type-arg]
        meter.add(len(events))


def _batch_typed(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    @app.subscribe(topic, batch=BatchPolicy(BATCH, whole=True), **arguments)
    def handle(events: list[ToolResult], contexts: list[Context]) -> None:
        meter.add(len(events))


def _suspend_raw(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick, sleep = meter.tick, asyncio.sleep

    @app.subscribe(topic, value="bytes", **arguments)
    async def handle(value: bytes, ctx: Context) -> None:
        await sleep(0)
        tick()


def _async_raw(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick = meter.tick

    @app.subscribe(topic, value="bytes", **arguments)
    async def handle(value: bytes, ctx: Context) -> None:
        tick()


def _wait_raw(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick, sleep, wait_s = meter.tick, asyncio.sleep, arguments.pop("wait_s", 0.02)

    @app.subscribe(topic, value="bytes", **arguments)
    async def handle(value: bytes, ctx: Context) -> None:
        await sleep(wait_s)
        tick()


def _wait_avro(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick, sleep = meter.tick, asyncio.sleep

    @app.subscribe(topic, **arguments)
    async def handle(event: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        await sleep(0.02)
        tick()


def _copy_raw(app: Pipeline, topic: str, meter: Meter, arguments: dict[str, Any]) -> None:
    tick, out = meter.tick, arguments.pop("out")
    interval_ms = arguments.pop("interval_ms")

    @app.subscribe(topic, value="bytes", flow=FlowPolicy(commit_interval_ms=interval_ms), **arguments)
    async def handle(value: bytes, ctx: Context) -> None:
        ctx.emit(out, ctx.key, value)
        tick()


HANDLERS: dict[str, Callable[[Pipeline, str, Meter, dict[str, Any]], None]] = {
    "async-dict": _async_dict,
    "async-typed": _async_typed,
    "def-dict": _def_dict,
    "def-typed": _def_typed,
    "batch-dict": _batch_dict,
    "batch-typed": _batch_typed,
    "async-raw": _async_raw,
    "suspend-raw": _suspend_raw,
    "wait-raw": _wait_raw,
    "copy-raw": _copy_raw,
    "wait-avro": _wait_avro,
}
