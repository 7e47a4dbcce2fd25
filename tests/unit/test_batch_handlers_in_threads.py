"""Batch handlers that are plain `def`: run in a thread, which nothing can stop, and which may raise what no future takes."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import structlog

from pipeline import FlowPolicy, Pipeline, Settings
from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.errors import ClusterError
from pipeline.model.headers import decode
from pipeline.model.policies import Backoff
from pipeline.topology import Defaults, apply
from pipeline.worker.daemon_threads import DaemonThreads
from pipeline.worker.declaring import Retries
from pipeline.worker.worker import Worker
from tests.patience import PATIENCE

NUMBERS = itertools.count()
QUICK = Retries(Backoff(10))
Handler = Callable[[Sequence[Any], Sequence[Any]], Any]


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def play(handler: Handler, story: Callable[[Worker, Pipeline], Awaitable[None]], **arguments: Any) -> None:
    """One worker, one partition, real threads, a record per key."""

    async def main() -> None:
        app = Pipeline("batches", settings=Settings(broker=f"memory://batches-{next(NUMBERS)}"))
        app.subscribe("events", group="g", value="bytes", batch=10, **arguments)(handler)
        apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
        await app.start()
        assert app.worker is not None
        await story(app.worker, app)
        await asyncio.wait_for(app.stop(), 10)

    asyncio.run(main())


def publish(app: Pipeline, *keys: bytes) -> None:
    producer = app.cluster.producer("agents")
    for key in keys:
        producer.send("events", key, b"x", partition=0)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds * PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [StopIteration, SystemExit, asyncio.CancelledError])
def test_whatever_it_raises_is_its_batch_s_failure(error: type[BaseException]) -> None:
    """No asyncio future takes a StopIteration (a `next` too many): the batch never ended. SystemExit ended the worker."""
    tries: list[int] = []

    def handler(values: Sequence[Any], contexts: Sequence[Any]) -> None:
        tries.append(len(values))
        if len(tries) == 1:
            raise error

    async def story(worker: Worker, app: Pipeline) -> None:
        publish(app, b"a", b"b")
        await until(lambda: worker.running[0].engine.stats.processed == 2)

    play(handler, story, tiers=(), attempts=2, retries=QUICK)


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
def test_so_it_is_for_a_coroutine(error: type[BaseException]) -> None:
    tries: list[int] = []

    async def handler(values: Sequence[Any], contexts: Sequence[Any]) -> None:
        tries.append(len(values))
        if len(tries) == 1:
            raise error

    async def story(worker: Worker, app: Pipeline) -> None:
        publish(app, b"a", b"b")
        await until(lambda: worker.running[0].engine.stats.processed == 2)

    play(handler, story, tiers=(), attempts=2, retries=QUICK)


class PoolTimeout(TimeoutError):
    """As a database's pool raises it."""


@pytest.mark.parametrize("is_async", [True, False])
def test_a_time_out_of_its_own_is_not_its_deadline(is_async: bool) -> None:
    """It was told as "took longer than timeout=300s", without its text and stack, and tried again although it was to be terminal."""
    tries: list[int] = []

    def handler(values: Sequence[Any], contexts: Sequence[Any]) -> None:
        tries.append(len(values))
        raise PoolTimeout("db-7: no connection within 2 s")

    async def coroutine(values: Sequence[Any], contexts: Sequence[Any]) -> None:
        handler(values, contexts)

    async def story(worker: Worker, app: Pipeline) -> None:
        publish(app, b"a")
        dead = worker.running[0].engine.stats.dead
        await until(lambda: sum(dead.values()) == 1)
        letters: list[Message] = []
        reader = app.cluster.reader("test")
        reader.assign({TopicPartition("events.g.dlq", 0): 0})
        await until(lambda: bool(letters.extend(reader.poll(10, 0)) or letters))
        error = decode(letters[0].headers()).error
        assert (error.error_type, error.message) == ("PoolTimeout", "db-7: no connection within 2 s")
        assert "raise PoolTimeout" in error.stack
        assert worker.running[0].engine.stats.timeouts == 0
        assert tries == [1]

    retries = Retries(Backoff(10), terminal=(PoolTimeout,))
    play(coroutine if is_async else handler, story, tiers=(), attempts=3, retries=retries, timeout="5m")


@pytest.mark.parametrize("is_async", [True, False])
def test_its_deadline_is_told_as_that(is_async: bool) -> None:
    def handler(values: Sequence[Any], contexts: Sequence[Any]) -> None:
        time.sleep(0.2)

    async def coroutine(values: Sequence[Any], contexts: Sequence[Any]) -> None:
        await asyncio.sleep(60)

    async def story(worker: Worker, app: Pipeline) -> None:
        publish(app, b"a")
        stats = worker.running[0].engine.stats
        await until(lambda: stats.dead["Timeout"] == 1)
        assert stats.timeouts == 1

    play(coroutine if is_async else handler, story, tiers=(), attempts=1, timeout="100ms")


def test_a_thread_that_could_not_be_started_is_started_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counted as there, and nothing ran any more."""
    calls = DaemonThreads(1, "pipeline-batches")

    def refuses(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        with pytest.raises(RuntimeError):
            calls.submit(int, "1")
    assert calls.submit(int, "2").result(5) == 2
    calls.shutdown()


def test_it_is_not_called_again_beside_a_call_that_has_not_returned() -> None:
    """A transaction is given up while it runs: its records are done again, and their keys were in two calls at once."""
    gate, lock = threading.Event(), threading.Lock()
    inside, most = [0], [0]

    def handler(values: Sequence[Any], contexts: Sequence[Any]) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        gate.wait(5)
        with lock:
            inside[0] -= 1

    async def story(worker: Worker, app: Pipeline) -> None:
        engine = worker.running[0].engine
        publish(app, b"a")
        await until(lambda: inside[0] == 1)
        assert engine.transactions is not None
        engine.transactions.doubt(ClusterError("a test"))
        await asyncio.sleep(0.5)
        gate.set()
        await until(lambda: engine.stats.processed == 1)
        assert most == [1]

    play(handler, story, delivery="exactly_once", flow=FlowPolicy(commit_interval_ms=20))


HANGS = """
import asyncio, sys, threading
from pipeline import FlowPolicy, Pipeline, Settings
from pipeline.topology import Defaults, apply

app, began = Pipeline("hangs", settings=Settings(broker="memory://hangs")), threading.Event()

@app.subscribe("events", group="g", value="bytes", batch=10, flow=FlowPolicy(drain_timeout_ms=200))
def handler(values, contexts):
    began.set()
    threading.Event().wait()

async def main():
    apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
    await app.start()
    app.cluster.producer("p").send("events", b"k", b"x", partition=0)
    while not began.is_set():
        await asyncio.sleep(0.01)
    await app.stop()

asyncio.run(main())
sys.exit(7)
"""


def test_one_that_never_returns_does_not_keep_the_process_from_ending() -> None:
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(HANGS)], timeout=15, check=False, capture_output=True)
    assert ended.returncode == 7
