"""Prometheus metrics of publishers, read from their counters when they are asked for: an agent serves them beside its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.emit.stats import PublisherStats

_Read = Callable[[PublisherStats], float]

_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("published", "Records taken from the agent.", lambda s: s.published),
    ("delivered", "Records acknowledged by Kafka.", lambda s: s.delivered),
    ("dropped", "Records dropped because the buffer was full (drop_oldest).", lambda s: s.dropped),
    ("failed", "Records that Kafka refused for good.", lambda s: s.failed),
    ("spooled", "Records written to disk.", lambda s: s.spooled),
    ("resent", "Records acknowledged from disk.", lambda s: s.resent),
    ("full", "Times that BufferFull was raised.", lambda s: s.full),
)
_GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("waiting", "Records in memory that are not sent yet.", lambda s: s.waiting),
    ("in_flight", "Records sent and not acknowledged.", lambda s: s.in_flight),
    ("buffered_bytes", "Size of both.", lambda s: s.buffered_bytes),
    ("spool_bytes", "Bytes that wait on disk.", lambda s: s.spool_bytes),
    ("away", "1 while the broker does not answer, or does not take records.", lambda s: s.away),
    ("denied", "1 while it is a right that is missing.", lambda s: s.denied),
)


class Counted(Protocol):
    """A `Publisher`."""

    def stats(self) -> PublisherStats: ...


class PublisherCollector(Collector):
    """`REGISTRY.register(PublisherCollector({"support": publisher}))`: the names are the label `publisher`.

    One collector for all publishers of a process: a registry takes each metric once.
    """

    def __init__(self, publishers: Mapping[str, Counted]) -> None:
        self._publishers = publishers

    def collect(self) -> Iterator[Metric]:
        stats = {name: publisher.stats() for name, publisher in dict(self._publishers).items()}
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(f"pipeline_publisher_{name}", text, labels=["publisher"])
            for publisher, each in stats.items():
                counter.add_metric([publisher], read(each))
            yield counter
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(f"pipeline_publisher_{name}", text, labels=["publisher"])
            for publisher, each in stats.items():
                gauge.add_metric([publisher], read(each))
            yield gauge
