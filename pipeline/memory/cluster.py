"""A Kafka cluster in memory: the same ports as the real one, deterministic, with faults on request.

One lock guards everything; callbacks to users are always called outside it. Time comes from `clock`, and things that
happen later (a record lands, a report arrives, a session ends) are kept in one queue that `tick` works off in order.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping

from pipeline.memory.admin import MemoryAdmin
from pipeline.memory.consumer import MemoryConsumer
from pipeline.memory.faults import Faults
from pipeline.memory.group import Group
from pipeline.memory.log import PartitionLog
from pipeline.memory.producer import MemoryProducer
from pipeline.memory.reader import MemoryReader
from pipeline.memory.timers import Scheduler, ThreadScheduler
from pipeline.memory.transactions import Coordinator, MemoryTransactions
from pipeline.model.cluster import ConsumerPolicy, TimeDifference, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, ConfigurationError
from pipeline.model.transactions import TransactionPolicy

SCHEME = "memory://"
Action = Callable[[], None]


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryCluster:
    """See `Cluster`. Without a `scheduler` it runs in real time, with a thread that delivers; with one, nothing blocks.

    `clock` gives milliseconds since the epoch. `faults` may be changed at any time.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Callable[[], int] = _wall_clock_ms,
        scheduler: Scheduler | None = None,
        seed: int = 0,
        faults: Faults | None = None,
    ) -> None:
        self.address = f"{SCHEME}{name}"
        self.clock = clock
        self.blocking = scheduler is None
        self.faults = faults or Faults(seed)
        self.changed = threading.Condition(threading.RLock())
        self.logs: dict[str, list[PartitionLog]] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.groups: dict[str, Group] = {}
        self.consumers: list[MemoryConsumer] = []
        self.producers: list[MemoryProducer | MemoryTransactions] = []
        self.transactions = Coordinator(self)
        self._schedule = scheduler or ThreadScheduler(f"memory-{name}")
        self._due: list[tuple[int, int, Action]] = []
        self._sequence = itertools.count(1)

    # -- clients

    def consumer(self, policy: ConsumerPolicy) -> MemoryConsumer:
        made = MemoryConsumer(self, policy)
        self.consumers.append(made)
        return made

    def producer(self, client_id: str = "pipeline") -> MemoryProducer:
        made = MemoryProducer(self, client_id)
        self.producers.append(made)
        return made

    def bulk_producer(self, client_id: str = "pipeline") -> MemoryProducer:
        return self.producer(client_id)

    def transactional_producer(self, policy: TransactionPolicy) -> MemoryTransactions:
        made = MemoryTransactions(self, policy)
        self.producers.append(made)
        return made

    def reader(self, client_id: str = "pipeline") -> MemoryReader:
        return MemoryReader(self)

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self)

    def time_difference(self, topic: str, timeout_s: float) -> TimeDifference:
        """None: the workers have this cluster's own clock."""
        return TimeDifference(0, 0)

    # -- time

    def number(self) -> int:
        """The next of a sequence: names and ties are told apart by it, so runs repeat exactly."""
        return next(self._sequence)

    def later(self, delay_ms: int, action: Action) -> int:
        """Do it when the clock has moved on by so much, during a `tick`; returns the time."""
        return self.at(self.clock() + delay_ms, action)

    def at(self, due_ms: int, action: Action) -> int:
        with self.changed:
            heapq.heappush(self._due, (due_ms, self.number(), action))
        self._wake_at(due_ms)
        return due_ms

    def _wake_at(self, due_ms: int) -> None:
        def awake() -> None:
            if self.clock() < due_ms:  # timers and clock round differently
                self._wake_at(due_ms)
            else:
                self.tick()

        self._schedule(max(0, due_ms - self.clock()), awake)

    def tick(self) -> None:
        """Do what is due, in order of time, then of request. Actions may call users, so the lock is not held."""
        self.expire()
        while True:
            with self.changed:
                if not self._due or self._due[0][0] > self.clock():
                    if self.blocking:
                        self.changed.notify_all()
                    return
                action = heapq.heappop(self._due)[2]
            action()

    def next_due_ms(self) -> int | None:
        """When `tick` will next have something to do; None when nothing is planned."""
        with self.changed:
            return self._due[0][0] if self._due else None

    # -- topics

    def create(self, topic: str, partitions: int, configs: Mapping[str, str] | None = None) -> None:
        with self.changed:
            self.logs[topic] = [PartitionLog(topic, p) for p in range(partitions)]
            self.configs[topic] = dict(configs or {})
            self.topics_changed()

    def topics_changed(self) -> None:
        counts = self.partition_counts()
        for group in self.groups.values():
            group.rebalance(counts)
        self.wake_all()

    def partition_counts(self) -> dict[str, int]:
        return {topic: len(logs) for topic, logs in self.logs.items()}

    def log(self, partition: tuple[str, int]) -> PartitionLog:
        """Raises `ClusterError` for a partition that isn't there."""
        topic, number = partition
        logs = self.logs.get(topic, [])
        if not 0 <= number < len(logs):
            raise ClusterError(f"{topic}[{number}] is unknown: create the topic, or check the partition number")
        return logs[number]

    def led(self, partition: tuple[str, int]) -> PartitionLog:
        """The same, and `ClusterUnavailable` while it has no leader."""
        if partition in self.faults.unavailable:
            raise ClusterUnavailable(f"{partition[0]}[{partition[1]}] has no leader at the moment; try again")
        return self.log(partition)

    def compact(self, topic: str) -> None:
        """What the log cleaner does some time after the topic is written to."""
        with self.changed:
            for log in self.logs[topic]:
                log.compact()

    def skip_offsets(self, partition: tuple[str, int], count: int = 1) -> None:
        """Leave a gap at the end of the log, as a transaction's marker or aborted records do."""
        with self.changed:
            self.log(partition).skip(count)

    def retain(self, topic: str, now_ms: int) -> None:
        """Delete what is older than the topic's `retention.ms` (by the age of the newest record before it)."""
        with self.changed:
            if (keep_ms := int(self.configs[topic].get("retention.ms", "-1"))) >= 0:
                for log in self.logs[topic]:
                    log.delete_before(log.first_at(now_ms - keep_ms))

    # -- groups and failures of clients

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name))

    def expire(self) -> None:
        """End the sessions that are over. Called at every access, so that no timer is needed to be fair."""
        with self.changed:
            now_ms = self.clock()
            over = [group for group in self.groups.values() if any(m.expired(now_ms) for m in group.members.values())]
            for group in over:
                group.expire(now_ms, self.partition_counts())
            if over:
                self.wake_all()

    def kill(self, client_id: str, late_ms: int | None = None) -> None:
        """The process with these clients dies: no more heartbeats; what was not written is lost, or lands late."""
        for consumer in self.consumers:
            if consumer.client_id == client_id:
                consumer.freeze()
                consumer.killed = True
        for producer in self.producers:
            if producer.client_id == client_id:
                producer.kill(late_ms)

    def freeze(self, client_id: str) -> None:
        """The process stops, as under SIGSTOP: its session runs out; its producers' records wait until `thaw`."""
        for client in self._clients(client_id):
            client.freeze()

    def thaw(self, client_id: str) -> None:
        """It goes on, not knowing what happened: its records land, its commits arrive."""
        for client in self._clients(client_id):
            client.thaw()

    def _clients(self, client_id: str) -> list[MemoryConsumer | MemoryProducer | MemoryTransactions]:
        clients: list[MemoryConsumer | MemoryProducer | MemoryTransactions] = [*self.consumers, *self.producers]
        return [client for client in clients if client.client_id == client_id]

    def expel(self, consumer: MemoryConsumer) -> None:
        """The coordinator ends this member's session now, although it lives: a zombie until its next poll."""
        with self.changed:
            self.group(consumer.group_name).remove(consumer.member_id(), self.partition_counts())
            self.wake_all()

    def wake_all(self) -> None:
        """Something may have changed for every consumer."""
        for consumer in self.consumers:
            consumer.signal()

    def wake_for(self, partition: TopicPartition) -> None:
        """A record landed there."""
        for consumer in self.consumers:
            if consumer.wants(partition):
                consumer.signal()


_clusters: dict[str, MemoryCluster] = {}
_clusters_lock = threading.Lock()


def connect(address: str) -> MemoryCluster:
    """The cluster of that name, made on first use (real time). All who connect to one name share it."""
    if not address.startswith(SCHEME) or address == SCHEME:
        raise ConfigurationError(f"address={address!r} is not a memory cluster: write {SCHEME}name")
    with _clusters_lock:
        if address not in _clusters:
            _clusters[address] = MemoryCluster(address.removeprefix(SCHEME))
        return _clusters[address]


def register(cluster: MemoryCluster) -> None:
    """Let `connect` find this cluster (one with its own clock and faults) by its address; replaces an earlier one."""
    with _clusters_lock:
        _clusters[cluster.address] = cluster


def forget(address: str) -> None:
    """Drop it, and all that is in it; unknown addresses are ignored."""
    with _clusters_lock:
        _clusters.pop(address, None)
