"""When executions are to be stopped, without a timer for each: those with the same timeout end in the order in which they began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pipeline.worker.jobs.runs import Run


class _Line:
    """Executions of one timeout, the first one first."""

    __slots__ = ("runs", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.runs: dict[Run, float] = {}


class Deadlines:
    """`late` is called for each execution that is still under way at its time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[Run], None]) -> None:
        self._loop = loop
        self._late = late
        self._lines: dict[int, _Line] = {}
        self._timers: dict[_Line, asyncio.TimerHandle] = {}

    def begin(self, run: Run) -> None:
        line = self._lines.get(run.timeout_ms)
        if line is None:
            line = self._lines[run.timeout_ms] = _Line(run.timeout_ms / 1000)
            self._timers[line] = self._loop.call_later(line.timeout_s, self._look, run.timeout_ms, line)
        line.runs[run] = self._loop.time() + line.timeout_s

    def end(self, run: Run) -> None:
        line = self._lines.get(run.timeout_ms)
        if line is not None:
            line.runs.pop(run, None)

    def _look(self, timeout_ms: int, line: _Line) -> None:
        now_s, late, next_s = self._loop.time(), list[Run](), None
        for run, at_s in line.runs.items():
            if at_s > now_s:
                next_s = at_s
                break
            late.append(run)
        if next_s is not None:
            self._timers[line] = self._loop.call_later(next_s - now_s, self._look, timeout_ms, line)
        else:
            del self._lines[timeout_ms], self._timers[line]
        for run in late:
            line.runs.pop(run, None)
            self._late(run)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._lines.clear()
        self._timers.clear()
