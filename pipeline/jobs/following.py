"""Follows the store of a queue for the jobs that somebody in this process waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from pipeline.inspect.scan import read_to_end
from pipeline.jobs.followed import Answer, Followed
from pipeline.model.cluster import Cluster, Message, PartitionReader, TopicPartition
from pipeline.model.errors import CodecError, NotAuthorized, PipelineError, SchemaUnavailable
from pipeline.model.headers import epoch_of, headers_in
from pipeline.model.jobs import JobDuplicate, JobEntry, JobRecord
from pipeline.model.partitioner import partition_of
from pipeline.model.store_keys import JOB, PREFIXES, job_key, parts_of

POLL_S = 0.05
DENIED_S = 1.0
"""Between two tries to read what may not be read: the right may come."""
MEMORY_POLL_S = 0.01
RECORDS = 1_000
REFRESH_MS = 60_000
STEPS_TO_LET_GO = 200
"""So often a reader looks which partitions nobody waits for any more."""
STEPS_TO_ASK_AGAIN = 20
"""And so often for what could not be read, since the registry was away."""

Ends = Mapping[TopicPartition, int]


class Found(NamedTuple):
    """What was looked for, the epoch of the owner that said so, its partition, and up to where that was read."""

    entry: Answer | None
    epoch: int
    partition: int | None
    ends: Ends


class Reading:
    """Which partitions are read, from where, and how far. Wanted from any thread, the rest is the reader's.

    `epochs`: the highest one of each partition, along the log from where it is read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._from: dict[TopicPartition, int] = {}
        self._at: dict[TopicPartition, int] = {}
        self._changed = False
        self._back: list[TopicPartition] = []
        self.epochs: dict[TopicPartition, int] = {}
        self.steps = 0

    def want(self, tp: TopicPartition, since: int) -> None:
        """All that is written to it from this offset on. Where more than that has been read already, it is read again."""
        with self._lock:
            if tp not in self._from or self._from[tp] > since:
                self._from[tp] = self._at[tp] = since
                self._back.append(tp)
                self._changed = True

    def changed(self) -> dict[TopicPartition, int] | None:
        """Where to read, if that is not what it was."""
        with self._lock:
            changed, self._changed = self._changed, False
            for tp in self._back:
                self.epochs.pop(tp, None)  # what comes is older than what came
            self._back.clear()
            return dict(self._at) if changed else None

    def read(self, messages: Sequence[Message]) -> None:
        self.steps += 1
        with self._lock:
            for message in messages:
                tp = TopicPartition(message.topic(), message.partition())
                if not self._changed and tp in self._at:  # else it is wanted from further back, and comes again
                    self._at[tp] = message.offset() + 1

    def keep(self, waited_for: Callable[[], Iterable[TopicPartition]]) -> None:
        """The others are not read any more. Asked for under the lock: one that is wanted meanwhile is wanted again behind this."""
        with self._lock:
            kept = set(waited_for())
            for tp in [tp for tp in self._from if tp not in kept]:
                del self._from[tp], self._at[tp]
                self._changed = True


class Follower:
    """One per queue and application. On Kafka a thread reads, on memory the loop does; only partitions of jobs that somebody waits for.

    Along the log of a store epochs only grow: an entry with a lower one was written late, by a worker that was taken for dead, and
    says nothing. `since` says where the store stood not long ago: what is asked for from now on is written behind it. `fetch` asks
    the registry for the schema of an entry; it may wait.

    A short job is in the store when it has its ending, another one within four commit intervals: less than `settling_ms`.
    """

    settling_ms = 5_000

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
        self._watching = threading.RLock()
        self.since: Ends = {}
        self._since_ms = 0
        self._looking = threading.Lock()
        self._beginning = threading.Lock()
        self._reading = Reading()
        self._unread: dict[str, Message] = {}
        self._reader: PartitionReader | None = None
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = self._denied = False
        self.error: PipelineError | None = None

    def begin(self, now_ms: int) -> None:
        """Before anything is asked for. May wait."""
        if not self.since:
            self._look(now_ms)

    def refresh(self, now_ms: int) -> None:
        """Now and then, so that who waits one day does not read all since the first request. Waits for nothing."""
        if now_ms - self._since_ms < REFRESH_MS or not self._looking.acquire(blocking=False):
            return
        if self._in_memory:
            self._refreshed(now_ms)
        else:
            threading.Thread(target=self._refreshed, args=(now_ms,), name="pipeline-jobs-ends", daemon=True).start()

    def _refreshed(self, now_ms: int) -> None:
        try:
            self._look(now_ms)
        except PipelineError as error:
            self.error = error  # what is known is older, and as good
        finally:
            self._looking.release()

    def _look(self, now_ms: int) -> None:
        self.since = self._admin.end_offsets(self._partitions())
        self._since_ms = now_ms

    def _partitions(self) -> list[TopicPartition]:
        spec = self._admin.topics([self._topic]).get(self._topic)
        if spec is None:
            raise PipelineError(f"topic {self._topic} does not exist: run `pipeline topics apply`")
        return [TopicPartition(self._topic, number) for number in range(spec.partitions)]

    def partition_of(self, record_key: bytes) -> int:
        """Where the jobs of this key have their entries. After `begin`."""
        return partition_of(record_key, len(self.since))

    def watch(self, job_id: str) -> Followed:
        """From now on its entries are kept, for as long as what is returned is."""
        with self._watching:  # two threads that watch one job share what is known of it: only one would be told
            found = self._watched.get(job_id)
            if found is None:
                found = self._watched[job_id] = Followed(job_id)
            return found

    def _all(self) -> list[Followed]:
        """Those that somebody holds. Other threads add some at any moment, so nothing of ours may run while they are gone through: what
        `values` gives can't be."""
        return [followed for ref in self._watched.valuerefs() if (followed := ref()) is not None]

    def _waited_for(self) -> set[TopicPartition]:
        return {TopicPartition(self._topic, followed.partition) for followed in self._all()}

    def again(self, job_id: str, version: int) -> None:
        """Whoever waits for this job waits for its next round."""
        followed = self._watched.get(job_id)
        if followed is not None:
            followed.again(version)

    def follow(self, followed: Followed, partition: int, since: Ends) -> None:
        """Have its partition read, from where that stood then."""
        followed.partition = partition
        tp = TopicPartition(self._topic, partition)
        self._reading.want(tp, since.get(tp, 0))
        if self._stopped:
            followed.let_go()
            return
        with self._beginning:  # two threads may be the first at the same time
            self._begin_reading()

    def _begin_reading(self) -> None:
        left = self._loop is not None and self._loop.is_closed()  # by a second `asyncio.run` with the same application
        if (self._reader is not None and not left) or self._stopped:
            return
        self._reader = self._reader or self._cluster.reader(self._client_id)
        if self._in_memory:
            self._loop = asyncio.get_running_loop()
            self._poll(self._loop)
        else:
            self._thread = threading.Thread(target=self._read, name="pipeline-jobs-follower", daemon=True)
            self._thread.start()

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._stopped and self._reader is not None:
            self._step(self._reader, 0)
            self._timer = loop.call_later(MEMORY_POLL_S, self._poll, loop)

    def _read(self) -> None:
        assert self._reader is not None
        while not self._stopped:
            try:
                self._step(self._reader, POLL_S)
            except NotAuthorized as error:
                self.error, self._denied = error, True
                for followed in self._all():
                    followed.deny(error)
                time.sleep(DENIED_S)
            except PipelineError as error:
                self.error = error
        self._reader.close()

    def _step(self, reader: PartitionReader, timeout_s: float) -> None:
        reading = self._reading
        if (positions := reading.changed()) is not None:
            reader.assign(positions)
        messages = reader.poll(RECORDS, timeout_s)
        if messages and self._denied:  # whoever waits from now on waits, and does not hear of what was
            self._denied = False
            for followed in self._all():
                followed.allow()
        reading.read(messages)
        self._tell(messages)
        if self._unread and reading.steps % STEPS_TO_ASK_AGAIN == 0:
            unread, self._unread = self._unread, {}
            for job_id, message in unread.items():
                self._tell_one(job_id, message)
        if reading.steps % STEPS_TO_LET_GO == 0:
            reading.keep(self._waited_for)

    def _tell(self, messages: list[Message]) -> None:
        for message in messages:
            key = message.key()
            if key is None or not _believed(message, self._reading.epochs) or message.value() is None:
                continue
            kind, job_id = parts_of(key)
            if kind == JOB and job_id in self._watched:
                self._tell_one(job_id, message)

    def _tell_one(self, job_id: str, message: Message) -> None:
        """What can't be read while the registry is away is told later, unless there is newer news of the job by then."""
        followed, key, value = self._watched.get(job_id), message.key(), message.value()
        if followed is None or key is None or value is None:
            return
        self._unread.pop(job_id, None)
        try:
            entry = self._read_entry(key, value)
        except SchemaUnavailable as error:
            self.error, self._unread[job_id] = error, message
            return
        if entry is not None:
            followed.tell(entry, epoch_of(headers_in(message)))

    def _read_entry(self, key: bytes, value: bytes) -> Answer | None:
        """None for what no queue wrote. Raises SchemaUnavailable while the registry does not answer."""
        try:
            try:
                entry = self._unpack(key, value)
            except SchemaUnavailable as error:
                self._fetch(error.schema_id or 0)
                entry = self._unpack(key, value)
        except SchemaUnavailable:
            raise
        except CodecError as error:
            self.error = error
            return None
        return entry if isinstance(entry, JobRecord | JobDuplicate) else None

    def look_up(self, job_id: str, partition: int | None = None) -> Found:
        """What the store holds of it, by reading all of it, or of its partition. May wait. Raises ClusterUnavailable when that takes
        too long, SchemaUnavailable while the registry does not answer."""
        wanted, written, epoch = job_key(job_id), None, 0
        epochs: dict[TopicPartition, int] = {}
        places = [place for place in self._partitions() if partition in (None, place.partition)]
        begins, ends = self._admin.beginning_offsets(places), self._admin.end_offsets(places)
        for message in read_to_end(self._cluster, begins, ends):
            if _believed(message, epochs) and message.key() == wanted:
                epoch = epoch_of(headers_in(message))
                written, partition = message.value(), message.partition()
        entry = None if written is None else self._read_entry(wanted, written)
        return Found(entry, epoch, partition, ends)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.join(5.0)
        elif self._reader is not None:
            self._reader.close()
        for followed in self._all():
            followed.let_go()


def _believed(message: Message, epochs: dict[TopicPartition, int]) -> bool:
    """`epochs`: the highest one so far of each partition."""
    key, tp = message.key(), TopicPartition(message.topic(), message.partition())
    if key is None or not key.startswith(PREFIXES):
        return False
    epoch = epoch_of(headers_in(message))
    if epoch < epochs.get(tp, 0):
        return False
    epochs[tp] = epoch
    return True
