"""Thin adapters over confluent-kafka: clients, administration, the embedded broker."""

from pipeline.kafka.cluster import connect

__all__ = ["connect"]
