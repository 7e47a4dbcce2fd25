"""How a queue does, by type of job: what waits, runs and ended, how fast, how well, and how old the oldest is."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.jobs.counting import ENDED, KEPT_MINUTES, MINUTE_MS, RETRIED, STALLED
from pipeline.jobs.latencies import percentile
from pipeline.jobs.rows import DUPLICATE
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_states import SUCCEEDED, JobState

LAST_MS_MAX = KEPT_MINUTES * MINUTE_MS
_GOOD = frozenset(state.value for state in SUCCEEDED)
_BAD = frozenset({JobState.FAILED.value, JobState.DEAD_LETTER.value})


@dataclass(frozen=True, slots=True)
class TypeStats:
    """`waiting`: due, and not started; `delayed`: for their time, retries among them. `completed`, `failed`, `cancelled`, `dead_letter`
    are those that the store still keeps; the `ended_` ones are all that had their ending within the span that was asked for.

    `error_rate`: given-up ones among those that completed or were given up. Latency: from when a job was due first until its ending,
    retries included, of those that completed. `oldest_ms`: how long the oldest of those that wait has been due.
    """

    type: str
    waiting: int = 0
    active: int = 0
    delayed: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    dead_letter: int = 0
    ended: int = 0
    ended_well: int = 0
    ended_badly: int = 0
    per_minute: float = 0.0
    retried: int = 0
    stalled: int = 0
    error_rate: float | None = None
    latency_mean_ms: float | None = None
    latency_p50_ms: int | None = None
    latency_p99_ms: int | None = None
    oldest_ms: int | None = None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """`inbox`: asked for, and not written down by a worker yet: they wait to be admitted, or are short and on their way.

    `inbox_oldest_ms`: for how long the oldest of those. `span_ms`: what `ended` and all rates are about.
    """

    queue: str
    at_ms: int
    span_ms: int
    inbox: int
    inbox_oldest_ms: int | None
    total: TypeStats
    types: tuple[TypeStats, ...]


def check_span(span_ms: int, setting: str = "last") -> int:
    if not MINUTE_MS <= span_ms <= LAST_MS_MAX:
        raise ConfigurationError(
            f"{setting} must be from 1m to {KEPT_MINUTES}m: a store is certain to have seen every ending for so long"
        )
    return span_ms


def stats(db: sqlite3.Connection, now_ms: int, span_ms: int) -> tuple[TypeStats, tuple[TypeStats, ...]]:
    """Of all types together, and of each."""
    rows = db.execute(
        "SELECT type, state, count(*), min(ready_ms) FROM jobs WHERE state != ? GROUP BY type, state", (DUPLICATE,)
    ).fetchall()
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    oldest: dict[str, int] = {}
    for type_name, state, number, ready_ms in rows:
        counts[type_name][state] = number
        if state == JobState.QUEUED.value:
            oldest[type_name] = ready_ms
    ended = _ended(db, now_ms, span_ms)
    names = sorted({*counts, *ended})
    each = tuple(
        _type_stats(name, [counts.get(name, {})], [ended.get(name, {})], oldest.get(name), now_ms, span_ms)
        for name in names
    )
    total = _type_stats("", counts.values(), ended.values(), min(oldest.values(), default=None), now_ms, span_ms)
    return total, each


_Ended = Mapping[str, Mapping[int, tuple[int, int]]]
"""By outcome and class of latency: how many, and their latencies added up."""


def _first_minute(now_ms: int, span_ms: int) -> int:
    """Endings are counted by whole minutes: the span begins with the one that its begin lies in."""
    return (now_ms - span_ms) // MINUTE_MS


def _ended(db: sqlite3.Connection, now_ms: int, span_ms: int) -> dict[str, dict[str, dict[int, tuple[int, int]]]]:
    first = _first_minute(now_ms, span_ms)
    found: dict[str, dict[str, dict[int, tuple[int, int]]]] = defaultdict(lambda: defaultdict(dict))
    question = (
        "SELECT type, outcome, class, sum(count), sum(latency_ms) FROM endings WHERE minute >= ? GROUP BY 1, 2, 3"
    )
    for type_name, outcome, number, many, latency_ms in db.execute(question, (first,)):
        found[type_name][outcome][number] = (many, latency_ms)
    return found


def _type_stats(
    name: str,
    counts: Iterable[Mapping[str, int]],
    ended: Iterable[_Ended],
    oldest_ms: int | None,
    now_ms: int,
    span_ms: int,
) -> TypeStats:
    counts, ended = list(counts), list(ended)

    def kept(*states: JobState) -> int:
        return sum(each.get(state.value, 0) for each in counts for state in states)

    def of(outcomes: Iterable[str]) -> int:
        return sum(many for each in ended for outcome in outcomes for many, _ in each.get(outcome, {}).values())

    good, bad, all_ended = of(_GOOD), of(_BAD), of(ENDED)
    classes: dict[int, int] = defaultdict(int)
    latency_ms = 0
    for each in ended:
        for outcome in _GOOD:
            for number, (many, added_ms) in each.get(outcome, {}).items():
                classes[number] += many
                latency_ms += added_ms
    minutes = now_ms / MINUTE_MS - _first_minute(now_ms, span_ms)
    return TypeStats(
        type=name,
        waiting=kept(JobState.QUEUED),
        active=kept(JobState.RUNNING),
        delayed=kept(JobState.SCHEDULED, JobState.RETRYING, JobState.WAITING),
        completed=kept(*SUCCEEDED),
        failed=kept(JobState.FAILED),
        cancelled=kept(JobState.CANCELLED),
        dead_letter=kept(JobState.DEAD_LETTER),
        ended=all_ended,
        ended_well=good,
        ended_badly=bad,
        per_minute=round(all_ended / minutes, 2),
        retried=of([RETRIED]),
        stalled=of([STALLED]),
        error_rate=round(bad / (good + bad), 4) if good + bad else None,
        latency_mean_ms=round(latency_ms / good, 1) if good else None,
        latency_p50_ms=percentile(classes, 0.50),
        latency_p99_ms=percentile(classes, 0.99),
        oldest_ms=None if not oldest_ms else max(0, now_ms - oldest_ms),
    )
