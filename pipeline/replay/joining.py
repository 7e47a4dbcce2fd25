"""Taking up a partition where it was left: its commit, and the results that were written past it by a process that died."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.model.cluster import Cluster, ClusterAdmin, ConsumerPolicy, GroupConsumer, GroupMember, TopicPartition
from pipeline.model.errors import ClusterUnavailable, ConfigurationError
from pipeline.model.partitioner import partition_of
from pipeline.replay.flow import Flow
from pipeline.replay.plan import ReplayPlan
from pipeline.replay.progress import Done, done_of
from pipeline.replay.results import read_results, record_key

if TYPE_CHECKING:
    from pipeline.replay.options import RunOptions

REQUEST_S = 15.0
SKEW_MS = 3_600_000
"""Results bear the time of the machine that wrote them, a plan that of the machine that made it: so far apart they may be."""
CLIENT = "pipeline-replay"
JOINED = "pipeline-replay-join"
"""Client ids of those who run a plan, and of those who were asked to help."""


@dataclass(frozen=True, slots=True)
class ResultsPlace:
    """The results topic and how many partitions it has."""

    topic: str
    partitions: int

    def of(self, source: str, partition: int) -> TopicPartition:
        """Where results about this partition of a source lie."""
        return TopicPartition(self.topic, partition_of(record_key(source, partition), self.partitions))


def committed_done(consumer: GroupConsumer, plan: ReplayPlan) -> dict[int, Done]:
    """By partition, what the group has committed; those it never committed stand at their start."""
    places = [TopicPartition(plan.source.topic, p) for p in plan.source.spans]
    found = consumer.committed(places, REQUEST_S)
    return {place.partition: done_of(found[place], plan.source.spans[place.partition].start) for place in places}


def open_flows(
    cluster: Cluster, consumer: GroupConsumer, plan: ReplayPlan, results: ResultsPlace, partitions: Collection[int]
) -> list[Flow]:
    """Flows for partitions that are ours now. Raises when Kafka does not answer."""
    places = [TopicPartition(plan.source.topic, p) for p in partitions if p in plan.source.spans]
    positions = consumer.committed(places, REQUEST_S)
    found = []
    for place in places:
        span, position = plan.source.spans[place.partition], positions[place]
        done = done_of(position, span.start)
        flow = Flow(place.partition, span, plan.last.get(place.partition, ()), done)
        flow.committed = None if position is None else done
        found.append(flow)
    _add_written(cluster, plan, results, {flow.partition: flow for flow in found if not flow.through})
    return found


def _add_written(cluster: Cluster, plan: ReplayPlan, place: ResultsPlace, flows: Mapping[int, Flow]) -> None:
    """Offsets past each flow's commit that have a result."""
    if not flows:
        return
    unknown = {place.of(plan.source.topic, p) for p, flow in flows.items() if flow.done.results_from < 0}
    starts: dict[TopicPartition, int] = {}
    if unknown:
        starts = offsets_at(cluster, unknown, max(0, plan.created_ms - SKEW_MS))
    for partition, flow in flows.items():
        if flow.done.results_from >= 0:
            at = place.of(plan.source.topic, partition)
            starts[at] = min(starts.get(at, flow.done.results_from), flow.done.results_from)
    last = {p: frozenset(flow.last[flow.done.last :]) for p, flow in flows.items()}
    for batch in read_results(cluster, place.topic, plan=plan.plan_id, starts=starts, deadline_s=600.0):
        found = flows.get(batch.partition)
        if found is None or batch.topic != plan.source.topic:
            continue
        for result in batch.results:
            if result.offset >= found.done.offset or result.offset in last[batch.partition]:
                found.written[result.offset] = result.outcome


def offsets_at(cluster: Cluster, places: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
    """The first offset of each partition from then on."""
    consumer = cluster.consumer(ConsumerPolicy(group=f"{CLIENT}.times", client_id=CLIENT))
    try:
        return consumer.offsets_at(places, time_ms, REQUEST_S)
    finally:
        consumer.close()


def refuse_second(admin: ClusterAdmin, options: RunOptions, plan: ReplayPlan, own_member: str = "") -> None:
    """Raises `ConfigurationError` naming who runs the plan already. Of two that start at once one goes on: the lower member id."""
    silent = (
        f"{options.session_timeout_ms / 1000:g} s after its last sign of life"
        if options.protocol == "classic"
        else "after the broker's group.consumer.session.timeout.ms, 45 s by default"
    )
    others = [
        member
        for member in members_of(admin, options.group)
        if member.member_id != own_member and not member.client_id.startswith(JOINED)
    ]
    if others and (not own_member or min(member.member_id for member in others) < own_member):
        names = ", ".join(f"{member.client_id} on {member.host}" for member in others[:3])
        beside = "wait until that ends" if plan.of_file else "add --join to work beside it"
        raise ConfigurationError(
            f"plan {plan.plan_id} is being run by {names}: {beside}; one that was killed is taken for alive until {silent}, so try "
            "again then"
        )


def refuse_sharing(plan: ReplayPlan) -> None:
    """Raises `ConfigurationError` for a plan that several processes were asked to share and one alone can do."""
    if plan.of_file:
        name = plan.target.file or plan.source.topic
        raise ConfigurationError(
            f"plan {plan.plan_id} is about the file {name}, which one process alone reads or writes: leave out --processes and --join"
        )


def members_of(admin: ClusterAdmin, group: str) -> tuple[GroupMember, ...]:
    """Who is in the group. A coordinator that moves is waited for; raises `ClusterUnavailable` when that takes too long."""
    until = time.monotonic() + REQUEST_S
    while True:
        try:
            return admin.describe_group(group).members
        except ClusterUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
