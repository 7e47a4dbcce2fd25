"""The Kafka adapter without a broker: settings, errors, and deadlines that hold when nobody answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Named

from pipeline.kafka import consumer as consuming
from pipeline.kafka import producer as producing
from pipeline.kafka.admin import KafkaAdmin
from pipeline.kafka.cluster import connect
from pipeline.kafka.errors import cluster_error, fatal_error, fault_kind, fetch_fault
from pipeline.kafka.producer import KafkaProducer
from pipeline.kafka.settings import (
    admin_settings,
    consumer_settings,
    lane_settings,
    producer_settings,
    reader_settings,
    shared,
    transaction_settings,
)
from pipeline.model.cluster import ConsumerPolicy, Position, TopicPartition
from pipeline.model.errors import (
    BufferFull,
    ClusterError,
    ClusterUnavailable,
    ConfigurationError,
    FencedError,
    NotAuthorized,
    RecordTooLarge,
)
from pipeline.model.transactions import TransactionPolicy
from tests.conformance.sides import Listener


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_protocols_settings_exclude_each_other() -> None:
    classic = consumer_settings("b", ConsumerPolicy("g", instance_id="one"), {})
    assert classic["partition.assignment.strategy"] == "cooperative-sticky"
    assert (classic["session.timeout.ms"], classic["heartbeat.interval.ms"]) == (10_000, 1_000)
    assert classic["group.instance.id"] == "one"
    modern = consumer_settings("b", ConsumerPolicy("g", protocol="consumer"), {})
    assert modern["group.protocol"] == "consumer"
    assert not {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"} & modern.keys()


def test_client_settings_go_to_their_role_and_never_touch_the_guarantees() -> None:
    settings = {"security.protocol": "ssl", "producer.linger.ms": "7", "consumer.fetch.min.bytes": "9"}
    made = producer_settings("b", "c", settings)
    assert (made["security.protocol"], made["linger.ms"]) == ("ssl", "7")
    assert "fetch.min.bytes" not in made
    assert consumer_settings("b", ConsumerPolicy("g"), settings)["fetch.min.bytes"] == "9"
    for name in ("acks", "producer.enable.idempotence"):
        with pytest.raises(ConfigurationError, match=name.removeprefix("producer.")):
            producer_settings("b", "c", {name: "0"})


@pytest.mark.parametrize(
    ("own", "size"),
    [
        ({}, 70_000_000),
        ({}, 110_000_000),
        ({"producer.message.max.bytes": "1000000"}, 2_000_000),
        ({"queue.buffering.max.kbytes": "1000"}, 2_000_000),
    ],
)
def test_what_the_client_can_never_take_is_too_large_and_not_a_full_buffer(
    nobody: str, own: dict[str, str], size: int
) -> None:
    """Who is told that the buffer is full waits, and sends it again, for ever: more than an empty queue holds is never taken."""
    producer = KafkaProducer(producer_settings(nobody, "c", own), lambda _error: None)
    try:
        with pytest.raises(RecordTooLarge, match=r"producer\.message\.max\.bytes"):
            producer.send("t", b"k", bytes(size))
        producer.send("t", b"k", bytes(900_000))
    finally:
        producer.close(0)


def test_a_silent_connection_is_given_up_soon_by_every_client() -> None:
    """librdkafka waits for a minute, and one connection comes after the other."""

    def made(own: dict[str, str]) -> list[dict[str, Any]]:
        member = consumer_settings("b", ConsumerPolicy("g"), own)
        writer = producer_settings("b", "c", own)
        within = transaction_settings("b", TransactionPolicy("id", "g", timeout_ms=15_000), own)
        return [member, lane_settings(member), reader_settings("b", "c", own), writer, within, admin_settings("b", own)]

    for each in made({}):
        assert each["socket.timeout.ms"] == each["socket.connection.setup.timeout.ms"] == 10_000
        # The broker's answer comes before the client hangs up, and a whole answer fits through a slow line.
        assert each.get("request.timeout.ms", 0) < 10_000
        assert each.get("fetch.max.bytes", 0) <= 16 << 20
    assert [int(each["socket.timeout.ms"]) for each in made({"socket.timeout.ms": "30000"})] == [30_000] * 4 + [
        15_000,
        30_000,
    ]
    brief = transaction_settings("b", TransactionPolicy("id", "g", timeout_ms=4_000), {})
    assert brief["socket.timeout.ms"] == 4_000, "librdkafka refuses more than the transaction's own"


def test_a_drain_longer_than_the_poll_interval_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="drain_timeout_ms=5000"):
        consumer_settings("b", ConsumerPolicy("g", drain_timeout_ms=5_000, max_poll_interval_ms=5_000), {})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.ILLEGAL_GENERATION, FencedError),
        (KafkaError.UNKNOWN_MEMBER_ID, FencedError),
        (KafkaError.FENCED_INSTANCE_ID, FencedError),
        (KafkaError.STALE_MEMBER_EPOCH, FencedError),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, NotAuthorized),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, NotAuthorized),
        (KafkaError._TIMED_OUT, ClusterUnavailable),
        (KafkaError._TRANSPORT, ClusterUnavailable),
        (KafkaError.NOT_COORDINATOR, ClusterUnavailable),
        (KafkaError.OFFSET_METADATA_TOO_LARGE, ClusterError),
    ],
)
def test_errors_by_code(code: int, kind: type[ClusterError]) -> None:
    error = cluster_error(KafkaError(code), "the commit of t[0]")
    assert type(error) is kind
    assert str(error).startswith(f"the commit of t[0] {'is not authorized' if kind is NotAuthorized else 'failed'}: ")


def test_fetch_faults_and_fatal_errors() -> None:
    assert fault_kind(KafkaError(KafkaError._BAD_COMPRESSION)) == "bad_batch"
    assert fault_kind(KafkaError(KafkaError._AUTO_OFFSET_RESET)) == "out_of_range"
    assert fault_kind(KafkaError(KafkaError._TRANSPORT)) == "other"
    denied = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "Fetch from broker 1 failed: Broker: Topic denied")
    fault = fetch_fault(Message(topic="t", partition=2, offset=5, error=denied), denied)
    assert (fault.partition, fault.offset, fault.kind) == (("t", 2), 5, "not_authorized")
    assert "reading t is not authorized: Fetch from broker 1 failed" in fault.text
    assert "grant the ACL" in fault.text
    replaced = KafkaError(KafkaError._FATAL, "Static consumer fenced by other consumer with same group.instance.id")
    assert isinstance(fatal_error(replaced, "the consumer"), FencedError)


def test_every_wait_has_a_deadline_when_nobody_answers(nobody: str) -> None:
    heard: list[str] = []
    cluster = connect(nobody, on_error=heard.append)
    admin = cluster.admin()
    partition = TopicPartition("t", 0)
    began = time.monotonic()
    for ask in (
        lambda: admin.topics(timeout_s=0.3),
        lambda: admin.topics(["t"], timeout_s=0.3),
        lambda: admin.end_offsets([partition], timeout_s=0.3),
        lambda: admin.groups(timeout_s=0.3),
        lambda: admin.describe_group("g", timeout_s=0.3),
        lambda: admin.group_positions("g", timeout_s=0.3),
    ):
        with pytest.raises(ClusterUnavailable):
            ask()
    consumer = cluster.consumer(ConsumerPolicy("g"))
    assert consumer.poll(10, 0.1) == []
    with pytest.raises(ClusterUnavailable):
        consumer.committed([partition], 0.3)
    answer = consumer.commit_now({partition: Position(1)}, 0.3)
    assert isinstance(answer[partition], ClusterUnavailable)
    assert time.monotonic() - began < 15.0


def test_a_producer_without_broker_reports_at_close(nobody: str) -> None:
    producer = connect(nobody).producer()
    reports: list[ClusterError | None] = []
    producer.send("t", b"k", b"v", delivered=lambda error, offset: reports.append(error))
    assert producer.flush(0.1) == 1
    began = time.monotonic()
    producer.close(0.2)
    assert time.monotonic() - began < 5.0
    assert [type(error) for error in reports] == [ClusterUnavailable]


def test_settings_of_one_role_do_not_reach_clients_of_no_single_role() -> None:
    given = {"security.protocol": "SASL_SSL", "consumer.fetch.wait.max.ms": "50", "producer.linger.ms": "1"}
    assert shared(given) == {"security.protocol": "SASL_SSL"}


class _Client:
    """In librdkafka's place: the first one made is dead, and outside the serving thread its poll says so."""

    made_in: ClassVar[list[str]] = []
    waits: ClassVar[threading.Event] = threading.Event()
    released: ClassVar[threading.Event] = threading.Event()

    def __init__(self, settings: dict[str, object]) -> None:
        self._first = not self.made_in
        self.made_in.append(threading.current_thread().name)

    def __len__(self) -> int:
        return 0

    def poll(self, timeout_s: float) -> int:
        if threading.current_thread().name == "kafka-deliveries":
            self.waits.set()
            self.released.wait(5.0 if self._first else timeout_s)
        elif self._first:
            raise KafkaException(KafkaError(KafkaError._FATAL, "the producer's number is forgotten"))
        return 0

    def flush(self, timeout_s: float) -> int:
        return 0


def test_settings_that_do_not_come_are_told_with_the_time_that_was_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = KafkaAdmin({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    silent: Future[Any] = Future()
    monkeypatch.setattr(admin, "_describe", lambda names, timeout_s: {"t": SimpleNamespace(is_internal=False)})
    monkeypatch.setattr(
        admin, "_admin", SimpleNamespace(describe_configs=lambda resources, request_timeout: {resources[0]: silent})
    )
    with pytest.raises(ClusterUnavailable, match=r"^reading the settings of topic t got no answer within 0\.1 s"):
        admin.topics(["t"], 0.1)


@pytest.fixture
def made_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which clients were made."""
    monkeypatch.setattr(producing, "Producer", _Client)
    monkeypatch.setattr(producing, "_HEAR_S", 60.0)
    monkeypatch.setattr(_Client, "made_in", [])
    monkeypatch.setattr(_Client, "waits", threading.Event())
    monkeypatch.setattr(_Client, "released", threading.Event())
    return _Client.made_in


def test_a_dead_producer_is_replaced_in_the_serving_thread_only(made_in: list[str]) -> None:
    producer = KafkaProducer({}, lambda said: None)
    here = threading.current_thread().name
    assert _Client.waits.wait(5.0)
    producer.hear()  # answers are the serving thread's, which waits for them
    assert not producer._dead
    _Client.released.set()
    until = time.monotonic() + 5.0
    while not producer._dead and time.monotonic() < until:
        producer.hear()  # now they are left to us, and we find it dead
    for _ in range(3):
        producer.hear()
    while len(made_in) < 2 and time.monotonic() < until:
        time.sleep(0.001)  # who has just heard does not keep the serving thread from it
    producer.close(0.1)
    assert made_in == [here, "kafka-deliveries"]


def test_without_a_thread_of_its_own_a_dead_producer_is_replaced_by_who_serves_it(made_in: list[str]) -> None:
    producer = KafkaProducer({}, lambda said: None, served_by_caller=True)
    here = threading.current_thread().name
    producer.serve(0)
    assert made_in == [here]
    with pytest.raises(BufferFull, match="forgotten"):
        producer.send("t", None, b"v")
    producer.serve(0)
    assert made_in == [here, here]
    producer.close(0.1)


def test_removing_what_is_not_assigned_makes_no_client_for_lanes(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(settings: dict[str, object]) -> Consumer:
        made.append(Consumer(settings))
        return made[-1]

    monkeypatch.setattr(consuming, "Consumer", counted)
    consumer = connect(nobody).consumer(ConsumerPolicy("g"))
    consumer.subscribe("t", Listener())
    consumer.add({TopicPartition("t", 0): 0})
    consumer.remove([TopicPartition("t", 0), TopicPartition("t.g.retry.1s", 0)])
    assert len(made) == 1
    consumer.add({TopicPartition("t.g.retry.1s", 0): 0})
    assert len(made) == 2
    consumer.close()


def test_lanes_give_nothing_after_a_silence_until_the_client_is_the_member_it_was(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that left its group by itself hears of it in a callback, and under load that comes late."""
    now_s, member = [100.0], ["m1"]
    consumer = connect(nobody).consumer(ConsumerPolicy("g"))
    consumer._committer.member_id = "m1"
    monkeypatch.setattr(consumer, "member_id", lambda: member[0])
    monkeypatch.setattr(consuming, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    consumer._polled_at_s = now_s[0]

    def doubtful(after_s: float) -> bool:
        now_s[0] += after_s
        return consumer._may_have_lost()

    assert not doubtful(0.1)
    member[0] = ""
    assert doubtful(consumer._silence_s + 1)
    assert doubtful(consuming._NEWS_S - 0.1)
    assert doubtful(0.2), "its news has not come yet"
    member[0] = consumer._committer.member_id = "m2"
    assert not doubtful(0.1), "it has joined again"
    assert doubtful(consumer._silence_s + 1), "a member that was only slow"
    assert doubtful(consuming._NEWS_S - 0.1)
    assert not doubtful(0.2)
    monkeypatch.undo()
    consumer.close()


def test_an_offset_that_the_leader_did_not_tell_is_no_offset() -> None:
    """librdkafka's ListOffsets gives -1001 and no error for partitions whose leader did not answer in time; taken for the start or
    the end of a partition it says that records are gone, or makes a fence that holds nobody."""
    admin = KafkaAdmin({"bootstrap.servers": "127.0.0.1:1"})
    told: Future[Any] = Future()
    told.set_result(SimpleNamespace(offset=5))
    silent: Future[Any] = Future()
    silent.set_result(SimpleNamespace(offset=OFFSET_INVALID))
    answers = {Named("t", 0): told, Named("t", 1): silent}
    admin._admin = SimpleNamespace(list_offsets=lambda *_args, **_more: answers)  # type: ignore[assignment]
    places = [TopicPartition("t", 0), TopicPartition("t", 1)]
    for ask in (admin.end_offsets, admin.beginning_offsets, lambda tps: admin.offsets_at(tps, 1)):
        with pytest.raises(ClusterUnavailable, match=r"reading offsets of t\[1\] failed: its leader did not answer"):
            ask(places)
    answers.pop(Named("t", 1))
    assert admin.end_offsets(places[:1]) == {places[0]: 5}
