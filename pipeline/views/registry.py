"""Which schema registry the views use: a Confluent-compatible one by URL, else the one the cluster keeps itself."""

from __future__ import annotations

from pipeline.codec.avro import AvroCodec
from pipeline.codec.catalogue import product_catalogue
from pipeline.codec.registry import SchemaRegistry
from pipeline.codec.registry_local import SCHEMA_LOG_TOPIC, LocalRegistry


def open_codec(bootstrap: str, registry_url: str = "") -> AvroCodec:
    """A codec over that registry; nothing is asked of it yet. Raises ConfigurationError for a URL that can't be used."""
    catalogue = product_catalogue()
    registry: SchemaRegistry
    if registry_url:
        from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy

        registry = ConfluentRegistry(RegistryPolicy(registry_url))
    else:
        from pipeline.kafka.schema_log import KafkaSchemaLog

        registry = LocalRegistry(KafkaSchemaLog({"bootstrap.servers": bootstrap}, SCHEMA_LOG_TOPIC), catalogue)
    return AvroCodec(registry, catalogue)
