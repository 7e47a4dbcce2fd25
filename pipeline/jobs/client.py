"""Asks for jobs: a request counts once the brokers have acknowledged it, and only then a caller gets a handle."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.codec import AvroCodec
from pipeline.codec.jobs import InboxCodec, StoreCodec, prepare_queue
from pipeline.jobs.asking import Asker
from pipeline.jobs.following import Follower
from pipeline.jobs.handle import JobHandle, Reach
from pipeline.model.blobs import Blobs
from pipeline.model.cluster import Acknowledgements, Cluster, RecordProducer
from pipeline.model.errors import ConfigurationError, InvalidJob, PublishError
from pipeline.model.job_policies import JobOptions, check_written
from pipeline.model.job_types import JobType
from pipeline.model.jobs import CancelJob, JobCommand, JobRequest
from pipeline.model.outbox import Outbox, current

ACKNOWLEDGED_S = 30.0
FULL_S = 0.01
MANY, HEAR_S = 64, 0.001
"""The answers to so many are looked for every so often."""


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
    reaches: dict[str, Reach] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientParts:
    """What the composition root hands in. `find` gives type and place of a job by name; `names` are all of them. `now_ms` is this
    machine's time, on a cluster in memory that one's: workers know the cluster's (`worker.cluster_time`), callers do not."""

    cluster: Cluster
    codec: AvroCodec
    client_id: str
    find: Callable[[str], tuple[JobType, Place] | None]
    names: Callable[[], Sequence[str]]
    now_ms: Callable[[], int]
    in_memory: bool
    blobs: Blobs | None = None
    webhooks: Callable[[], Sequence[str]] = tuple


class JobClient:
    """One per application; close it. Safe to use from several threads but for `close`."""

    def __init__(self, parts: ClientParts) -> None:
        self._parts = parts
        self._queues: dict[str, _Queue] = {}
        self._producer: RecordProducer | None = None
        self._making = threading.Lock()
        self._known: dict[str, tuple[JobType, Place]] = {}

    # -- asking

    async def enqueue(self, job: str, given: Sequence[object], options: JobOptions) -> list[JobHandle]:
        """A handle for each input, in order, when all are acknowledged. Raises InvalidJob and ConfigurationError before anything is
        written, PublishError for what was not (some may be there all the same).

        From inside a handler they go out with its outputs, and this waits for nothing.
        """
        ids = self._own_ids(job, len(given))
        asker, queue = await self._ready(job)
        requests = self._requests(asker, given, options, ids)
        if any(map(asker.is_large, requests)):
            requests = await self._off_loop(lambda: list(map(asker.stored, requests)))
        records = self._records(queue, requests)
        if (outbox := self._outbox(queue)) is not None:
            return self._hand_on(outbox, asker, queue, requests, records)
        handles = self._handles(queue, asker.type, requests)
        await self.write(queue.place.inbox, records)
        return handles

    def _own_ids(self, job: str, count: int) -> list[str] | None:
        """Inside a handler ids are the same on every attempt."""
        outbox = current(self._parts.cluster.address, self._found(job)[1].inbox)
        return None if outbox is None else outbox.ids(count)

    def _outbox(self, queue: _Queue) -> Outbox | None:
        return current(self._parts.cluster.address, queue.place.inbox)

    def _hand_on(
        self,
        outbox: Outbox,
        asker: Asker,
        queue: _Queue,
        requests: list[JobRequest],
        records: list[tuple[bytes, bytes]],
    ) -> list[JobHandle]:
        topic = queue.place.inbox.removeprefix(outbox.prefix)
        for key, value in records:
            outbox.put(topic, key, value)
        sent = lambda: self._outbox(queue) is not outbox  # noqa: E731
        return self._handles(queue, asker.type, requests, sent)

    def _handles(
        self, queue: _Queue, declared: JobType, requests: Sequence[JobRequest], sent: Callable[[], bool] | None = None
    ) -> list[JobHandle]:
        return [self._handle(queue, declared, request.id, request.record_key, sent) for request in requests]

    def enqueue_sync(self, job: str, given: Sequence[object], options: JobOptions) -> list[JobHandle]:
        """The same for a caller without asyncio; it waits. (Not on a cluster in memory: nothing would happen meanwhile.)"""
        ids = self._own_ids(job, len(given))
        declared, place = self._found(job)
        queue = self._queue(place)
        self._prepare(queue)
        asker = self._asker(queue, declared)
        requests = list(map(asker.stored, self._requests(asker, given, options, ids)))
        records = self._records(queue, requests)
        if (outbox := self._outbox(queue)) is not None:
            return self._hand_on(outbox, asker, queue, requests, records)
        handles = self._handles(queue, declared, requests)
        heard = threading.Event()
        answers = Acknowledgements(count=len(records), done=heard.set)
        left: Sequence[tuple[bytes, bytes]] = records
        while left := self._send(place.inbox, left, answers):
            time.sleep(FULL_S)
        if not self._parts.in_memory and records:
            heard.wait(ACKNOWLEDGED_S)
            _check(place.inbox, answers)
        return handles

    def _requests(
        self, asker: Asker, given: Sequence[object], options: JobOptions, ids: Sequence[str] | None
    ) -> list[JobRequest]:
        if options.webhook is not None and options.webhook not in self._parts.webhooks():
            known = ", ".join(sorted(self._parts.webhooks())) or "none"
            raise ConfigurationError(
                f"webhook={options.webhook!r:.80} is not declared by this application: use app.webhook; declared: {known}"
            )
        form = asker.form(options, self._parts.now_ms())
        ids = ids or asker.new_ids(len(given), form.created_ms)
        return [asker.filled(form, each, job_id) for each, job_id in zip(given, ids, strict=True)]

    @staticmethod
    def _records(queue: _Queue, requests: Sequence[JobRequest]) -> list[tuple[bytes, bytes]]:
        """Key and value of each."""
        return [(request.record_key, queue.inbox.request(request)) for request in requests]

    async def cancel(self, job: str, job_id: str, key: str | None, reason: str) -> None:
        """See `Pipeline.cancel`."""
        # An id does not tell where its job is, and who does not have the job does nothing.
        command = CancelJob(check_written("job_id", job_id), check_written("reason", reason))
        await self._command(job, command, check_written("key", key) if key else job_id, everywhere=not key)

    async def _command(self, job: str, command: JobCommand, key: str, everywhere: bool = False) -> None:
        """`everywhere`: to every partition, instead of that of the key."""
        _, queue = await self._ready(job)
        records = [(key.encode(), queue.inbox.command(command))]
        partitions = range(len(queue.follower.since)) if everywhere else (-1,)
        await asyncio.gather(*(self.write(queue.place.inbox, records, number) for number in partitions))

    def handle(self, job: str, job_id: str) -> JobHandle:
        """Of a job that somebody asked for some time. May wait for the registry the first time."""
        declared, place = self._found(job)
        queue = self._queue(place)
        self._prepare(queue)
        return self._handle(queue, declared, job_id)

    def asker(self, job: str) -> Asker:
        """Checks what is asked of a type of job. Raises InvalidJob."""
        declared, place = self._found(job)
        return self._asker(self._queue(place), declared)

    def now_ms(self) -> int:
        """As of `ClientParts`."""
        return self._parts.now_ms()

    def again(self, inbox: str, job_id: str, version: int) -> None:
        """A job of this queue was asked for one more round after this version of it: handles wait for that."""
        queue = self._queues.get(inbox)
        if queue is not None:
            queue.follower.again(job_id, version)

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
            with self._making:
                queue = self._queues.get(place.inbox)
                if queue is None:
                    queue = self._queues[place.inbox] = self._new_queue(place)
        return queue

    def _new_queue(self, place: Place) -> _Queue:
        parts = self._parts
        store = StoreCodec(parts.codec, place.state)
        follower = Follower(
            place.state,
            parts.cluster,
            parts.client_id,
            store.unpack,
            lambda schema_id: parts.codec.fetch(place.state, schema_id),
            parts.in_memory,
        )
        return _Queue(place, InboxCodec(parts.codec, place.inbox), follower)

    def _prepare(self, queue: _Queue) -> None:
        """Look up contracts, and where the store stands. May wait, the first time."""
        if queue.prepared:
            queue.follower.refresh(self._parts.now_ms())
            return
        prepare_queue(self._parts.codec, queue.place.inbox, queue.place.state)
        queue.follower.begin(self._parts.now_ms())
        queue.prepared = True

    def _asker(self, queue: _Queue, declared: JobType) -> Asker:
        asker = queue.askers.get(declared.name)
        if asker is None:
            asker = queue.askers[declared.name] = Asker(declared, queue.place.inbox, self._parts.blobs)
        return asker

    async def _ready(self, job: str) -> tuple[Asker, _Queue]:
        declared, place = self._found(job)
        queue = self._queue(place)
        if not queue.prepared:
            await self._off_loop(lambda: self._prepare(queue))
        queue.follower.refresh(self._parts.now_ms())
        return self._asker(queue, declared), queue

    def _handle(
        self,
        queue: _Queue,
        declared: JobType,
        job_id: str,
        record_key: bytes | None = None,
        sent: Callable[[], bool] | None = None,
    ) -> JobHandle:
        reach = queue.reaches.get(declared.name)
        if reach is None:
            reach = Reach(queue.follower, declared, self._off_loop, self._parts.now_ms, self._parts.blobs)
            queue.reaches[declared.name] = reach
        return JobHandle(reach, job_id, record_key, sent)

    def _off_loop(self, work: Callable[[], Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(None, work)

    # -- writing

    async def write(self, topic: str, records: Sequence[tuple[bytes, bytes]], partition: int = -1) -> None:
        """Returns when all are acknowledged. `partition`: of all of them, instead of by key. Raises PublishError."""
        if not records:
            return
        loop, heard = asyncio.get_running_loop(), asyncio.Event()

        def all_heard() -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
                loop.call_soon_threadsafe(heard.set)

        answers = Acknowledgements(count=len(records), done=all_heard)
        while records := self._send(topic, records, answers, partition):
            await asyncio.sleep(FULL_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ACKNOWLEDGED_S):
                await self._all(heard, answers)
        _check(topic, answers)

    async def _all(self, heard: asyncio.Event, answers: Acknowledgements) -> None:
        """Answers to many are heard in this thread: in another one each of them would wait for the interpreter."""
        assert self._producer is not None
        while answers.count >= MANY and not heard.is_set():
            self._producer.hear()
            await asyncio.sleep(HEAR_S)
        await heard.wait()

    def _send(
        self, topic: str, records: Sequence[tuple[bytes, bytes]], answers: Acknowledgements, partition: int = -1
    ) -> Sequence[tuple[bytes, bytes]]:
        """Those for which there is no room now."""
        if self._producer is None:
            with self._making:  # threads that are the first at the same time share one: nobody would close the others
                if self._producer is None:
                    self._producer = self._parts.cluster.producer(self._parts.client_id)
        taken = self._producer.send_many(topic, partition, [(key, value, []) for key, value in records], answers)
        return records[taken:]

    def close(self) -> None:
        """May wait for what is not acknowledged yet."""
        for queue in self._queues.values():
            queue.follower.stop()
        self._queues.clear()
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.close(5.0)


def _check(topic: str, answers: Acknowledgements) -> None:
    if answers.error is not None:
        raise PublishError(f"a job was refused by {topic}: {answers.error}") from answers.error
    if left := answers.count - len(answers.offsets):
        raise PublishError(f"{topic}: the brokers did not acknowledge {left} jobs within {ACKNOWLEDGED_S:g} s")
