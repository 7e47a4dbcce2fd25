"""Plain counters of one engine: added to on the hot path, read by whoever exports them (metrics, demo, bench)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.model.outcome import FailureKind


@dataclass(slots=True)
class Stats:
    """Counts since the start of this process. `hops` is by (lane name, cause: "retry", "wait" or "hop")."""

    processed: int = 0
    warnings: int = 0
    waited_in_memory: int = 0
    fetch_faults: int = 0
    amplification_alarms: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    hops: Counter[tuple[str, str]] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)

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
