"""Is a queue well: do the brokers answer, are its topics there, has every partition a worker, is its work taken up?"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.inspect import lag
from pipeline.inspect.measure import measure
from pipeline.jobs.topics import QueueTopics
from pipeline.model.cluster import Cluster, ClusterAdmin
from pipeline.model.errors import PipelineError

SLOW_MS = 60_000
"""Nobody has come to the oldest record of the inbox for so long: workers are gone, stand still or are too few."""


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """`healthy`: work that is asked for now is taken up. `why`: the first thing that is wrong, in one sentence.

    `connected`: the brokers answer. `state`: the group's, as its coordinator says. `unowned`: partitions without a worker.
    """

    queue: str
    healthy: bool
    why: str
    connected: bool
    state: str = ""
    workers: int = 0
    partitions: int = 0
    unowned: tuple[int, ...] = ()
    inbox: int = 0
    inbox_oldest_ms: int | None = None


def inbox_of(cluster: Cluster, topics: QueueTopics, now_ms: int) -> tuple[int, int | None]:
    """Records that no entry of the store has settled, and for how long the oldest of them has been there. May wait."""
    unsettled = [row for row in lag.rows(measure(cluster, topics.layout)) if row.lag]
    oldest = [row.oldest_ms for row in unsettled if row.oldest_ms is not None]
    return sum(row.lag for row in unsettled), max(0, now_ms - min(oldest)) if oldest else None


def health_of(cluster: Cluster, topics: QueueTopics, now_ms: int, timeout_s: float) -> QueueHealth:
    """May wait, for `timeout_s` with each question. Never raises a PipelineError."""
    connected = False
    try:
        admin = cluster.admin()
        try:
            names = [topics.inbox, topics.state, topics.topics.replay, topics.topics.dead_letters]
            specs = admin.topics(names, timeout_s)
            connected = True
            missing = [name for name in names if name not in specs]
            if missing:
                why = f"topic {missing[0]} does not exist: run `pipeline topics apply`"
                return QueueHealth(topics.name, False, why, True)
            return _of_group(cluster, admin, topics, specs[topics.inbox].partitions, now_ms, timeout_s)
        finally:
            admin.close()
    except PipelineError as error:
        return QueueHealth(topics.name, False, str(error), connected)


def _of_group(
    cluster: Cluster, admin: ClusterAdmin, topics: QueueTopics, partitions: int, now_ms: int, timeout_s: float
) -> QueueHealth:
    group = admin.describe_group(topics.group, timeout_s)
    owned = {p.partition for member in group.members for p in member.partitions if p.topic == topics.inbox}
    unowned = tuple(number for number in range(partitions) if number not in owned)
    inbox, oldest_ms = inbox_of(cluster, topics, now_ms)
    why = ""
    if not group.members:
        why = f"no worker runs queue {topics.name!r}: start one with `pipeline run`"
    elif unowned:
        why = f"{len(unowned)} of {partitions} partitions have no worker: wait for the rebalance, or start a worker"
    elif oldest_ms is not None and oldest_ms > SLOW_MS:
        why = (
            f"the oldest record of {topics.inbox} has not been taken up for {oldest_ms // 1000} s: the workers stand still, "
            "are paused, or are too few"
        )
    return QueueHealth(
        topics.name, not why, why, True, group.state, len(group.members), partitions, unowned,
        inbox, oldest_ms,
    )  # fmt: skip
