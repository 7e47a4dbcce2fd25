"""Lane records whose time has come while a lower one of their key is unresolved: they wait here and not in another hop.

A hop costs a write, an acknowledgement and a fetch, and a head that fails four times would cost each of its successors four
of them. What waits here is still open in its lane, so a crash forgets nothing. The unit bounds how many there are, and how
long they may hold back their lane's committed offset; beyond that they hop.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import takewhile
from typing import TYPE_CHECKING

from pipeline.core.delivery import Delivery, identity_of

if TYPE_CHECKING:
    from pipeline.core.lane import Lane
    from pipeline.core.unit import Unit


class Blocked:
    """Per key, in origin order."""

    __slots__ = ("_by_key", "count")

    def __init__(self) -> None:
        self._by_key: dict[bytes | None, list[Delivery]] = {}
        self.count = 0

    def __contains__(self, key: bytes | None) -> bool:
        return key in self._by_key

    def add(self, delivery: Delivery) -> None:
        self.count += 1
        insort(self._by_key.setdefault(delivery.key, []), delivery, key=identity_of)

    def first(self, key: bytes | None) -> Delivery | None:
        queue = self._by_key.get(key)
        return queue[0] if queue else None

    def remove(self, delivery: Delivery) -> bool:
        """Did it wait here? It does no more."""
        queue = self._by_key.get(delivery.key, [])
        at = bisect_left(queue, delivery.identity, key=identity_of)
        while at < len(queue) and queue[at].identity == delivery.identity:
            if queue[at] is delivery:
                del queue[at]
                self.count -= 1
                if not queue:
                    del self._by_key[delivery.key]
                return True
            at += 1
        return False

    def take(self, key: bytes | None) -> list[Delivery]:
        """All of the key, out of here."""
        queue = self._by_key.pop(key, [])
        self.count -= len(queue)
        return queue

    def clear(self) -> None:
        self._by_key.clear()
        self.count = 0


def shed(unit: Unit, lane: Lane, now_ms: int) -> None:
    """What is blocked and holds the lane's commit back too far hops on, behind the head of its key: there it waits longest.

    Not while its key is being released: what holds the commit back then is the operator's copy. And not the head itself, of which a
    second copy that landed may wait here while the first one runs: handed on, it would count in place of that.
    """
    tracker = lane.tracker
    until = tracker.next_offset - unit.policy.held_back
    oldest = list(takewhile(lambda entry: entry[0] < until, tracker.open.items()))
    for _, delivery in oldest:
        if delivery is None or delivery.key in unit.holds.releasing:
            continue
        head = unit.parking.head(delivery.key)
        if head != delivery.identity and unit.blocked.remove(delivery):
            assert head is not None, "a blocked record is unresolved itself"
            unit.hand_off_behind(head, delivery, now_ms)
