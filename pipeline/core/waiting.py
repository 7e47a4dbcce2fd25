"""Records that wait in memory: behind the one of their key that runs, or between two of their attempts.

Source records come in order; lane records are put in theirs, which saves hops (the wait rule alone keeps the order).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from pipeline.core.delivery import SOURCE, Delivery, identity_of


class Waiting:
    """Per key, first in, first out. `count` is of all, `of_lanes` of those that are not the source's; both bound what is fetched.

    `by_key` is public because the hot path looks into it: a key that is not there has nothing waiting.
    """

    __slots__ = ("by_key", "count", "of_lanes")

    def __init__(self) -> None:
        # Most keys have one record waiting: a queue is made for the second one only.
        self.by_key: dict[bytes | None, Delivery | deque[Delivery]] = {}
        self.count = 0
        self.of_lanes = 0

    def add(self, delivery: Delivery) -> None:
        self.count += 1
        if delivery.lane:
            self.of_lanes += 1
        key = delivery.key
        queue = self.by_key.setdefault(key, delivery)
        if queue is delivery:
            return
        if type(queue) is not deque:
            queue = self.by_key[key] = deque((queue,))  # type: ignore[arg-type]
        if delivery.lane == SOURCE or queue[-1].identity <= delivery.identity:
            queue.append(delivery)
        else:
            queue.insert(bisect_right(queue, delivery.identity, key=identity_of), delivery)

    def enter(self, delivery: Delivery) -> None:
        """It waits for its next attempt, which somebody else keeps track of."""
        self.count += 1
        self.of_lanes += delivery.lane != SOURCE

    def leave(self, delivery: Delivery) -> None:
        self.count -= 1
        self.of_lanes -= delivery.lane != SOURCE

    def pop(self, key: bytes | None) -> Delivery | None:
        """The key's next one, if any."""
        queue = self.by_key.get(key)
        if queue is None:
            return None
        if type(queue) is deque:
            delivery = queue.popleft()
            if not queue:
                del self.by_key[key]
        else:
            delivery = queue  # type: ignore[assignment]
            del self.by_key[key]
        self.count -= 1
        if delivery.lane:
            self.of_lanes -= 1
        return delivery

    def put_first(self, deliveries: Sequence[Delivery]) -> None:
        """Source records of one key that come before all that waits for it."""
        key, queue = deliveries[0].key, deque(deliveries)
        queue.extend(self.of(key))
        self.by_key[key] = queue
        self.count += len(deliveries)

    def of(self, key: bytes | None) -> Sequence[Delivery]:
        """Those of one key, first to run first."""
        queue = self.by_key.get(key, ())
        return queue if isinstance(queue, deque) else (queue,) if isinstance(queue, Delivery) else ()

    def clear(self) -> None:
        self.by_key.clear()
        self.count = self.of_lanes = 0
