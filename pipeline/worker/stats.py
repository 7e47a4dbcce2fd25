"""Plain counters of one engine: added to on the hot path, read by whoever exports them (metrics, demo, bench)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.core.delivery import Delivery
from pipeline.model.outcome import FailureKind
from pipeline.worker.histograms import DURATION_BOUNDS_S, LATENCY_BOUNDS_S, Histogram


@dataclass(slots=True)
class Stats:
    """Counts since the start of this process. `hops` is by (lane name, cause: "retry", "wait" or "hop").

    `durations` (of handlers) and `latencies` (publication to done) are samples, see `histograms`.
    """

    processed: int = 0
    warnings: int = 0
    waited_in_memory: int = 0
    fetch_faults: int = 0
    unreadable_batches: int = 0
    amplification_alarms: int = 0
    process_deaths: int = 0
    stalled_jobs: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    hops: Counter[tuple[str, str]] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    durations: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))
    latencies: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))

    def took(self, delivery: Delivery, now_ms: int) -> None:
        """A record is done: from its publication, through every retry, until now. One without a timestamp is left out."""
        headers = delivery.headers
        published_ms = headers.origin_timestamp_ms if headers is not None else delivery.message.timestamp()[1]
        if published_ms > 0:
            self.latencies.observe(max(0, now_ms - published_ms) / 1000)

    def taken(self) -> Stats:
        """What is only true once a transaction is committed: counted anew from here."""
        found = Stats(self.processed, self.warnings, dead=self.dead)
        found.amplification_alarms = self.amplification_alarms
        self.processed = self.warnings = self.amplification_alarms = 0
        self.dead = Counter()
        return found

    def add(self, committed: Stats) -> None:
        self.processed += committed.processed
        self.warnings += committed.warnings
        self.amplification_alarms += committed.amplification_alarms
        self.dead.update(committed.dead)

    def failed(self, kind: str) -> None:
        self.failures[kind] += 1

    def handed_off(self, lane: str, cause: str) -> None:
        self.hops[lane, cause] += 1

    def dead_lettered(self, error_class: str) -> None:
        self.dead[error_class] += 1

    @property
    def timeouts(self) -> int:
        """Attempts that took too long: coroutines, threads and batches alike."""
        return self.failures[FailureKind.TIMED_OUT.value]

    @property
    def amplification(self) -> float:
        """Hand-offs of successors per retried record: what keeping order through retries costs."""
        retries = sum(count for (_, cause), count in self.hops.items() if cause == "retry")
        waits = sum(count for (_, cause), count in self.hops.items() if cause == "wait")
        return waits / retries if retries else 0.0
