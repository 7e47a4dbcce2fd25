"""A group's committed offsets, read without joining it.

Through a consumer and not the admin's list of group offsets: in librdkafka up to 2.16 that call dies with SIGSEGV when the
coordinator is moving or still loading (its issue 5040), which is just when somebody looks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from pipeline.core.progress import Progress
from pipeline.inspect.scan import ends_of_records
from pipeline.model.cluster import Cluster, ConsumerPolicy, Position, TopicPartition
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.policies import Subscription
from pipeline.topology import existing_topics, layouts, retired_of

REQUEST_S = 10.0
PATIENCE_S = 15.0
PAUSE_S = 0.2


def committed(
    cluster: Cluster,
    group: str,
    places: Collection[TopicPartition],
    monotonic: Callable[[], float] = time.monotonic,
) -> dict[TopicPartition, Position]:
    """What the group committed on these partitions; those without a commit are left out.

    A coordinator that moves is waited for; raises `ClusterUnavailable` when it takes longer than `PATIENCE_S`,
    `NotAuthorized` without the right to see the group.
    """
    if not places:
        return {}
    until = monotonic() + PATIENCE_S
    consumer = cluster.consumer(ConsumerPolicy(group=group, client_id="pipeline-inspect"))
    try:
        while True:
            try:
                found = consumer.committed(places, REQUEST_S)
            except ClusterUnavailable:
                if monotonic() > until:
                    _refuse_without_right(
                        cluster, group
                    )  # not before: a coordinator that moves is no time to ask the admin
                    raise
                time.sleep(PAUSE_S)
            else:
                return {place: position for place, position in found.items() if position is not None}
    finally:
        consumer.close()


def of_these_topics(
    progress: Mapping[TopicPartition, Progress], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, Progress]:
    """Without what is about a topic that was there before one of the same name (it lies past the end): a lane is then read from its
    beginning. `ends` were read after the commits."""
    return {place: known for place, known in progress.items() if known.offset <= ends[place]}


def _refuse_without_right(cluster: Cluster, group: str) -> None:
    """A consumer asks for the coordinator of a group it has no right to until its time is over, and says only that; the admin says why.
    Raises `NotAuthorized`."""
    admin = cluster.admin()
    try:
        with contextlib.suppress(ClusterUnavailable):
            admin.describe_group(group)
    finally:
        admin.close()


def unsettled_in_retired_tiers(
    cluster: Cluster, subscriptions: Sequence[Subscription], prefix: str = ""
) -> dict[str, int]:
    """Tier that is declared no longer -> records between the group's committed offsets and the last record: 0 means drained."""
    counts: dict[str, int] = {}
    admin = cluster.admin()
    try:
        existing = existing_topics(admin, subscriptions, prefix)
        for entry in layouts(subscriptions, prefix):
            tiers = [tier.topic for tier in retired_of(entry, existing)]
            places = [TopicPartition(name, p) for name in tiers for p in range(existing[name].partitions)]
            ends, starts = admin.end_offsets(places), admin.beginning_offsets(places)
            positions = committed(cluster, entry.group, places)
            read = {place: max(starts[place], at.offset if (at := positions.get(place)) else 0) for place in places}
            ends |= ends_of_records(cluster, read, ends)
            for place in places:
                counts[place.topic] = counts.get(place.topic, 0) + max(0, ends[place] - read[place])
    finally:
        admin.close()
    return counts
