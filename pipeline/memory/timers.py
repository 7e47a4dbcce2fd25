"""When the simulated cluster gets time to act: by hand, by an event loop's timers, or by a thread of its own."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

Scheduler = Callable[[int, Callable[[], None]], object]
"""(delay in ms, callback): run the callback once, later, never inside the call."""

_IDLE_S = 0.5


def by_hand(delay_ms: int, callback: Callable[[], None]) -> None:
    """Nothing happens until the test calls `MemoryCluster.tick`."""


class ThreadScheduler:
    """Real time, one daemon thread; it ends after half a second with nothing to do and starts again when needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._changed = threading.Condition()
        self._running = False

    def __call__(self, delay_ms: int, callback: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + delay_ms / 1000, next(self._sequence), callback))
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._due and not self._changed.wait(_IDLE_S) and not self._due:
                    self._running = False
                    return
                if not self._due or (wait_s := self._due[0][0] - time.monotonic()) > 0:
                    self._changed.wait(wait_s if self._due else 0)
                    continue
                callback = heapq.heappop(self._due)[2]
            callback()
