"""Real Apache Kafka (and a schema registry) started by the project itself, from jars of a verified lock."""

from pipeline.kafka.embedded.broker import EmbeddedBroker
from pipeline.kafka.embedded.jars import Progress, default_cache_dir
from pipeline.kafka.embedded.properties import BrokerSpec, ProxiedPort
from pipeline.kafka.embedded.registry import EmbeddedRegistry

__all__ = ["BrokerSpec", "EmbeddedBroker", "EmbeddedRegistry", "Progress", "ProxiedPort", "default_cache_dir"]
