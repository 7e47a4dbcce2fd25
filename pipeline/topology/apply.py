"""Carries a plan out on a cluster through the `ClusterAdmin` port, and plans again until nothing is left to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.model.cluster import ClusterAdmin, TopicPartition, TopicSpec
from pipeline.model.errors import ClusterError, ClusterUnavailable, TopologyError
from pipeline.model.policies import Subscription
from pipeline.topology.layout import layouts, retired_of
from pipeline.topology.plan import Action, AddPartitions, CreateTopic, Plan, SetConfig, plan
from pipeline.topology.rules import OPTIONAL, Defaults

ROUNDS_MAX = 3
"""A source topic made in the first round may bring cluster defaults that its lanes follow in the second."""


def unsettled(
    admin: ClusterAdmin, subscriptions: Sequence[Subscription], prefix: str, existing: Mapping[str, object]
) -> dict[str, int]:
    """Retired tier -> records between the group's committed offsets and the end: 0 means drained."""
    counts: dict[str, int] = {}
    for entry in layouts(subscriptions, prefix):
        tiers = [tier.topic for tier in retired_of(entry, existing)]
        if not tiers:
            continue
        specs = admin.topics(tiers)
        partitions = [TopicPartition(name, p) for name, spec in specs.items() for p in range(spec.partitions)]
        ends, starts = admin.end_offsets(partitions), admin.beginning_offsets(partitions)
        committed = admin.group_positions(entry.group)
        for place in partitions:
            position = committed.get(place)
            read = max(starts[place], position.offset if position else 0)
            counts[place.topic] = counts.get(place.topic, 0) + max(0, ends[place] - read)
    return counts


def plan_for(
    admin: ClusterAdmin, subscriptions: Sequence[Subscription], defaults: Defaults, prefix: str = ""
) -> Plan:
    """The plan for what the cluster has now."""
    existing = admin.topics()
    waiting = unsettled(admin, subscriptions, prefix, existing)
    return plan(subscriptions, existing, defaults, prefix=prefix, unsettled=waiting)


def _create(admin: ClusterAdmin, spec: TopicSpec) -> None:
    try:
        admin.create_topics([spec])
    except ClusterUnavailable:
        raise
    except ClusterError as refused:
        # Whether a broker knows a setting can't be asked without rights on the broker: trying is the only way.
        unknown = [name for name in OPTIONAL if name in spec.configs and name in str(refused)]
        if not unknown:
            raise
        admin.create_topics(
            [replace(spec, configs={k: v for k, v in spec.configs.items() if k not in unknown})]
        )


def execute(admin: ClusterAdmin, action: Action) -> None:
    """One action. Raises what the port raises."""
    match action:
        case CreateTopic(spec=spec):
            _create(admin, spec)
        case AddPartitions(topic=topic, total=total):
            admin.add_partitions(topic, total)
        case SetConfig(topic=topic, setting=setting, value=value):
            admin.set_configs(topic, {setting: value})


def apply(
    admin: ClusterAdmin,
    subscriptions: Sequence[Subscription],
    defaults: Defaults | None = None,
    prefix: str = "",
    done: Callable[[Action], None] = lambda action: None,
) -> Plan:
    """Plan and act until no action is left; returns the last plan (its findings are what remains). `done` hears of each action.

    Raises `TopologyError` when the cluster does not keep what it was told, for example because a policy overrides it.
    """
    defaults = defaults or Defaults()
    for _ in range(ROUNDS_MAX):
        now = plan_for(admin, subscriptions, defaults, prefix)
        if not now.actions:
            return now
        for action in now.actions:
            execute(admin, action)
            done(action)
    last = plan_for(admin, subscriptions, defaults, prefix)
    if last.actions:
        left = last.actions[0]
        what = left.setting if isinstance(left, SetConfig) else "partitions"
        raise TopologyError(
            f"the cluster did not keep {what} of topic {left.topic}: look for a broker policy that overrides it"
        )
    return last
