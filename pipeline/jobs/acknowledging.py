"""The brokers' answers to the records of one call."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.model.errors import ClusterError


class Answers:
    """Give `heard` to a producer for each of `count` records; `done` is called once, in whichever thread heard the last of them."""

    __slots__ = ("_done", "_lock", "error", "left")

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self.left = count
        self.error: ClusterError | None = None
        self._done = done
        self._lock = threading.Lock()

    def heard(self, error: ClusterError | None, _offset: int) -> None:
        with self._lock:
            self.left -= 1
            left = self.left
            if error is not None and self.error is None:
                self.error = error
        if left == 0:
            self._done()
