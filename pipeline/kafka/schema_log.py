"""The local registry's log on Kafka: one compacted topic with one partition, read from its start into memory.

It is small (one entry per schema and subject), read only when a schema is not known yet, and each call has a
deadline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Self

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pipeline.model.errors import SchemaUnavailable

LogEntry = tuple[str, bytes]

_MS = 1_000
_POLL_S = 0.2
_PAUSE_S = 0.02
_AWAY = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE}
_NOT_YET = {
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
}


class KafkaSchemaLog:
    """`SchemaLog` over a topic, which is made when it is missing. `client_config` is librdkafka's
    (bootstrap.servers ...).

    Not for two threads at once without its lock, which every call takes. Close it at the end.
    """

    def __init__(self, client_config: Mapping[str, Any], topic: str, *, timeout_s: float = 10.0) -> None:
        # What librdkafka would print on standard error at each failed connection is in our own errors.
        self._config = {"log_level": 2} | dict(client_config)
        self._topic = topic
        self._address = client_config.get("bootstrap.servers", "the address of the settings")
        self._timeout_s = timeout_s
        self._consumer: Consumer | None = None
        self._producer: Producer | None = None
        self._lock = Lock()

    def read(self, position: int) -> tuple[Sequence[LogEntry], int]:
        """Entries from `position` (an offset) up to the end as it is when called. Raises
        SchemaUnavailable.
        """
        with self._lock, _translated(self._topic, self._address):
            consumer = self._consumer or self._open()
            end = self._end(consumer)
            if position >= end:
                return [], position
            start = TopicPartition(self._topic, 0, position or OFFSET_BEGINNING)
            consumer.assign([start])
            return self._until(consumer, end), end

    def _end(self, consumer: Consumer) -> int:
        """The offset after the last entry. A topic just made is not known to every client and broker at
        once.
        """
        deadline = time.monotonic() + self._timeout_s
        partition = TopicPartition(self._topic, 0)
        while True:
            try:
                _, end = consumer.get_watermark_offsets(partition, timeout=self._timeout_s)
                return int(end)
            except KafkaException as error:
                if error.args[0].code() not in _NOT_YET or time.monotonic() > deadline:
                    raise
                consumer.list_topics(self._topic, timeout=self._timeout_s)
                consumer.poll(_PAUSE_S)

    def _until(self, consumer: Consumer, end: int) -> list[LogEntry]:
        entries: list[LogEntry] = []
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            message = consumer.poll(_POLL_S)
            trouble = message.error() if message is not None else None
            if trouble is not None and trouble.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(trouble)
            if message is not None and trouble is None and (entry := _entry(message)) is not None:
                entries.append(entry)
            # The position, not the last message: compaction may have taken the entries before the end.
            [here] = consumer.position([TopicPartition(self._topic, 0)])
            if here.offset >= end:
                return entries
        raise SchemaUnavailable(f"Topic {self._topic} was not read to its end within {self._timeout_s:g} s; try again.")

    def append(self, key: str, value: bytes) -> None:
        """Write one entry with acks=all. Raises SchemaUnavailable when it is not acknowledged in time."""
        with self._lock, _translated(self._topic, self._address):
            if self._producer is None:
                self._producer = Producer(
                    self._config
                    | {"acks": "all", "enable.idempotence": True, "linger.ms": 0}
                    | {"message.timeout.ms": int(self._timeout_s * _MS)}
                )
            outcome: list[KafkaError | None] = []
            self._producer.produce(
                self._topic,
                key=key.encode(),
                value=value,
                partition=0,
                on_delivery=lambda error, _: outcome.append(error),
            )
            self._producer.flush(self._timeout_s + 1)
            if not outcome or outcome[0] is not None:
                why = outcome[0].str() if outcome and outcome[0] else "no answer"
                raise SchemaUnavailable(f"A schema could not be written to topic {self._topic} ({why}); try again.")

    def _open(self) -> Consumer:
        self._ensure_topic()
        consumer = Consumer(
            self._config
            | {
                "group.id": f"{self._topic}.reader",  # never joined and never committed to: assigned by hand
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer = consumer
        return consumer

    def _ensure_topic(self) -> None:
        admin = AdminClient(self._config)
        topics = admin.list_topics(self._topic, timeout=self._timeout_s).topics
        if (known := topics.get(self._topic)) is not None and known.error is None:
            return
        config = {"cleanup.policy": "compact"}
        wanted = NewTopic(self._topic, num_partitions=1, replication_factor=-1, config=config)
        future = admin.create_topics([wanted], operation_timeout=self._timeout_s)[self._topic]
        try:
            future.result(self._timeout_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
            self._consumer = self._producer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _entry(message: Message) -> LogEntry | None:
    key, value = message.key(), message.value()
    if not isinstance(key, bytes) or value is None:
        return None
    return key.decode("utf-8", "replace"), value


class _translated:
    """Kafka's errors as the one the codec knows: the registry is not available."""

    def __init__(self, topic: str, address: object) -> None:
        self._topic = topic
        self._address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        reason = error.args[0] if isinstance(error, KafkaException) else None
        if isinstance(reason, KafkaError) and reason.code() in _AWAY:
            raise SchemaUnavailable(
                f"No broker answers at {self._address}, where the schemas are in topic {self._topic} ({reason.str()}); "
                "check that it runs, and PIPELINE_BROKER."
            ) from error
        if isinstance(error, (KafkaException, TimeoutError)):
            raise SchemaUnavailable(
                f"The schema registry in topic {self._topic} can't be reached ({error}); "
                "check the broker's address and the rights on that topic."
            ) from error
