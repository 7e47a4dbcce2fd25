"""Where a batch that can't be read ends: found by trying offsets behind it, since its own header is out of reach.

A broker gives the whole batch for any offset inside it, so a try inside fails as the first one did. Steps double until one
does not fail, then halve. Only a failed try counts as proof: `next` is never past the first offset that could be good.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class BatchEnd:
    """`inside`: an offset that is known to be in the batch; `outside`: one that is known not to be (at first the partition's end)."""

    inside: int
    outside: int
    _step: int = 1
    _doubling: bool = True

    @property
    def probe(self) -> int | None:
        """The offset to try now; None when the end is known."""
        if self.outside - self.inside <= 1:
            return None
        if self._doubling:
            return min(self.inside + self._step, self.outside - 1)
        return (self.inside + self.outside) // 2

    @property
    def next(self) -> int:
        """Once the end is known: the first offset behind the batch."""
        return self.inside + 1

    def failed(self, offset: int) -> None:
        """Fetching there gave the same batch again."""
        self.inside = max(self.inside, offset)
        self._step *= 2

    def passed(self, offset: int) -> None:
        """Fetching there gave something else, or nothing."""
        self.outside = max(self.inside + 1, min(self.outside, offset))
        self._doubling = False
