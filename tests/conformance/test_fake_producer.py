"""The producer that tests put in a real one's place keeps the same rules."""

from __future__ import annotations

import inspect

import pytest

from pipeline.kafka.producer import KafkaProducer
from pipeline.model.cluster import Acknowledgements, BulkProducer
from pipeline.model.errors import BufferFull, ClusterError
from tests.conformance.sides import DEADLINE_S, Side
from tests.fake_producer import FakeProducer


@pytest.mark.parametrize("name", ["send", "send_many", "flush", "serve", "hear", "close"])
def test_it_is_called_as_the_real_one(name: str) -> None:
    def shape(kind: type) -> list[tuple[object, object]]:
        return [(p.kind, p.default) for p in inspect.signature(getattr(kind, name)).parameters.values()]

    assert shape(FakeProducer) == shape(KafkaProducer)


def _silent_and_full(producer: BulkProducer, topic: str) -> list[object]:
    """What is seen of one with room for three whose broker has not answered, to its end."""
    seen: list[object] = []
    reports: list[ClusterError | None] = []
    answers = Acknowledgements()
    producer.send(topic, b"k", b"v", delivered=lambda error, offset: reports.append(error))
    producer.send(topic, None, None)
    seen.append(producer.send_many(topic, 0, [(b"k", b"v", [])] * 3, answers))
    with pytest.raises(BufferFull, match=topic):
        producer.send(topic, b"k", b"v", [("n", b"1")], 0, 7, None)
    seen += [producer.flush(0), len(reports), len(answers.offsets)]
    producer.close(0)
    producer.close(0)
    seen += [len(reports), isinstance(reports[0], ClusterError), answers.offsets, list(answers.errors)]
    with pytest.raises(ClusterError, match="closed"):
        producer.send(topic, None, b"too late")
    return seen


def test_what_is_held_and_what_becomes_of_it(side: Side) -> None:
    topic = side.topic()
    assert _silent_and_full(FakeProducer(3, up=False), topic) == _silent_and_full(side.small_buffer(3), topic)


def _answered(producer: BulkProducer, topic: str) -> list[object]:
    offsets: list[tuple[ClusterError | None, int]] = []
    answers = Acknowledgements()
    for number in range(3):
        producer.send(topic, None, b"%d" % number, partition=1, delivered=lambda *report: offsets.append(report))
    taken = producer.send_many(topic, 1, [(b"k", b"v", [])] * 2, answers)
    return [taken, producer.flush(DEADLINE_S), offsets, answers]


def test_answers_come_in_order_with_their_offsets(side: Side) -> None:
    topic = side.topic(partitions=2)
    assert _answered(FakeProducer(), topic) == _answered(side.bulk_producer(), topic)
