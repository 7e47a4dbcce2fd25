"""Jobs in threads that their worker had to let go: what they take meanwhile, and what they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from pipeline import Batch, FlowPolicy, JobContext, Pipeline, Settings
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import TopicPartition
from pipeline.model.partitioner import partition_of
from pipeline.topology import Defaults, apply
from pipeline.worker.jobs.hosting import JobExecutor
from pipeline.worker.worker import Worker

ADDRESS, PARTITIONS = "memory://let-go", 2
FLOW = FlowPolicy(drain_timeout_ms=100)
KEYS = [next(str(n) for n in range(100) if partition_of(str(n).encode(), PARTITIONS) == place) for place in (0, 1)]
"""One for each partition."""


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    found = MemoryCluster("let-go")
    memory.register(found)
    yield found
    memory.forget(found.address)


class Scene:
    """Two applications of one group, their handlers held in threads by `gate`, in real time."""

    def __init__(self, **options: Any) -> None:
        self.gate = threading.Event()
        self.began: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.apps = {name: Pipeline(name, settings=Settings(broker=ADDRESS)) for name in ("one", "two")}
        for name, app in self.apps.items():
            self._declare(name, app, **options)
        apply(self.apps["one"].cluster.admin(), self.apps["one"].subscriptions, Defaults(partitions=PARTITIONS))

    def _declare(self, name: str, app: Pipeline, concurrency: int | None = None, queue: int | None = None) -> None:
        app.queue("default", flow=FLOW, concurrency=queue)

        @app.job("held", concurrency=concurrency)
        def held(_given: None) -> None:
            with self._runs(name):
                self.began[name] += 1
                assert self.gate.wait(40)
                app.enqueue_sync("asked")

        @app.job("held in a batch", batch=Batch(size=1))
        def held_in_a_batch(_given: list[None], jobs: list[JobContext]) -> None:
            self.began[name] += 1
            assert self.gate.wait(40)
            asyncio.run(jobs[0].enqueue("asked"))

        @app.job("beside", concurrency=concurrency)
        async def beside(_given: None) -> None:
            with self._runs(name):
                await asyncio.sleep(0)

        @app.job("asked")
        async def asked(_given: None) -> None: ...

    @contextlib.contextmanager
    def _runs(self, name: str) -> Iterator[None]:
        with self._counting:
            self._now[name] += 1
            self.most[name] = max(self.most[name], self._now[name])
        yield
        with self._counting:
            self._now[name] -= 1


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def executor_of(worker: Worker) -> JobExecutor:
    found = worker.running[0].engine.executor
    assert isinstance(found, JobExecutor)
    return found


def requests(cluster: MemoryCluster) -> list[bytes | None]:
    """Keys of what was asked for."""
    admin = cluster.admin()
    places = [TopicPartition("jobs.default", number) for number in range(PARTITIONS)]
    ends, found = admin.end_offsets(places), list[bytes | None]()
    reader = cluster.reader("read-back")
    reader.assign(admin.beginning_offsets(places))
    while len(found) < sum(ends.values()):
        found += [message.key() for message in reader.poll(1_000, 0)]
    reader.close()
    return found


@pytest.mark.parametrize("limit", ["of the type", "of the queue"])
def test_a_thread_that_was_let_go_takes_its_place_until_it_returns(limit: str, cluster: MemoryCluster) -> None:
    """Its partition has moved. More ran at once in the process than it was told to run."""

    async def main() -> None:
        scene = Scene(**({"concurrency": 2} if limit == "of the type" else {"queue": 2}))
        one, two = (Worker(app) for app in scene.apps.values())
        app = scene.apps["one"]
        try:
            await one.start()
            await until(lambda: len(executor_of(one).boards()) == 2)
            for key in KEYS:
                await app.enqueue("held", key=key)
            await until(lambda: scene.began["one"] == 2)
            name = "held" if limit == "of the type" else "beside"
            waiting = [await app.enqueue(name, key=f"{n}") for n in range(200, 220)]
            await two.start()
            await until(lambda: scene.began["two"])
            await until(lambda: len(executor_of(one).boards()) == 1)
            (board,) = executor_of(one).boards()
            await until(lambda: board.kinds[name].queued >= 5, 5)
            scene.gate.set()
            for handle in waiting:
                await handle.result("30s")
            assert scene.most["one"] == 2
        finally:
            scene.gate.set()
            await two.stop()
            await one.stop()
            app.jobs.close()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["held", "held in a batch"])
def test_what_a_thread_asks_for_after_its_worker_let_it_go_is_not_asked_for(name: str, cluster: MemoryCluster) -> None:
    """Neither when its partition has moved nor when its worker has stopped; its next execution asks for it."""

    async def main() -> None:
        scene = Scene()
        worker, app = Worker(scene.apps["one"]), scene.apps["one"]
        threads = set(threading.enumerate())
        await worker.start()
        jobs = [await app.enqueue(name, key=key) for key in KEYS]
        await until(lambda: scene.began["one"] == 2)
        await worker.stop()
        held = [each for each in set(threading.enumerate()) - threads if each.name.startswith("pipeline-jobs")]
        assert len(held) == 2
        scene.gate.set()
        for thread in held:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
        assert sorted(requests(cluster), key=str) == sorted(key.encode() for key in KEYS)
        following = Worker(scene.apps["two"])
        await following.start()
        for job in jobs:
            await job.result("30s")
        assert len(requests(cluster)) == 4, "once for each of them"
        await following.stop()
        app.jobs.close()

    asyncio.run(main())
