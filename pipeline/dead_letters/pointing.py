"""Dead letters without a value that point at offsets no client can read: what they point at, and whether it is still there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.dead_letters.query import Letter
from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.errors import ClusterError
from pipeline.model.headers import pointer_of


@dataclass(frozen=True, slots=True)
class PointsAt:
    """Offsets `first` to `last`. `retention_ms`: how long the topic keeps records, -1 for ever, None where not known; `there`:
    whether it still has the first one."""

    topic: str
    partition: int
    first: int
    last: int
    kind: str
    retention_ms: int | None
    there: bool | None

    @property
    def sentence(self) -> str:
        where = f"offsets {self.first} to {self.last} of {self.topic}[{self.partition}]"
        if self.there is False:
            return f"{where}, which the topic does not have any more"
        if self.retention_ms is None:
            return f"{where}; how long the topic keeps them is not known"
        if self.retention_ms < 0:
            return f"{where}, which keeps them without a limit of time"
        return f"{where}, which keeps records for {self.retention_ms / 86_400_000:g} days (retention.ms={self.retention_ms})"


def points_at(cluster: Cluster, letter: Letter, headers: Mapping[str, bytes | None]) -> PointsAt | None:
    """None for a dead letter that has its record's own bytes. Asks the cluster, and does without when it does not answer."""
    pointer = pointer_of(headers)
    topic, partition, first = letter.origin_topic, letter.origin_partition, letter.origin_offset
    if pointer is None or topic is None or partition is None or first is None:
        return None
    retention_ms: int | None = None
    there: bool | None = None
    admin = cluster.admin()
    try:
        spec = admin.topics([topic]).get(topic)
        if spec is None or partition >= spec.partitions:
            there = False
        else:
            raw = spec.configs.get("retention.ms", "")
            retention_ms = int(raw) if raw.lstrip("-").isdigit() else None
            place = TopicPartition(topic, partition)
            there = admin.beginning_offsets([place])[place] <= first
    except ClusterError:
        pass
    finally:
        admin.close()
    return PointsAt(topic, partition, first, pointer.last_offset, pointer.kind, retention_ms, there)
