"""What is known of one trial when it is over: read from the topics, from the group's commits, and from the handlers' ledger."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.core.progress import Progress
from tests.integration.ledger import Mark

Origin = tuple[int, int]
"""Partition and offset in the source topic."""


class Sent(NamedTuple):
    """A record that the load published and the cluster acknowledged. `emits`: its handler writes an output."""

    number: int
    key: str
    emits: bool = False


class Copy(NamedTuple):
    """A copy in a lane or in the dead letters. `written_ms` is the broker's time."""

    topic: str
    partition: int
    offset: int
    written_ms: int
    origin: Origin
    hop: int
    attempt: int
    epoch: int


class Commit(NamedTuple):
    """A commit as the coordinator stored it, in its own order."""

    at_ms: int
    topic: str
    partition: int
    progress: Progress


class Blind(NamedTuple):
    """A process that did not know of its loss: what it ran in this time does not count for order, and was nobody's to prevent."""

    pid: int
    since: float
    until: float


@dataclass
class History:
    """`source`: what can be read at each offset of the source now. `outputs` as read_committed sees them, `written` as
    read_uncommitted does, `seen` as a reader beside the trial saw them (None: there was none)."""

    sent: Mapping[Origin, Sent]
    source: Mapping[Origin, int]
    marks: Sequence[Mark]
    lanes: Sequence[Copy] = ()
    dead: Sequence[Copy] = ()
    outputs: Sequence[Origin] = ()
    written: Sequence[Origin] = ()
    seen: Sequence[Origin] | None = None
    commits: Sequence[Commit] = ()
    tiers_s: tuple[float, ...] = ()
    blind: Sequence[Blind] = ()
    name: str = ""
    _covered: dict[tuple[str, int], dict[int, int]] = field(default_factory=dict)

    def is_blind(self, mark: Mark) -> bool:
        return any(each.pid == mark.pid and each.since <= mark.at <= each.until for each in self.blind)

    @property
    def covered(self) -> dict[tuple[str, int], dict[int, int]]:
        """(topic, partition) -> offset -> when a stored commit first called it settled (ms)."""
        if not self._covered and self.commits:
            self._covered = covering(self.commits, self._firsts())
        return self._covered

    def _firsts(self) -> dict[tuple[str, int], int]:
        firsts: dict[tuple[str, int], int] = {}
        for copy in self.lanes:
            place = (copy.topic, copy.partition)
            firsts[place] = min(firsts.get(place, copy.offset), copy.offset)
        return firsts

    def covered_at(self, origin: Origin, copies: Iterable[Copy]) -> float:
        """When the source's and every copy's offset were committed past (ms); infinite when one is not."""
        times: list[float] = [self.covered.get((self.name, origin[0]), {}).get(origin[1], math.inf)]
        times += [self.covered.get((c.topic, c.partition), {}).get(c.offset, math.inf) for c in copies]
        return max(times)


def covering(commits: Sequence[Commit], firsts: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], dict[int, int]]:
    """When each offset was first called settled by a stored commit."""
    found: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    low: dict[tuple[str, int], int] = {}
    for commit in commits:
        place, progress = (commit.topic, commit.partition), commit.progress
        known = found[place]
        for offset in range(low.get(place, firsts.get(place, 0)), progress.offset):
            known.setdefault(offset, commit.at_ms)
        low[place] = max(low.get(place, 0), progress.offset)
        still_open = set(progress.open)
        for offset in range(progress.offset, progress.end):
            if offset not in still_open:
                known.setdefault(offset, commit.at_ms)
    return found


def by_origin(copies: Iterable[Copy]) -> dict[Origin, list[Copy]]:
    found: dict[Origin, list[Copy]] = defaultdict(list)
    for copy in copies:
        found[copy.origin].append(copy)
    return found
