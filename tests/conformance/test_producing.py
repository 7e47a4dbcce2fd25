"""Bounds and failures of producing: every record is reported once, a full buffer says so at once."""

from __future__ import annotations

import time

import pytest

from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import Acknowledgements, OutRecord, TopicPartition
from pipeline.model.errors import BufferFull, ClusterError, RecordTooLarge
from tests.conformance.sides import DEADLINE_S, Side
from tests.patience import PATIENCE


def test_a_full_buffer_says_so_at_once_and_takes_records_again_later(side: Side) -> None:
    topic = side.topic()
    producer = side.small_buffer(10)
    reports: list[ClusterError | None] = []
    for _ in range(10):
        producer.send(topic, b"k", b"v", delivered=lambda error, offset: reports.append(error))
    began = time.monotonic()
    with pytest.raises(BufferFull, match=topic):
        producer.send(topic, b"k", b"v", delivered=lambda error, offset: reports.append(error))
    assert time.monotonic() - began < 0.2 * PATIENCE
    assert producer.flush(DEADLINE_S) == 0
    producer.send(topic, b"k", b"v", delivered=lambda error, offset: reports.append(error))
    assert producer.flush(DEADLINE_S) == 0
    assert reports == [None] * 11
    assert side.admin.end_offsets([TopicPartition(topic, 0)]) == {TopicPartition(topic, 0): 11}


def test_a_record_that_is_too_large_for_the_topic_is_reported(side: Side) -> None:
    topic = side.topic(max_message_bytes="1000")
    producer = side.producer()
    reports: list[tuple[ClusterError | None, int]] = []
    producer.send(topic, None, b"x" * 2_000, delivered=lambda *report: reports.append(report))
    assert producer.flush(DEADLINE_S) == 0
    assert len(reports) == 1
    assert isinstance(reports[0][0], RecordTooLarge)
    assert topic in str(reports[0][0])
    producer.send(topic, None, b"small", delivered=lambda *report: reports.append(report))
    assert producer.flush(DEADLINE_S) == 0
    assert reports[1] == (None, 0)


def test_flush_says_how_many_are_not_answered_in_time(side: Side) -> None:
    topic = side.topic()
    producer = side.small_buffer(10)
    producer.send(topic, None, b"waits")
    assert producer.flush(0) == 1
    assert producer.flush(DEADLINE_S) == 0


def test_closing_sends_what_is_queued_and_then_refuses(side: Side) -> None:
    topic = side.topic()
    producer = side.small_buffer(10)
    reports: list[tuple[ClusterError | None, int]] = []
    producer.send(topic, None, b"last", delivered=lambda *report: reports.append(report))
    producer.close(DEADLINE_S)
    producer.close(DEADLINE_S)
    assert reports == [(None, 0)]
    with pytest.raises(ClusterError, match="closed"):
        producer.send(topic, None, b"too late")


def test_closing_without_time_reports_what_was_not_sent(side: Side) -> None:
    topic = side.topic()
    producer = side.small_buffer(10)
    reports: list[ClusterError | None] = []
    producer.send(topic, None, b"never", delivered=lambda error, offset: reports.append(error))
    producer.close(0)
    assert len(reports) == 1
    assert isinstance(reports[0], ClusterError)


def numbered(first: int, count: int) -> list[OutRecord]:
    return [(b"k", b"%d" % number, [("n", b"%d" % number)]) for number in range(first, first + count)]


def test_many_records_land_in_order_and_their_offsets_come_in_order(side: Side) -> None:
    topic = side.topic(partitions=2)
    producer, answers = side.bulk_producer(), Acknowledgements()
    assert producer.send_many(topic, 1, numbered(0, 300), answers) == 300
    assert producer.send_many(topic, 1, numbered(300, 200), answers) == 200
    assert producer.flush(DEADLINE_S) == 0
    assert answers == Acknowledgements(list(range(500)))
    place = TopicPartition(topic, 1)
    read = list(read_to_end(side.cluster, {place: 0}, {place: 500}))
    assert [message.value() for message in read] == [b"%d" % number for number in range(500)]
    assert read[7].headers() == [("n", b"7")]


def test_of_many_records_a_full_buffer_takes_those_that_fit(side: Side) -> None:
    topic = side.topic()
    producer, answers = side.small_buffer(10), Acknowledgements()
    assert producer.send_many(topic, 0, numbered(0, 25), answers) == 10
    assert producer.send_many(topic, 0, numbered(10, 15), answers) == 0
    assert producer.flush(DEADLINE_S) == 0
    assert producer.send_many(topic, 0, numbered(10, 10), answers) == 10
    assert producer.flush(DEADLINE_S) == 0
    assert answers.offsets == list(range(20))


def test_of_many_records_one_that_is_refused_is_told_by_its_place(side: Side) -> None:
    topic = side.topic(max_message_bytes="1000")
    producer, answers = side.bulk_producer(), Acknowledgements()
    for record in (b"a", b"x" * 2_000, b"b"):
        assert producer.send_many(topic, 0, [(None, record, [])], answers) == 1
        assert producer.flush(DEADLINE_S) == 0
    assert answers.offsets == [0, -1, 1]
    assert list(answers.errors) == [1]
    assert topic in str(answers.errors[1])
