"""How many records may go out now, at a rate per second. Pure: the time is an argument, in seconds."""

from __future__ import annotations

BURST_S = 0.25
"""So much of a second's records may go out at once, at least one."""


def batch_records(rate: float, most: int) -> int:
    """How many records may go out together at that rate, so that it is kept also over short times."""
    return max(1, min(most, int(rate * BURST_S))) if rate else most


class Pace:
    """`rate` 0: without bound."""

    def __init__(self, rate: float, now_s: float) -> None:
        self._rate = rate
        self._at_s = now_s
        self._allowed = 0.0

    def set(self, rate: float, now_s: float) -> None:
        """Another share of the rate from now on."""
        self.allowed(now_s)
        self._rate = rate

    @property
    def bounded(self) -> bool:
        return self._rate > 0

    def allowed(self, now_s: float) -> int:
        """How many may go out now."""
        if not self._rate:
            return 1 << 30
        self._allowed += (now_s - self._at_s) * self._rate
        self._allowed = min(self._allowed, max(1.0, self._rate * BURST_S))
        self._at_s = now_s
        return int(self._allowed)

    def spent(self, records: int) -> None:
        if self._rate:
            self._allowed -= records
