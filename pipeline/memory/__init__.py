"""A Kafka cluster in memory for tests and simulations: `memory://name`, virtual time, faults on request."""

from pipeline.memory.cluster import MemoryCluster, connect
from pipeline.memory.faults import Faults

__all__ = ["Faults", "MemoryCluster", "connect"]
