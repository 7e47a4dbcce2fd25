"""Follows the store of a queue for the jobs that somebody in this process waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from weakref import WeakValueDictionary

from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import Cluster, Message, PartitionReader, TopicPartition
from pipeline.model.errors import CodecError, PipelineError, SchemaUnavailable
from pipeline.model.headers import epoch_of
from pipeline.model.jobs import JobDuplicate, JobEntry, JobRecord
from pipeline.model.store_keys import JOB, PREFIXES, job_key, parts_of

POLL_S = 0.05
MEMORY_POLL_S = 0.01
RECORDS = 1_000


Answer = JobRecord | JobDuplicate


class Followed:
    """What is known of a job, and the `epoch` of the owner that said so."""

    __slots__ = ("__weakref__", "_waiters", "entry", "epoch", "job_id")

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.entry: Answer | None = None
        self.epoch = 0
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def tell(self, entry: Answer, epoch: int) -> None:
        """Of the same owner what was read later may be older, as what it said when a write failed stands twice; an earlier owner's
        says nothing."""
        known = self.entry
        older = isinstance(known, JobRecord) and isinstance(entry, JobRecord) and _is_older(entry, known)
        if epoch < self.epoch or (epoch == self.epoch and older):
            return
        self.entry, self.epoch = entry, epoch
        for loop, event in tuple(self._waiters):
            loop.call_soon_threadsafe(event.set)

    async def wait(self, until: Callable[[Answer], bool]) -> Answer:
        """The first entry of which this holds."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        self._waiters.append(waiter)
        try:
            while self.entry is None or not until(self.entry):
                await event.wait()
                event.clear()
            return self.entry
        finally:
            self._waiters.remove(waiter)


def _is_older(entry: JobRecord, known: JobRecord) -> bool:
    if entry.version != known.version:
        return entry.version < known.version
    told, before = entry.outcome.progress, known.outcome.progress
    return before is not None and (told is None or told.at_ms < before.at_ms)


class Follower:
    """One per queue and application. `begin` says once where the store stands; reading starts with the first `follow`.

    Along the log of a store epochs only grow: an entry with a lower one was written late, by a worker that was taken for dead, and
    says nothing. On Kafka a thread reads; on memory the loop does. `fetch` asks the registry for the schema of an entry; it may wait.
    """

    def __init__(
        self,
        topic: str,
        cluster: Cluster,
        client_id: str,
        unpack: Callable[[bytes, bytes], JobEntry],
        fetch: Callable[[int], None],
        in_memory: bool,
    ) -> None:
        self._topic = topic
        self._cluster = cluster
        self._client_id = client_id
        self._admin = cluster.admin()
        self._unpack = unpack
        self._fetch = fetch
        self._in_memory = in_memory
        self._watched: WeakValueDictionary[str, Followed] = WeakValueDictionary()
        self._begin: Mapping[TopicPartition, int] | None = None
        self._reader: PartitionReader | None = None
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._epochs: dict[int, int] = {}
        self.error: PipelineError | None = None

    @property
    def begun(self) -> bool:
        return self._begin is not None

    def begin(self) -> None:
        """Before anything is asked for: what is written from now on will be seen. May wait."""
        if self._begin is None:
            self._begin = self._admin.end_offsets(self._partitions())

    def _partitions(self) -> list[TopicPartition]:
        spec = self._admin.topics([self._topic]).get(self._topic)
        if spec is None:
            raise PipelineError(f"topic {self._topic} does not exist: run `pipeline topics apply`")
        return [TopicPartition(self._topic, number) for number in range(spec.partitions)]

    def watch(self, job_id: str) -> Followed:
        """From now on its entries are kept, for as long as what is returned is."""
        found = self._watched.get(job_id)
        if found is None:
            found = self._watched[job_id] = Followed(job_id)
        return found

    def follow(self) -> None:
        """Start to read, if it has not been."""
        if self._reader is not None or self._stopped:
            return
        assert self._begin is not None
        self._reader = self._cluster.reader(self._client_id)
        self._reader.assign(self._begin)
        if self._in_memory:
            self._poll(asyncio.get_running_loop())
        else:
            self._thread = threading.Thread(target=self._read, name="pipeline-jobs-follower", daemon=True)
            self._thread.start()

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._stopped and self._reader is not None:
            self._tell(self._reader.poll(RECORDS, 0))
            self._timer = loop.call_later(MEMORY_POLL_S, self._poll, loop)

    def _read(self) -> None:
        assert self._reader is not None
        while not self._stopped:
            try:
                self._tell(self._reader.poll(RECORDS, POLL_S))
            except PipelineError as error:
                self.error = error
        self._reader.close()

    def _tell(self, messages: list[Message]) -> None:
        for message in messages:
            found = self._of(message)
            if found is not None:
                followed, entry = found
                followed.tell(entry, self._epochs.get(message.partition() or 0, 0))

    def _of(self, message: Message) -> tuple[Followed, Answer] | None:
        key, value = message.key(), message.value()
        if key is None or not _believed(message, self._epochs) or value is None:
            return None
        kind, job_id = parts_of(key)
        followed = self._watched.get(job_id) if kind == JOB else None
        if followed is None:
            return None
        entry = self._read_entry(key, value)
        return None if entry is None else (followed, entry)

    def _read_entry(self, key: bytes, value: bytes) -> Answer | None:
        """None for what no queue wrote."""
        try:
            try:
                entry = self._unpack(key, value)
            except SchemaUnavailable as error:
                self._fetch(error.schema_id or 0)
                entry = self._unpack(key, value)
        except CodecError as error:
            self.error = error
            return None
        return entry if isinstance(entry, JobRecord | JobDuplicate) else None

    def look_up(self, job_id: str) -> tuple[Answer, int] | None:
        """What the store holds of it, by reading all of it, and its owner's epoch. May wait. Raises ClusterUnavailable when that
        takes too long."""
        wanted, found = job_key(job_id), None
        places = self._partitions()
        begins, ends = self._admin.beginning_offsets(places), self._admin.end_offsets(places)
        epochs: dict[int, int] = {}
        for message in read_to_end(self._cluster, begins, ends):
            if _believed(message, epochs) and message.key() == wanted:
                value = message.value()
                entry = None if value is None else self._read_entry(wanted, value)
                found = None if entry is None else (entry, epochs[message.partition() or 0])
        return found

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.join(5.0)
        elif self._reader is not None:
            self._reader.close()


def _believed(message: Message, epochs: dict[int, int]) -> bool:
    """`epochs`: the highest one so far of each partition."""
    key, partition = message.key(), message.partition() or 0
    if key is None or not key.startswith(PREFIXES):
        return False
    epoch = epoch_of(message.headers())
    if epoch < epochs.get(partition, 0):
        return False
    epochs[partition] = epoch
    return True
