"""Durations as people write them ("10s", "2m") and as the code holds them (integer milliseconds)."""

from __future__ import annotations

import re

from pipeline.model.errors import ConfigurationError

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_MAX_MS = 100_000 * 86_400_000
_PATTERN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")


def parse_duration_ms(text: str | float, setting: str = "duration") -> int:
    """Milliseconds of "250ms", "10s", "2m", "1.5h", "7d", or of a plain number of seconds.

    Raises `ConfigurationError` naming `setting`.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        exact_ms = text * 1000
    else:
        match = _PATTERN.match(str(text))
        if match is None:
            raise ConfigurationError(
                f"{setting}={text!r} is not a duration: write a number with ms, s, m, h or d, such as '10s'"
            )
        exact_ms = float(match[1]) * _UNIT_MS[match[2]]
    if exact_ms < 0:
        raise ConfigurationError(f"{setting}={text!r:.80} is negative: a duration is zero or more")
    if not exact_ms <= _MAX_MS:  # also when it is not a number
        raise ConfigurationError(f"{setting}={text!r:.80} is too long: a duration is at most 100,000 days")
    return round(exact_ms)


def format_duration(ms: int) -> str:
    """The shortest exact text: 90_000 -> "90s", 600_000 -> "10m"; what tier topics are named by."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _UNIT_MS[unit] == 0:
            return f"{ms // _UNIT_MS[unit]}{unit}"
    return f"{ms}ms"
