"""Events of several partitions in the order of their time, while a store is read from some time ago on."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

E = TypeVar("E")
HELD_MAX = 10_000
"""So many wait for others that may be older: a partition far behind the rest is not waited for any longer."""


class InOrder(Generic[E]):
    """`ends`: where each partition that has something to read ends by now; `place` gives partition and offset, `time_ms` the time.

    Those of one partition stay in its order whatever their times say, since who goes on later does so behind the last one.
    """

    def __init__(
        self, ends: Mapping[int, int], place: Callable[[E], tuple[int, int]], time_ms: Callable[[E], int]
    ) -> None:
        self._ends = dict(ends)
        self._behind: dict[int, int] = dict.fromkeys(ends, 0)
        self._newest: dict[int, int] = {}
        self._place, self._time_ms = place, time_ms
        self._held: list[tuple[int, int, E]] = []
        self._number = 0

    def add(self, events: Iterable[E]) -> None:
        for event in events:
            partition, _ = self._place(event)
            at_ms = max(self._time_ms(event), self._newest.get(partition, 0))
            self._newest[partition] = at_ms
            self._number += 1
            heapq.heappush(self._held, (at_ms, self._number, event))

    def read(self, partition: int, offset: int, time_ms: int) -> None:
        """A partition was read so far."""
        if partition not in self._behind:
            return
        if offset + 1 >= self._ends[partition]:
            del self._behind[partition]
        else:
            self._behind[partition] = max(time_ms, self._behind[partition])

    def ready(self, idle: bool) -> list[E]:
        """Those that nothing older comes behind. `idle`: there is nothing to read just now, so all of them."""
        until_ms = min(self._behind.values()) if self._behind and not idle else None
        found = []
        while self._held and (until_ms is None or self._held[0][0] <= until_ms or len(self._held) > HELD_MAX):
            found.append(heapq.heappop(self._held)[2])
        return found
