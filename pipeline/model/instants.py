"""Instants as the code holds them: integer milliseconds since the epoch, counted exactly and never through a float."""

from __future__ import annotations

from datetime import UTC, datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def epoch_ms_of(moment: datetime) -> int:
    """Without a zone it is UTC; parts of a millisecond are cut off."""
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000
