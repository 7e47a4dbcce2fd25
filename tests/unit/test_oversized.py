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
from pipeline.model.cluster import Headers, TopicSpec
from pipeline.model.errors import RecordTooLarge
from pipeline.model.headers import EVENT_ID, HELD, TRACEPARENT, Pointer, decode, producer_headers
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


WIDE = [("trace", bytes(2_000_000)), (EVENT_ID, b"e1"), ("ce_type", b"x")]


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(("key", "headers"), [(b"k", WIDE), (bytes(2_000_000), [(EVENT_ID, b"e1"), ("ce_type", b"x")])])
@pytest.mark.parametrize("value", [b"bad", None])
@pytest.mark.parametrize("attempts", [1, 3])
def test_a_record_whose_headers_or_key_are_too_large_leaves_a_pointer_with_what_is_small_of_them(
    delivery: str, key: bytes, headers: Headers, value: bytes | None, attempts: int
) -> None:
    """A pointer had all of them, so it was as large, and was written again for ever. In a transaction nobody heard of the hand-off."""

    @application(delivery=delivery, attempts=attempts)
    async def app(value: bytes | None, ctx: Context) -> None:
        if value != b"good" and ctx.attempt == 1:
            raise ValueError("the provider is away")

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.admin().set_configs(TOPIC, {"max.message.bytes": "5000000"})
        producer = cluster.producer("agents")
        producer.send(TOPIC, key, value, headers, partition=0)
        producer.send(TOPIC, b"other", b"good", partition=0)
        await until(lambda: position(cluster) == 2, 20)
        (letter,) = read_all(cluster, DLQ)
        assert (letter.key(), letter.value()) == (key if key == b"k" else None, None)
        assert producer_headers(letter.headers()) == [(EVENT_ID, b"e1"), ("ce_type", b"x")]
        found = decode(letter.headers())
        assert (found.origin_topic, found.origin_partition, found.origin_offset) == (TOPIC, 0, 0)
        assert found.pointer == Pointer("too_large", 0)
        engine = worker.running[0].engine
        assert not engine.stuck
        if engine.transactions is not None:
            assert engine.transactions.counts.aborted == (1 if attempts == 1 else 2), "one for each write"

    play(app, story)


TRACE = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"
LONG = [("note", bytes(8_150)), (TRACEPARENT, TRACE), (EVENT_ID, b"e1")]


@pytest.mark.parametrize(
    ("delivery", "options"), [("at_least_once", {}), ("at_least_once", {"dead_letter": "hold"}), ("exactly_once", {})]
)
def test_a_pointer_keeps_key_and_headers_where_only_the_value_is_too_large(
    delivery: str, options: dict[str, Any]
) -> None:
    """Without its key the letter of a held record was found by no release of that key."""
    key = b"k" * 9_000

    @application(delivery=delivery, attempts=1, **options)
    async def app(value: bytes, ctx: Context) -> None:
        raise ValueError("the provider is away")

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.admin().set_configs(TOPIC, {"max.message.bytes": "5000000"})
        cluster.producer("agents").send(TOPIC, key, LARGE, LONG, partition=0)
        await until(lambda: len(read_all(cluster, DLQ)) == 1, 20)
        (letter,) = read_all(cluster, DLQ)
        assert (letter.key(), letter.value(), producer_headers(letter.headers())) == (key, None, LONG)
        assert decode(letter.headers()).pointer == Pointer("too_large", 0)

    play(app, story)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("dlq_bytes", [20_000, 1_000_000])
def test_of_headers_that_are_too_large_event_id_and_trace_are_kept_first(delivery: str, dlq_bytes: int) -> None:
    """A key of nearly 8 KiB, or a header before them, took their place. Small for most topics is too large for some."""
    key, headers = b"k" * 8_150, [*LONG, ("wide", bytes(dlq_bytes))]

    @application(delivery=delivery, attempts=1)
    async def app(value: bytes, ctx: Context) -> None:
        raise ValueError("the provider is away")

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.admin().set_configs(TOPIC, {"max.message.bytes": "5000000"})
        cluster.admin().set_configs(DLQ, {"max.message.bytes": str(dlq_bytes)})
        cluster.producer("agents").send(TOPIC, key, b"bad", headers, partition=0)
        await until(lambda: len(read_all(cluster, DLQ)) == 1, 20)
        (letter,) = read_all(cluster, DLQ)
        assert (letter.key(), producer_headers(letter.headers())) == (key, LONG[1:])

    play(app, story)


def test_the_mark_of_a_held_key_goes_without_large_headers() -> None:
    """Without the value alone it did not fit, and its key was in trouble for ever."""

    @application(dead_letter="hold", attempts=1)
    async def app(value: bytes, ctx: Context) -> None:
        if value == b"bad":
            raise ValueError("the provider is away")

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.admin().set_configs(TOPIC, {"max.message.bytes": "5000000"})
        producer = cluster.producer("agents")
        producer.send(TOPIC, b"k", b"bad", WIDE, partition=0)
        producer.send(TOPIC, b"k", b"good", partition=0)
        await until(lambda: position(cluster) == 2, 20)
        (mark,) = read_all(cluster, f"{TOPIC}.g.replay")
        assert (mark.key(), mark.value(), decode(mark.headers()).hold) == (b"k", None, HELD)
        classes = [decode(letter.headers()).error.error_class for letter in read_all(cluster, DLQ)]
        assert classes == ["ValueError", "Held"]
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
