"""Commits and offset queries: every partition has its own answer, exactly once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ClusterError, FencedError
from tests.conformance.sides import MemberInTest, Side, wait_until

Answers = list[Mapping[TopicPartition, ClusterError | None]]


def joined(side: Side, topic: str, partitions: int) -> MemberInTest:
    member = side.member(topic)
    wait_until(lambda: len(member.listener.owned) == partitions, "the assignment", member.poll)
    return member


def test_commits_and_their_text_come_back(grouped: Side) -> None:
    topic = grouped.topic(4)
    member = joined(grouped, topic, 4)
    tp = [TopicPartition(topic, p) for p in range(4)]
    assert member.consumer.committed(tp, 10.0) == dict.fromkeys(tp)
    wanted = {tp[0]: Position(5), tp[1]: Position(7, "some text"), tp[2]: Position(0, "é" * 4_095)}
    answers: Answers = []
    member.consumer.commit(wanted, answers.append)
    assert answers == []
    wait_until(lambda: bool(answers), "the answer", member.poll)
    assert answers == [dict.fromkeys(wanted)]
    assert member.consumer.committed(tp, 10.0) == {**wanted, tp[3]: None}
    assert member.consumer.commit_now({tp[0]: Position(2, "back")}, 10.0) == {tp[0]: None}
    assert member.consumer.committed([tp[0]], 10.0) == {tp[0]: Position(2, "back")}
    assert member.consumer.committed([], 10.0) == {}


def test_partitions_that_can_not_be_stored_fail_alone(grouped: Side) -> None:
    topic = grouped.topic(4)
    member = joined(grouped, topic, 4)
    tp = [TopicPartition(topic, p) for p in range(4)]
    unknown, beyond = TopicPartition("no.such.topic", 0), TopicPartition(topic, 9)
    wanted = {
        unknown: Position(1),
        tp[0]: Position(3, "a"),
        tp[1]: Position(3, "x" * 4_096),
        tp[2]: Position(4, "\0"),
        beyond: Position(1),
        tp[3]: Position(6),
    }
    answers: Answers = []
    member.consumer.commit(wanted, answers.append)
    wait_until(lambda: bool(answers), "the answer", member.poll)
    assert answers[0].keys() == wanted.keys()
    assert {partition for partition, error in answers[0].items() if error is None} == {tp[0], tp[3]}
    assert all(type(error) is ClusterError for error in answers[0].values() if error is not None)
    assert "4096 characters" in str(answers[0][tp[1]])
    assert "no.such.topic[0]" in str(answers[0][unknown])
    assert member.consumer.committed(tp, 10.0) == {
        tp[0]: Position(3, "a"),
        tp[1]: None,
        tp[2]: None,
        tp[3]: Position(6),
    }
    again = member.consumer.commit_now({unknown: Position(1), tp[0]: Position(4)}, 10.0)
    assert again[tp[0]] is None
    assert isinstance(again[unknown], ClusterError)


def test_every_commit_is_answered_once_in_order_and_the_last_stands(grouped: Side) -> None:
    topic = grouped.topic()
    member = joined(grouped, topic, 1)
    tp = TopicPartition(topic, 0)
    answered: list[int] = []
    for number in range(20):
        member.consumer.commit({tp: Position(number)}, lambda answer, n=number: answered.append(n))  # type: ignore[misc]
    wait_until(lambda: len(answered) >= 20, "all answers", member.poll)
    member.poll()
    assert answered == list(range(20))
    assert member.consumer.committed([tp], 10.0) == {tp: Position(19)}


def test_closing_answers_what_is_under_way(grouped: Side) -> None:
    topic = grouped.topic()
    member = joined(grouped, topic, 1)
    answers: Answers = []
    member.consumer.commit({TopicPartition(topic, 0): Position(1)}, answers.append)
    member.consumer.close()
    assert len(answers) == 1
    member.consumer.close()
    assert len(answers) == 1
    with pytest.raises(ClusterError, match="closed"):
        member.consumer.poll(1, 0)


def test_who_is_no_member_can_not_commit_for_a_group_that_has_some(grouped: Side) -> None:
    topic = grouped.topic()
    group = "group." + topic
    inside = grouped.member(topic, group)
    wait_until(lambda: bool(inside.listener.owned), "the assignment", inside.poll)
    outside = grouped.member(None, group)
    tp = TopicPartition(topic, 0)
    assert isinstance(outside.consumer.commit_now({tp: Position(1)}, 10.0)[tp], FencedError)
    assert inside.consumer.committed([tp], 10.0) == {tp: None}


def test_begin_end_and_the_offset_of_a_time(side: Side) -> None:
    topic = side.topic(3)
    tp = [TopicPartition(topic, p) for p in range(3)]
    side.fill(tp[0], 10, timestamp_ms=1_600_000_000_000)
    side.fill(tp[1], 4, timestamp_ms=1_600_000_000_100)
    side.admin.delete_records({tp[0]: 2})
    for queries in (side.member().consumer, side.admin):
        assert queries.end_offsets(tp, 10.0) == {tp[0]: 10, tp[1]: 4, tp[2]: 0}
        assert queries.beginning_offsets(tp, 10.0) == {tp[0]: 2, tp[1]: 0, tp[2]: 0}
        assert queries.end_offsets([], 10.0) == {}
    consumer = side.member().consumer
    assert consumer.offsets_at(tp, 1_600_000_000_005, 10.0) == {tp[0]: 5, tp[1]: 0, tp[2]: 0}
    assert consumer.offsets_at(tp, 1_600_000_000_101, 10.0) == {tp[0]: 10, tp[1]: 1, tp[2]: 0}
    with pytest.raises(ClusterError):
        consumer.end_offsets([TopicPartition(topic, 9)], 10.0)


def test_the_end_counts_what_readers_do_not_see(side: Side) -> None:
    tp = TopicPartition(side.topic(), 0)
    side.fill(tp, 2)
    side.aborted_transaction(tp, 3)
    assert side.admin.end_offsets([tp]) == {tp: 6}
