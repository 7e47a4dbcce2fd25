"""Counting what goes by: wall and CPU time between a warm-up and the end of one measurement."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

WARM_PART = 10


class Meter:
    """Counts records up to `records`; the first tenth is warm-up. `finished` is called once, in the counting thread."""

    def __init__(self, records: int, finished: Callable[[], object]) -> None:
        self.count = 0
        self.records = records
        self.finished: Callable[[], object] = finished
        self._ticks = itertools.count(1)  # safe between the threads of `def` handlers, as an addition is not
        self._warm = max(1, records // WARM_PART)
        self._from = self._to = (0, 0.0, 0.0)
        self._next = self._warm

    def tick(self) -> None:
        self.count = count = next(self._ticks)
        if count == self._next:
            self._mark()

    def add(self, many: int) -> None:
        self.count += many
        if self.count >= self._next:
            self._mark()

    def _mark(self) -> None:
        now = (self.count, time.perf_counter(), time.process_time())
        if self._next == self._warm:
            self._from, self._next = now, self.records
        else:
            self._to, self._next = now, 1 << 62
            self.finished()

    def result(self) -> dict[str, Any]:
        """`rate` in records per second, `cpu_us` per record (all threads of this process)."""
        count = self._to[0] - self._from[0]
        wall, cpu = self._to[1] - self._from[1], self._to[2] - self._from[2]
        return {"rate": count / wall, "cpu_us": cpu / count * 1e6, "records": count}
