"""Until when executions may run: a line and a timer for those that may take equally long.

Of those the first to begin is the first that is late. A timer for each execution would cost more than many a job does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pipeline.worker.jobs.runs import Run

SLACK = 1_000
"""So many that have ended, beside those that run, may stand in a line before they are taken out of it."""


class _Line:
    __slots__ = ("open", "runs", "timer")

    def __init__(self) -> None:
        self.runs: deque[Run] = deque()
        self.open = 0
        self.timer: asyncio.TimerHandle | None = None


class Deadlines:
    """Owned by the loop's thread. `late` hears of each execution that has not ended in its time, once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[Run], None]) -> None:
        self._loop = loop
        self._late = late
        self._lines: dict[int, _Line] = {}

    def begin(self, run: Run) -> None:
        """Its time begins."""
        line = self._lines.get(run.timeout_ms)
        if line is None:
            line = self._lines[run.timeout_ms] = _Line()
        run.deadline_s = self._loop.time() + run.timeout_ms / 1000
        line.runs.append(run)
        line.open += 1
        if line.timer is None:
            line.timer = self._loop.call_at(run.deadline_s, self._ring, line)

    def end(self, run: Run) -> None:
        """It has its ending."""
        if not run.deadline_s:
            return
        run.deadline_s = 0.0
        line = self._lines[run.timeout_ms]
        line.open -= 1
        runs = line.runs
        while runs and not runs[0].deadline_s:
            runs.popleft()
        if len(runs) > 2 * line.open + SLACK:
            line.runs = deque(each for each in runs if each.deadline_s)
        if not line.open:
            self._close(run.timeout_ms, line)

    def _ring(self, line: _Line) -> None:
        line.timer = None
        now_s, late = self._loop.time(), []
        for run in line.runs:
            if run.deadline_s > now_s:
                line.timer = self._loop.call_at(run.deadline_s, self._ring, line)
                break
            if run.deadline_s:
                late.append(run)
        for run in late:
            self.end(run)
            self._late(run)

    def _close(self, timeout_ms: int, line: _Line) -> None:
        if line.timer is not None:
            line.timer.cancel()
        del self._lines[timeout_ms]

    def stop(self) -> None:
        for line in self._lines.values():
            if line.timer is not None:
                line.timer.cancel()
        self._lines.clear()
