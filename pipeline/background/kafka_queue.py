"""A `BackgroundQueue` on Kafka: each topic is a queue of the job engine, with one type of job, both of the topic's name."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.jobs.client import JobClient, Place
from pipeline.jobs.handle import JobHandle
from pipeline.model.background import ConsumeOptions, check_options, consuming, given_options
from pipeline.model.errors import ConfigurationError, PublishError
from pipeline.model.job_policies import JobOptions, JobPolicy
from pipeline.model.job_types import JobType
from pipeline.model.policies import Subscription
from pipeline.topology import Defaults, apply, layout
from pipeline.worker.jobs.declaring import Queues
from pipeline.worker.worker import Worker

if TYPE_CHECKING:
    from pipeline.app import Pipeline

HANDLES = 1_000
"""So many of the jobs last enqueued here are followed from the start; others are looked for in the store."""


async def _nobody(_payload: Any) -> None:
    """Nobody calls it: it stands for a handler in a type that jobs are asked for with."""


class KafkaQueue:
    """Over an application's cluster and settings. A topic that is a job of the application is that job: its own workers run it.

    `create`: what the topics of a queue that is not there yet are made with, when it is first used; None: they are not made, and
    PipelineError says which is missing.
    """

    from_any_loop = True

    def __init__(self, app: Pipeline, *, create: Defaults | None = Defaults()) -> None:  # noqa: B008 - frozen
        self._app = app
        self._create = create
        self._queues = Queues()
        self._declaring = threading.Lock()
        self._client: JobClient = app.job_client(self._find, lambda: self._queues.names)
        self._there: set[str] = set()
        self._workers: dict[str, tuple[Pipeline, Worker]] = {}
        self._handles: OrderedDict[str, JobHandle] = OrderedDict()
        self._closed = False

    async def enqueue(self, topic: str, payload: Any, options: JobOptions | None = None) -> str:
        """See `BackgroundQueue`: acknowledged by the brokers."""
        return (await self.enqueue_many(topic, [payload], options))[0]

    async def enqueue_many(self, topic: str, payloads: Sequence[Any], options: JobOptions | None = None) -> list[str]:
        """The same for many with the same options: they go out together."""
        if self._closed:
            raise PublishError(f"a job for {topic!r} came when the queue was closed")
        chosen = given_options(options)
        client = self._client
        if self._app.declares_job(topic):
            client = self._app.jobs
        else:
            check_options(topic, chosen)
            await self._ready(topic)
        handles = await client.enqueue(topic, payloads, chosen)
        for handle in handles[-HANDLES:]:
            self._handles[handle.id] = handle
        while len(self._handles) > HANDLES:
            self._handles.popitem(last=False)
        return [handle.id for handle in handles]

    async def consume(self, topic: str, handler: Callable[..., Any], options: ConsumeOptions | None = None) -> None:
        """See `BackgroundQueue`; returns when this process has joined the queue's group."""
        if self._closed:
            raise ConfigurationError(f"topic {topic!r} can't be consumed: the queue is closed")
        if topic in self._workers:
            raise ConfigurationError(f"topic {topic!r} is consumed already: one handler is enough")
        if self._app.declares_job(topic):
            raise ConfigurationError(f"topic {topic!r} is a job of application {self._app.name!r}: its workers run it")
        chosen = consuming(options)
        consumer = self._app.sibling()
        consumer.queue(topic, concurrency=chosen.concurrency)
        consumer.job(topic, queue=topic, **chosen.of_type())(handler)
        await self._ready(topic)
        worker = Worker(consumer)
        self._workers[topic] = consumer, worker
        await worker.start()

    def handle(self, topic: str, job_id: str) -> JobHandle:
        """Follows a job, also one that another process asked for: JobMissing until that is in the store, which a short one is when it
        has its ending. May wait for the cluster the first time."""
        known = self._handles.get(job_id)
        if known is not None:
            return known
        if self._app.declares_job(topic):
            return self._app.job_handle(topic, job_id)
        self._declare(topic)
        return self._client.handle(topic, job_id)

    async def close(self) -> None:
        """See `BackgroundQueue`: positions are committed, groups are left. The application stays as it is."""
        self._closed = True
        workers, self._workers = self._workers, {}
        for _, worker in workers.values():
            await worker.stop()
        self._client.close()

    # -- parts

    def _find(self, topic: str) -> tuple[JobType, Place] | None:
        found = self._queues.find(topic)
        if found is None:
            return None
        topics = layout(self._subscription(topic), self._app.settings.prefix).topics
        assert topics.state is not None
        return found[1], Place(topics.source, topics.state)

    def _declare(self, topic: str) -> None:
        with self._declaring:
            if self._queues.find(topic) is None:
                self._queues.add(JobType(topic, _nobody, JobPolicy()), topic)

    def _subscription(self, topic: str) -> Subscription:
        return next(each for each in self._queues.subscriptions() if each.group == topic)

    async def _ready(self, topic: str) -> None:
        """The queue's topics are there, as far as that is ours to see to."""
        self._declare(topic)
        if topic in self._there or self._create is None:
            return
        if self._app.settings.broker.startswith("memory://"):  # it belongs to this thread, and does not wait
            self._make(topic, self._create)
        else:
            await asyncio.get_running_loop().run_in_executor(None, self._make, topic, self._create)
        self._there.add(topic)

    def _make(self, topic: str, defaults: Defaults) -> None:
        subscription, prefix = self._subscription(topic), self._app.settings.prefix
        topics = layout(subscription, prefix).topics
        wanted = {topics.source, *topics.private, topics.dead_letters}
        admin = self._app.cluster.admin()
        if not wanted <= set(admin.topics(sorted(wanted))):
            apply(admin, [subscription], defaults, prefix)
