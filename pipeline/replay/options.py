"""How one process takes part in a replay, and what it tells of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.replay.joining import ResultsPlace

WINDOW, WINDOW_FIRST, WINDOW_PART = 50_000, 2_000, 4
"""Records under way: at most so many; at the beginning so many, then that part of what has been done."""
State = Literal["running", "paused", "cancelled", "stopped", "finished"]


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a plan is, by all its processes: `done` records have a result, of `total` (None: nobody counted).

    `seen` of `offsets` were looked at. `rate` is this run's, in results per second; `left_s` is None while nobody can know.
    """

    state: State
    done: int
    total: int | None
    seen: int
    offsets: int
    counts: Mapping[str, int]
    rate: float = 0.0
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Topics and `group` are real names; `join`: beside others who run the plan.

    `window`: looked at before each fetch (of at most 1,000) is sent, so so many records and one fetch more may be without an
    acknowledged result, and are written twice when the process is killed.
    It opens as the run goes on, so that of a small replay few are.
    `stop_after`: end after so many records. `progress` hears of the tally now and then, `alive` is asked: False ends the run.
    `stage` hears of "sent", "acknowledged" and "recorded" (results are in, the commit is not): where tests kill the process.
    """

    group: str
    results: ResultsPlace
    control_topic: str
    who: str
    join: bool = False
    session_timeout_ms: int = 10_000
    protocol: str = "classic"
    window: int = WINDOW
    stop_after: int = 0
    progress: Callable[[Tally], None] = lambda _tally: None
    alive: Callable[[], bool] = lambda: True
    stage: Callable[[str], None] = lambda _name: None


class Meter:
    """Tallies of one run, with its rate over the last while."""

    def __init__(self, total: int | None, offsets: int, now_s: float) -> None:
        self._total, self._offsets = total, offsets
        self._marks: list[tuple[float, int, int]] = []
        self._began_s = now_s

    def tally(self, state: State, counts: Counter[str], seen: int, now_s: float) -> Tally:
        done = sum(counts.values())
        self._marks.append((now_s, done, seen))
        while len(self._marks) > 2 and now_s - self._marks[1][0] > 10.0:
            self._marks.pop(0)
        at, was, had = self._marks[0]
        seconds = now_s - at
        rate = (done - was) / seconds if seconds > 0 else 0.0
        looking = (seen - had) / seconds if seconds > 0 else 0.0
        left_s = 0.0 if state == "finished" else None
        if left_s is None and self._total is not None and rate > 0:
            left_s = max(0.0, (self._total - done) / rate)
        elif left_s is None and looking > 0:
            left_s = max(0.0, (self._offsets - seen) / looking)
        return Tally(state, done, self._total, seen, self._offsets, dict(counts), rate, left_s)
