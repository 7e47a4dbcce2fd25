"""One lane of a unit at work."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pipeline.core.delivery import Delivery
from pipeline.core.effects import LaneSpec
from pipeline.core.offsets import OffsetTracker


@dataclass(slots=True)
class Lane:
    """A lane at work: offsets, look-ahead in due order, and the latest due time written or read (rule b).

    `landed`: hand-offs that were acknowledged are below this offset.
    """

    spec: LaneSpec
    tracker: OffsetTracker[Delivery]
    fence: int = 0
    last_due_ms: int = 0
    landed: int = 0
    look_ahead: deque[Delivery] = field(default_factory=deque)
