"""Moments in the past as people write them: ISO 8601 with or without a zone (then UTC), or an age such as "2h" or "PT2H"."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.instants import epoch_ms_of

_ISO_AGE = re.compile(
    r"^P(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?$", re.IGNORECASE
)  # what Java's Duration reads, which Kafka's own tool takes


def parse_moment_ms(text: str, setting: str, now_ms: int) -> int:
    """Milliseconds since the epoch of "2026-11-22T17:00:00", "... 17:00Z", "...+02:00" or "2026-11-22".

    Raises `ConfigurationError` naming `setting`, also for a moment after `now_ms`.
    """
    try:
        at_ms = epoch_ms_of(datetime.fromisoformat(text.strip()))
    except ValueError:
        raise ConfigurationError(
            f"{setting} {text!r:.80} is not a time: write it as ISO 8601, such as 2026-11-22T17:00:00Z (without a zone it is UTC)"
        ) from None
    if at_ms > now_ms:
        now = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="seconds")
        raise ConfigurationError(f"{setting} {text!r:.80} is in the future (it is {now} now): no record is that new")
    return at_ms


def parse_age_ms(text: str, setting: str) -> int:
    """Milliseconds of "2h" (see `parse_duration_ms`), or of the ISO form "P1DT2H30M" that Kafka's own tool takes."""
    found = _ISO_AGE.match(text.strip())
    if found is None or not any(found.groups()):
        return parse_duration_ms(text, setting)
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return parse_duration_ms(days * 86_400 + hours * 3_600 + minutes * 60 + seconds, setting)
