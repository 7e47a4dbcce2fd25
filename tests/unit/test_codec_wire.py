"""The wire format, held to confluent-kafka's own serializer and deserializer byte for byte."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from confluent_kafka.schema_registry import (
    Schema,
    SchemaRegistryClient,
    dual_schema_id_deserializer,
    header_schema_id_serializer,
    topic_record_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from pipeline.codec import AvroCodec, product_catalogue, subject_of
from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy
from pipeline.codec.wire import SCHEMA_ID_HEADER, guid_of_id, id_of_key, key_of_id, split
from pipeline.model.errors import SchemaUnavailable, UndecodableError
from pipeline.model.events import EVENT_TYPES, TypedValue

TOPIC = "agent.run.events"
SPECIFIC: dict[str, dict[str, Any]] = {
    "RunStarted": {"input": "book a flight", "labels": {"env": "test", "ä": "ö"}},
    "ModelCall": {"model": "gpt-large", "input_tokens": 1200, "output_tokens": 340, "finish_reason": "stop"},
    "ToolCall": {"tool": "search", "call_id": "c1", "arguments": '{"q": "refund"}'},
    "ToolResult": {"tool": "search", "call_id": "c1", "status": "OK", "content": "x" * 9_000},
    "Step": {"name": "plan", "status": "COMPLETED"},
    "Memory": {"operation": "WRITE", "store": "notes", "items": 3},
    "Approval": {"approval_id": "p1", "decision": "REQUESTED", "subject": "refund 100"},
    "Message": {"role": "USER", "content": "héllo \N{ROCKET}"},
    "RunCompleted": {"output": "done", "cost_usd": 0.125, "duration_ms": 2**40},
    "RunFailed": {"error_class": "Timeout", "error_message": "too slow"},
    "RunCancelled": {"reason": "user left"},
}


def event(name: str) -> TypedValue:
    common: dict[str, Any] = {
        "event_id": "e-1",
        "run_id": "r-1",
        "sequence": 70,
        "occurred_at": 1_763_821_712_345,
        "agent": "support",
    }
    return EVENT_TYPES[name](**common, tenant="acme", step=2, **SPECIFIC[name.rpartition(".")[2]])


@pytest.fixture
def server() -> tuple[str, SchemaRegistryClient]:
    """A mock registry (unit tests only: it accepts anything) with every run event registered for the
    topic.
    """
    url = f"mock://{uuid.uuid4().hex}"
    client = SchemaRegistryClient.new_client({"url": url})
    for name in EVENT_TYPES:
        client.register_schema(subject_of(TOPIC, name), Schema(product_catalogue().present[name].text, "AVRO"))
    return url, client


def codec_on(client: SchemaRegistryClient) -> AvroCodec:
    registry = ConfluentRegistry(RegistryPolicy("mock://replaced"))
    registry._client = client  # the mock's content lives in the client object itself
    return AvroCodec(registry)


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_bytes_are_those_of_confluents_serializer(name: str, server: tuple[str, SchemaRegistryClient]) -> None:
    codec = codec_on(server[1])
    assert codec.prepare(TOPIC) == []
    value = event(name)
    theirs = AvroSerializer(
        server[1],
        product_catalogue().present[name].text,
        lambda fields, _: fields,
        {"auto.register.schemas": False, "subject.name.strategy": topic_record_subject_name_strategy},
    )
    context = SerializationContext(TOPIC, MessageField.VALUE)
    expected = theirs(value.model_dump(), context)
    assert codec.encode(value, topic=TOPIC) == expected
    assert codec.decode(TOPIC, expected) == value
    # Its deserializer gives logical types; ours the milliseconds beneath them.
    read = AvroDeserializer(server[1])(expected, context)
    assert int(read["occurred_at"].timestamp() * 1_000) == value.occurred_at  # type: ignore[attr-defined]
    assert {k: v for k, v in read.items() if k != "occurred_at"} == value.model_dump(exclude={"occurred_at"})


def test_header_guid_framing_of_confluents_serializer_is_read(
    server: tuple[str, SchemaRegistryClient],
) -> None:
    codec = codec_on(server[1])
    name = "agent.run.ToolResult"
    theirs = AvroSerializer(
        server[1],
        product_catalogue().present[name].text,
        lambda fields, _: fields,
        {
            "auto.register.schemas": False,
            "subject.name.strategy": topic_record_subject_name_strategy,
            "schema.id.serializer": header_schema_id_serializer,
        },
    )
    headers: list[Any] = [("traceparent", b"00-1-1-01")]
    context = SerializationContext(TOPIC, MessageField.VALUE, headers)
    data = theirs(event(name).model_dump(), context)
    assert [key for key, _ in headers] == ["traceparent", SCHEMA_ID_HEADER]
    with pytest.raises(SchemaUnavailable) as unknown:
        codec.decode(TOPIC, data, headers)
    assert unknown.value.schema_id is not None
    assert guid_of_id(unknown.value.schema_id)
    codec.fetch(TOPIC, unknown.value.schema_id)
    assert codec.decode(TOPIC, data, headers) == event(name)
    assert codec.decode_dict(TOPIC, data, headers)[0] == name
    assert codec.fingerprint(TOPIC, data, headers) == product_catalogue().present[name].fingerprint
    oracle = AvroDeserializer(server[1], conf={"schema.id.deserializer": dual_schema_id_deserializer})
    assert oracle(data, context)["call_id"] == "c1"
    # The same GUID is refused for a topic whose subjects do not have the schema.
    codec.fetch("other", unknown.value.schema_id)
    with pytest.raises(UndecodableError, match="not for topic other"):
        codec.decode("other", data, headers)


def test_keys_and_ids() -> None:
    assert key_of_id(1) == b"\x00\x00\x00\x00\x01"
    assert id_of_key(key_of_id(1)) == 1
    guid = uuid.uuid4()
    key = b"\x01" + guid.bytes
    assert guid_of_id(id_of_key(key)) == str(guid)
    assert key_of_id(id_of_key(key)) == key
    assert guid_of_id(2**31 - 1) is None
    assert split(b"\x00\x00\x00\x00\x07rest", [("a", None)]) == (key_of_id(7), 5)
    assert split(b"body", [(SCHEMA_ID_HEADER, key)]) == (key, 0)
    assert split(b"body", [(SCHEMA_ID_HEADER, b"\x00\x00\x00\x00\x09")]) == (key_of_id(9), 0)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x00\x00", b"\x01\x00\x00\x00\x01abc", b'{"a": 1}'])
def test_what_is_not_framed_is_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableError, match="not framed"):
        split(data, None)


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01" + bytes(15), b"\x02" + bytes(16), b"\x01" + bytes(17)])
def test_a_malformed_id_header_is_undecodable(value: bytes) -> None:
    with pytest.raises(UndecodableError, match=SCHEMA_ID_HEADER):
        split(b"\x00\x00\x00\x00\x01body", [(SCHEMA_ID_HEADER, value)])
