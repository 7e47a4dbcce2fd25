"""What a queue's executor has done and has at hand, for whoever exports it: plain counts, read from any thread.

The hot path counts endings and looks at one job of each step; how many stand where is counted when somebody asks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.job import Job
from pipeline.model.jobs import Completed, JobEnding
from pipeline.worker.histograms import DURATION_BOUNDS_S, LATENCY_BOUNDS_S, Histogram


@dataclass(slots=True)
class Census:
    """Jobs by (type, state), and since when the oldest of a type has been due that did not start; `schedules` in all."""

    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    oldest_ms: dict[str, int] = field(default_factory=dict)
    schedules: int = 0


class Tally:
    """`failures`: attempts that failed, by (type, kind). Histograms are of a sample: see `sample`."""

    def __init__(self) -> None:
        self.failures: Counter[tuple[str, str]] = Counter()
        self.durations: dict[str, Histogram] = defaultdict(lambda: Histogram(DURATION_BOUNDS_S))
        self.latencies: dict[str, Histogram] = defaultdict(lambda: Histogram(LATENCY_BOUNDS_S))
        self._of_others: Counter[tuple[str, str]] = Counter()

    def sample(self, job: Job, ending: JobEnding, now_ms: int) -> None:
        """The first ending that a step hears of a partition: at low rates every one."""
        request = job.request
        if request is None or not job.started_ms:
            return
        self.durations[request.type].observe(max(0, now_ms - job.started_ms) / 1000)
        if isinstance(ending, Completed):
            due_ms = max(request.created_ms, request.due_ms)
            self.latencies[request.type].observe(max(0, now_ms - due_ms) / 1000)

    def dropped(self, board: Board) -> None:
        """It is someone else's from now on. What it did was done here all the same: counters never go back."""
        self._of_others.update(_endings(board))

    def endings(self, boards: Iterable[Board]) -> Counter[tuple[str, str]]:
        """By (type, outcome), since the start of this process."""
        found = Counter(self._of_others)
        for board in boards:
            found.update(_endings(board))
        return found


def _endings(board: Board) -> dict[tuple[str, str], int]:
    return {
        (kind.name, outcome): count
        for kind in list(board.kinds.values())
        for outcome, count in list(kind.ended.items())
    }


def census(boards: Iterable[Board]) -> Census:
    """A million jobs take a fifth of a second, in the thread of whoever asks."""
    found = Census()
    for board in boards:
        found.schedules += len(board.schedules.by_name)
        for job in list(board.jobs.values()):
            if not isinstance(job, Job):
                continue
            name = job.kind.name
            state = job.state._value_
            found.states[name, state] += 1
            if state == "queued" and job.ready_ms < found.oldest_ms.get(name, 1 << 60):
                found.oldest_ms[name] = job.ready_ms
    return found
