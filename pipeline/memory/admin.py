"""Topics, groups and offsets of the simulated cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.memory.log import PartitionLog
from pipeline.model.cluster import GroupMember, GroupState, Position, TopicPartition, TopicSpec
from pipeline.model.errors import ClusterError, TopicExists, TopologyError

if TYPE_CHECKING:
    from pipeline.memory.cluster import MemoryCluster

# What a real broker reports for every topic, as far as the pipeline looks at it.
DEFAULT_CONFIGS = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "min.insync.replicas": "1",
    "message.timestamp.type": "CreateTime",
    "delete.retention.ms": "86400000",
    "segment.ms": "604800000",
    "compression.type": "producer",
}


class MemoryAdmin:
    """See `ClusterAdmin`. Nothing here waits, so timeouts are not looked at."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def topics(self, names: Collection[str] | None = None, timeout_s: float = 10.0) -> dict[str, TopicSpec]:
        cluster = self._cluster
        with cluster.changed:
            return {
                name: TopicSpec(name, len(logs), 1, DEFAULT_CONFIGS | cluster.configs[name])
                for name, logs in cluster.logs.items()
                if names is None or name in names
            }

    def topic_names(self, timeout_s: float = 10.0) -> list[str]:
        with self._cluster.changed:
            return sorted(self._cluster.logs)

    def create_topics(self, specs: Sequence[TopicSpec], timeout_s: float = 30.0) -> None:
        with self._cluster.changed:
            for spec in specs:
                if spec.name in self._cluster.logs:
                    raise TopicExists(f"creating topic {spec.name} failed: it exists already")
                if spec.partitions < 1:
                    raise TopologyError(
                        f"creating topic {spec.name} failed: partitions={spec.partitions} must be at least 1"
                    )
                self._cluster.create(spec.name, spec.partitions, spec.configs)

    def set_configs(self, topic: str, configs: Mapping[str, str], timeout_s: float = 30.0) -> None:
        with self._cluster.changed:
            self._existing(topic)
            self._cluster.configs[topic].update(configs)

    def add_partitions(self, topic: str, total: int, timeout_s: float = 30.0) -> None:
        with self._cluster.changed:
            logs = self._existing(topic)
            if total <= len(logs):
                raise TopologyError(f"topic {topic} has {len(logs)} partitions; total={total} must be more")
            logs.extend(PartitionLog(topic, p) for p in range(len(logs), total))
            self._cluster.topics_changed()

    def delete_topics(self, names: Collection[str], timeout_s: float = 30.0) -> None:
        with self._cluster.changed:
            for name in names:
                self._cluster.logs.pop(name, None)
                self._cluster.configs.pop(name, None)
                for group in self._cluster.groups.values():
                    group.positions = {tp: at for tp, at in group.positions.items() if tp.topic != name}
            self._cluster.topics_changed()

    def delete_records(self, before: Mapping[TopicPartition, int], timeout_s: float = 30.0) -> None:
        with self._cluster.changed:
            for partition, offset in before.items():
                log = self._cluster.led(partition)
                if offset > log.end:
                    raise ClusterError(
                        f"deleting records of {log.topic}[{log.partition}] failed: {offset} is past its end"
                    )
                log.delete_before(offset)

    def _existing(self, topic: str) -> list[PartitionLog]:
        if topic not in self._cluster.logs:
            raise ClusterError(f"topic {topic} does not exist: create it first")
        return self._cluster.logs[topic]

    def groups(self, timeout_s: float = 10.0) -> list[str]:
        with self._cluster.changed:
            return sorted(name for name, group in self._cluster.groups.items() if group.state != "dead")

    def describe_group(self, group: str, timeout_s: float = 10.0) -> GroupState:
        self._cluster.expire()
        with self._cluster.changed:
            found = self._cluster.groups.get(group)
            if found is None:
                return GroupState(group, "dead", "", ())
            members = tuple(
                GroupMember(member.member_id, member.client_id, "memory", tuple(sorted(member.owned)))
                for member in found.members.values()
            )
            return GroupState(group, found.state, found.protocol, members)

    def group_positions(self, group: str, timeout_s: float = 10.0) -> dict[TopicPartition, Position]:
        with self._cluster.changed:
            found = self._cluster.groups.get(group)
            return dict(found.positions) if found is not None else {}

    def set_group_positions(
        self, group: str, positions: Mapping[TopicPartition, Position], timeout_s: float = 10.0
    ) -> None:
        self._cluster.expire()
        with self._cluster.changed:
            found = self._cluster.group(group)
            if found.members:
                raise ClusterError(f"group {group} has members, so its offsets can't be set: stop its workers first")
            for partition, position in positions.items():
                self._cluster.log(partition)
                found.positions[TopicPartition(*partition)] = position

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float = 10.0) -> dict[TopicPartition, int]:
        with self._cluster.changed:
            return {TopicPartition(*tp): self._cluster.led(tp).end for tp in partitions}

    def beginning_offsets(
        self, partitions: Collection[TopicPartition], timeout_s: float = 10.0
    ) -> dict[TopicPartition, int]:
        with self._cluster.changed:
            return {TopicPartition(*tp): self._cluster.led(tp).start for tp in partitions}

    def broker_version(self, timeout_s: float = 10.0) -> str:
        return "memory"

    def broker_setting(self, name: str, timeout_s: float = 10.0) -> str | None:
        return None

    def close(self) -> None:
        """Nothing is held."""
