"""Whole workers with jobs on the memory cluster, in virtual time: applications of one test, killed and started as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pipeline import Pipeline, Settings
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import Message, TopicPartition
from pipeline.topology import Defaults, execute, plan
from pipeline.worker.worker import Worker

ADDRESS = "memory://jobs"


def application(name: str = "app") -> Pipeline:
    return Pipeline(name, settings=Settings(broker=ADDRESS, session_timeout_s=6.0))


class World:
    """`start` a worker of an application, `kill` one, and read the time."""

    def __init__(self, loop: VirtualClockLoop, cluster: MemoryCluster) -> None:
        self.loop = loop
        self.cluster = cluster
        self.workers: dict[Worker, str] = {}

    @property
    def now_ms(self) -> int:
        return self.loop.clock()

    def make_topics(self, app: Pipeline, partitions: int = 2) -> None:
        admin = self.cluster.admin()
        for action in plan(app.subscriptions, admin.topics(), Defaults(partitions=partitions)).actions:
            execute(admin, action)

    async def start(self, app: Pipeline) -> Worker:
        worker = Worker(app)
        await worker.start()
        self.workers[worker] = app.name
        return worker

    def read(self, topic: str) -> list[Message]:
        """All records of a topic as it is now."""
        admin = self.cluster.admin()
        places = [TopicPartition(topic, number) for number in range(admin.topics([topic])[topic].partitions)]
        ends, found = admin.end_offsets(places), list[Message]()
        reader = self.cluster.reader("read-back")
        reader.assign(admin.beginning_offsets(places))
        while len(found) < sum(ends.values()):
            found += reader.poll(1_000, 0)
        reader.close()
        return found

    def kill(self, worker: Worker) -> None:
        """As if its process had died here."""
        self.cluster.kill(self.workers.pop(worker), None)
        worker.abandon()

    async def stop(self, worker: Worker) -> None:
        del self.workers[worker]
        await asyncio.wait_for(worker.stop(), 200)


def play(app: Pipeline, story: Callable[[World], Awaitable[Any]], partitions: int = 2) -> None:
    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("jobs", clock=loop.clock, scheduler=loop.call_later_ms)
        memory.register(cluster)
        world = World(loop, cluster)
        try:
            world.make_topics(app, partitions)
            await story(world)
            for worker in tuple(world.workers):
                await world.stop(worker)
            app.jobs.close()
        finally:
            memory.forget(cluster.address)

    run(main)


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
