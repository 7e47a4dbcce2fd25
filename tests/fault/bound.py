"""What I4 allows: how much may run again, from how a trial is set up and how often a worker died or lost its partitions.

What was left uncommitted is no measure by itself: a product that stops committing would allow itself everything.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tests.fault.history import History, Origin, by_origin
from tests.integration.ledger import Mark

INTERVALS = 3
"""The next commit is an interval away, one may be under way, and the broker takes its time with it."""
FOUND_AGAIN_S = 15.0
"""After a node or the network came back: until clients commit again. A silent connection alone is given up after 10 s."""
BURST_S = 2.0
"""Partitions that one worker loses within so long are lost at once."""


def work_max(history: History, concurrency: int, commit_s: float, away_s: float = 0.0) -> int:
    """The most records that one death may repeat: what ran, and what was done since the commit before; at most what the commits
    say. `away_s`: the longest time in which a fault kept commits from the brokers."""
    window_s = INTERVALS * commit_s + (away_s + FOUND_AGAIN_S if away_s else 0.0)
    return min(in_flight_max(history), concurrency + busiest(history.marks, window_s))


def busiest(marks: Iterable[Mark], window_s: float) -> int:
    """The most attempts that began in one process within so long, each where it began first: an owner that does again what the one
    before left uncommitted does so as fast as it can, and must not excuse that by it."""
    first: dict[int, dict[tuple[int, int, int], float]] = defaultdict(dict)
    begun: set[tuple[int, int, int]] = set()
    for mark in sorted(marks, key=lambda mark: mark.at):
        attempt = (mark.partition, mark.offset, mark.attempt)
        if mark.what == "start" and attempt not in begun:
            begun.add(attempt)
            first[mark.pid][attempt] = mark.at
    return max((_most_within(sorted(times.values()), window_s) for times in first.values()), default=0)


def _most_within(times: list[float], window_s: float) -> int:
    low = most = 0
    for high, at in enumerate(times):
        while at - times[low] > window_s:
            low += 1
        most = max(most, high - low + 1)
    return most


def in_flight_max(history: History) -> int:
    """The most records that were at one moment started, and not yet called settled by a stored commit."""
    copies = by_origin(history.lanes)
    events: list[tuple[float, int]] = []
    first: dict[Origin, float] = {}
    for mark in history.marks:
        if mark.what == "start":
            first.setdefault((mark.partition, mark.offset), mark.at)
    for origin, at in first.items():
        events.append((at, 1))
        settled = history.covered_at(origin, copies.get(origin, ())) / 1000
        if settled < math.inf:
            events.append((max(settled, at), -1))
    most = now = 0
    for _, step in sorted(events):
        now += step
        most = max(most, now)
    return most


def losses(lines: Iterable[dict[str, Any]]) -> int:
    """How often the worker of this log lost partitions while it lived: rebalances that it did not agree to."""
    times = sorted(at_of(line) for line in lines if line.get("event") == "partition lost")
    return sum(not before or at - before > BURST_S for before, at in zip([0.0, *times], times, strict=False))


def at_of(line: dict[str, Any]) -> float:
    """When a line was logged (seconds)."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()
