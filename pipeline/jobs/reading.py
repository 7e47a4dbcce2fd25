"""A queue as people look at it: its index brought up to date, and what only the topics know. Calls may wait; any thread may call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.codec import AvroCodec
from pipeline.codec.jobs import StoreCodec
from pipeline.inspect.scan import read_to_end
from pipeline.jobs import finding, monitor
from pipeline.jobs.finding import JobPage, WantedJobs
from pipeline.jobs.health import inbox_of
from pipeline.jobs.index import JobIndex, Progress, Refreshed
from pipeline.jobs.monitor import QueueStats
from pipeline.jobs.rows import JobRow, ScheduleRow
from pipeline.jobs.topics import QueueTopics
from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.job_policies import check_written
from pipeline.model.jobs import JobDuplicate, JobEntry, JobRecord
from pipeline.model.store_keys import job_key


class StoreUnpacker:
    """Decodes entries of a store, whoever wrote them: a schema that is not known yet is asked of the registry, which may wait."""

    def __init__(self, codec: AvroCodec, state: str) -> None:
        self._codec = codec
        self._state = state
        self._store = StoreCodec(codec, state)

    def __call__(self, key: bytes, value: bytes) -> JobEntry:
        try:
            return self._store.unpack(key, value)
        except SchemaUnavailable as error:
            self._codec.fetch(self._state, error.schema_id or 0)
            return self._store.unpack(key, value)


class QueueReader:
    """See the module. Each question is answered from what the store holds now. Use it as a context manager, or close it."""

    def __init__(self, cluster: Cluster, codec: AvroCodec, topics: QueueTopics, path: Path | None) -> None:
        self.cluster = cluster
        self.topics = topics
        self.unpack = StoreUnpacker(codec, topics.state)
        self._path = path
        self._lock = threading.Lock()
        self._index: JobIndex | None = None

    def waiting(self, told: Callable[[], None]) -> None:
        """`told` is called when another command on this machine is at work on the index, and has to be waited for."""
        with self._lock:
            self._opened().model.waiting = told

    def refresh(self, progress: Progress | None = None, rebuild: bool = False) -> Refreshed:
        """Read what is new. Raises ConfigurationError when there is no such queue, IndexBusy, ClusterUnavailable, SchemaUnavailable."""
        with self._lock:
            return self._opened().refresh(progress, rebuild)

    def _opened(self) -> JobIndex:
        if self._index is None:
            self._index = JobIndex(self._path, self.cluster, self.topics, self.unpack)
        return self._index

    def page(self, wanted: WantedJobs, limit: int = 50, after: str = "") -> JobPage:
        with self._lock:
            return finding.page(self._opened().db, wanted, limit, after)

    def count(self, wanted: WantedJobs) -> int:
        with self._lock:
            return finding.count(self._opened().db, wanted)

    def job(self, job_id: str) -> JobRow | None:
        """Raises ConfigurationError for what can't be an id."""
        check_written("job_id", job_id)
        with self._lock:
            return finding.job(self._opened().db, job_id)

    def before_in_key(self, row: JobRow) -> JobRow | None:
        with self._lock:
            return finding.before_in_key(self._opened().db, row)

    def ahead(self, row: JobRow) -> int:
        with self._lock:
            return finding.ahead(self._opened().db, row)

    def schedules(self, name: str = "") -> list[ScheduleRow]:
        check_written("name", name)
        with self._lock:
            return finding.schedules(self._opened().db, name)

    def record(self, job_id: str) -> JobRecord | JobDuplicate | None:
        """All of it, with input and result: read from the store. (Twice, should it change just then.)"""
        for _ in range(2):
            row = self.job(job_id)
            if row is None:
                return None
            place = TopicPartition(self.topics.state, row.partition)
            for message in read_to_end(self.cluster, {place: row.offset}, {place: row.offset + 1}, stop_at_open=True):
                key, value = message.key(), message.value()
                if key == job_key(job_id) and value is not None:
                    entry = self.unpack(key, value)
                    return entry if isinstance(entry, JobRecord | JobDuplicate) else None
            self.refresh()
        return None

    def stats(self, now_ms: int, span_ms: int) -> QueueStats:
        """Raises ConfigurationError for a span that the store can't answer for."""
        monitor.check_span(span_ms)
        waiting, oldest_ms = inbox_of(self.cluster, self.topics, now_ms)
        with self._lock:
            total, types = monitor.stats(self._opened().db, now_ms, span_ms)
        return QueueStats(self.topics.name, now_ms, span_ms, waiting, oldest_ms, total, types)

    def close(self) -> None:
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
