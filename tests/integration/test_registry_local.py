"""The registry that the cluster keeps itself, on real Kafka."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType

from pipeline.codec import AvroCodec, SchemaNotFound, product_catalogue, subject_of
from pipeline.codec.registry_local import LocalRegistry
from pipeline.kafka.schema_log import KafkaSchemaLog
from pipeline.model.errors import SchemaUnavailable, UndecodableError
from pipeline.model.events import EVENT_TYPES, Message
from tests.patience import PATIENCE

EVENT = Message(event_id="e", run_id="r", sequence=0, occurred_at=5, agent="a", tenant="t", role="USER", content="hi")
Open = Callable[[], LocalRegistry]


@pytest.fixture
def open_registry(kafka: str, topic_name: str) -> Iterator[Open]:
    """Makes registries over one log topic, each with connections of its own as another process would have."""
    logs: list[KafkaSchemaLog] = []

    def make() -> LocalRegistry:
        logs.append(KafkaSchemaLog({"bootstrap.servers": kafka}, f"{topic_name}.schemas"))
        return LocalRegistry(logs[-1], product_catalogue())

    yield make
    for log in logs:
        log.close()


def test_first_use_needs_nothing(open_registry: Open) -> None:
    writer = AvroCodec(open_registry())
    assert writer.prepare("t") == []
    data = writer.encode(EVENT, topic="t")
    reader = AvroCodec(open_registry())
    with pytest.raises(SchemaUnavailable) as unknown:
        reader.decode("t", data)
    assert unknown.value.schema_id is not None
    reader.fetch("t", unknown.value.schema_id)
    assert reader.decode("t", data) == EVENT
    reader.fetch("other", unknown.value.schema_id)
    with pytest.raises(UndecodableError, match="other"):
        reader.decode("other", data)


def test_processes_that_start_at_once_agree(open_registry: Open) -> None:
    registries = [open_registry() for _ in range(4)]
    start = threading.Barrier(len(registries))
    found: list[dict[str, int]] = [{} for _ in registries]

    def work(index: int) -> None:
        start.wait(30 * PATIENCE)
        for name in EVENT_TYPES:
            subject = subject_of("t", name)
            found[index][name] = registries[index].lookup(subject, product_catalogue().present[name])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(registries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0]
    assert len(found[0]) == len(EVENT_TYPES)
    assert all(ids == found[0] for ids in found)
    late = open_registry()
    assert {name: late.lookup(subject_of("t", name), product_catalogue().present[name]) for name in found[0]} == found[
        0
    ]
    assert {len(late.versions(subject)) for subject in late.subjects()} == {1}


def test_what_others_write_later_is_seen(open_registry: Open) -> None:
    early, later = open_registry(), open_registry()
    with pytest.raises(SchemaNotFound):
        early.schema_by_id(12345)
    schema = product_catalogue().present["agent.run.Step"]
    schema_id = later.lookup(subject_of("t", schema.name), schema)
    assert early.schema_by_id(schema_id) == schema.text
    assert early.subjects_of(schema_id) == ["t-agent.run.Step"]


def test_the_log_is_compacted_with_one_partition(open_registry: Open, kafka: str, topic_name: str) -> None:
    AvroCodec(open_registry()).prepare("t")
    admin = AdminClient({"bootstrap.servers": kafka})
    topic = f"{topic_name}.schemas"
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 1
    resource = ConfigResource(ResourceType.TOPIC, topic)
    config = admin.describe_configs([resource])[resource].result(10)
    assert config["cleanup.policy"].value == "compact"
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "x"})
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    consumer.close()
    assert end == len(EVENT_TYPES)


def test_a_broker_that_is_away_is_an_outage() -> None:
    with KafkaSchemaLog({"bootstrap.servers": "127.0.0.1:1"}, "x", timeout_s=1) as log:
        registry = LocalRegistry(log, product_catalogue())
        with pytest.raises(SchemaUnavailable, match="topic x"):
            registry.schema_by_id(1)
        with pytest.raises(SchemaUnavailable, match="topic x"):
            AvroCodec(registry).prepare("t")
