"""Which sequences of a run were seen, as a bounded list of ranges: what makes folding an event twice harmless.

A run numbers its events from 0, so a run without gaps is one range, however long it is. Ranges are `[first, last]`,
ascending, with a gap between neighbours. Past `MAX_RANGES` the lowest gap is closed: an event that would have filled
it counts as seen (dropped rather than counted twice).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

Ranges = list[list[int]]

MAX_RANGES = 64


def seen(ranges: Sequence[Sequence[int]], sequence: int) -> bool:
    """Whether `sequence` lies in a range. The usual case, one past the end, costs one comparison."""
    if not ranges or sequence > ranges[-1][1]:
        return False
    at = bisect_right(ranges, sequence, key=lambda pair: pair[0]) - 1
    return at >= 0 and sequence <= ranges[at][1]


def add(ranges: Sequence[Sequence[int]], sequence: int) -> Ranges:
    """The ranges with `sequence` in them; the argument is left as it is."""
    out = [list(pair) for pair in ranges]
    at = bisect_right(out, sequence, key=lambda pair: pair[0])
    if at and sequence <= out[at - 1][1]:
        return out
    joins_left = at > 0 and out[at - 1][1] == sequence - 1
    joins_right = at < len(out) and out[at][0] == sequence + 1
    if joins_left and joins_right:
        out[at - 1][1] = out.pop(at)[1]
    elif joins_left:
        out[at - 1][1] = sequence
    elif joins_right:
        out[at][0] = sequence
    else:
        out.insert(at, [sequence, sequence])
    if len(out) > MAX_RANGES:
        out[0][1] = out.pop(1)[1]
    return out
