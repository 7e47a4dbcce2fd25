"""Which offsets of one lane partition are received but not settled; from that, what may be committed.

The contract: the committed offset is the lowest received offset that is not settled, or the one after the last received.
Only *received* offsets are tracked, so gaps (compaction, transaction markers) count as done.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from pipeline.core.progress import Progress

T = TypeVar("T")


class OffsetTracker(Generic[T]):
    """Received and unsettled offsets in ascending order, each with what is being done with it (None: not fetched again yet).

    `open` and `next_offset` are public because the hot path works on them directly: `open[offset] = item` to receive,
    `del open[offset]` to settle. Everything below `next_offset` that is not in `open` is settled.
    """

    __slots__ = ("_awaited", "next_offset", "open")

    def __init__(self, progress: Progress) -> None:
        self.open: dict[int, T | None] = dict.fromkeys(progress.open)
        self.next_offset = progress.end
        self._awaited = deque(progress.open)

    def receive(self, offset: int, item: T) -> bool:
        """Take note of a fetched record. False: it is settled already, leave it alone."""
        if offset >= self.next_offset:
            if self._awaited:
                self._forget_below(offset)
            self.next_offset = offset + 1
            self.open[offset] = item
            return True
        if self._awaited:
            self._forget_below(offset)
            if self._awaited and self._awaited[0] == offset:
                self._awaited.popleft()
                self.open[offset] = item
                return True
        return False

    def first_awaited(self, first: int, until: int) -> int | None:
        """The first offset in [first, until) that is neither received nor settled, whether or not it exists."""
        restored = next((offset for offset in self._awaited if first <= offset < until), None)
        if restored is not None:
            return restored
        at = max(first, self.next_offset)
        return at if at < until else None

    def pass_over(self, until: int) -> None:
        """What is below `until` and was not received is not to come any more."""
        self._forget_below(until)
        self.next_offset = max(self.next_offset, until)

    def settle(self, offset: int) -> None:
        """Done with it; settling twice is an error of the caller."""
        del self.open[offset]

    def _forget_below(self, offset: int) -> None:
        # Fetching is in order: a restored offset that was skipped no longer exists (retention, compaction).
        while self._awaited and self._awaited[0] < offset:
            self.open.pop(self._awaited.popleft(), None)

    @property
    def first_restored(self) -> int | None:
        """The lowest restored open offset that is still to be fetched."""
        return self._awaited[0] if self._awaited else None

    @property
    def under_way(self) -> int:
        """How many were received and are not settled."""
        return len(self.open) - len(self._awaited)

    @property
    def restoring(self) -> bool:
        """Restored open offsets are still to be fetched."""
        return bool(self._awaited)

    @property
    def position(self) -> int:
        """What to commit."""
        return next(iter(self.open), self.next_offset)

    def progress(self, epoch: int = 0, fences: dict[str, int] | None = None) -> Progress:
        """The settled part, for the commit's metadata."""
        opened = tuple(self.open)
        return Progress(opened[0] if opened else self.next_offset, self.next_offset, opened, epoch, fences or {})
