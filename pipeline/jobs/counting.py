"""What ended, counted by minute while the entries of a store pass by: it outlives the jobs themselves, of which few are kept."""

from __future__ import annotations

import sqlite3
from collections import defaultdict

from pipeline.jobs.latencies import class_of
from pipeline.jobs.rows import DUPLICATE, JobRow
from pipeline.model.job_states import TERMINAL, JobState

MINUTE_MS = 60_000
KEPT_MINUTES = 60
"""So long nothing is compacted away in a store (min.compaction.lag.ms), and every ending is seen."""
RETRIED, STALLED = "retried", "stalled"
ENDED = frozenset(state.value for state in TERMINAL)
_RETRYING = JobState.RETRYING.value

Before = tuple[str, int, int]
"""State, version and stalls of a job as it was known."""


class Counting:
    """Endings of one batch, on their way to the table."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str, str, int], list[int]] = defaultdict(lambda: [0, 0])

    def count(self, row: JobRow, before: Before | None, written_ms: int | None) -> None:
        """An entry may be written twice (once more when its dead letter is acknowledged): it counts once. `written_ms` is None of one that
        says nothing new: when it retried or stalled, which only the time of writing tells, is not known any more."""
        if row.state == DUPLICATE:
            return
        if written_ms is not None and row.stalls > (0 if before is None else before[2]):
            self._add(written_ms, row.type, STALLED, 0)
        if before is not None and before[:2] == (row.state, row.version):
            return
        if row.state in ENDED:
            latency_ms = max(0, row.finished_ms - max(row.created_ms, row.due_ms))
            self._add(row.finished_ms, row.type, row.state, latency_ms)
        elif row.state == _RETRYING and written_ms is not None:
            self._add(written_ms, row.type, RETRIED, 0)

    def _add(self, at_ms: int, type_name: str, outcome: str, latency_ms: int) -> None:
        found = self._counts[at_ms // MINUTE_MS, type_name, outcome, class_of(latency_ms)]
        found[0] += 1
        found[1] += latency_ms

    def write(self, db: sqlite3.Connection) -> None:
        if not self._counts:
            return
        db.executemany(
            "INSERT INTO endings VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count, "
            "latency_ms = latency_ms + excluded.latency_ms",
            [(*place, *found) for place, found in self._counts.items()],
        )
        newest = max(minute for minute, _, _, _ in self._counts)
        db.execute("DELETE FROM endings WHERE minute < ?", (newest - 2 * KEPT_MINUTES,))
