"""How far the replay of one partition is: what travels in the commit's text beside the offset, so that any process can go on.

{"v":1, "r": where to read results from, "t": done of those sent last, "n": {outcome: count}, "s": records looked at}
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

from pipeline.model.cluster import Position

VERSION = 1


@dataclass(slots=True)
class Done:
    """Of one partition: `offset` is the next to look at, `last` how many of the plan's `last` records are through,
    `results_from` an offset on the results topic before which every result is counted here."""

    offset: int
    last: int = 0
    results_from: int = -1
    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def position(self) -> Position:
        text = {"v": VERSION, "r": self.results_from, "t": self.last, "s": self.seen, "n": dict(self.counts)}
        return Position(self.offset, json.dumps(text, separators=(",", ":"), sort_keys=True))

    def complete(self, end: int, last: int) -> bool:
        return self.offset >= end and self.last >= last


def done_of(position: Position | None, start: int) -> Done:
    """What was committed; from the start where nothing was. A text that is not ours tells nothing beyond the offset."""
    if position is None:
        return Done(start)
    try:
        found = json.loads(position.metadata or "{}")
        counts = Counter({str(name): int(count) for name, count in dict(found.get("n", {})).items()})
        return Done(position.offset, int(found.get("t", 0)), int(found.get("r", -1)), int(found.get("s", 0)), counts)
    except (ValueError, TypeError, AttributeError):
        return Done(position.offset)
