"""Carries a plan out on a cluster through the `ClusterAdmin` port, and plans again until nothing is left to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.model.cluster import ClusterAdmin, TopicSpec
from pipeline.model.errors import ClusterUnavailable, PipelineError, TopologyError
from pipeline.model.policies import Subscription
from pipeline.model.topics import CONTROL_TOPIC
from pipeline.topology.actions import Action, AddPartitions, CreateTopic, Plan, SetConfig
from pipeline.topology.naming import layouts, retired_of
from pipeline.topology.planner import plan
from pipeline.topology.rules import OPTIONAL, Beside, Defaults

VISIBLE_S = 10.0
ROUNDS_MAX = 3
"""A source topic made in the first round may bring cluster defaults that its lanes follow in the second."""


def existing_topics(
    admin: ClusterAdmin, subscriptions: Sequence[Subscription], prefix: str = "", beside: Beside | None = None
) -> dict[str, TopicSpec]:
    """Those topics of the subscriptions and `beside` them that exist, old tiers and the control topic included: no other
    topic is looked at."""
    names = admin.topic_names()
    wanted = {prefix + CONTROL_TOPIC, *(beside.names if beside is not None else ())}
    for entry in layouts(subscriptions, prefix):
        topics = entry.topics
        wanted |= {topics.source, *topics.lanes, topics.dead_letters, *(t.topic for t in retired_of(entry, names))}
    return admin.topics(sorted(wanted.intersection(names)))


def plan_for(
    admin: ClusterAdmin,
    subscriptions: Sequence[Subscription],
    defaults: Defaults | None = None,
    prefix: str = "",
    unsettled: Mapping[str, int] | None = None,
    beside: Beside | None = None,
) -> Plan:
    """The plan for what the cluster has now."""
    existing = existing_topics(admin, subscriptions, prefix, beside)
    return plan(subscriptions, existing, defaults, prefix=prefix, unsettled=unsettled, beside=beside)


def _create(admin: ClusterAdmin, spec: TopicSpec) -> None:
    try:
        admin.create_topics([spec])
    except ClusterUnavailable:
        raise
    except PipelineError as refused:
        # Whether a broker knows a setting can't be asked without rights on the broker: trying is the only way.
        unknown = [name for name in OPTIONAL if name in spec.configs and name in str(refused)]
        if not unknown:
            raise
        admin.create_topics([replace(spec, configs={k: v for k, v in spec.configs.items() if k not in unknown})])


def _until_reported(admin: ClusterAdmin, topic: str, setting: str, value: str) -> None:
    """The controller takes a setting before the broker that is asked next knows of it."""
    deadline = time.monotonic() + VISIBLE_S
    while admin.topics([topic])[topic].configs.get(setting) != value:
        if time.monotonic() > deadline:
            raise TopologyError(
                f"the cluster did not keep {setting}={value} of topic {topic}: look for a broker policy that overrides it"
            )
        time.sleep(0.05)


def execute(admin: ClusterAdmin, action: Action) -> None:
    """One action; returns when the brokers report it. Raises what the port raises."""
    match action:
        case CreateTopic(spec=spec):
            _create(admin, spec)
        case AddPartitions(topic=topic, total=total):
            admin.add_partitions(topic, total)
        case SetConfig(topic=topic, setting=setting, value=value):
            admin.set_configs(topic, {setting: value})
            _until_reported(admin, topic, setting, value)


def apply(
    admin: ClusterAdmin,
    subscriptions: Sequence[Subscription],
    defaults: Defaults | None = None,
    prefix: str = "",
    done: Callable[[Action], None] = lambda action: None,
    unsettled: Mapping[str, int] | None = None,
    beside: Beside | None = None,
) -> Plan:
    """Plan and act until no action is left; returns the last plan (its findings are what remains). `done` hears of each action.

    Raises `TopologyError` when the cluster does not keep what it was told, for example because a policy overrides it.
    """
    for _ in range(ROUNDS_MAX):
        now = plan_for(admin, subscriptions, defaults, prefix, unsettled, beside)
        if not now.actions:
            return now
        for action in now.actions:
            execute(admin, action)
            done(action)
    last = plan_for(admin, subscriptions, defaults, prefix, unsettled, beside)
    if last.actions:
        raise TopologyError(f"topic {last.actions[0].topic} changed while the plan was carried out: run it again")
    return last
