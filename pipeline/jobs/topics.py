"""Where a queue is on the cluster: real names of its group and topics, from its name alone."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import check_text
from pipeline.model.job_types import INBOX_PREFIX
from pipeline.model.topics import LaneTopics, check_topic, lane_topics
from pipeline.topology import Layout


@dataclass(frozen=True, slots=True)
class QueueTopics:
    """`name` as declared, everything else real. `state` is the store."""

    name: str
    group: str
    topics: LaneTopics

    @property
    def inbox(self) -> str:
        return self.topics.source

    @property
    def state(self) -> str:
        assert self.topics.state is not None
        return self.topics.state

    @property
    def layout(self) -> Layout:
        return Layout(self.group, self.topics)

    def places(self, cluster: Cluster) -> list[TopicPartition]:
        """Partitions of the store; the inbox has the same. May wait. Raises ConfigurationError when there is no such queue."""
        admin = cluster.admin()
        try:
            spec = admin.topics([self.state]).get(self.state)
        finally:
            admin.close()
        if spec is None:
            raise ConfigurationError(
                f"queue {self.name!r} is not on this cluster (topic {self.state} does not exist): check the name and "
                "PIPELINE_PREFIX, or run `pipeline topics apply`"
            )
        return [TopicPartition(self.state, number) for number in range(spec.partitions)]


def topics_of(queue: str, prefix: str = "") -> QueueTopics:
    """Raises ConfigurationError for a name that no queue can have."""
    check_topic(INBOX_PREFIX + check_text("queue", queue), "queue")
    group = prefix + queue
    return QueueTopics(queue, group, lane_topics(prefix + INBOX_PREFIX + queue, group, (), store=True))


def queues_on(names: list[str], prefix: str = "") -> list[str]:
    """Queues of this environment, by the names of all topics."""
    known = set(names)
    heads = (name.removeprefix(prefix + INBOX_PREFIX) for name in names if name.startswith(prefix + INBOX_PREFIX))
    return sorted(head for head in heads if head and topics_of(head, prefix).state in known)
