"""The health of one subscription in one process: does it consume, and if not, why not; what hangs, what runs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.worker.worker import Running


def health_of(running: Running) -> dict[str, Any]:
    engine = running.engine
    why = ""
    if engine.broken is not None:
        why = f"stopped by an error: {engine.broken!r}"
    elif running.driver.done:
        why = "the poll thread has ended"
    elif engine.paused:
        why = "paused: too many dead letters" if engine.flood.tripped else "paused by an operator"
    elif engine.refused or engine.stuck:
        partition, error = next(iter((engine.refused or engine.stuck).items()))
        why = f"partition {partition}: {error}" if partition >= 0 else str(error)
    elif trouble := getattr(engine.executor, "trouble", ""):
        why = trouble
    elif not running.driver.recent:
        why = "the poll thread does not answer"
    return {
        "consuming": not why,
        "why": why,
        "partitions": sorted(engine.partitions),
        "running": engine.executor.running(),
        "stalled": engine.stalls.seen(),
        "suspects": engine.quarantine.by_partition(),
        "parked": sum(len(unit.parking) for unit in list(engine.partitions.values())),
        "processed": engine.stats.processed,
    }
