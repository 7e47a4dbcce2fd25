"""A real Kafka cluster as `Cluster`: makes clients for one bootstrap address."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from pipeline.kafka.admin import KafkaAdmin
from pipeline.kafka.client_log import ClientLog
from pipeline.kafka.clock import time_difference
from pipeline.kafka.consumer import KafkaConsumer
from pipeline.kafka.producer import KafkaProducer
from pipeline.kafka.reader import KafkaReader
from pipeline.kafka.settings import (
    admin_settings,
    consumer_settings,
    producer_settings,
    reader_settings,
    transaction_settings,
)
from pipeline.kafka.transactions import KafkaTransactions
from pipeline.model.cluster import (
    BulkProducer,
    ClusterAdmin,
    ConsumerPolicy,
    GroupConsumer,
    PartitionReader,
    RecordProducer,
    TimeDifference,
)
from pipeline.model.transactions import TransactionalProducer, TransactionPolicy

CLIENT_LOG = "pipeline.kafka.client"
"""Name of the logger that hears what the clients say of themselves."""


class KafkaCluster:
    """See `Cluster`. `on_error(text)` hears of client trouble that heals by itself, in any thread; without one it is
    logged, as are the clients' own log lines: one line per kind of trouble and 10 seconds."""

    def __init__(
        self, address: str, client_settings: Mapping[str, str], on_error: Callable[[str], None] | None = None
    ) -> None:
        self.address = address
        self._client_settings = client_settings
        self._client_log = ClientLog(logging.getLogger(CLIENT_LOG))
        self._on_error = on_error or self._client_log.error
        self._admin: KafkaAdmin | None = None
        self._lock = threading.Lock()

    def consumer(self, policy: ConsumerPolicy) -> GroupConsumer:
        settings = consumer_settings(self.address, policy, self._client_settings)
        return KafkaConsumer(
            settings | {"logger": self._client_log}, policy.drain_timeout_ms, self._shared_admin(), self._on_error
        )

    def producer(self, client_id: str = "pipeline") -> RecordProducer:
        settings = producer_settings(self.address, client_id, self._client_settings)
        return KafkaProducer(settings | {"logger": self._client_log}, self._on_error)

    def bulk_producer(self, client_id: str = "pipeline") -> BulkProducer:
        settings = producer_settings(self.address, client_id, self._client_settings, bulk=True)
        return KafkaProducer(settings | {"logger": self._client_log}, self._on_error, served_by_caller=True)

    def transactional_producer(self, policy: TransactionPolicy) -> TransactionalProducer:
        settings = transaction_settings(self.address, policy, self._client_settings)
        return KafkaTransactions(settings, policy, self._client_log, self._on_error)

    def reader(self, client_id: str = "pipeline") -> PartitionReader:
        settings = reader_settings(self.address, client_id, self._client_settings)
        return KafkaReader(settings | {"logger": self._client_log}, self._on_error)

    def admin(self) -> ClusterAdmin:
        return self._shared_admin()

    def time_difference(self, topic: str, timeout_s: float) -> TimeDifference:
        settings = producer_settings(self.address, "clock", self._client_settings)
        return time_difference(settings | {"logger": self._client_log}, topic, timeout_s)

    def _shared_admin(self) -> KafkaAdmin:
        with self._lock:
            if self._admin is None:
                self._admin = KafkaAdmin(admin_settings(self.address, self._client_settings))
            return self._admin


def connect(
    address: str,
    *,
    client_settings: Mapping[str, str] | None = None,
    on_error: Callable[[str], None] | None = None,
) -> KafkaCluster:
    """A cluster for `address` (host:port, comma-separated). Connects when a client is first used, not here.

    `client_settings` are librdkafka properties, for security and tuning: see `pipeline.kafka.settings`.
    """
    return KafkaCluster(address, dict(client_settings or {}), on_error)
