"""A drain ends with the last handler: no tick, no fetch and no timer has to come by for it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from pipeline import FlowPolicy, Pipeline, Settings
from pipeline.topology import Defaults, apply

HANDLER_S = 0.2
QUIET = FlowPolicy(commit_interval_ms=60_000)


@pytest.mark.parametrize("kind", ["async", "def", "batch"])
def test_a_stop_ends_with_the_last_handler(kind: str) -> None:
    """It used to end with the next commit interval, or with the deadline of the drain: nothing woke the engine."""
    assert asyncio.run(seconds_to_stop(kind)) < 5, "the drain waited for something else"


async def seconds_to_stop(kind: str) -> float:
    """With one handler at work."""
    app = Pipeline("drains", settings=Settings(broker=f"memory://drains-{kind}"))
    started = threading.Event()

    if kind == "async":

        @app.subscribe("events", group="g", value="json", flow=QUIET)
        async def one(value: Any, ctx: Any) -> None:
            started.set()
            await asyncio.sleep(HANDLER_S)

    elif kind == "def":

        @app.subscribe("events", group="g", value="json", flow=QUIET)
        def plain(value: Any, ctx: Any) -> None:
            started.set()
            time.sleep(HANDLER_S)

    else:

        @app.subscribe("events", group="g", value="json", flow=QUIET, batch=10)
        async def batch(values: list[Any], contexts: list[Any]) -> None:
            started.set()
            await asyncio.sleep(HANDLER_S)

    apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=2))
    await app.start()
    producer = app.cluster.producer("p")
    producer.send("events", b"k", b"{}", partition=0)
    assert producer.flush(5) == 0
    assert await asyncio.to_thread(started.wait, 10)
    began = time.monotonic()
    await app.stop()
    return time.monotonic() - began
