"""The composition root: declares subscriptions and puts the parts together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline.jobs.operating import JobOperations
from pipeline.jobs.requesting import JobRequests
from pipeline.model.cluster import Cluster
from pipeline.model.errors import ConfigurationError
from pipeline.model.policies import (
    DEFAULT_TIERS,
    AfterDeadLetter,
    BatchPolicy,
    Delivery,
    ExecutorKind,
    FlowPolicy,
    IsolationPolicy,
    Order,
    Subscription,
    ValueKind,
)
from pipeline.model.scrubbing import ScrubPolicy
from pipeline.model.topics import SCHEMAS_TOPIC
from pipeline.settings import Settings
from pipeline.topology import Layout, layouts
from pipeline.worker.declaring import Declaration, Retries
from pipeline.worker.jobs.declaring import Queues, declaration_of

if TYPE_CHECKING:
    from pipeline.codec import AvroCodec
    from pipeline.codec.registry_local import MemorySchemaLog
    from pipeline.emit.policy import BufferPolicy
    from pipeline.emit.publisher import Publisher
    from pipeline.emit.recorder import Recorder
    from pipeline.jobs.client import JobClient, Place
    from pipeline.model.blobs import Blobs, BlobStore
    from pipeline.model.job_policies import QueuePolicy
    from pipeline.model.job_types import JobType
    from pipeline.worker.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])

_memory_logs: dict[str, MemorySchemaLog] = {}
"""Schema ids of memory clusters: shared by everything in this process that uses the same address, like the cluster itself."""


class Pipeline(JobRequests, JobOperations):
    """An application: its name, its subscriptions and its clients. Nothing connects before it is used.

    `name` is the client id that brokers see. Settings come from the environment unless given. `blobs`: a store of your own for large
    inputs and results of jobs.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: Settings | None = None,
        broker: str | None = None,
        blobs: BlobStore | None = None,
    ) -> None:
        loaded = settings or Settings.load()
        self.name = name
        self.settings = loaded if broker is None else loaded.model_copy(update={"broker": broker})
        self._subscriptions: list[Subscription] = []
        self._alert_hooks: list[Callable[..., Any]] = []
        self._worker: Worker | None = None
        self._queues = Queues()
        self._client: JobClient | None = None
        self._making = threading.RLock()
        self._blob_store = blobs

    @classmethod
    def from_settings(cls, name: str = "pipeline") -> Pipeline:
        return cls(name)

    # -- names

    def topic_name(self, topic: str) -> str:
        """The topic with the environment prefix."""
        return self.settings.prefix + topic

    def group_name(self, group: str) -> str:
        return self.settings.prefix + group

    # -- subscriptions

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """Those of `subscribe`, and one per queue of jobs."""
        return (*self._subscriptions, *self._queues.subscriptions())

    def layouts(self) -> tuple[Layout, ...]:
        """Real topic and group names of every subscription, checked against each other."""
        return layouts(self.subscriptions, self.settings.prefix)

    def subscribe(
        self,
        topic: str,
        *,
        group: str,
        order: Order = "key",
        tiers: Sequence[str | float] = DEFAULT_TIERS,
        attempts: int = 5,
        concurrency: int = 1_000,
        timeout: str | float = "5m",
        value: ValueKind = "avro",
        batch: int | BatchPolicy | None = None,
        start: str | int = "earliest",
        retries: Retries | None = None,
        flow: FlowPolicy | None = None,
        dead_letter_topic: str | None = None,
        unknown_event: Literal["skip", "dead_letter"] = "skip",
        dead_letter: AfterDeadLetter = "release",
        on_dead_letter: Callable[..., Any] | None = None,
        executor: ExecutorKind = "auto",
        isolation: IsolationPolicy | None = None,
        delivery: Delivery = "at_least_once",
    ) -> Callable[[F], F]:
        """Declare a handler for a topic and a group of its own; see docs/guide for what each argument does.

        The handler is `async def`, `def`, or with `batch=` a batch handler; its first parameter's annotation says what it gets:
        `dict` for plain fields, an event class (or a union of some) for those events only, else every event.
        Raises `ConfigurationError` naming the argument.
        """
        declaration = Declaration(
            topic=topic,
            group=group,
            order=order,
            tiers=tiers,
            attempts=attempts,
            concurrency=concurrency,
            timeout=timeout,
            value=value,
            batch=batch,
            start=start,
            retries=retries,
            flow=flow,
            dead_letter_topic=dead_letter_topic,
            unknown_event=unknown_event,
            dead_letter=dead_letter,
            on_dead_letter=on_dead_letter,
            executor=executor,
            isolation=isolation,
            delivery=delivery,
        )
        declaration.check()

        def declare(handler: F) -> F:
            subscription = declaration.subscription(handler)
            layouts([*self.subscriptions, subscription], self.settings.prefix)
            self._subscriptions.append(subscription)
            return handler

        return declare

    # -- jobs

    def queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        policy: QueuePolicy | None = None,
        flow: FlowPolicy | None = None,
    ) -> None:
        """How a queue runs its jobs. `concurrency`: at once in one process, of all types; `policy`: how it chooses among them."""
        self._queues.configure(name, policy, flow, concurrency)

    def job(self, name: str, **arguments: Any) -> Callable[[F], F]:
        """Declare a type of job and its handler, `async def` or `def`, called with the input and a `JobContext`.

        The arguments are those of `JobDeclaration`: queue, timeout, attempts, backoff, concurrency, priority, ... The annotation of
        the first parameter says what the job takes, that of the result what it gives. Raises `ConfigurationError`.
        """
        declaration = declaration_of(name, arguments)
        declaration.policy()

        def declare(handler: F) -> F:
            declared = declaration.type(handler)
            self._queues.add(declared, declaration.queue)
            self.layouts()
            return handler

        return declare

    def webhook(self, name: str, url: str, *, secret: str | None = None) -> None:
        """Declare where endings of jobs that were enqueued with `webhook=name` are posted, signed with a secret if there is one. Only the
        name is in the topics; both who enqueues and who works declare it. Raises `ConfigurationError`."""
        self._queues.webhooks.declare(name, url, secret)

    @property
    def jobs(self) -> JobClient:
        """Asks for jobs; closed by `stop`, or close it."""
        with self._making:  # threads that are the first at the same time share one: nobody would close the others
            if self._client is None:
                self._client = self._job_client()
            return self._client

    @property
    def job_types(self) -> Mapping[str, JobType]:
        """Every declared type of job by its name, with its policy."""
        return self._queues.types

    def _job_name(self, job: str | Callable[..., Any]) -> str:
        return job if isinstance(job, str) else self._queues.name_of(job)

    def _queue_of(self, job: str) -> str | None:
        found = self._queues.find(job)
        return None if found is None else found[0]

    def _kept_ms(self, queue: str) -> int:
        return self._queues.kept_ms(queue)

    @property
    def alert_hooks(self) -> tuple[Callable[..., Any], ...]:
        return tuple(self._alert_hooks)

    def on_dead_letter(self, hook: F) -> F:
        """Decorator: tell `hook` of every record of this application that is given up, once its dead letter is written.

        It gets a `DeadLetterAlert`, or for a flood of them a `FloodAlert`; `async def` or `def`. It never delays processing.
        """
        self._alert_hooks.append(hook)
        return hook

    # -- clients

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster of `PIPELINE_BROKER`: Kafka, or `memory://name`."""
        if self.settings.broker.startswith("memory://"):
            from pipeline.memory.cluster import connect as connect_memory

            return connect_memory(self.settings.broker)
        from pipeline.kafka.cluster import connect

        return connect(self.settings.broker, client_settings=self.settings.client_settings())

    @cached_property
    def blobs(self) -> Blobs | None:
        """Where large inputs and results of jobs lie: the store that was given, else that of `PIPELINE_BLOBS`; None: nowhere."""
        from pipeline.blobs import open_store
        from pipeline.model.blobs import BlobPolicy, Blobs

        settings, store = self.settings, self._blob_store
        if store is None and settings.blobs:
            store = open_store(settings.blobs)
        policy = BlobPolicy(settings.blob_inline_bytes, settings.blob_bytes_max)
        return None if store is None else Blobs(store, policy)

    @cached_property
    def codec(self) -> AvroCodec:
        """The Avro codec over the registry of the settings."""
        from pipeline.codec import AvroCodec

        return AvroCodec(self._registry())

    def _job_client(self) -> JobClient:
        from pipeline.jobs.client import Place

        def find(name: str) -> tuple[JobType, Place] | None:
            found = self._queues.find(name)
            if found is None:
                return None
            queue, declared = found
            topics = next(entry.topics for entry in self.layouts() if entry.group == self.group_name(queue))
            assert topics.state is not None
            return declared, Place(topics.source, topics.state)

        return self.job_client(find, lambda: self._queues.names)

    def job_client(
        self, find: Callable[[str], tuple[JobType, Place] | None], names: Callable[[], Sequence[str]]
    ) -> JobClient:
        """A client of its own for jobs that `find` knows, beside `jobs`. Close it."""
        from pipeline.jobs.client import ClientParts, JobClient
        from pipeline.worker.parts import wall_clock_ms

        cluster = self.cluster
        now_ms = getattr(cluster, "clock", wall_clock_ms)  # callers have no right to the topic that tells Kafka's time
        in_memory = self.settings.broker.startswith("memory://")
        parts = ClientParts(
            cluster,
            self.codec,
            f"{self.name}.jobs",
            find,
            names,
            now_ms,
            in_memory,
            self.blobs,
            lambda: self._queues.webhooks.names,
        )
        return JobClient(parts)

    def declares_job(self, name: str) -> bool:
        return self._queues.find(name) is not None

    def sibling(self) -> Pipeline:
        """An application with this one's name, settings and clients, and nothing declared."""
        other = Pipeline(self.name, settings=self.settings, blobs=self._blob_store)
        other.__dict__.update(cluster=self.cluster, codec=self.codec)  # cached properties, both
        return other

    def _registry(self) -> Any:
        from pipeline.codec import product_catalogue
        from pipeline.codec.registry_local import LocalRegistry

        if self.settings.registry:
            from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy

            secret = self.settings.registry_user_info.get_secret_value()
            return ConfluentRegistry(RegistryPolicy(self.settings.registry, secret, self.settings.registry_ca))
        if self.settings.broker.startswith("memory://"):
            from pipeline.codec.registry_local import MemorySchemaLog

            return LocalRegistry(_memory_logs.setdefault(self.settings.broker, MemorySchemaLog()), product_catalogue())
        from pipeline.kafka.schema_log import KafkaSchemaLog
        from pipeline.kafka.settings import shared

        client = {"bootstrap.servers": self.settings.broker, **shared(self.settings.client_settings())}
        return LocalRegistry(KafkaSchemaLog(client, self.topic_name(SCHEMAS_TOPIC)), product_catalogue())

    def publisher(self, policy: BufferPolicy | None = None, topic: str | None = None) -> Publisher:
        """A publisher of run events that never blocks longer than its policy says (the settings' when none is given). Close it."""
        from pipeline.emit.publisher import Publisher, PublishOptions

        real = self.topic_name(topic or self.settings.events_topic)
        options = PublishOptions(
            topic=real,
            ce_source=self.settings.ce_source or None,
            prepare=self.codec.prepare,
            scrub=ScrubPolicy.of(self.settings.scrub),
        )
        return Publisher(self.cluster.producer(self.name), self.codec, policy or self._buffer_policy(), options)

    def _buffer_policy(self) -> BufferPolicy:
        from pipeline.emit.policy import BufferPolicy

        settings = self.settings
        return BufferPolicy(
            mode=settings.buffer_mode,
            max_records=settings.buffer_records,
            block_timeout=settings.buffer_timeout_s,
            spool_dir=settings.spool_dir or None,
        )

    def recorder(self, policy: BufferPolicy | None = None) -> Recorder:
        """Records agent runs: `async with app.recorder() as recorder`, or the same with `with`."""
        from pipeline.emit.recorder import Recorder

        return Recorder(self.publisher(policy))

    # -- running

    async def start(self, groups: Sequence[str] = ()) -> None:
        """Start the workers of all subscriptions (or of `groups`) in this process; returns when they have joined."""
        from pipeline.worker.worker import Worker

        if self._worker is not None:
            raise ConfigurationError("the application is started already: await app.stop() first")
        worker = Worker(self, tuple(groups))
        await worker.start()
        self._worker = worker

    async def stop(self) -> None:
        """Finish what runs, commit, leave the groups. Stopping what was not started is fine."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()
        self.close_desks()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    @property
    def worker(self) -> Worker | None:
        return self._worker
