"""One lane of a unit at work."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pipeline.core.delivery import Delivery
from pipeline.core.effects import LaneSpec
from pipeline.core.offsets import OffsetTracker

NOWHERE = 2**63 - 1
"""Where a hand-off has landed of which the broker tells no offset (exactly_once, or it had it already): none is behind it for certain."""
LOOK_AGAIN_MS = 500
ARRIVES_WITHIN_MS = 60_000
"""Records behind it bring it to an end at once: only a log of which nothing is left that far says nothing at all."""


@dataclass(slots=True)
class Lane:
    """A lane at work: offsets, look-ahead in due order, and the latest due time written or read (rule b).

    `damaged`: of batches that can't be read and end below this offset the rebuild knows already.
    `landed`: hand-offs that were acknowledged are below this offset.
    """

    spec: LaneSpec
    tracker: OffsetTracker[Delivery]
    fence: int = 0
    last_due_ms: int = 0
    damaged: int = 0
    landed: int = 0
    look_ahead: deque[Delivery] = field(default_factory=deque)

    def release(self, now_ms: int, ready: deque[Delivery], awaited: int | None) -> int | None:
        """What is due goes to `ready`; gives when the next one should be looked at (None: nothing waits here).

        `awaited`: nothing of a higher origin, see `Arriving`.
        """
        look_ahead = self.look_ahead
        while look_ahead:
            first = look_ahead[0]
            if first.due_ms > now_ms:
                return first.due_ms
            if awaited is not None and first.identity.origin > awaited:
                return now_ms + LOOK_AGAIN_MS
            ready.append(look_ahead.popleft())
        return None


class Arriving:
    """What the source still has to bring when a unit opens: open offsets below those that its lanes hold copies of (rule a).

    Hand-offs of a key are written in its order, but one that was refused is written again behind those after it. When the owner
    dies then, the fence may fall between the two: its successors are in the lane and it is not. It comes from the source, and until
    then nobody knows its key, so no lane gives a record of a higher origin.
    """

    __slots__ = ("_tracker", "_until_ms")

    def __init__(self, tracker: OffsetTracker[Delivery]) -> None:
        self._tracker = tracker
        self._until_ms: int | None = None

    def first(self, now_ms: int) -> int | None:
        """The lowest of them; None when all are here, or the log has not brought it for so long that it does not hold it any more."""
        first = self._tracker.first_restored
        if first is None:
            return None
        if self._until_ms is None:
            self._until_ms = now_ms + ARRIVES_WITHIN_MS
        return first if now_ms < self._until_ms else None
