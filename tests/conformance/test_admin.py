"""Topics, groups and their positions, as a tool sees and changes them."""

from __future__ import annotations

import uuid

import pytest

from pipeline.model.cluster import Position, TopicPartition, TopicSpec
from pipeline.model.errors import ClusterError, TopologyError
from tests.conformance.sides import DEADLINE_S, Side, wait_until


def name() -> str:
    return f"admin.{uuid.uuid4().hex[:12]}"


def test_topics_are_made_seen_changed_and_deleted(side: Side) -> None:
    one, two = name(), name()
    side.admin.create_topics([TopicSpec(one, 3, 1, {"retention.ms": "123456"}), TopicSpec(two, 1)])
    found = side.admin.topics([one, two, "no.such.topic"])
    assert found.keys() == {one, two}
    assert (found[one].name, found[one].partitions, found[one].replication_factor) == (one, 3, 1)
    assert found[one].configs["retention.ms"] == "123456"
    assert found[two].configs["cleanup.policy"] == "delete"
    assert int(found[two].configs["max.message.bytes"]) > 0
    assert {one, two} <= side.admin.topics().keys()
    assert not any(topic.startswith("__") for topic in side.admin.topics())
    assert {one, two} <= set(side.admin.topic_names())
    assert not any(topic.startswith("__") for topic in side.admin.topic_names())
    side.admin.set_configs(one, {"cleanup.policy": "compact"})
    changed = side.admin.topics([one])[one]
    assert (changed.configs["cleanup.policy"], changed.configs["retention.ms"]) == ("compact", "123456")
    side.admin.add_partitions(one, 5)
    assert side.admin.topics([one])[one].partitions == 5
    side.admin.delete_topics([one, "no.such.topic"])
    assert side.admin.topics([one, two]).keys() == {two}
    assert side.admin.topics([]) == {}


def test_what_can_not_be_is_refused_in_words(side: Side) -> None:
    topic = side.topic(2)
    with pytest.raises(TopologyError, match=topic):
        side.admin.create_topics([TopicSpec(topic, 2)])
    with pytest.raises(TopologyError):
        side.admin.create_topics([TopicSpec(name(), 0)])
    with pytest.raises(TopologyError, match=topic):
        side.admin.add_partitions(topic, 2)
    with pytest.raises(ClusterError):
        side.admin.set_configs("no.such.topic", {"retention.ms": "1"})
    with pytest.raises(ClusterError):
        side.admin.end_offsets([TopicPartition("no.such.topic", 0)])


def test_records_are_deleted_up_to_an_offset(side: Side) -> None:
    tp = TopicPartition(side.topic(), 0)
    side.fill(tp, 10)
    side.admin.delete_records({tp: 6})
    assert side.admin.beginning_offsets([tp]) == {tp: 6}
    assert side.admin.end_offsets([tp]) == {tp: 10}
    reader = side.cluster.reader()
    reader.assign({tp: 6})
    got: list[int] = []
    wait_until(lambda: len(got) >= 4, "the rest", lambda: got.extend(m.offset() for m in reader.poll(10, 0.05)))
    assert got == [6, 7, 8, 9]
    reader.close()


def test_a_groups_positions_are_read_and_set_while_it_has_no_members(grouped: Side) -> None:
    topic, group = grouped.topic(2), f"g.{uuid.uuid4().hex[:8]}"
    tp = [TopicPartition(topic, p) for p in range(2)]
    assert grouped.admin.describe_group(group).state == "dead"
    assert grouped.admin.group_positions(group) == {}
    grouped.admin.set_group_positions(group, {tp[0]: Position(4, "by hand")})
    assert grouped.admin.group_positions(group) == {tp[0]: Position(4, "by hand")}
    assert group in grouped.admin.groups()
    assert grouped.admin.describe_group(group).state == "empty"
    member = grouped.member(topic, group)
    wait_until(lambda: len(member.listener.owned) == 2, "the assignment", member.poll)
    assert member.consumer.committed(tp, 10.0) == {tp[0]: Position(4, "by hand"), tp[1]: None}
    with pytest.raises(ClusterError, match="has members"):
        grouped.admin.set_group_positions(group, {tp[0]: Position(0)})
    member.consumer.close()
    assert grouped.admin.describe_group(group).state == "empty"
    grouped.admin.set_group_positions(group, {tp[0]: Position(0), tp[1]: Position(1)})
    assert grouped.admin.group_positions(group) == {tp[0]: Position(0), tp[1]: Position(1)}


def test_the_brokers_version_is_a_text(side: Side) -> None:
    assert side.admin.broker_version(DEADLINE_S)
