"""Asks for jobs: a request counts once the brokers have acknowledged it, and only then a caller gets a handle."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.codec import AvroCodec
from pipeline.codec.jobs import InboxCodec, StoreCodec
from pipeline.jobs.asking import Asker
from pipeline.jobs.following import Follower
from pipeline.jobs.handle import JobHandle, Reach
from pipeline.model.cluster import Cluster, RecordProducer
from pipeline.model.errors import BufferFull, ClusterError, ConfigurationError, InvalidJob, PublishError
from pipeline.model.job_policies import JobOptions
from pipeline.model.job_types import JobType
from pipeline.model.jobs import CancelJob, JobCommand, JobRequest

ACKNOWLEDGED_S = 30.0
FULL_S = 0.01


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs of one queue go: real names."""

    inbox: str
    state: str


@dataclass(slots=True)
class _Queue:
    place: Place
    inbox: InboxCodec
    follower: Follower
    prepared: bool = False
    askers: dict[str, Asker] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientParts:
    """What the composition root hands in. `find` gives type and place of a job by name; `names` are all of them."""

    cluster: Cluster
    codec: AvroCodec
    client_id: str
    find: Callable[[str], tuple[JobType, Place] | None]
    names: Callable[[], Sequence[str]]
    now_ms: Callable[[], int]
    in_memory: bool


class JobClient:
    """One per application; close it. Safe to use from several threads but for `close`."""

    def __init__(self, parts: ClientParts) -> None:
        self._parts = parts
        self._queues: dict[str, _Queue] = {}
        self._producer: RecordProducer | None = None
        self._known: dict[str, tuple[JobType, Place]] = {}

    # -- asking

    async def enqueue(self, job: str, given: Sequence[object], options: JobOptions) -> list[JobHandle]:
        """A handle for each input, in order, when all are acknowledged. Raises InvalidJob and ConfigurationError before anything is
        written, PublishError for what was not (some may be there all the same)."""
        asker, queue = await self._ready(job)
        requests = [asker.request(each, options, self._parts.now_ms()) for each in given]
        values = [queue.inbox.request(request) for request in requests]
        acknowledged = [
            asyncio.wrap_future(await self._send_when_there_is_room(queue.place.inbox, _key_of(request), value))
            for request, value in zip(requests, values, strict=True)
        ]
        handles = [self._handle(queue, asker.type, request.id) for request in requests]
        await self._all(acknowledged, queue.place.inbox)
        return handles

    def enqueue_sync(self, job: str, given: Sequence[object], options: JobOptions) -> list[JobHandle]:
        """The same for a caller without asyncio; it waits."""
        declared, place = self._found(job)
        queue = self._queue(place)
        self._prepare(queue)
        asker = self._asker(queue, declared)
        requests = [asker.request(each, options, self._parts.now_ms()) for each in given]
        futures = [self._send(place.inbox, _key_of(request), queue.inbox.request(request)) for request in requests]
        if not self._parts.in_memory:
            done = concurrent.futures.wait(futures, ACKNOWLEDGED_S)
            if done.not_done:
                raise PublishError(
                    f"{place.inbox}: {len(done.not_done)} jobs were not acknowledged in {ACKNOWLEDGED_S:g} s"
                )
        for future in futures:
            if future.done() and (error := future.exception()) is not None:
                raise PublishError(f"a job was refused by {place.inbox}: {error}") from error
        return [self._handle(queue, declared, request.id) for request in requests]

    async def cancel(self, job: str, job_id: str, key: str | None, reason: str) -> None:
        """See `Pipeline.cancel`."""
        await self._command(job, CancelJob(job_id, reason), key or job_id)

    async def _command(self, job: str, command: JobCommand, key: str) -> None:
        _, queue = await self._ready(job)
        future = await self._send_when_there_is_room(queue.place.inbox, key.encode(), queue.inbox.command(command))
        await self._all([asyncio.wrap_future(future)], queue.place.inbox)

    def handle(self, job: str, job_id: str) -> JobHandle:
        """Of a job that somebody asked for some time."""
        declared, place = self._found(job)
        return self._handle(self._queue(place), declared, job_id)

    # -- parts

    def _found(self, job: str) -> tuple[JobType, Place]:
        found = self._known.get(job) or self._parts.find(job)
        if found is None:
            known = ", ".join(sorted(self._parts.names())) or "none"
            raise InvalidJob(f"job {job!r} is not declared by this application: use @app.job; declared: {known}")
        self._known[job] = found
        return found

    def _queue(self, place: Place) -> _Queue:
        queue = self._queues.get(place.inbox)
        if queue is None:
            parts = self._parts
            store = StoreCodec(parts.codec, place.state)
            follower = Follower(
                place.state,
                parts.cluster.admin(),
                lambda: parts.cluster.reader(parts.client_id),
                store.unpack,
                parts.in_memory,
            )
            queue = self._queues[place.inbox] = _Queue(place, InboxCodec(parts.codec, place.inbox), follower)
        return queue

    def _prepare(self, queue: _Queue) -> None:
        """Look up contracts, and where the store stands. May wait."""
        if queue.prepared:
            return
        missing = queue.inbox.prepare() + StoreCodec(self._parts.codec, queue.place.state).prepare()
        if missing:
            raise ConfigurationError(
                f"topic {queue.place.inbox}: {', '.join(missing)} not registered: run `pipeline schemas register` for it"
            )
        queue.follower.begin()
        queue.prepared = True

    def _asker(self, queue: _Queue, declared: JobType) -> Asker:
        asker = queue.askers.get(declared.name)
        if asker is None:
            asker = queue.askers[declared.name] = Asker(declared)
        return asker

    async def _ready(self, job: str) -> tuple[Asker, _Queue]:
        declared, place = self._found(job)
        queue = self._queue(place)
        if not queue.prepared:
            await self._off_loop(lambda: self._prepare(queue))
        return self._asker(queue, declared), queue

    def _handle(self, queue: _Queue, declared: JobType, job_id: str) -> JobHandle:
        return JobHandle(Reach(queue.follower, declared, self._off_loop, self._parts.now_ms), job_id)

    def _off_loop(self, work: Callable[[], Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(None, work)

    # -- writing

    async def _send_when_there_is_room(self, topic: str, key: bytes, value: bytes) -> concurrent.futures.Future[int]:
        while True:
            try:
                return self._send(topic, key, value)
            except BufferFull:
                await asyncio.sleep(FULL_S)

    def _send(self, topic: str, key: bytes, value: bytes) -> concurrent.futures.Future[int]:
        """The offset, when it is acknowledged."""
        if self._producer is None:
            self._producer = self._parts.cluster.producer(self._parts.client_id)
        future: concurrent.futures.Future[int] = concurrent.futures.Future()

        def delivered(error: ClusterError | None, offset: int) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(offset)

        self._producer.send(topic, key, value, delivered=delivered)
        return future

    async def _all(self, futures: Sequence[asyncio.Future[int]], topic: str) -> None:
        try:
            async with asyncio.timeout(ACKNOWLEDGED_S):
                results = await asyncio.gather(*futures, return_exceptions=True)
        except TimeoutError:
            raise PublishError(f"{topic}: the brokers did not acknowledge a job within {ACKNOWLEDGED_S:g} s") from None
        for error in results:
            if isinstance(error, BaseException):
                raise PublishError(f"a job was refused by {topic}: {error}") from error

    def close(self) -> None:
        """May wait for what is not acknowledged yet."""
        for queue in self._queues.values():
            queue.follower.stop()
        self._queues.clear()
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.close(5.0)


def _key_of(request: JobRequest) -> bytes:
    """What decides the partition: jobs of a key are together, and requests of one dedup id."""
    return (request.key or request.dedup_id or request.id).encode()
