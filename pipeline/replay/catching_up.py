"""A group on its way through past records to live ones: how much is done, how fast, how long it takes, and whether it is there. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_MS = 15_000
LIVE_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a group's source topic: records not settled, the sum of the partitions' ends, and members of the group."""

    at_ms: int
    lag: int
    end: int
    members: int


@dataclass(frozen=True, slots=True)
class Way:
    """How far the group has come. `total` is the lag at the start; rates are per second; `left_s` is None while nobody can know."""

    total: int
    done: int
    lag: int
    rate: float
    incoming: float
    left_s: float | None
    members: int
    live: bool


class CatchUp:
    """Feed it one `Sight` after the other."""

    def __init__(self, first: Sight) -> None:
        self._first = first
        self._seen: deque[Sight] = deque((first,))

    def observe(self, sight: Sight) -> Way:
        """Live: somebody works, and no more waits than comes in within `LIVE_WITHIN_S`."""
        seen = self._seen
        seen.append(sight)
        while len(seen) > 2 and sight.at_ms - seen[1].at_ms >= WINDOW_MS:
            seen.popleft()
        oldest = seen[0]
        seconds = (sight.at_ms - oldest.at_ms) / 1000
        rate = _per_second(_settled(sight) - _settled(oldest), seconds)
        incoming = _per_second(sight.end - oldest.end, seconds)
        gaining = rate - incoming
        left_s = 0.0 if not sight.lag else sight.lag / gaining if gaining > 0 else None
        done = min(self._first.lag, max(0, _settled(sight) - _settled(self._first)))
        live = sight.members > 0 and sight.lag <= incoming * LIVE_WITHIN_S
        return Way(self._first.lag, done, sight.lag, rate, incoming, left_s, sight.members, live)


def _settled(sight: Sight) -> int:
    """Up to a constant: what came in and does not wait."""
    return sight.end - sight.lag


def _per_second(count: int, seconds: float) -> float:
    return max(0.0, count / seconds) if seconds > 0 else 0.0
