"""Deliveries on their way to the executor: fetched ones that await admission, and admitted ones that go on."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable

from pipeline.core.batching import admit_many, gather
from pipeline.core.delivery import Delivery
from pipeline.core.unit import RunAgain, Unit
from pipeline.worker.parts import Clock


class Dispatch:
    """`ready`: received, not admitted yet. `resumed`: admitted (their key is busy) and free to run again. `gathered`: admitted, and
    waiting for a batch that fills.

    `perform` carries out the effects of a unit that an admission had.
    """

    def __init__(self, clock: Clock, perform: Callable[[Unit], None]) -> None:
        self.ready: deque[Delivery] = deque()
        self.resumed: deque[Delivery] = deque()
        self.gathered: list[Delivery] = []
        self.paused = False
        self._clock = clock
        self._perform = perform
        self._again: list[tuple[int, int, Delivery]] = []
        self._ticket = itertools.count()

    def take(self) -> Delivery | None:
        """The next delivery that may run now; its key is busy until it is answered."""
        if self.paused:
            return None
        while self.resumed:
            delivery = self.resumed.popleft()
            if not delivery.unit.draining:
                return delivery
        ready, now_ms = self.ready, self._clock.now_ms
        while ready:
            delivery = ready.popleft()
            unit = delivery.unit
            if unit.admit(delivery, now_ms):
                return delivery
            if unit.effects:
                self._perform(unit)
        return None

    def take_many(self, into: list[Delivery], limit: int, chained: bool = False) -> None:
        """Append up to `limit` deliveries that may run now; `chained` as in `admit_many`."""
        ready, full = self.ready, len(into) + limit
        while len(into) < full:
            if ready and not self.resumed and not self.paused:
                unit = ready[0].unit
                admit_many(unit, ready, into, full, self._clock.now_ms, chained)
                if unit.effects:
                    self._perform(unit)
            elif (delivery := self.take()) is not None:
                if chained:
                    gather(delivery, into, full)
                else:
                    into.append(delivery)
            else:
                return

    def unless_paused(self, following: Delivery | None) -> Delivery | None:
        """A key's next record, to be run at once; while paused it is kept for later."""
        if following is not None and self.paused:
            self.resumed.append(following)
            return None
        return following

    def run_later(self, effect: RunAgain) -> None:
        """A wait in memory: its key stays busy until then. Others make room for new ones meanwhile, so it is counted (`Regulator`)."""
        effect.delivery.unit.waiting.enter(effect.delivery)
        heapq.heappush(self._again, (effect.at_ms, next(self._ticket), effect.delivery))

    def resume_due(self, now_ms: int) -> int | None:
        """Waits that are over go on; returns when the next one is (None: nothing waits)."""
        again = self._again
        while again and again[0][0] <= now_ms:
            delivery = heapq.heappop(again)[2]
            if delivery.unit.open and not delivery.unit.draining:
                delivery.unit.waiting.leave(delivery)
                self.resumed.append(delivery)
        return again[0][0] if again else None

    def withdraw(self, unit: Unit) -> list[Delivery]:
        """What of this unit waits in memory after a failed attempt, or was about to run again: it is to be handed back."""
        waiting = [delivery for _, _, delivery in self._again if delivery.unit is unit]
        again = [delivery for delivery in (*self.resumed, *self.gathered) if delivery.unit is unit]
        self._again = [entry for entry in self._again if entry[2].unit is not unit]
        heapq.heapify(self._again)
        return waiting + again

    def drop(self, unit: Unit) -> None:
        """The unit is let go: nothing of it runs any more. The queues stay the same objects: executors hold them."""
        for queue in (self.ready, self.resumed):
            kept = [delivery for delivery in queue if delivery.unit is not unit]
            queue.clear()
            queue.extend(kept)

    def __len__(self) -> int:
        return len(self.ready) + len(self.resumed)
