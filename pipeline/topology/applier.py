"""Carries a plan out on a cluster through the `ClusterAdmin` port, and plans again until nothing is left to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.model.cluster import ClusterAdmin, TopicSpec
from pipeline.model.errors import ClusterUnavailable, PipelineError, TopicExists, TopologyError
from pipeline.model.policies import Subscription
from pipeline.model.topics import AUDIT_TOPIC, CLOCK_TOPIC, CONTROL_TOPIC, RESULTS_TOPIC, TASKS_TOPIC
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
    """Those topics of the subscriptions and `beside` them that exist, old tiers and our own topics included: no other
    topic is looked at.

    A topic that the principal may not describe is in no list, as if it did not exist. So what must be there is asked for by
    name: Kafka says then which right is missing.
    """
    names = admin.topic_names()
    own = (CONTROL_TOPIC, AUDIT_TOPIC, RESULTS_TOPIC, TASKS_TOPIC, CLOCK_TOPIC)
    wanted = {*(prefix + name for name in own), *(beside.names if beside is not None else ())}
    declared: set[str] = set()
    for entry in layouts(subscriptions, prefix):
        topics = entry.topics
        declared |= {topics.source, *topics.private, topics.dead_letters}
        wanted |= {retired.topic for retired in retired_of(entry, names)}
    return admin.topics(sorted(declared | wanted.intersection(names)))


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
    except TopicExists:
        return  # another deployer's, or our own first try whose answer came too late: the next round looks at it
    except PipelineError as refused:
        # Whether a broker knows a setting can't be asked without rights on the broker: trying is the only way.
        unknown = [name for name in OPTIONAL if name in spec.configs and name in str(refused)]
        if not unknown:
            raise
        admin.create_topics([replace(spec, configs={k: v for k, v in spec.configs.items() if k not in unknown})])


def _reported(admin: ClusterAdmin, topic: str, wanted: Callable[[TopicSpec], bool]) -> bool:
    """The controller takes a change before the broker that is asked next knows of it, or of a new topic: does it say so, now or soon?"""
    deadline = time.monotonic() + VISIBLE_S
    while (spec := admin.topics([topic]).get(topic)) is None or not wanted(spec):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _set_config(admin: ClusterAdmin, topic: str, setting: str, value: str) -> None:
    admin.set_configs(topic, {setting: value})
    if not _reported(admin, topic, lambda spec: spec.configs.get(setting) == value):
        raise TopologyError(
            f"the cluster did not keep {setting}={value} of topic {topic}: look for a broker policy that overrides it"
        )


def _add_partitions(admin: ClusterAdmin, topic: str, total: int) -> None:
    """A plan may come from a broker that has not heard yet of partitions that were added a moment ago: then they are there soon."""
    try:
        admin.add_partitions(topic, total)
    except TopologyError:
        if not _reported(admin, topic, lambda spec: spec.partitions >= total):
            raise


def execute(admin: ClusterAdmin, action: Action) -> None:
    """One action; returns when the brokers report it. Raises what the port raises."""
    match action:
        case CreateTopic(spec=spec):
            _create(admin, spec)
        case AddPartitions(topic=topic, total=total):
            _add_partitions(admin, topic, total)
        case SetConfig(topic=topic, setting=setting, value=value):
            _set_config(admin, topic, setting, value)


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
