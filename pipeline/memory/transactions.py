"""Transactions of the simulated cluster: invisible until they are committed, fenced by the next producer of the same id.

Requests arrive after the commit delay; a stopped process's arrive when it goes on, and meet whatever became of its group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pipeline.memory.producer import place, refusal
from pipeline.model.cluster import DeliveryCallback, Headers, Position, TopicPartition
from pipeline.model.errors import (
    BufferFull,
    ClusterError,
    ClusterUnavailable,
    FencedError,
    ProducerFenced,
    StaleGeneration,
)
from pipeline.model.transactions import Answered, Membership, TransactionPolicy

if TYPE_CHECKING:
    from pipeline.memory.cluster import MemoryCluster


@dataclass(eq=False, slots=True)
class Transaction:
    """What the coordinator knows of one. `positions` are pending once `torn`: stored, and not decided."""

    group: str
    touched: set[TopicPartition] = field(default_factory=set)
    positions: dict[TopicPartition, Position] = field(default_factory=dict)
    ended: bool = False


class Coordinator:
    """Transactional ids, the epoch of each, and what it has open. The cluster's lock is held by the caller."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self.epochs: dict[str, int] = {}
        self._open: dict[str, Transaction] = {}

    def initialise(self, transactional_id: str) -> int:
        """What an earlier producer of this id left open is aborted, and it is fenced."""
        self.end(transactional_id, committed=False)
        self.epochs[transactional_id] = epoch = self.epochs.get(transactional_id, -1) + 1
        return epoch

    def transaction(self, policy: TransactionPolicy) -> Transaction:
        """The one that is open; a new one is aborted, and its producer fenced, when it lasts for too long."""
        found = self._open.get(policy.transactional_id)
        if found is None:
            found = self._open[policy.transactional_id] = Transaction(policy.group)
            self._cluster.later(policy.timeout_ms, lambda made=found: self._expire(policy.transactional_id, made))  # type: ignore[misc]
        return found

    def _expire(self, transactional_id: str, made: Transaction) -> None:
        with self._cluster.changed:
            if self._open.get(transactional_id) is made:
                self.initialise(transactional_id)

    def end(self, transactional_id: str, committed: bool) -> None:
        made = self._open.pop(transactional_id, None)
        if made is None:
            return
        made.ended = True
        group = self._cluster.group(made.group)
        for tp in made.positions:
            group.pending.pop(tp, None)
        if committed:
            group.positions.update(made.positions)
        for tp in made.touched:
            self._cluster.log(tp).finish(made, committed)
        for tp in made.touched:
            self._cluster.wake_for(tp)
        self._cluster.changed.notify_all()


class MemoryTransactions:
    """See `TransactionalProducer`. Answers come during a tick of the cluster, never inside a call."""

    def __init__(self, cluster: MemoryCluster, policy: TransactionPolicy) -> None:
        self.client_id = policy.client_id
        self.rebuilt = -1
        self.max_queued_records = 100_000
        self._cluster = cluster
        self._policy = policy
        self._epoch = -1
        self._failed: ClusterError | None = None
        self._began_ms = 0
        self._sent = 0
        self._held: deque[Callable[[], None]] = deque()
        self._last_due_ms = 0
        self._frozen = self._killed = self._closed = False

    # -- requests

    def begin(self, done: Answered) -> None:
        self._ask(self._begin, done)

    def commit(self, positions: Mapping[TopicPartition, Position], membership: Membership, done: Answered) -> None:
        self._ask(lambda: self._commit(positions, membership), done)

    def abort(self, done: Answered) -> None:
        self._ask(self._renew, done)

    def mind(self) -> None:
        """Every answer comes."""

    def _ask(self, request: Callable[[], None], done: Answered) -> None:
        """A request and its answer, behind those asked before; a process that is stopped sends neither until it goes on."""
        cluster = self._cluster

        def arrive() -> None:
            if self._frozen:
                self._held.append(arrive)
                return
            error: ClusterError | None = None
            with cluster.changed:
                try:
                    request()
                except ClusterError as problem:
                    self._failed = self._failed or problem
                    error = problem
            done(error)

        due_ms = max(self._last_due_ms, cluster.clock() + cluster.faults.drawn(cluster.faults.commit_delay_ms))
        self._last_due_ms = cluster.at(due_ms, arrive)

    def _begin(self) -> None:
        self._find_coordinator()
        if self._epoch < 0 or self._failed is not None:
            self._renew()
        self._fence()
        self._began_ms = self._cluster.clock()

    def _renew(self) -> None:
        self._find_coordinator()
        self._epoch = self._cluster.transactions.initialise(self._policy.transactional_id)
        self._failed = None
        self.rebuilt += 1

    def _find_coordinator(self) -> None:
        if self._cluster.faults.no_transactions:
            raise ClusterUnavailable("the coordinator of transactions does not answer")

    def _fence(self) -> None:
        """As the Kafka adapter tells them apart: too soon for a time-out, it was another process."""
        if self._cluster.transactions.epochs.get(self._policy.transactional_id) == self._epoch:
            return
        if self._cluster.clock() - self._began_ms < self._policy.timeout_ms:
            raise ProducerFenced(
                f"transactional id {self._policy.transactional_id!r} was taken over by another process: "
                "give every process its own instance_id"
            )
        raise ClusterUnavailable("the brokers ended a transaction that was open for too long")

    def _commit(self, positions: Mapping[TopicPartition, Position], membership: Membership) -> None:
        cluster, faults = self._cluster, self._cluster.faults
        self._fence()
        if self._failed is not None:
            raise self._failed
        if faults.happens(faults.transaction_refused):
            raise ClusterUnavailable("the transaction was not committed; abort it")
        if faults.happens(faults.transaction_stale):
            raise StaleGeneration("the group is in another generation by now")
        cluster.expire()
        made = cluster.transactions.transaction(self._policy)
        group = cluster.group(self._policy.group)
        if membership.member_id not in group.members:
            raise FencedError(f"member {membership.member_id!r} is not in group {self._policy.group} any longer")
        for tp, position in positions.items():
            made.positions[TopicPartition(*tp)] = position
            group.pending[TopicPartition(*tp)] = made
        if faults.happens(faults.transaction_torn):
            raise ClusterUnavailable("no answer to the transaction's end; nobody knows whether it is committed")
        if faults.happens(faults.transaction_late):
            cluster.later(faults.drawn(faults.transaction_late_ms), partial(self._end_late, self._epoch))
            raise ClusterUnavailable("no answer to the transaction's end; nobody knows whether it is committed")
        cluster.transactions.end(self._policy.transactional_id, committed=True)
        if faults.happens(faults.commit_lost):
            raise ClusterUnavailable("no answer to the transaction's end; nobody knows whether it is committed")

    def _end_late(self, epoch: int) -> None:
        """The request names no transaction, only its producer's id and epoch."""
        transactions = self._cluster.transactions
        with self._cluster.changed:
            if transactions.epochs[self._policy.transactional_id] == epoch:
                transactions.end(self._policy.transactional_id, committed=True)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        cluster = self._cluster
        with cluster.changed:
            if self._closed or self._killed:
                raise ClusterError(f"the producer is closed: nothing can be sent to {topic} any more")
            if self._sent >= self.max_queued_records:
                raise BufferFull(f"the producer's buffer is full, so a record for {topic} was not taken")
            self._sent += 1
            cluster.later(1, self._left_the_queue)
            where = place(cluster, topic, key, partition)
            error, offset = self._refusal(where, key, value, headers), -1
            if error is None:
                made = cluster.transactions.transaction(self._policy)
                made.touched.add(where)
                log, kept = cluster.log(where), list(headers) if headers else None
                offset = log.append(key, value, kept, cluster.clock(), made)
            else:
                self._failed = self._failed or error
        if delivered is not None:
            cluster.later(0, lambda: delivered(error, offset))

    def _left_the_queue(self) -> None:
        self._sent -= 1

    def _refusal(
        self, where: TopicPartition, key: bytes | None, value: bytes | None, headers: Headers | None
    ) -> ClusterError | None:
        try:
            self._cluster.led(where)
            self._fence()
        except ClusterError as error:
            return error
        return refusal(self._cluster, where.topic, key, value, headers)

    def close(self, timeout_s: float) -> None:
        with self._cluster.changed:
            if not self._closed and not self._killed and self._epoch >= 0:
                epoch = self._cluster.transactions.epochs.get(self._policy.transactional_id)
                if epoch == self._epoch:
                    self._cluster.transactions.end(self._policy.transactional_id, committed=False)
            self._closed = True

    # -- failures

    def freeze(self) -> None:
        self._frozen = True

    def thaw(self) -> None:
        """What it was about to ask arrives now, in order."""
        self._frozen = False
        while self._held:
            self._cluster.later(0, self._held.popleft())

    def kill(self, late_ms: int | None) -> None:
        """What is open stays so until it times out, or the next producer of its id begins."""
        self._killed = self._frozen = True
        self._held.clear()
