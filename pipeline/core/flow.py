"""Bounds with hysteresis, and the guard against a flood of dead letters."""

from __future__ import annotations

from collections import deque


class Gate:
    """Closes when a level reaches `high`, opens again when it has fallen to `low`: no flapping at the bound."""

    __slots__ = ("closed", "high", "low")

    def __init__(self, high: int, low: int | None = None) -> None:
        self.high = high
        self.low = high // 2 if low is None else low
        self.closed = False

    def update(self, level: int) -> bool:
        """The new state: True = closed."""
        self.closed = level > self.low if self.closed else level >= self.high
        return self.closed


class FloodGuard:
    """Trips when more than `limit` dead letters are written within `window_ms`; stays tripped until reset (0 = never trips)."""

    __slots__ = ("_times", "limit", "tripped", "window_ms")

    def __init__(self, limit: int, window_ms: int) -> None:
        self.limit = limit
        self.window_ms = window_ms
        self.tripped = False
        self._times: deque[int] = deque()

    def count(self, now_ms: int) -> bool:
        """One more dead letter; True when this one trips the guard."""
        if not self.limit or self.tripped:
            return False
        times = self._times
        times.append(now_ms)
        while times and times[0] <= now_ms - self.window_ms:
            times.popleft()
        self.tripped = len(times) > self.limit
        return self.tripped

    def reset(self) -> None:
        self.tripped = False
        self._times.clear()
