"""The embedded registry speaks Confluent's protocol and comes back with its schemas on the same port."""

from __future__ import annotations

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from pipeline.kafka.embedded import EmbeddedRegistry

SCHEMA = '{"type":"record","name":"Seen","namespace":"t","fields":[{"name":"n","type":"long"}]}'


def test_schemas_survive_a_restart(registry_server: EmbeddedRegistry) -> None:
    client = SchemaRegistryClient({"url": registry_server.url})
    schema_id = client.register_schema("survives-value", Schema(SCHEMA, "AVRO"))
    registry_server.stop()
    registry_server.stop()
    assert registry_server.pid is None
    with pytest.raises(Exception, match=r"refused|Connection|connect"):
        SchemaRegistryClient({"url": registry_server.url, "max.retries": 0}).get_subjects()
    registry_server.start()
    again = SchemaRegistryClient({"url": registry_server.url})
    assert "survives-value" in again.get_subjects()
    assert '"Seen"' in (again.get_schema(schema_id).schema_str or "")
