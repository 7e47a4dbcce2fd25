"""Several records of one key in one batch: handled in their order, and the key is free when the last one has its ending."""

from __future__ import annotations


class Chains:
    """`gathered`: keys of the batch that is being put together.

    `more`: how many follow the first of those keys that have several records in a batch; public, since every record looks into it.
    """

    __slots__ = ("gathered", "more")

    def __init__(self) -> None:
        self.gathered: set[bytes | None] = set()
        self.more: dict[bytes | None, int] = {}

    def lengthen(self, key: bytes | None) -> None:
        """One more record of the key is in the batch, behind its first."""
        self.more[key] = self.more.get(key, 0) + 1

    def goes_on(self, key: bytes | None) -> bool:
        """One has its ending: is the key still held by others?"""
        more = self.more.get(key, 0)
        self.cut(key, 1)
        return more > 0

    def cut(self, key: bytes | None, count: int) -> None:
        """So many are in the batch no longer."""
        more = self.more.pop(key, 0) - count
        if more > 0:
            self.more[key] = more
