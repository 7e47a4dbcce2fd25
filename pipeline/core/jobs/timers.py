"""What waits for its time: a heap of instants, with what no longer waits left in it until it comes up or is half of it."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """`timer_ms`: when it is called for (0: never). `number`: its own; of two of one instant the lower one is called first. It may
    change while it has no timer."""

    timer_ms: int
    number: int


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """One timer per item: the last one that was set. Months are fine: nothing but the item, its instant and its number is kept. (That
    of an entry that is stale must not change with the item's, or what is above and below it in the heap would be in the wrong order.)
    """

    __slots__ = ("_heap", "_stale")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, T]] = []
        self._stale = 0

    def __len__(self) -> int:
        return len(self._heap) - self._stale

    def set(self, item: T, at_ms: int) -> None:
        if item.timer_ms == at_ms:
            return
        self.clear(item)
        item.timer_ms = at_ms
        heappush(self._heap, (at_ms, item.number, item))

    def clear(self, item: T) -> None:
        """It is not called for any more."""
        if item.timer_ms:
            item.timer_ms = 0
            self._stale += 1
            if self._stale > 1_000 and self._stale > len(self._heap) // 2:
                self._heap = list(dict.fromkeys(entry for entry in self._heap if _stands(*entry)))
                heapify(self._heap)
                self._stale = 0

    def due(self, now_ms: int, most: int = 1 << 60) -> list[T]:
        """Whose time has come, in order of it, at most so many; they have no timer any more."""
        heap = self._heap
        found: list[T] = []
        while heap and heap[0][0] <= now_ms and len(found) < most:
            at_ms, number, item = heappop(heap)
            if _stands(at_ms, number, item):
                item.timer_ms = 0
                found.append(item)
            else:
                self._stale -= 1
        return found

    def next_ms(self) -> int | None:
        """When to ask again."""
        heap = self._heap
        while heap and not _stands(*heap[0]):
            heappop(heap)
            self._stale -= 1
        return heap[0][0] if heap else None


def _stands(at_ms: int, number: int, item: Timed) -> bool:
    return item.timer_ms == at_ms and item.number == number
