"""Reading partitions without a group: tools, read-back, compacted control topics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import Message as Fetched
from confluent_kafka import TopicPartition as Assigned

from pipeline.kafka.errors import cluster_error, fault_kind, raised
from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.errors import ClusterError

_error_of = Fetched.error


class KafkaReader:
    """See `PartitionReader`. What can't heal (offset gone, no ACL, bad batch) is raised; `on_error` hears the rest."""

    def __init__(self, settings: Mapping[str, Any], on_error: Callable[[str], None]) -> None:
        self._on_error = on_error
        self._group = settings.get("group.id", "")
        self._consumer = Consumer({**settings, "error_cb": self._client_error})
        self._closed = False
        self._fault: ClusterError | None = None
        self._assigned: set[TopicPartition] = set()
        self._ended: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._ended = {}
        try:
            self._consumer.assign([Assigned(t, p, offset) for (t, p), offset in positions.items()])
        except KafkaException as exception:
            raise raised(exception, "assigning partitions") from exception
        self._assigned = set(positions)

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        known = self._assigned.intersection(partitions)
        for place in known:
            self._ended.pop(place, None)
        if not known:
            return
        try:
            self._consumer.incremental_unassign([Assigned(t, p) for t, p in known])
        except KafkaException as exception:
            raise raised(exception, "unassigning partitions") from exception
        self._assigned -= known

    def ended(self) -> Mapping[TopicPartition, int]:
        return self._ended

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        try:
            batch = self._consumer.consume(max_records, 0)
            if not batch:
                first = self._consumer.poll(timeout_s)
                if first is None:
                    return []
                batch = self._consumer.consume(max_records - 1, 0) if max_records > 1 else []
                batch.insert(0, first)
        except RuntimeError as error:
            raise ClusterError(f"the reader is closed: {error}") from error
        if any(map(_error_of, batch)):
            batch = self._without_errors(batch)
        if not batch and self._fault is not None:
            return self.poll(max_records, 0)
        return cast("list[Message]", batch)

    def _without_errors(self, batch: list[Fetched]) -> list[Fetched]:
        """What was read before a fault is returned first; the next poll raises it."""
        for message in batch:
            error = message.error()
            if error is None:
                continue
            if error.code() == KafkaError._PARTITION_EOF:
                self._ended[TopicPartition(cast(str, message.topic()), cast(int, message.partition()))] = cast(
                    int, message.offset()
                )
            elif fault_kind(error) != "other":
                self._fault = cluster_error(error, self._doing(message, error))
            else:
                self._client_error(error)
        return [message for message in batch if message.error() is None]

    def _doing(self, message: Fetched, error: KafkaError) -> str:
        """What is told of a group (its coordinator is asked for, though nothing joins it) names no topic."""
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return f"reading as group {self._group}"
        return f"reading {message.topic()}[{message.partition()}] at offset {message.offset()}"

    def _client_error(self, error: KafkaError) -> None:
        self._on_error(f"{error.str()} [{error.name()}]")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._consumer.close()
