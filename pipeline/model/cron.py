"""Cron expressions with a time zone, as exact instants: when the next tick is, and which was the last.

Expressions are parsed by `cronsim` (pure, no dependencies; written for Healthchecks and what Sentry changed to from croniter, whose
ticks are wrong around changes of the clock). Five fields, or six with seconds first. Ticks follow Debian's cron: an expression that
names its hours and minutes runs once when the clock is put back, and right after the gap when it is put forward; one with a star for
minutes or hours, or with seconds, follows real time. The rules of zones are read once from the machine's database (else from `tzdata`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from pipeline.model.errors import ConfigurationError
from pipeline.model.instants import epoch_ms_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 200
_SPREAD = 8


class Misfire(enum.Enum):
    """What becomes of ticks that nobody was there to fire in time."""

    SKIP = "skip"
    ONCE = "once"
    """The last one fires, for all of them."""
    ALL = "all"


class Cron:
    """A checked expression in its zone. The same question has the same answer always; nothing here looks at a clock."""

    __slots__ = ("_utc", "_zone", "expression")

    def __init__(self, expression: str, zone: str = "UTC", setting: str = "cron") -> None:
        """Raises `ConfigurationError` naming the setting."""
        self.expression = expression
        self._zone = zone_of(zone)
        self._utc = zone == "UTC"
        if not isinstance(expression, str) or len(expression) > _LONGEST:
            raise ConfigurationError(f"{setting}={expression!r:.80} is not a cron expression: {_HOW}")
        try:
            CronSim(expression, _EPOCH)
        except (CronSimError, AssertionError, TypeError, ValueError) as error:
            said = f" ({error})" if isinstance(error, CronSimError) else ""
            raise ConfigurationError(f"{setting}={expression!r} is not a cron expression{said}: {_HOW}") from None
        if self.next_after(0) is None:
            raise ConfigurationError(f"{setting}={expression!r} never comes: no date fits it")

    def _ticks(self, after_ms: int) -> Iterator[int]:
        """All ticks after this instant, in order, none twice (an hour that is there twice gives those of its first time again)."""
        moment = _EPOCH + timedelta(milliseconds=after_ms)
        last_ms = after_ms
        for tick in CronSim(self.expression, moment if self._utc else moment.astimezone(self._zone)):
            tick_ms = epoch_ms_of(tick)
            if tick_ms > last_ms:
                last_ms = tick_ms
                yield tick_ms

    def next_after(self, after_ms: int) -> int | None:
        """The first tick after this instant; None when there is none within 50 years, or before the calendar ends."""
        try:
            return next(self._ticks(after_ms), None)
        except (OverflowError, ValueError):
            return None

    def between(self, after_ms: int, until_ms: int, most: int) -> list[int]:
        """Ticks after the first instant, up to and with the second, oldest first, at most so many."""
        return list(islice(takewhile(until_ms.__ge__, self._ticks(after_ms)), most))

    def last_between(self, after_ms: int, until_ms: int) -> int | None:
        """The last tick of those; looked for from the end, so that a year of missed minutes is no work."""
        span_ms = 1_000
        while True:
            start_ms = max(after_ms, until_ms - span_ms)
            last_ms = None
            for tick_ms in takewhile(until_ms.__ge__, self._ticks(start_ms)):
                last_ms = tick_ms
            if last_ms is not None or start_ms == after_ms:
                return last_ms
            span_ms *= _SPREAD


_HOW = (
    "write minute, hour, day, month and weekday, such as '0 9 * * MON-FRI', with seconds before them if you need them"
)


def zone_of(name: str) -> ZoneInfo:
    """The zone, or a `ConfigurationError`."""
    try:
        return ZoneInfo(name)
    except (OSError, TypeError, ValueError, LookupError):
        raise ConfigurationError(
            f"zone={name!r} is not a time zone that is known here: write a name such as 'Europe/Zurich' or 'UTC'"
        ) from None
