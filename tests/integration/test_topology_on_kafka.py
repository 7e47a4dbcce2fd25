"""Plan, apply and the worker's check on real Kafka; every faulty topology is refused with the setting's name (faults 23, 24)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.inspect.positions import unsettled_in_retired_tiers
from pipeline.kafka.cluster import connect
from pipeline.model.cluster import ClusterAdmin, Position, TopicPartition, TopicSpec
from pipeline.model.policies import HandlerKind, RetryPolicy, Subscription
from pipeline.topology import CreateTopic, Defaults, apply, check, execute, plan_for, retired_tiers
from pipeline.topology import rules as topology_rules
from pipeline.topology.rules import DECOMPRESSED
from tests.integration.waiting import until

PARTITIONS = 3


@pytest.fixture(scope="module")
def admin(kafka: str) -> Iterator[ClusterAdmin]:
    admin = connect(kafka).admin()
    yield admin
    admin.close()


def publish(kafka: str, topic: str, *partitions: int) -> None:
    producer = connect(kafka).producer()
    for partition in partitions:
        producer.send(topic, b"k", b"v", partition=partition)
    assert producer.flush(10.0) == 0
    producer.close(5.0)


def of(admin: ClusterAdmin, subscription: Subscription) -> dict[str, TopicSpec]:
    """The topics that concern one test: to ask for the settings of every test's would take longer with each of them."""
    own = subscription.topic[-10:]
    return admin.topics([name for name in admin.topic_names() if own in name or name.startswith("_pipeline.")])


@pytest.fixture
def subscription(topic_name: str) -> Subscription:
    return Subscription(topic_name, "billing", print, HandlerKind.PLAIN, retry=RetryPolicy(tiers_ms=(10_000, 60_000)))


def test_apply_makes_what_a_worker_accepts_and_a_second_time_does_nothing(
    admin: ClusterAdmin, subscription: Subscription
) -> None:
    taken: list[object] = []
    prefix = f"{subscription.topic[-10:]}."
    left = apply(admin, [subscription], Defaults(PARTITIONS), prefix, taken.append)
    assert left.actions == ()
    assert left.errors == ()
    assert len({action.topic for action in taken}) == 10  # type: ignore[attr-defined]
    topics = of(admin, subscription)
    assert check([subscription], topics, prefix=prefix) == []
    source = topics[prefix + subscription.topic]
    assert source.partitions == PARTITIONS
    lane = topics[f"{source.name}.{prefix}billing.retry.10s"]
    assert lane.partitions == PARTITIONS
    assert lane.configs["message.timestamp.type"] == "LogAppendTime"
    again: list[object] = []
    apply(admin, [subscription], Defaults(PARTITIONS), prefix, again.append)
    assert again == []


def test_the_broker_bounds_decompressed_records(admin: ClusterAdmin, subscription: Subscription) -> None:
    apply(admin, [subscription], Defaults(PARTITIONS))
    topics = of(admin, subscription)
    assert topics[subscription.topic].configs[DECOMPRESSED] == "16777216"
    assert topics[f"{subscription.topic}.billing.dlq"].configs[DECOMPRESSED] == str(16_777_216 + 16_384)


def test_a_setting_the_broker_does_not_know_is_left_out(
    admin: ClusterAdmin, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.topology.applier.OPTIONAL", ("no.such.setting",))
    execute(admin, CreateTopic(TopicSpec(topic_name, 1, -1, {"no.such.setting": "1", "segment.ms": "70000"}), ""))
    assert admin.topics([topic_name])[topic_name].configs["segment.ms"] == "70000"


@pytest.mark.parametrize(
    ("lane", "setting", "value"),
    [
        ("retry.10s", "retention.ms", "5000"),
        ("retry.1m", "retention.ms", str(60_000 + 7 * topology_rules.DAY_MS)),
        ("retry.10s", "cleanup.policy", "compact"),
        ("retry.10s", "retention.bytes", "100000"),
        ("retry.10s", "message.timestamp.type", "CreateTime"),
        ("retry.1m", "max.message.bytes", "1048588"),
        ("replay", "cleanup.policy", "compact,delete"),
        ("dlq", "cleanup.policy", "compact"),
    ],
)
def test_a_worker_is_refused_until_the_setting_is_right(
    admin: ClusterAdmin, subscription: Subscription, lane: str, setting: str, value: str
) -> None:
    apply(admin, [subscription], Defaults(PARTITIONS))
    topic = f"{subscription.topic}.billing.{lane}"
    admin.set_configs(topic, {setting: value})
    until(f"{topic} reports {setting}={value}", lambda: admin.topics([topic])[topic].configs[setting] == value)
    findings = check([subscription], of(admin, subscription))
    assert [(f.level, f.topic, f.setting) for f in findings] == [("error", topic, setting)]
    assert setting in findings[0].sentence
    apply(admin, [subscription], Defaults(PARTITIONS))
    assert check([subscription], of(admin, subscription)) == []


def test_partitions_added_to_the_source_are_refused_until_the_lanes_have_them(
    admin: ClusterAdmin, subscription: Subscription
) -> None:
    apply(admin, [subscription], Defaults(PARTITIONS))
    admin.add_partitions(subscription.topic, PARTITIONS + 2)
    findings = check([subscription], of(admin, subscription))
    assert {f.setting for f in findings} == {"partitions"}
    assert len(findings) == 4
    apply(admin, [subscription], Defaults(PARTITIONS))
    topics = of(admin, subscription)
    assert check([subscription], topics) == []
    assert topics[f"{subscription.topic}.billing.replay"].partitions == PARTITIONS + 2


def test_missing_lanes_are_refused(admin: ClusterAdmin, subscription: Subscription) -> None:
    apply(admin, [subscription], Defaults(PARTITIONS))
    gone = f"{subscription.topic}.billing.dlq"
    admin.delete_topics([gone])
    assert [(f.topic, f.setting) for f in check([subscription], of(admin, subscription))] == [(gone, "topic")]


def remedies(kafka: str, subscription: Subscription, topic: str) -> list[str]:
    """What a plan says of an old tier, with its records counted."""
    cluster = connect(kafka)
    unsettled = unsettled_in_retired_tiers(cluster, [subscription])
    found = plan_for(cluster.admin(), [subscription], unsettled=unsettled)
    assert found.actions == ()
    assert found.errors == ()
    return [finding.remedy for finding in found.findings if finding.topic == topic]


def test_an_old_tier_is_kept_until_its_records_are_committed(
    kafka: str, admin: ClusterAdmin, subscription: Subscription
) -> None:
    group = f"{subscription.topic[-10:]}-group"
    before = replace(subscription, group=group)
    now = replace(before, retry=RetryPolicy(tiers_ms=(10_000,)))
    apply(admin, [before], Defaults(PARTITIONS))
    old = f"{subscription.topic}.{group}.retry.1m"
    assert retired_tiers(now, of(admin, subscription)) == ((old, 60_000),)
    empty = "it is empty: delete it once no older worker runs"
    assert remedies(kafka, now, old) == [empty]
    publish(kafka, old, 0, 1, 1)
    assert remedies(kafka, now, old) == ["keep it while workers drain its 3 records"]
    admin.set_group_positions(group, {TopicPartition(old, 0): Position(1), TopicPartition(old, 1): Position(2)})
    assert remedies(kafka, now, old) == [empty]
