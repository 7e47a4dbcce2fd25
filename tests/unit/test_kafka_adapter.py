"""The Kafka adapter without a broker: settings, errors, and deadlines that hold when nobody answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError

from pipeline.kafka.cluster import connect
from pipeline.kafka.errors import cluster_error, fatal_error, fault_kind
from pipeline.kafka.settings import consumer_settings, producer_settings, shared
from pipeline.model.cluster import ConsumerPolicy, Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, ConfigurationError, FencedError, NotAuthorized


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
    assert str(error).startswith("the commit of t[0] failed: ")


def test_fetch_faults_and_fatal_errors() -> None:
    assert fault_kind(KafkaError(KafkaError._BAD_COMPRESSION)) == "bad_batch"
    assert fault_kind(KafkaError(KafkaError._AUTO_OFFSET_RESET)) == "out_of_range"
    assert fault_kind(KafkaError(KafkaError._TRANSPORT)) == "other"
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
