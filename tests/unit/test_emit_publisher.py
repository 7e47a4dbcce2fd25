"""The publisher against a broker that is up, silent, or away: what the agent pays, what arrives, what is said at the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry
from pydantic import ValidationError

from pipeline import Pipeline, Settings
from pipeline.emit.feed import Feeder
from pipeline.emit.metrics import PublisherCollector
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.publisher import EVENTS_TOPIC, Publisher, PublishOptions
from pipeline.emit.schema_wait import FIRST_LOOK_UP_S, as_json, from_json
from pipeline.emit.stats import Leftover
from pipeline.memory import connect
from pipeline.model.cluster import TopicPartition
from pipeline.model.errors import (
    BufferFull,
    ClusterError,
    EncodeError,
    PublishError,
    SchemaUnavailable,
    TopologyError,
)
from pipeline.model.events import EVENT_TYPES, Approval, Message, RunEvent
from tests.fake_producer import FakeProducer, Sent
from tests.patience import PATIENCE


class Names:
    """Encodes an event as its event_id."""

    def encode(self, value: RunEvent, *, topic: str) -> bytes:
        if value.event_id == "bad":
            raise EncodeError("Message.content does not fit.")
        return value.event_id.encode()


def message(number: int, run: str = "r") -> Message:
    fields = {"event_id": f"{run}-{number}", "run_id": run, "sequence": number, "occurred_at": 1_700_000_000_000}
    return Message(**fields, agent="a", tenant="t", role="USER", content="hello")  # type: ignore[arg-type]


def until(condition: Callable[[], bool], what: str, deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        pause.wait(0.005)


Make = Callable[..., Publisher]


@pytest.fixture
def producer() -> FakeProducer:
    return FakeProducer()


@pytest.fixture
def make(producer: FakeProducer) -> Iterator[Make]:
    made: list[Publisher] = []

    def build(options: PublishOptions | None = None, **policy: object) -> Publisher:
        made.append(Publisher(producer, Names(), BufferPolicy(**policy), options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for publisher in made:
        publisher.close(0.5)


def ids(producer: FakeProducer) -> list[str]:
    return [(value or b"").decode() for _, _, value, *_ in producer.log]


def test_published_events_arrive_with_key_topic_and_event_id(make: Make, producer: FakeProducer) -> None:
    publisher = make()
    publisher.publish(message(1), traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    assert publisher.flush(5).complete
    ((topic, key, value, headers, *_),) = producer.log
    assert (topic, key, value) == (EVENTS_TOPIC, b"r", b"r-1")
    assert headers == [("pl.event_id", b"r-1"), ("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]


def test_cloud_events_headers_by_option(make: Make, producer: FakeProducer) -> None:
    publisher = make(PublishOptions(ce_source="/support"))
    publisher.publish(message(1))
    publisher.flush(5)
    headers = dict(producer.log[0].headers)
    assert headers["ce_type"] == b"agent.run.Message"
    assert headers["ce_time"] == b"2023-11-14T22:13:20.000Z"
    assert (headers["ce_specversion"], headers["ce_id"], headers["ce_source"]) == (b"1.0", b"r-1", b"/support")


def test_a_time_that_no_calendar_has_is_left_out_of_the_cloud_events_headers(
    make: Make, producer: FakeProducer
) -> None:
    """Microseconds, for example: the event itself has them as they are."""
    publisher = make(PublishOptions(ce_source="/support"))
    publisher.publish(message(1).model_copy(update={"occurred_at": 1_790_000_000_000_000}))
    publisher.flush(5)
    headers = dict(producer.log[0].headers)
    assert "ce_time" not in headers
    assert headers["ce_id"] == b"r-1"


def test_an_event_that_does_not_fit_is_refused_and_not_sent(make: Make, producer: FakeProducer) -> None:
    publisher = make()
    bad = message(1).model_copy(update={"event_id": "bad"})
    with pytest.raises(EncodeError):
        publisher.publish(bad)
    with pytest.raises(EncodeError):
        publisher.publish_many([message(1), bad, message(2)])
    publisher.flush(5)
    assert ids(producer) == ["r-1"]
    assert publisher.stats().published == 1


def test_many_threads_keep_their_own_order(make: Make, producer: FakeProducer) -> None:
    publisher = make()
    threads = [
        threading.Thread(target=lambda run=f"r{i}": [publisher.publish(message(n, run)) for n in range(500)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.flush(10).complete
    for i in range(4):
        own = [name for name in ids(producer) if name.startswith(f"r{i}-")]
        assert own == [f"r{i}-{n}" for n in range(500)]


class Watched(FakeProducer):
    """Remembers which thread handed each record over."""

    def __init__(self, up: bool) -> None:
        super().__init__(up=up)
        self.threads: list[str] = []

    def take(self, record: Sent) -> None:
        self.threads.append(threading.current_thread().name)
        super().take(record)


def test_a_quiet_publisher_hands_over_in_the_agents_thread_and_a_busy_one_in_its_own() -> None:
    """Waking the thread first would cost each event a change of threads: half of what a quiet agent waits for."""
    producer = Watched(up=False)
    publisher, here = Publisher(producer, Names(), BufferPolicy()), threading.current_thread().name
    until(lambda: publisher._asleep and publisher._sleeping, "the thread sleeps")
    publisher.publish(message(0))
    assert producer.threads == [here]
    for number in range(1, 200):
        publisher.publish(message(number))
    until(lambda: len(producer.held) == 200, "all are handed over")
    assert set(producer.threads) == {here, "pipeline-publisher"}
    producer.come_back()
    assert publisher.close().complete
    assert ids(producer) == [f"r-{n}" for n in range(200)]


def test_a_flush_does_not_wait_for_the_next_tick(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.emit.publisher._TRICKLE_S", 30.0)
    publisher, began = make(), time.monotonic()
    for number in range(5):
        publisher.publish(message(number))
        assert publisher.flush(20).complete
    assert time.monotonic() - began < 10


def test_block_waits_as_long_as_its_policy_says_and_no_longer(make: Make, producer: FakeProducer) -> None:
    publisher = make(max_records=10, block_timeout="200ms")
    producer.up = False
    for number in range(10):
        publisher.publish(message(number))
    began = time.monotonic()
    with pytest.raises(BufferFull, match="block_timeout"):
        publisher.publish(message(10))
    took = time.monotonic() - began
    assert 0.2 <= took < 1.0 * PATIENCE
    assert publisher.stats().full == 1
    producer.come_back()
    assert publisher.flush(10).complete
    assert ids(producer) == [f"r-{n}" for n in range(10)]


def test_block_goes_on_as_soon_as_there_is_room(make: Make, producer: FakeProducer) -> None:
    publisher = make(max_records=10, block_timeout="20s")
    producer.up = False
    publisher.publish_many(message(n) for n in range(10))
    thread = threading.Thread(target=lambda: publisher.publish_many(message(n) for n in range(10, 200)))
    thread.start()
    until(lambda: len(producer.held) == 5, "the window is full")
    producer.come_back()
    thread.join(10)
    assert not thread.is_alive()
    assert publisher.flush(10).complete
    assert ids(producer) == [f"r-{n}" for n in range(200)]


async def wait_while_full(publisher: Publisher, producer: FakeProducer) -> tuple[int, float]:
    """Beats of the event loop while a task waits for room, and its longest pause."""
    for number in range(10):
        await publisher.publish_async(message(number))
    waiting = asyncio.create_task(publisher.publish_async(message(10)))
    beats, longest, last = 0, 0.0, time.monotonic()
    while beats < 50:
        await asyncio.sleep(0.005)
        longest, last, beats = max(longest, time.monotonic() - last), time.monotonic(), beats + 1
    assert not waiting.done()
    producer.come_back()
    await asyncio.wait_for(waiting, 10)
    return beats, longest


def test_async_awaits_and_leaves_the_event_loop_alone(make: Make, producer: FakeProducer) -> None:
    publisher = make(max_records=10, block_timeout="20s")
    producer.up = False
    beats, longest = asyncio.run(wait_while_full(publisher, producer))
    assert beats == 50
    assert longest < 0.25
    assert publisher.flush(10).complete
    assert ids(producer) == [f"r-{n}" for n in range(11)]


def test_async_gives_up_after_block_timeout(make: Make, producer: FakeProducer) -> None:
    publisher = make(max_records=2, block_timeout="100ms")
    producer.up = False

    async def fill() -> None:
        for number in range(3):
            await publisher.publish_async(message(number))

    began = time.monotonic()
    with pytest.raises(BufferFull):
        asyncio.run(fill())
    assert 0.1 <= time.monotonic() - began < 1.0 * PATIENCE
    assert not publisher._async_waiters


def test_drop_oldest_never_waits_and_counts(
    make: Make, producer: FakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make(mode="drop_oldest", max_records=10)
    producer.up = False
    publisher.publish_many(message(n) for n in range(5))
    until(lambda: len(producer.held) == 5, "the window is full")
    began = time.monotonic()
    for number in range(5, 100):
        publisher.publish(message(number))
    assert time.monotonic() - began < 5.0
    producer.come_back()
    assert publisher.flush(10).complete
    assert publisher.stats().dropped == 90
    assert ids(producer) == [f"r-{n}" for n in (0, 1, 2, 3, 4, 95, 96, 97, 98, 99)]
    until(lambda: "dropped" in caplog.text, "the drop is logged")


def test_spool_takes_an_outage_and_gives_it_back(make: Make, producer: FakeProducer, tmp_path: Path) -> None:
    publisher = make(mode="spool", spool_dir=tmp_path, max_records=50, away_after="100ms")
    producer.up = False
    for number in range(1_000):
        publisher.publish(message(number))
    until(lambda: publisher.stats().spooled == 1_000, "all is on disk")
    assert publisher.stats().waiting == 0
    producer.come_back()
    assert publisher.flush(10).complete
    assert ids(producer) == [f"r-{n}" for n in range(1_000)]


def test_a_close_while_the_broker_is_away_leaves_a_spool_for_the_next(
    make: Make, producer: FakeProducer, tmp_path: Path
) -> None:
    publisher = make(mode="spool", spool_dir=tmp_path, away_after="100ms")
    producer.up = False
    publisher.publish_many(message(n) for n in range(300))
    until(lambda: publisher.stats().away, "it notices")
    began = time.monotonic()
    left = publisher.close(30)
    assert time.monotonic() - began < 5
    assert left.undelivered == 0
    assert left.spool_bytes > 0
    assert not left.complete
    producer.closed = False  # the next process has one of its own
    producer.come_back()
    second = make(mode="spool", spool_dir=tmp_path)
    second.publish(message(300))
    assert second.flush(10).complete
    assert list(dict.fromkeys(ids(producer))) == [f"r-{n}" for n in range(301)]
    assert second.close(5).complete
    assert list(tmp_path.iterdir()) == []


def test_each_count_of_a_publisher_is_a_metric(make: Make, producer: FakeProducer) -> None:
    producer.up = False
    publisher = make(mode="drop_oldest", max_records=10)
    registry = CollectorRegistry()
    registry.register(PublisherCollector({"support": publisher}))

    def scraped() -> dict[str, float]:
        lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
        assert all('{publisher="support"} ' in line for line in lines)
        return {line.partition("{")[0].removeprefix("pipeline_publisher_"): float(line.split()[-1]) for line in lines}

    publisher.publish_many(message(number) for number in range(50))
    until(lambda: scraped()["dropped_total"] > 0, "some are dropped")
    found, stats = scraped(), publisher.stats()
    counts = {name.removesuffix("_total") for name in found}
    assert counts == {name for name in stats.__dataclass_fields__ if name not in ("trouble", "missing_topic")}
    assert (found["published_total"], found["delivered_total"]) == (50, 0)
    assert found["dropped_total"] + found["waiting"] + found["in_flight"] == 50
    producer.come_back()
    assert publisher.flush(5).complete
    assert scraped()["delivered_total"] == 50 - found["dropped_total"]
    assert (scraped()["waiting"], scraped()["in_flight"], scraped()["buffered_bytes"]) == (0, 0, 0)


def test_close_says_what_was_not_delivered(make: Make, producer: FakeProducer) -> None:
    publisher = make()
    producer.up = False
    publisher.publish_many(message(n) for n in range(150))
    left = publisher.close(0.2)
    assert left.undelivered == 150
    assert left.event_ids == tuple(f"r-{n}" for n in range(100))
    assert producer.closed
    assert publisher.close(0.2) == left
    with pytest.raises(PublishError):
        publisher.publish(message(1))


def test_what_kafka_refused_for_good_is_told_at_the_end(
    make: Make, producer: FakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """As a run's output that is larger than the topic allows: its last event never arrives, and nothing is left to send."""
    publisher = make()
    producer.up = False
    publisher.publish(message(0))
    publisher.publish(message(1))
    until(lambda: len(producer.held) == 2, "both are on their way")
    producer.answer(1, ClusterError("Broker: Message size too large [MSG_SIZE_TOO_LARGE]"))
    producer.come_back()
    assert publisher.flush(10) == Leftover(refused=1)
    left = publisher.close(10)
    assert (left, ids(producer)) == (Leftover(refused=1), ["r-1"])
    assert not left.complete
    assert "1 records were refused by Kafka for good" in caplog.records[-1].message


def test_close_ends_the_thread(make: Make) -> None:
    publisher = make()
    publisher.publish(message(1))
    assert publisher.close(5).complete
    assert not publisher._thread.is_alive()


def test_events_wait_for_a_registry_that_is_away(producer: FakeProducer) -> None:
    ready = threading.Event()
    asked = threading.Event()

    def prepare(topic: str) -> None:
        asked.set()
        if not ready.is_set():
            raise SchemaUnavailable("the registry does not answer")

    publisher = Publisher(producer, Names(), BufferPolicy(), PublishOptions(prepare=prepare))
    try:
        for number in range(5):
            publisher.publish(message(number))
        assert asked.wait(5)
        assert producer.log == []
        ready.set()
        assert publisher.flush(10).complete
        assert ids(producer) == [f"r-{n}" for n in range(5)]
    finally:
        publisher.close(1)


class Registry:
    """`prepare`: answers once `answers` is set; until then it waits for `patience_s`, as a real one does, and fails."""

    def __init__(self, patience_s: float = 0.0) -> None:
        self.answers = threading.Event()
        self.asked: list[str] = []
        self._patience_s = patience_s

    def prepare(self, topic: str) -> list[str]:
        self.asked.append(topic)
        if not self.answers.wait(self._patience_s):
            raise SchemaUnavailable("the registry does not answer")
        return []


def test_a_cold_process_spools_what_it_can_not_encode_and_the_next_sends_it_first(
    make: Make, producer: FakeProducer, tmp_path: Path
) -> None:
    registry = Registry(patience_s=20.0)
    cold = make(PublishOptions(prepare=registry.prepare), mode="spool", spool_dir=tmp_path, away_after="100ms")
    for number in range(300):
        cold.publish(message(number), topic="other" if number % 3 == 0 else None)
    began = time.monotonic()
    left = cold.close(20)
    assert time.monotonic() - began < FIRST_LOOK_UP_S + 3, "it waited for the registry"
    assert (left.undelivered, left.event_ids) == (0, ())
    assert left.spool_bytes > 0
    assert "schema ids" in left.trouble
    assert producer.log == []

    producer.closed = False  # the next process has one of its own
    registry.answers.set()
    warm = Registry()
    warm.answers.set()
    second = make(PublishOptions(prepare=warm.prepare), mode="spool", spool_dir=tmp_path)
    second.publish(message(300))
    assert second.flush(10).complete
    assert ids(producer) == [f"r-{n}" for n in range(301)]
    assert {record.topic for record in producer.log} == {"other", "agent.run.events"}
    assert set(warm.asked) == {"other", "agent.run.events"}, "a topic known from the spool alone was not prepared"
    expected = [Names().encode(message(n), topic="") for n in range(301)]
    assert [record.value for record in producer.log] == expected
    assert second.close(5).complete
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_sent_before_the_registry_has_answered_and_a_killed_process_finds_it_on_disk(
    make: Make, producer: FakeProducer, tmp_path: Path
) -> None:
    registry = Registry()
    publisher = make(PublishOptions(prepare=registry.prepare), mode="spool", spool_dir=tmp_path, away_after="100ms")
    for number in range(1_000):
        publisher.publish(message(number))
    until(lambda: publisher.stats().spooled == 1_000, "all is on disk")
    assert publisher.stats().trouble == "the registry does not answer"
    assert producer.log == []
    registry.answers.set()
    assert publisher.flush(10).complete
    assert ids(producer) == [f"r-{n}" for n in range(1_000)]


def test_a_short_process_waits_for_a_registry_that_is_only_slow(
    make: Make, producer: FakeProducer, tmp_path: Path
) -> None:
    registry = Registry(patience_s=20.0)
    publisher = make(PublishOptions(prepare=registry.prepare), mode="spool", spool_dir=tmp_path, away_after="10ms")
    publisher.publish_many(message(n) for n in range(50))
    until(lambda: publisher.stats().spooled == 50, "the broker counts as away")
    closing = threading.Thread(target=publisher.close, args=(10,))
    closing.start()
    registry.answers.set()
    closing.join(10)
    assert publisher.close().complete
    assert ids(producer) == [f"r-{n}" for n in range(50)]


def test_an_event_whose_record_is_not_registered_waits_for_it(make: Make, producer: FakeProducer) -> None:
    missing = [Message.record_name]
    hold = threading.Event()

    def prepare(topic: str) -> list[str]:
        hold.wait(10)
        return list(missing)

    publisher = make(PublishOptions(prepare=prepare))
    publisher.publish(message(0))
    hold.set()
    until(lambda: "schemas register" in publisher._schemas.trouble, "it says what to do")
    assert producer.log == []
    missing.clear()
    assert publisher.flush(10).complete
    assert ids(producer) == ["r-0"]


@pytest.mark.parametrize("lacking", [[Approval.record_name], list(EVENT_TYPES)], ids=("one", "all"))
def test_events_published_after_a_look_up_that_missed_their_contracts_wait_for_them(
    producer: FakeProducer, lacking: list[str]
) -> None:
    """The agent was deployed before `pipeline schemas register` had run: its code heard of that, until it was restarted."""
    missing = list(lacking)

    class Unregistered(Names):
        def encode(self, value: RunEvent, *, topic: str) -> bytes:
            if value.record_name in missing:
                raise EncodeError(f"{value.record_name} is not registered")
            return super().encode(value, topic=topic)

    options = PublishOptions(prepare=lambda topic: list(missing))
    publisher = Publisher(producer, Unregistered(), BufferPolicy(), options)
    try:
        until(lambda: "schemas register" in publisher._schemas.trouble, "the look-up is over")
        publisher.publish(message(0))
        publisher.publish(filled(Approval).model_copy(update={"event_id": "r-1"}))
        publisher.publish_many([message(2), message(3)])
        assert not publisher.flush(0.1).complete
        assert ids(producer) == ([] if len(lacking) > 1 else ["r-0"]), "order is kept: what follows waits too"
        missing.clear()
        assert publisher.flush(10).complete
        assert ids(producer) == ["r-0", "r-1", "r-2", "r-3"]
    finally:
        publisher.close(1)


def test_text_that_no_event_can_hold_is_refused_at_once_also_by_a_cold_publisher(
    make: Make, producer: FakeProducer
) -> None:
    publisher = make(PublishOptions(prepare=Registry().prepare))
    with pytest.raises(EncodeError, match="r-1"):
        publisher.publish(message(1).model_copy(update={"content": "\ud800"}))
    assert publisher.pending == 0


CANDIDATES: list[object] = [7, 'ü "\u2028\n', float("inf"), {"ä": "b"}, "UNKNOWN"]


def filled(kind: type[RunEvent]) -> RunEvent:
    """An event with every field set, to the last candidate that its contract takes."""
    fields: dict[str, object] = {"event_id": "e", "run_id": "r", "sequence": 1, "occurred_at": 1_700_000_000_000}
    required = {name: field for name, field in kind.model_fields.items() if field.is_required() and name not in fields}
    for choice in product(CANDIDATES, repeat=len(required)):
        with suppress(ValidationError):
            made = kind(**fields, **dict(zip(required, choice, strict=True)))  # type: ignore[arg-type]
            break
    fields = made.model_dump()
    for name in kind.model_fields:
        for value in CANDIDATES:
            with suppress(ValidationError):
                fields = kind(**{**fields, name: value}).model_dump()
    return kind(**fields)


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=lambda kind: kind.__name__)
def test_an_event_comes_back_from_json_as_it_was(kind: type[RunEvent]) -> None:
    event = filled(kind)
    assert all(value is not None for value in event.model_dump().values())
    assert from_json(kind.record_name, as_json(event)) == event
    newer = as_json(event)[:-1] + b',"a_field_of_a_newer_version":1}'
    assert from_json(kind.record_name, newer) == event


def test_raw_records_go_as_they_are(make: Make, producer: FakeProducer) -> None:
    publisher = make()
    publisher.publish_record("other", None, b"\xff", [("h", b"1")])
    publisher.flush(5)
    assert [record[:4] for record in producer.log] == [("other", None, b"\xff", [("h", b"1")])]


@pytest.mark.parametrize(
    "record",
    [
        ("t", "key", b"v", None),
        ("t", None, 5, None),
        ("t", None, b"v", [("h", "text")]),
        ("t", None, b"v", [(b"h", b"1")]),
        ("t", None, b"v", [("\udcff", b"1")]),
        ("t", None, b"v", {"name": b"1"}),
        ("\udcff", None, b"v", None),
    ],
    ids=("key", "value", "header", "name", "no text", "dict", "topic"),
)
def test_what_no_record_can_hold_is_told_to_its_caller(make: Make, producer: FakeProducer, record: Any) -> None:
    publisher = make()
    with pytest.raises(PublishError, match="was not taken"):
        publisher.publish_record(*record)
    publisher.publish_record("t", None, b"next", [("h", None)])
    assert publisher.flush(5.0).undelivered == 0
    assert [sent.value for sent in producer.log] == [b"next"]


def test_the_application_takes_the_cloud_events_source_from_its_settings() -> None:
    cluster = connect("memory://ce-source")
    cluster.create("agent.run.events", partitions=1)
    app = Pipeline("support", settings=Settings(broker="memory://ce-source", ce_source="//agents/support"))
    publisher = app.publisher()
    publisher.publish(message(1))
    assert publisher.close(10).complete
    reader = app.cluster.reader()
    reader.assign({TopicPartition("agent.run.events", 0): 0})
    (record,) = reader.poll(10, 5.0)
    assert dict(record.headers() or ())["ce_source"] == b"//agents/support"
    reader.close()


def test_feeding_a_topic_that_does_not_exist_ends_with_its_name() -> None:
    connect("memory://no-topic").create("another", partitions=1)
    app = Pipeline("importer", settings=Settings(broker="memory://no-topic"))
    publisher = app.publisher()
    feeder = Feeder(publisher, patience_s=2.0)
    try:
        feeder.feed([message(1)])
        with pytest.raises(TopologyError, match=r"agent\.run\.events does not exist: .*topics apply"):
            feeder.finish()
    finally:
        left = publisher.close(0.2)
    assert left.undelivered == 1
    assert "topics apply" in left.trouble
