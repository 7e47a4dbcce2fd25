"""What a views process counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

RECORDS = Counter(
    "pipeline_views_records", "Source records by what became of them: counted, seen, dead_letter.", ["result"]
)
WRITES = Counter(
    "pipeline_views_writes", "Records written, by kind: changelog, summary, partial, rate, dead_letter.", ["kind"]
)
EVICTED = Counter("pipeline_views_evicted", "Table entries forgotten because their last event is older than keep_days.")
PARTITIONS = Gauge(
    "pipeline_views_source_partitions", "Source partitions this process owns; 0 means it is not consuming."
)
