"""Producing to the simulated cluster: records land in order, reports follow, and both can be late, lost or refused."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.memory.log import size_bytes
from pipeline.model.cluster import Acknowledgements, DeliveryCallback, Headers, OutRecord, TopicPartition
from pipeline.model.errors import BufferFull, ClusterError, ClusterUnavailable, NotAuthorized, RecordTooLarge
from pipeline.model.partitioner import partition_of

if TYPE_CHECKING:
    from pipeline.memory.cluster import MemoryCluster

MAX_QUEUED_RECORDS = 100_000
_RETRY_MS = 100
DEFAULT_MAX_BYTES = "1048588"


def place(cluster: MemoryCluster, topic: str, key: bytes | None, partition: int) -> TopicPartition:
    """Where a record goes. The cluster's lock is held by the caller."""
    count = len(cluster.logs.get(topic, []))
    if partition >= 0 or count == 0:
        return TopicPartition(topic, max(partition, 0))
    if key is None:
        return TopicPartition(topic, cluster.faults.random.randrange(count))
    return TopicPartition(topic, partition_of(key, count))


@dataclass(slots=True)
class _Sent:
    partition: TopicPartition
    key: bytes | None
    value: bytes | None
    headers: Headers | None
    timestamp_ms: int
    delivered: DeliveryCallback | None
    due_ms: int


class MemoryProducer:
    """See `RecordProducer`. Reports are called during a tick of the cluster, never inside `send`."""

    def __init__(self, cluster: MemoryCluster, client_id: str) -> None:
        self.client_id = client_id
        self.max_queued_records = MAX_QUEUED_RECORDS
        self._cluster = cluster
        self._queues: defaultdict[TopicPartition, deque[_Sent]] = defaultdict(deque)
        self._last_report_ms: dict[TopicPartition, int] = {}
        self._unreported: dict[int, tuple[DeliveryCallback | None, ClusterError | None, int]] = {}
        self._tickets = itertools.count()
        self._waiting = 0
        self._frozen = self._killed = self._closed = False

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        cluster = self._cluster
        with cluster.changed:
            if self._closed or self._killed:
                raise ClusterError(f"the producer is closed: nothing can be sent to {topic} any more")
            if self._waiting >= self.max_queued_records:
                raise BufferFull(
                    f"the producer's buffer is full, so a record for {topic} was not taken: wait, then send again"
                )
            where = place(cluster, topic, key, partition)
            now_ms = cluster.clock()
            queue = self._queues[where]
            due_ms = now_ms + cluster.faults.drawn(cluster.faults.land_delay_ms)
            if queue:
                due_ms = max(due_ms, queue[-1].due_ms)
            headers = list(headers) if headers else None
            queue.append(_Sent(where, key, value, headers, timestamp_ms or now_ms, delivered, due_ms))
            self._waiting += 1
            if len(queue) == 1:
                cluster.at(due_ms, lambda: self._land(where))

    def send_many(
        self, topic: str, partition: int, records: Sequence[OutRecord], acknowledgements: Acknowledgements
    ) -> int:
        for taken, (key, value, headers) in enumerate(records):
            try:
                self.send(topic, key, value, headers, partition, delivered=_once(acknowledgements.add))
            except BufferFull:
                return taken
        return len(records)

    def _land(self, where: TopicPartition, force: bool = False) -> None:
        """Write what is due of one partition, oldest first; a partition without a leader keeps its queue."""
        cluster = self._cluster
        with cluster.changed:
            queue = self._queues[where]
            if self._frozen and not force:
                return
            while queue and (force or queue[0].due_ms <= cluster.clock()):
                if where in cluster.faults.unavailable:
                    cluster.later(_RETRY_MS, lambda: self._land(where))
                    return
                self._write(queue.popleft())
            if queue:
                cluster.at(queue[0].due_ms, lambda: self._land(where))

    def _write(self, sent: _Sent) -> None:
        cluster, faults = self._cluster, self._cluster.faults
        error, offset = self._refusal(sent), -1
        if error is None:
            log = cluster.log(sent.partition)
            at_ms = stamped_ms(cluster, sent.partition.topic, sent.timestamp_ms)
            offset = log.append(sent.key, sent.value, sent.headers, at_ms)
            cluster.wake_for(sent.partition)
            cluster.changed.notify_all()
            if faults.happens(faults.ack_lost):
                error, offset = (
                    ClusterUnavailable(f"no answer for a record to {sent.partition.topic}; it may be written"),
                    -1,
                )
        if self._killed:
            self._waiting -= 1
            return
        report_ms = cluster.clock() + faults.drawn(faults.ack_delay_ms)
        report_ms = max(report_ms, self._last_report_ms.get(sent.partition, 0))
        self._last_report_ms[sent.partition] = report_ms
        ticket = next(self._tickets)
        self._unreported[ticket] = (sent.delivered, error, offset)
        cluster.at(report_ms, lambda: self._report(ticket))

    def _refusal(self, sent: _Sent) -> ClusterError | None:
        try:
            self._cluster.log(sent.partition)
        except ClusterError as error:
            return error
        return refusal(self._cluster, sent.partition.topic, sent.key, sent.value, sent.headers)

    def _report(self, ticket: int) -> None:
        with self._cluster.changed:
            if self._frozen or self._killed or ticket not in self._unreported:
                return
            delivered, error, offset = self._unreported.pop(ticket)
            self._waiting -= 1
            self._cluster.changed.notify_all()
        if delivered is not None:
            delivered(error, offset)
            faults = self._cluster.faults
            if faults.happens(faults.ack_twice):
                self._cluster.later(
                    faults.drawn(faults.ack_twice_ms), lambda: self._report_again(delivered, error, offset)
                )

    def _report_again(self, delivered: DeliveryCallback, error: ClusterError | None, offset: int) -> None:
        if not self._frozen and not self._killed:
            delivered(error, offset)

    def serve(self, timeout_s: float) -> None:
        """Answers come during a tick of the cluster."""

    def hear(self) -> None:
        """Answers come by themselves."""

    def flush(self, timeout_s: float) -> int:
        """On a cluster that can't wait (virtual time) everything that can land does so now, whatever its delay."""
        if self._cluster.blocking:
            deadline = time.monotonic() + timeout_s
            with self._cluster.changed:
                while self._waiting and (left_s := deadline - time.monotonic()) > 0:
                    self._cluster.changed.wait(left_s)
                return self._waiting
        for where in list(self._queues):
            self._land(where, force=True)
        for ticket in list(self._unreported):
            self._report(ticket)
        return self._waiting

    def close(self, timeout_s: float) -> None:
        """What is not answered by then is dropped and reported as failed."""
        if self._closed:
            return
        self.flush(timeout_s)
        with self._cluster.changed:
            self._closed = True
            dropped = [sent.delivered for queue in self._queues.values() for sent in queue]
            self._queues.clear()
            self._waiting = len(self._unreported)
        for delivered in dropped:
            if delivered is not None:
                delivered(ClusterUnavailable("the producer was closed before the record was written"), -1)
        for ticket in list(self._unreported):
            self._report(ticket)

    # -- failures

    def freeze(self) -> None:
        self._frozen = True

    def thaw(self) -> None:
        """What it held back lands now."""
        with self._cluster.changed:
            self._frozen = False
            for where in [where for where, queue in self._queues.items() if queue]:
                self._cluster.later(0, lambda where=where: self._land(where))  # type: ignore[misc]
            for ticket in list(self._unreported):
                self._cluster.later(0, lambda ticket=ticket: self._report(ticket))  # type: ignore[misc]

    def kill(self, late_ms: int | None) -> None:
        """No report ever comes. What was on its way is lost, or lands after `late_ms`."""
        with self._cluster.changed:
            self._killed = self._frozen = True
            waiting = [where for where, queue in self._queues.items() if queue]
            if late_ms is None:
                self._queues.clear()
                self._waiting = 0
            for where in waiting if late_ms is not None else []:
                self._cluster.later(late_ms or 0, lambda where=where: self._land(where, True))  # type: ignore[misc]


def _once(add: DeliveryCallback) -> DeliveryCallback:
    """Answers are told apart by their number, so none may come twice (`faults.ack_twice`)."""
    told = False

    def delivered(error: ClusterError | None, offset: int) -> None:
        nonlocal told
        if not told:
            told = True
            add(error, offset)

    return delivered


def stamped_ms(cluster: MemoryCluster, topic: str, given_ms: int) -> int:
    """The time of a record that is written now: its producer's, or the log's where the topic says so."""
    appended = cluster.configs[topic].get("message.timestamp.type") == "LogAppendTime"
    return cluster.clock() if appended else given_ms


def refusal(
    cluster: MemoryCluster, topic: str, key: bytes | None, value: bytes | None, headers: Headers | None
) -> ClusterError | None:
    """Why a partition that is there does not take this record; None: it does."""
    faults = cluster.faults
    if topic in faults.denied_topics:
        return NotAuthorized(f"writing to {topic} is not allowed; grant the ACL or correct the credentials")
    size = size_bytes(key, value, headers)
    limit = int(cluster.configs[topic].get("max.message.bytes", DEFAULT_MAX_BYTES))
    if size > limit:
        return RecordTooLarge(f"a record of {size} bytes is larger than max.message.bytes={limit} of {topic}; raise it")
    if faults.happens(faults.send_failure):
        return ClusterUnavailable(f"a record to {topic} was not written in time; send it again")
    return None
