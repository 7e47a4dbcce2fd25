"""Transactions on real Kafka: a producer with its thread, and another one in its place when a call of that one does not come back.

`send_offsets_to_transaction` may wait for ever: while librdkafka (2.16, its issue 5456) looks for the coordinator of the group, which
takes a while after a broker died, it does not look at the time that it was given, and only a change of some connection wakes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pipeline.kafka.client_log import ClientLog
from pipeline.kafka.transaction_thread import TransactionThread
from pipeline.model.cluster import DeliveryCallback, Headers, Position, TopicPartition
from pipeline.model.transactions import Answered, Membership, TransactionPolicy


class KafkaTransactions:
    """See `TransactionalProducer`."""

    def __init__(
        self, settings: Mapping[str, Any], policy: TransactionPolicy, log: ClientLog, on_error: Callable[[str], None]
    ) -> None:
        self._begun = partial(TransactionThread, settings, policy, log, on_error)
        self._thread = self._begun()
        self._rebuilt_before = 0

    @property
    def rebuilt(self) -> int:
        return self._rebuilt_before + self._thread.rebuilt

    def begin(self, done: Answered) -> None:
        self._thread.begin(done)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        self._thread.send(topic, key, value, headers, partition, delivered)

    def commit(self, positions: Mapping[TopicPartition, Position], membership: Membership, done: Answered) -> None:
        self._thread.commit(positions, membership, done)

    def abort(self, done: Answered) -> None:
        self._thread.abort(done)

    def mind(self) -> None:
        """What the stuck one may still ask for comes from an older producer than the next, so brokers refuse it."""
        if self._thread.give_up_if_stuck():
            self._rebuilt_before = self.rebuilt + 1
            self._thread = self._begun()

    def close(self, timeout_s: float) -> None:
        self._thread.close(timeout_s)
