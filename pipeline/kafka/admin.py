"""Topics, groups and offsets through one AdminClient, which lives as long as this object (its futures die with it)."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
)
from confluent_kafka import TopicPartition as Named
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.admin._topic import TopicDescription
from confluent_kafka.cimpl import NewPartitions, NewTopic

from pipeline.kafka.errors import raised
from pipeline.model.cluster import GroupMember, GroupState, Position, TopicPartition, TopicSpec
from pipeline.model.errors import ClusterError, ClusterUnavailable

T = TypeVar("T")
_ABSENT = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID)
_STATES = {"STABLE": "stable", "EMPTY": "empty", "DEAD": "dead"} | dict.fromkeys(
    ("PREPARING_REBALANCING", "COMPLETING_REBALANCING", "ASSIGNING", "RECONCILING"), "rebalancing"
)
_POLL_S, _SETTLE_S = 0.02, 5.0
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]


class KafkaAdmin:
    """See `ClusterAdmin`. Thread-safe."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._last_error = ""
        properties: dict[str, Any] = {**settings, "error_cb": self._client_error}
        self._admin = AdminClient(properties)
        self._settings = properties

    def _client_error(self, error: KafkaError) -> None:
        self._last_error = f" ({error.str()} [{error.name()}])"

    def _wait(self, future: Future[T], timeout_s: float, doing: str) -> T:
        try:
            return future.result(timeout_s + 1.0)
        except KafkaException as exception:
            error = raised(exception, doing)
            if isinstance(error, ClusterUnavailable):
                self._admin.poll(0)  # serves error_cb, which often knows the reason (refused, TLS, credentials)
                raise ClusterUnavailable(f"{error}{self._last_error}") from exception
            raise error from exception
        except FutureTimeout as exception:
            raise ClusterUnavailable(f"{doing} got no answer within {timeout_s} s{self._last_error}") from exception

    def _if_present(self, future: Future[T], timeout_s: float, doing: str) -> T | None:
        """The same, and None for a topic that is not there (any more)."""
        try:
            return self._wait(future, timeout_s, doing)
        except ClusterError as error:
            cause = error.__cause__
            if isinstance(cause, KafkaException) and cause.args[0].code() in _ABSENT:
                return None
            raise

    # -- topics

    def topics(self, names: Collection[str] | None = None, timeout_s: float = 10.0) -> dict[str, TopicSpec]:
        described = self._describe(self._all_names(timeout_s) if names is None else names, timeout_s)
        if names is None:
            described = {name: each for name, each in described.items() if not each.is_internal}
        configs = self._configs(described, timeout_s)
        return {
            name: TopicSpec(name, len(each.partitions), len(each.partitions[0].replicas), configs[name])
            for name, each in described.items()
            if name in configs
        }

    def topic_names(self, timeout_s: float = 10.0) -> list[str]:
        """Kafka's internal topics are known by their two underscores."""
        return sorted(name for name in self._all_names(timeout_s) if not name.startswith("__"))

    def _all_names(self, timeout_s: float) -> list[str]:
        try:
            return list(self._admin.list_topics(timeout=timeout_s).topics)
        except KafkaException as exception:
            self._admin.poll(0)
            error = raised(exception, "listing topics")
            raise type(error)(f"{error}{self._last_error}") from exception

    def _describe(self, names: Iterable[str], timeout_s: float) -> dict[str, TopicDescription]:
        wanted = list(dict.fromkeys(names))
        if not wanted:
            return {}
        futures = self._admin.describe_topics(TopicCollection(wanted), request_timeout=timeout_s)
        found = {}
        for name, future in futures.items():
            if (described := self._if_present(future, timeout_s, f"describing topic {name}")) is not None:
                found[name] = described
        return found

    def _configs(self, names: Collection[str], timeout_s: float) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        answers = self._admin.describe_configs(resources, request_timeout=timeout_s)
        found: dict[str, dict[str, str]] = {}
        for resource, future in answers.items():
            doing = f"reading the settings of topic {resource.name}"
            if (entries := self._if_present(future, timeout_s, doing)) is not None:
                found[resource.name] = {name.name: name.value for name in entries.values() if name.value is not None}
        return found

    def create_topics(self, specs: Sequence[TopicSpec], timeout_s: float = 30.0) -> None:
        if not specs:
            return
        deadline = time.monotonic() + timeout_s
        new = [NewTopic(s.name, s.partitions, s.replication_factor, config=dict(s.configs)) for s in specs]
        for name, future in self._admin.create_topics(new, request_timeout=timeout_s).items():
            self._wait(future, timeout_s, f"creating topic {name}")
        self._until_led({spec.name: spec.partitions for spec in specs}, deadline)

    def _until_led(self, partitions: Mapping[str, int], deadline: float) -> None:
        """Created is not yet usable: wait until every partition has a leader."""
        while True:
            seen = self._describe(partitions, max(1.0, deadline - time.monotonic()))
            if all(
                name in seen
                and len(seen[name].partitions) >= count
                and all(p.leader is not None for p in seen[name].partitions)
                for name, count in partitions.items()
            ):
                return
            if time.monotonic() >= deadline:
                raise ClusterUnavailable(
                    f"topics {', '.join(partitions)} have no leaders yet; check that enough brokers are up"
                )
            time.sleep(_POLL_S)

    def set_configs(self, topic: str, configs: Mapping[str, str], timeout_s: float = 30.0) -> None:
        """Returns when the brokers show the new values (a controller's answer comes a little earlier)."""
        if not configs:
            return
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in configs.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        answers = self._admin.incremental_alter_configs([resource], request_timeout=timeout_s)
        for future in answers.values():
            self._wait(future, timeout_s, f"changing settings of topic {topic}")
        deadline = time.monotonic() + min(timeout_s, _SETTLE_S)
        while time.monotonic() < deadline:
            if configs.items() <= self._configs([topic], timeout_s).get(topic, {}).items():
                return
            time.sleep(_POLL_S)

    def add_partitions(self, topic: str, total: int, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        for future in self._admin.create_partitions([NewPartitions(topic, total)], request_timeout=timeout_s).values():
            self._wait(future, timeout_s, f"adding partitions to topic {topic}")
        self._until_led({topic: total}, deadline)

    def delete_topics(self, names: Collection[str], timeout_s: float = 30.0) -> None:
        """Returns when they are gone; those that don't exist are ignored."""
        existing = list(self._describe(names, timeout_s))
        if not existing:
            return
        deadline = time.monotonic() + timeout_s
        for name, future in self._admin.delete_topics(existing, request_timeout=timeout_s).items():
            self._wait(future, timeout_s, f"deleting topic {name}")
        while self._describe(existing, timeout_s):
            if time.monotonic() >= deadline:
                raise ClusterUnavailable(
                    f"topics {', '.join(existing)} are still there {timeout_s} s after their deletion"
                )
            time.sleep(_POLL_S)

    def delete_records(self, before: Mapping[TopicPartition, int], timeout_s: float = 30.0) -> None:
        if not before:
            return
        offsets = [Named(t, p, offset) for (t, p), offset in before.items()]
        for each, future in self._admin.delete_records(offsets, request_timeout=timeout_s).items():
            self._wait(future, timeout_s, f"deleting records of {each.topic}[{each.partition}]")

    # -- groups

    def groups(self, timeout_s: float = 10.0) -> list[str]:
        listing = self._wait(self._admin.list_consumer_groups(request_timeout=timeout_s), timeout_s, "listing groups")
        if listing.errors:  # some broker did not answer: the list is not whole
            raise raised(KafkaException(listing.errors[0]), "listing groups")
        return sorted(each.group_id for each in listing.valid)

    def describe_group(self, group: str, timeout_s: float = 10.0) -> GroupState:
        """A group that never was is "dead", without members."""
        future = self._admin.describe_consumer_groups([group], request_timeout=timeout_s)[group]
        try:
            found = self._wait(future, timeout_s, f"describing group {group}")
        except ClusterError as error:
            if (
                isinstance(error.__cause__, KafkaException)
                and error.__cause__.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND
            ):
                return GroupState(group, "dead", "", ())
            raise
        members = tuple(
            GroupMember(
                member.member_id,
                member.client_id,
                member.host,
                tuple(sorted(TopicPartition(tp.topic, tp.partition) for tp in member.assignment.topic_partitions))
                if member.assignment is not None
                else (),
            )
            for member in found.members
        )
        return GroupState(group, _STATES.get(found.state.name, "unknown"), found.type.name.lower(), members)

    def group_positions(self, group: str, timeout_s: float = 10.0) -> dict[TopicPartition, Position]:
        """Through a consumer that never joins: the admin's own call dies with SIGSEGV while a coordinator moves or loads
        (librdkafka issue 5040, seen with 2.16)."""
        try:
            known = self._admin.list_topics(timeout=timeout_s).topics
        except KafkaException as exception:
            raise raised(exception, f"reading the offsets of group {group}") from exception
        places = [Named(name, p) for name, topic in known.items() for p in topic.partitions]
        consumer = Consumer({**self._settings, "group.id": group, "enable.auto.commit": False})
        try:
            found = consumer.committed(places, timeout_s)
        except KafkaException as exception:
            raise raised(exception, f"reading the offsets of group {group}") from exception
        finally:
            consumer.close()
        return {
            TopicPartition(tp.topic, tp.partition): Position(tp.offset, tp.metadata or "")
            for tp in found
            if tp.offset >= 0
        }

    def set_group_positions(
        self, group: str, positions: Mapping[TopicPartition, Position], timeout_s: float = 10.0
    ) -> None:
        if not positions:
            return
        offsets = [Named(t, p, position.offset, position.metadata) for (t, p), position in positions.items()]
        request = [ConsumerGroupTopicPartitions(group, offsets)]
        future = self._admin.alter_consumer_group_offsets(request, request_timeout=timeout_s)[group]
        try:
            answer = self._wait(future, timeout_s, f"setting the offsets of group {group}")
            for tp in answer.topic_partitions:
                if tp.error is not None:
                    raise raised(
                        KafkaException(tp.error),
                        f"setting the offset of {tp.topic}[{tp.partition}] of {group}",
                    )
        except ClusterError as error:
            if self.describe_group(group, timeout_s).members:
                raise ClusterError(
                    f"group {group} has members, so its offsets can't be set: stop its workers first"
                ) from error
            raise

    # -- offsets

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float = 10.0) -> dict[TopicPartition, int]:
        return self._offsets(dict.fromkeys(partitions, _LATEST), timeout_s)

    def beginning_offsets(
        self, partitions: Collection[TopicPartition], timeout_s: float = 10.0
    ) -> dict[TopicPartition, int]:
        return self._offsets(dict.fromkeys(partitions, _EARLIEST), timeout_s)

    def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int, timeout_s: float = 10.0
    ) -> dict[TopicPartition, int]:
        """The first offset whose timestamp is >= time_ms, or the end."""
        found = self._offsets(dict.fromkeys(partitions, OffsetSpec.for_timestamp(time_ms)), timeout_s)
        if later := [tp for tp, offset in found.items() if offset < 0]:
            found.update(self.end_offsets(later, timeout_s))
        return found

    def _offsets(self, wanted: Mapping[TopicPartition, OffsetSpec], timeout_s: float) -> dict[TopicPartition, int]:
        if not wanted:
            return {}
        request = {Named(t, p): spec for (t, p), spec in wanted.items()}
        # Uncommitted, so that "latest" is the high watermark: records of an open transaction lie before it.
        answers = self._admin.list_offsets(
            request, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=timeout_s
        )
        found = {}
        for tp, future in answers.items():
            doing = f"reading offsets of {tp.topic}[{tp.partition}]"
            offset = self._wait(future, timeout_s, doing).offset
            if offset == OFFSET_INVALID:  # the leader's answer is missing, and librdkafka says so by nothing else
                raise ClusterUnavailable(
                    f"{doing} failed: its leader did not answer; check that the brokers are reachable"
                )
            found[TopicPartition(tp.topic, tp.partition)] = offset
        return found

    # -- brokers

    def broker_version(self, timeout_s: float = 10.0) -> str:
        """Best effort, as text: confluent-kafka does not show what a broker calls itself."""
        settings = self._broker_settings(timeout_s)
        return _version_of(set(settings), settings) if settings else "unknown"

    def broker_setting(self, name: str, timeout_s: float = 10.0) -> str | None:
        entry = self._broker_settings(timeout_s).get(name)
        return None if entry is None or entry.value is None else str(entry.value)

    def _broker_settings(self, timeout_s: float) -> Mapping[str, ConfigEntry]:
        """Of one broker; empty without the right to see them."""
        cluster = self._wait(
            self._admin.describe_cluster(request_timeout=timeout_s), timeout_s, "describing the cluster"
        )
        node = min(cluster.nodes, key=lambda each: each.id)
        resource = ConfigResource(ResourceType.BROKER, str(node.id))
        try:
            answers = self._admin.describe_configs([resource], request_timeout=timeout_s)
            return self._wait(answers[resource], timeout_s, f"reading the settings of broker {node.id}")
        except ClusterError:
            return {}

    def close(self) -> None:
        """Nothing is held but the client itself."""


def _version_of(names: set[str], settings: Mapping[str, ConfigEntry]) -> str:
    """Brokers up to 3.x state their protocol version; later ones are known by the settings that they have."""
    if (protocol := settings.get("inter.broker.protocol.version")) is not None and protocol.value:
        return str(protocol.value).partition("-")[0]
    return "4.x" if "group.share.heartbeat.interval.ms" in names else "unknown"
