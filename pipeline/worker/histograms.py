"""Histograms as plain counts: one owner adds, whoever exports them reads. Sampled, because looking at the clock twice a record costs.

What is sampled: with `async def` handlers the first record of a runner's turn (a turn is 200 records, or fewer when it runs
out of work), with `def` handlers the first record of a chunk, with batch handlers every call. So at low rates every record.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0)


class Histogram:
    """Counts by upper bound (seconds), the last one without."""

    __slots__ = ("bounds", "counts", "sum_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus has it; of one moment, also when read from another thread."""
        totals = accumulate(list(self.counts))
        return [(bound, float(total)) for bound, total in zip([*map(str, self.bounds), "+Inf"], totals, strict=True)]
