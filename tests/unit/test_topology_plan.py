"""The plan against a pure model of a cluster: it settles, it refuses, and it names what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.memory import MemoryCluster
from pipeline.model.cluster import ClusterAdmin, TopicSpec
from pipeline.model.errors import ConfigurationError, TopologyError
from pipeline.model.policies import HandlerKind, RetryPolicy, Subscription
from pipeline.topology import (
    Action,
    AddPartitions,
    Beside,
    CreateTopic,
    Defaults,
    Finding,
    SetConfig,
    apply,
    check,
    discover,
    execute,
    plan,
    retired_tiers,
)
from pipeline.topology.rules import DAY_MS, DECOMPRESSED

BROKER_DEFAULTS = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * DAY_MS),
    "retention.bytes": "-1",
    "message.timestamp.type": "CreateTime",
    "max.message.bytes": "1048588",
    "min.insync.replicas": "1",
    "segment.ms": str(7 * DAY_MS),
    "segment.bytes": "1073741824",
}
SOURCE = "agent.run.events"
TIER = f"{SOURCE}.billing.retry.10s"
REPLAY = f"{SOURCE}.billing.replay"
DEAD = f"{SOURCE}.billing.dlq"
CLOCK = "_pipeline.clock"
RESULTS = "_pipeline.replay.results"
RECORDS = {"_pipeline.audit": 1, RESULTS: 6, "_pipeline.tasks": 1, CLOCK: 1}
"""Topics that replays and dead letters need, with their partitions."""
OWN = {"_pipeline.control": 1, **RECORDS}


def subscription(
    topic: str = SOURCE,
    group: str = "billing",
    tiers_ms: tuple[int, ...] = (10_000, 60_000),
    dead_letters: str | None = None,
) -> Subscription:
    retry = RetryPolicy(tiers_ms=tiers_ms)
    return Subscription(topic, group, print, HandlerKind.PLAIN, retry=retry, dead_letter_topic=dead_letters)


def act(existing: Mapping[str, TopicSpec], actions: tuple[Action, ...], **broker: str) -> dict[str, TopicSpec]:
    """What a cluster has after the actions: every value in force is reported."""
    topics = dict(existing)
    for action in actions:
        match action:
            case CreateTopic(spec=spec):
                assert spec.name not in topics
                factor = 3 if spec.replication_factor == -1 else spec.replication_factor
                configs = {**BROKER_DEFAULTS, **broker, **spec.configs}
                topics[spec.name] = replace(spec, replication_factor=factor, configs=configs)
            case AddPartitions(topic=name, total=total):
                assert total > topics[name].partitions
                topics[name] = replace(topics[name], partitions=total)
            case SetConfig(topic=name, setting=setting, value=value):
                topics[name] = replace(topics[name], configs={**topics[name].configs, setting: value})
    return topics


def made(*subscriptions: Subscription, partitions: int = 12) -> dict[str, TopicSpec]:
    return act({}, plan(subscriptions or (subscription(),), {}, Defaults(partitions=partitions)).actions)


def spoil(topics: dict[str, TopicSpec], name: str, **configs: str) -> dict[str, TopicSpec]:
    values = {setting.replace("_", "."): value for setting, value in configs.items()}
    return {**topics, name: replace(topics[name], configs={**topics[name].configs, **values})}


def errors(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.topic, finding.setting) for finding in findings if finding.level == "error"]


def test_everything_is_made_for_an_empty_cluster() -> None:
    topics = made()
    assert set(topics) == {SOURCE, TIER, f"{SOURCE}.billing.retry.1m", REPLAY, DEAD, *OWN}
    assert {spec.partitions for name, spec in topics.items() if name not in OWN} == {12}
    assert {name: topics[name].partitions for name in OWN} == OWN
    kept = {name: int(topics[name].configs["retention.ms"]) for name in RECORDS if name != CLOCK}
    assert kept == {"_pipeline.audit": 365 * DAY_MS, "_pipeline.replay.results": 32 * DAY_MS, "_pipeline.tasks": -1}
    assert topics["_pipeline.control"].configs["cleanup.policy"] == "compact"
    tier = topics[TIER].configs
    assert int(tier["retention.ms"]) > 10_000 + 7 * DAY_MS
    assert tier["message.timestamp.type"] == "LogAppendTime"
    assert int(tier["max.message.bytes"]) == 1_048_588 + 16_384
    assert int(topics[DEAD].configs["retention.ms"]) == 30 * DAY_MS
    assert check([subscription()], topics) == []


def test_the_prefix_stands_before_topics_groups_and_the_control_topic() -> None:
    names = {action.topic for action in plan([subscription()], {}, prefix="eu.").actions}
    assert f"eu.{SOURCE}" in names
    assert f"eu.{SOURCE}.eu.billing.replay" in names
    assert "eu._pipeline.control" in names


@pytest.mark.parametrize(
    ("topic", "setting", "value"),
    [
        (TIER, "retention.ms", "60000"),
        (TIER, "retention.ms", str(7 * DAY_MS)),
        (TIER, "retention.ms", str(10_000 + 7 * DAY_MS)),
        (TIER, "retention.bytes", "1000000"),
        (TIER, "cleanup.policy", "compact"),
        (TIER, "cleanup.policy", "compact,delete"),
        (TIER, "message.timestamp.type", "CreateTime"),
        (TIER, "max.message.bytes", "1048588"),
        (REPLAY, "cleanup.policy", "compact"),
        (REPLAY, "retention.ms", str(DAY_MS)),
        (DEAD, "cleanup.policy", "compact"),
        ("_pipeline.control", "cleanup.policy", "delete"),
    ],
)
def test_a_worker_is_refused_and_told_the_setting(topic: str, setting: str, value: str) -> None:
    topics = spoil(made(), topic, **{setting.replace(".", "_"): value})
    findings = check([subscription()], topics)
    assert errors(findings) == [(topic, setting)]
    assert topic in findings[0].sentence
    assert f"{setting}={value}" in findings[0].sentence
    repaired = plan([subscription()], topics)
    assert [(a.topic, a.setting) for a in repaired.actions if isinstance(a, SetConfig)] == [(topic, setting)]
    assert check([subscription()], act(topics, repaired.actions)) == []


@pytest.mark.parametrize("value", ["-1", str(2**63 - 1), str(365 * DAY_MS)])
def test_longer_retention_is_left_alone_and_results_outlive_the_dead_letters(value: str) -> None:
    """Without its result a letter that was redriven is open again, for an index that is built anew."""
    topics = spoil(made(), DEAD, retention_ms=value)
    kept = str(367 * DAY_MS) if value == str(365 * DAY_MS) else "-1"
    actions = plan([subscription()], topics).actions
    assert [(a.topic, a.setting, a.value) for a in actions if isinstance(a, SetConfig)] == [
        (RESULTS, "retention.ms", kept)
    ]
    assert len(actions) == 1
    topics = act(topics, actions)
    assert plan([subscription()], topics).actions == ()
    assert plan([subscription(group="another")], topics).actions, "its lanes"
    other = act(
        topics, plan([subscription(group="another")], topics, Defaults(dead_letter_retention_ms=DAY_MS)).actions
    )
    assert other[RESULTS].configs["retention.ms"] == kept, "another application's shorter retention takes nothing away"


def test_results_are_made_to_outlive_the_dead_letters_that_are_asked_for() -> None:
    actions = plan([subscription()], {}, Defaults(dead_letter_retention_ms=90 * DAY_MS)).actions
    kept = {
        a.topic: a.spec.configs["retention.ms"]
        for a in actions
        if isinstance(a, CreateTopic) and a.topic in (DEAD, RESULTS)
    }
    assert kept == {DEAD: str(90 * DAY_MS), RESULTS: str(92 * DAY_MS)}
    short = plan([subscription()], {}, Defaults(dead_letter_retention_ms=DAY_MS)).actions
    assert [a.spec.configs["retention.ms"] for a in short if isinstance(a, CreateTopic) and a.topic == RESULTS] == [
        str(30 * DAY_MS)
    ]


def test_a_shorter_dead_letter_retention_is_a_warning_not_a_refusal() -> None:
    findings = check([subscription()], spoil(made(), DEAD, retention_ms=str(3 * DAY_MS)))
    assert [(f.level, f.topic, f.setting) for f in findings] == [("warning", DEAD, "retention.ms")]


@pytest.mark.parametrize("missing", [TIER, REPLAY, DEAD, SOURCE, "_pipeline.control"])
def test_a_missing_topic_is_refused(missing: str) -> None:
    topics = made()
    del topics[missing]
    assert errors(check([subscription()], topics)) == [(missing, "topic")]


def test_a_worker_needs_no_topic_of_replays_and_a_plan_makes_them() -> None:
    topics = made()
    for name in RECORDS:
        del topics[name]
    assert check([subscription()], topics) == []
    assert {action.topic for action in plan([subscription()], topics).actions} == set(RECORDS)


@pytest.mark.parametrize("topic", ["_pipeline.audit", "_pipeline.tasks"])
def test_entries_have_one_order(topic: str) -> None:
    topics = made()
    topics[topic] = replace(topics[topic], partitions=2)
    assert [(f.topic, f.setting) for f in plan([subscription()], topics).errors] == [(topic, "partitions")]


@pytest.mark.parametrize("topic", sorted({*RECORDS} - {CLOCK}))
def test_records_of_actions_that_would_be_forgotten_are_put_right(topic: str) -> None:
    topics = spoil(made(), topic, cleanup_policy="compact", retention_ms="60000")
    settings = {(a.topic, a.setting) for a in plan([subscription()], topics).actions if isinstance(a, SetConfig)}
    assert settings == {(topic, "cleanup.policy"), (topic, "retention.ms")}


def test_a_clock_that_tells_the_producers_time_is_put_right() -> None:
    topics = made()
    topics[CLOCK] = replace(
        topics[CLOCK],
        configs={**topics[CLOCK].configs, "message.timestamp.type": "CreateTime", "retention.ms": "60000"},
    )
    settings = [(a.topic, a.setting) for a in plan([subscription()], topics).actions if isinstance(a, SetConfig)]
    assert settings == [(CLOCK, "message.timestamp.type")]


def test_partitions_added_to_the_source_are_reported_and_the_lanes_follow() -> None:
    topics = made()
    topics[SOURCE] = replace(topics[SOURCE], partitions=18)
    lanes = {TIER, f"{SOURCE}.billing.retry.1m", REPLAY, DEAD}
    assert set(errors(check([subscription()], topics))) == {(lane, "partitions") for lane in lanes}
    actions = plan([subscription()], topics).actions
    assert {a.topic: a.total for a in actions if isinstance(a, AddPartitions)} == dict.fromkeys(lanes, 18)
    assert check([subscription()], act(topics, actions)) == []


def test_a_lane_with_more_partitions_than_its_source_is_refused_and_never_touched() -> None:
    topics = made()
    topics[TIER] = replace(topics[TIER], partitions=24)
    proposal = plan([subscription()], topics)
    assert proposal.actions == ()
    assert [(f.topic, f.setting) for f in proposal.errors] == [(TIER, "partitions")]


def test_the_source_is_never_changed() -> None:
    topics = spoil(made(), SOURCE, cleanup_policy="compact", retention_ms="1000", retention_bytes="1")
    actions = plan([subscription()], topics, Defaults(partitions=100)).actions
    assert SOURCE not in {action.topic for action in actions}


def test_lanes_follow_a_larger_record_size_of_the_source() -> None:
    topics = spoil(made(), SOURCE, max_message_bytes="5000000")
    values = {a.topic: a.value for a in plan([subscription()], topics).actions if isinstance(a, SetConfig)}
    assert values[TIER] == values[DEAD] == str(5_000_000 + 16_384)


def test_lanes_are_as_durable_as_their_source() -> None:
    source = TopicSpec(SOURCE, 4, 3, {**BROKER_DEFAULTS, "min.insync.replicas": "2"})
    topics = act({SOURCE: source}, plan([subscription()], {SOURCE: source}).actions)
    assert topics[TIER].replication_factor == 3
    second = plan([subscription()], topics)
    assert {(a.topic, a.setting, a.value) for a in second.actions if isinstance(a, SetConfig)} >= {
        (TIER, "min.insync.replicas", "2")
    }
    topics[TIER] = replace(topics[TIER], replication_factor=1)
    assert (TIER, "replication.factor") in {(f.topic, f.setting) for f in plan([subscription()], topics).findings}


def test_a_lane_is_never_asked_for_more_in_sync_replicas_than_it_has() -> None:
    source = TopicSpec(SOURCE, 4, 3, {**BROKER_DEFAULTS, "min.insync.replicas": "2"})
    topics = act({SOURCE: source}, plan([subscription()], {SOURCE: source}).actions)
    topics = {n: replace(s, replication_factor=1) if n != SOURCE else s for n, s in topics.items()}
    settings = {a.setting for a in plan([subscription()], topics).actions if isinstance(a, SetConfig)}
    assert "min.insync.replicas" not in settings


def test_a_missing_source_is_a_finding_when_it_may_not_be_made() -> None:
    proposal = plan([subscription()], {}, Defaults(create_sources=False))
    assert [(f.topic, f.setting) for f in proposal.errors] == [(SOURCE, "topic")]
    assert {a.topic for a in proposal.actions} == set(OWN)


def test_a_source_we_make_is_bound_in_decompressed_size_and_its_lanes_take_a_little_more() -> None:
    topics = made()
    assert topics[SOURCE].configs[DECOMPRESSED] == "16777216"
    assert topics[TIER].configs[DECOMPRESSED] == topics[DEAD].configs[DECOMPRESSED] == str(16_777_216 + 16_384)
    topics["orders"] = TopicSpec("orders", 3, 3, BROKER_DEFAULTS)
    findings = plan([subscription("orders")], topics).findings
    assert [(f.level, f.topic, f.setting) for f in findings] == [("warning", "orders", DECOMPRESSED)]


class OldBroker:
    """Refuses what a broker refuses that does not know the setting."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.made: list[TopicSpec] = []

    def create_topics(self, specs: list[TopicSpec]) -> None:
        if DECOMPRESSED in specs[0].configs:
            raise TopologyError(self.text)
        self.made += specs


def test_a_broker_that_does_not_know_the_bound_gets_the_topic_without_it() -> None:
    broker = OldBroker(f"creating topic x was refused: Unknown topic config name: {DECOMPRESSED}")
    execute(
        cast(ClusterAdmin, broker),
        CreateTopic(TopicSpec("x", 1, -1, {DECOMPRESSED: "1", "retention.ms": "5"}), ""),
    )
    assert [spec.configs for spec in broker.made] == [{"retention.ms": "5"}]


def test_another_refusal_is_not_swallowed() -> None:
    broker = OldBroker("creating topic x was refused: too many replicas")
    with pytest.raises(TopologyError, match="replicas"):
        execute(cast(ClusterAdmin, broker), CreateTopic(TopicSpec("x", 1, 9, {DECOMPRESSED: "1"}), ""))


def test_a_topic_that_somebody_made_meanwhile_is_taken_as_it_is_and_looked_at_again() -> None:
    """Two deployers at once; or one, whose first request was carried out and answered too late."""
    admin = MemoryCluster("apply-twice").admin()
    original = admin.create_topics

    def made_already(specs: Any, timeout_s: float = 30.0) -> None:
        original([replace(spec, partitions=2) if spec.name == TIER else spec for spec in specs])
        original(specs)

    admin.create_topics = made_already  # type: ignore[method-assign]
    last = apply(admin, [subscription()], Defaults(partitions=3))
    assert last.actions == ()
    assert [(f.topic, f.setting) for f in last.errors] == [], "what was made with too few partitions was mended"
    assert {spec.partitions for name, spec in admin.topics([SOURCE, TIER, DEAD]).items()} == {3}


def test_old_tiers_are_kept_found_and_counted() -> None:
    topics = made(subscription(tiers_ms=(10_000, 30_000, 60_000)))
    now = subscription(tiers_ms=(10_000, 60_000))
    old = f"{SOURCE}.billing.retry.30s"
    assert retired_tiers(now, topics) == ((old, 30_000),)
    proposal = plan([now], topics, unsettled={old: 41})
    assert proposal.actions == ()
    assert proposal.errors == ()
    assert ["41 records" in f.remedy for f in proposal.findings if f.topic == old] == [True]
    empty = plan([now], topics, unsettled={old: 0})
    assert ["delete it" in f.remedy for f in empty.findings if f.topic == old] == [True]


def test_an_old_tier_keeps_to_the_rules_while_it_drains() -> None:
    old = f"{SOURCE}.billing.retry.30s"
    topics = spoil(made(subscription(tiers_ms=(10_000, 30_000))), old, cleanup_policy="compact")
    assert errors(check([subscription(tiers_ms=(10_000,))], topics)) == [(old, "cleanup.policy")]


@pytest.mark.parametrize(
    "name",
    ["retry.", "retry.10", "retry.0s", "retry.10s.x", "retry.60s.retry.10s", "retry.1000ms", "retry.x"],
)
def test_names_that_only_look_like_a_tier_are_not_tiers(name: str) -> None:
    assert retired_tiers(subscription(tiers_ms=()), [f"{SOURCE}.billing.{name}"]) == ()


def test_lanes_of_a_group_are_found_by_name() -> None:
    topics = made(subscription(group="über/mail_er"))
    (found,) = discover("über/mail_er", topics)
    assert found.topics.source == SOURCE
    assert found.topics.tier_delays_ms == (10_000, 60_000)
    assert discover("billing", topics) == ()


def test_a_group_that_ends_like_another_is_not_mistaken_for_it() -> None:
    topics = made(subscription(group="a.b"))
    assert discover("b", topics) == ()


@pytest.mark.parametrize(
    ("subscriptions", "words"),
    [
        ((subscription(), subscription(topic="other")), "two subscriptions"),
        ((subscription("a", "b.c"), subscription("a.b", "c")), "share the lane"),
        ((subscription(), subscription(TIER, "other")), "is a lane of group"),
        ((subscription(), subscription("x", "other", dead_letters=TIER)), "is a lane of group"),
        ((subscription("x", "other", dead_letters="x"),), "dead_letter_topic"),
        ((subscription("t" * 240),), "249"),
    ],
)
def test_declarations_that_can_not_work_are_refused(subscriptions: tuple[Subscription, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        plan(subscriptions, {})


def test_a_dead_letter_topic_may_be_shared() -> None:
    pair = (subscription(dead_letters="dead"), subscription("small", "mail", dead_letters="dead"))
    existing = {"small": TopicSpec("small", 3, 3, BROKER_DEFAULTS)}
    topics = act(existing, plan(pair, existing).actions)
    assert topics["dead"].partitions == 12
    assert plan(pair, topics).actions == ()
    assert errors(check(pair, topics)) == []


_values = {
    "cleanup.policy": st.sampled_from(["delete", "compact", "compact,delete"]),
    "retention.ms": st.sampled_from(["-1", "1", str(7 * DAY_MS), str(400 * DAY_MS)]),
    "retention.bytes": st.sampled_from(["-1", "1000"]),
    "message.timestamp.type": st.sampled_from(["CreateTime", "LogAppendTime"]),
    "max.message.bytes": st.sampled_from(["1000", "1048588", "9000000"]),
    "min.insync.replicas": st.sampled_from(["1", "2", "3"]),
    "max.decompressed.message.bytes": st.sampled_from(["1000000", "90000000"]),
}
_configs = st.fixed_dictionaries({}, optional=_values)
_names = (
    SOURCE,
    "orders",
    TIER,
    REPLAY,
    DEAD,
    f"{SOURCE}.billing.retry.30s",
    "orders.mail.retry.1s",
    "shared",
    *OWN,
)


@st.composite
def _clusters(draw: st.DrawFn) -> dict[str, TopicSpec]:
    topics = {}
    for name in draw(st.sets(st.sampled_from(_names))):
        configs = {**BROKER_DEFAULTS, **draw(_configs)}
        topics[name] = TopicSpec(name, draw(st.integers(1, 6)), draw(st.integers(1, 3)), configs)
    return topics


@given(_clusters(), st.booleans(), st.sampled_from(["1048588", "4000000"]))
def test_applying_a_plan_leaves_nothing_to_do(existing: dict[str, TopicSpec], create: bool, cluster_bytes: str) -> None:
    pair = (subscription(dead_letters="shared"), subscription("orders", "mail", (1_000,), "shared"))
    defaults = Defaults(partitions=5, create_sources=create)
    topics, rounds = existing, 0
    while actions := plan(pair, topics, defaults).actions:
        topics = act(topics, actions, **{"max.message.bytes": cluster_bytes})
        rounds += 1
        assert rounds <= 3
    for name, before in existing.items():
        assert topics[name].partitions >= before.partitions
    assert {name: topics[name] for name in (SOURCE, "orders") if name in existing} == {
        name: existing[name] for name in (SOURCE, "orders") if name in existing
    }
    refused = plan(pair, topics, defaults).errors
    stopping = {(f.topic, f.setting) for f in refused if f.topic not in RECORDS}
    assert set(errors(check(pair, topics))) == stopping


def test_topics_beside_the_subscriptions_are_made_once_and_left_alone() -> None:
    beside = Beside(("eu.agent.run.events", "eu.invoices"), "eu._pipeline.schemas")
    first = plan((), {}, Defaults(partitions=6), prefix="eu.", beside=beside)
    assert first.findings == ()
    topics = act({}, first.actions)
    assert {name: spec.partitions for name, spec in topics.items()} == {
        "eu.agent.run.events": 6,
        "eu.invoices": 6,
        "eu._pipeline.schemas": 1,
        **{f"eu.{name}": partitions for name, partitions in OWN.items()},
    }
    assert topics["eu._pipeline.schemas"].configs["cleanup.policy"] == "compact"
    assert topics["eu.invoices"].configs["cleanup.policy"] == "delete"
    for partitions in (6, 12):
        again = plan((), topics, Defaults(partitions=partitions), prefix="eu.", beside=beside)
        assert (again.actions, again.findings) == ((), ())


def test_a_topic_beside_that_is_a_source_too_is_made_once() -> None:
    both = plan([subscription()], {}, beside=Beside((SOURCE,))).actions
    assert [action.topic for action in both].count(SOURCE) == 1


def test_a_schema_topic_with_several_partitions_or_a_retention_is_told() -> None:
    name = "_pipeline.schemas"
    topics = act({}, (CreateTopic(TopicSpec(name, 3, 1), ""),))
    found = plan((), topics, beside=Beside((), name))
    assert [(finding.topic, finding.setting) for finding in found.errors] == [(name, "partitions")]
    assert SetConfig in {type(action) for action in found.actions if action.topic == name}


@pytest.mark.parametrize(("name", "create"), [("bad name", True), ("invoices", False)])
def test_a_topic_beside_that_can_not_be_made_is_told(name: str, create: bool) -> None:
    if create:
        with pytest.raises(ConfigurationError, match="bad name"):
            plan((), {}, beside=Beside((name,)))
    else:
        found = plan((), {}, Defaults(create_sources=False), beside=Beside((name,)))
        assert [finding.topic for finding in found.errors] == [name]


@pytest.mark.parametrize(
    ("delay_ms", "days"), [(10_000, 8), (600_000, 8), (DAY_MS - 1, 8), (DAY_MS, 9), (7 * DAY_MS, 15)]
)
def test_a_tier_keeps_whole_days_longer_than_its_delay_and_a_week(delay_ms: int, days: int) -> None:
    topics = made(subscription(tiers_ms=(delay_ms,)))
    (tier,) = [spec for name, spec in topics.items() if ".retry." in name]
    assert int(tier.configs["retention.ms"]) == days * DAY_MS > delay_ms + 7 * DAY_MS


def test_partitions_that_the_asked_broker_has_not_heard_of_yet_are_no_error() -> None:
    """Two nodes: the plan came from the one that is behind, and the controller says that they are there already."""

    class Behind:
        seen = 0

        def add_partitions(self, topic: str, total: int) -> None:
            raise TopologyError(f"{topic} already has {total} partitions")

        def topics(self, names: Collection[str]) -> dict[str, TopicSpec]:
            self.seen += 1
            return {name: TopicSpec(name, 6 if self.seen < 3 else 8) for name in names}

    behind: Any = Behind()
    execute(behind, AddPartitions("t", 8, 6, "the source has 8"))
    assert behind.seen == 3


def test_a_topic_that_the_asked_broker_has_not_heard_of_yet_is_waited_for() -> None:
    """It was made a moment ago: a broker that is behind has no such topic, which ended the command as a defect."""

    class Behind:
        seen = 0

        def set_configs(self, topic: str, configs: dict[str, str]) -> None: ...

        def topics(self, names: Collection[str]) -> dict[str, TopicSpec]:
            self.seen += 1
            return {} if self.seen < 3 else {name: TopicSpec(name, 6, configs={"a": "1"}) for name in names}

    behind: Any = Behind()
    execute(behind, SetConfig("t", "a", "1", "0", "why"))
    assert behind.seen == 3
