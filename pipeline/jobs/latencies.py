"""Times counted in classes, a quarter of a doubling wide, so that percentiles of many of them come out of few numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2

WIDTH = 4
"""Classes for each doubling: what is said of a time is at most a fifth too high."""


def class_of(ms: int) -> int:
    return 0 if ms < 1 else 1 + int(WIDTH * log2(ms))


def upper_ms(number: int) -> int:
    """The longest time of a class."""
    return 0 if number < 1 else round(2 ** (number / WIDTH))


def percentile(counts: Mapping[int, int], share: float) -> int | None:
    """The time in milliseconds that this share of them did not take longer than; None when there are none."""
    wanted = share * sum(counts.values())
    seen = 0
    for number in sorted(counts):
        seen += counts[number]
        if seen and seen >= wanted:
            return upper_ms(number)
    return None
