"""What no topic takes, whatever is done: it must not stop its partition for ever."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from pipeline import Context, Emit, Reject
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop
from pipeline.memory.producer import MemoryProducer
from pipeline.memory.transactions import MemoryTransactions
from pipeline.model.cluster import TopicSpec
from pipeline.model.errors import RecordTooLarge
from pipeline.model.headers import Pointer, decode
from pipeline.worker.worker import Worker
from tests.unit.test_unreadable_batches import DLQ, position, read_all
from tests.unit.test_worker_review import TOPIC, application, play, until

LARGE = bytes(3_000_000)
"""A small compressed batch may hold it."""
DELIVERIES = ["at_least_once", "exactly_once"]


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def published(cluster: MemoryCluster, *values: bytes) -> None:
    cluster.admin().set_configs(TOPIC, {"max.message.bytes": "5000000"})
    producer = cluster.producer("agents")
    for value in values:
        producer.send(TOPIC, b"k", value, partition=0)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("order", ["key", "key_relaxed", "none"])
def test_a_record_that_no_tier_takes_is_a_dead_letter_and_its_successors_go_on(delivery: str, order: str) -> None:
    seen: list[int] = []

    @application(delivery=delivery, order=order, attempts=3)
    async def app(value: bytes, ctx: Context) -> None:
        seen.append(len(value))
        if len(value) != 1 and ctx.attempt == 1:
            raise ValueError("the provider is away")

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        published(cluster, LARGE, b"a", b"bc")
        await until(lambda: position(cluster) == 3, 120)
        (letter,) = read_all(cluster, DLQ)
        headers = decode(letter.headers())
        assert (letter.value(), headers.origin_offset, headers.pointer) == (None, 0, Pointer("too_large", 0))
        assert headers.error.error_class == "RecordTooLarge"
        assert headers.error.message.startswith("t.g.retry.10s does not take a copy of it: ")
        assert "max.message.bytes" in headers.error.message
        await until(lambda: seen.count(2) >= 2, 120)
        assert sorted(set(seen)) == [1, 2, 3_000_000]
        if order == "key":
            assert seen.index(1) > len(seen) - 1 - seen[::-1].index(3_000_000), "after its last try"
        health = worker.running[0].engine.stuck
        assert not health

    play(app, story)


@pytest.mark.parametrize("hold", ["release", "hold"])
def test_its_key_is_held_where_that_was_asked_for(hold: str) -> None:
    seen: list[int] = []

    @application(dead_letter=hold, attempts=3)
    async def app(value: bytes, ctx: Context) -> None:
        seen.append(len(value))
        if len(value) != 1:
            raise ValueError("the provider is away")

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        published(cluster, LARGE, b"a", b"b")
        wanted = 3 if hold == "hold" else 1
        await until(lambda: len(read_all(cluster, DLQ)) == wanted and position(cluster) == 3, 120)
        classes = [decode(letter.headers()).error.error_class for letter in read_all(cluster, DLQ)]
        assert classes == ["RecordTooLarge", "Held", "Held"][:wanted]
        await until(lambda: seen.count(1) == (0 if hold == "hold" else 2), 120)
        assert not worker.running[0].engine.stuck

    play(app, story)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_an_output_that_its_topic_does_not_take_is_the_failure_of_its_record(delivery: str) -> None:
    @application(delivery=delivery, attempts=3)
    async def app(value: bytes, ctx: Context) -> Any:
        return [
            Emit("out", b"k", bytes(1_500_000)),
            Emit("out", bytes(2_000_000) if value == b"bc" else b"k", b"small"),
        ]

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.admin().create_topics([TopicSpec("out", 1, 1, {})])
        published(cluster, b"a", b"bc")
        await until(lambda: position(cluster) == 2, 120)
        letters = read_all(cluster, DLQ)
        assert [(letter.value(), decode(letter.headers()).error.error_class) for letter in letters] == [
            (b"a", "RecordTooLarge"), (b"bc", "RecordTooLarge"),
        ]  # fmt: skip
        assert not worker.running[0].engine.stuck

    play(app, story)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("what", ["output", "hand-off", "dead letter"])
def test_what_the_client_refuses_at_once_is_tried_no_more_than_what_a_broker_refuses(
    monkeypatch: pytest.MonkeyPatch, delivery: str, what: str
) -> None:
    """`message.max.bytes` is the client's own limit: librdkafka raises, and no report of the record ever comes."""
    for cls in (MemoryProducer, MemoryTransactions):
        _limited(monkeypatch, cls)

    @application(delivery=delivery, attempts=3)
    async def app(value: bytes, ctx: Context) -> Any:
        if len(value) < 10:
            return None
        if what == "output":
            return [Emit("out", b"k", bytes(80_000))]
        if what == "dead letter":
            raise Reject("no")
        if ctx.attempt == 1:
            raise ValueError("the provider is away")
        return None

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.admin().create_topics([TopicSpec("out", 1, 1, {})])
        published(cluster, bytes(80_000), b"a")
        await until(lambda: position(cluster) == 2, 20)
        (letter,) = read_all(cluster, DLQ)
        headers = decode(letter.headers())
        assert (letter.value(), headers.origin_offset, headers.pointer) == (None, 0, Pointer("too_large", 0))
        assert (headers.error.error_class == "RecordTooLarge") is (what != "dead letter")
        assert not worker.running[0].engine.stuck

    play(app, story)


def _limited(monkeypatch: pytest.MonkeyPatch, cls: Any) -> None:
    send = cls.send

    def limited(self: Any, topic: str, key: bytes | None, value: bytes | None, *more: Any, **named: Any) -> None:
        if topic != TOPIC and len(value or b"") >= 70_000:
            raise RecordTooLarge(f"a record for {topic} is larger than the client takes")
        send(self, topic, key, value, *more, **named)

    monkeypatch.setattr(cls, "send", limited)
