"""Which schema registry a views process uses: a Confluent-compatible one by URL, else the local one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.views.policy import ViewsPolicy

if TYPE_CHECKING:
    from pipeline.codec.catalogue import SchemaCatalogue
    from pipeline.codec.registry import SchemaRegistry


def open_registry(policy: ViewsPolicy, catalogue: SchemaCatalogue) -> SchemaRegistry:
    """The registry of the policy."""
    if policy.registry:
        from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy

        return ConfluentRegistry(RegistryPolicy(policy.registry))
    from pipeline.codec.registry_local import SCHEMA_LOG_TOPIC, LocalRegistry
    from pipeline.kafka.schema_log import KafkaSchemaLog

    return LocalRegistry(KafkaSchemaLog({"bootstrap.servers": policy.bootstrap}, SCHEMA_LOG_TOPIC), catalogue)
