"""Several records of one key in one batch: handled in their order, and the key is free when the last one has its ending."""

from __future__ import annotations


class Chains:
    """`gathered`: keys of the batch that is being put together. Keys that have more than one record in a batch are counted."""

    __slots__ = ("_more", "gathered")

    def __init__(self) -> None:
        self.gathered: set[bytes | None] = set()
        self._more: dict[bytes | None, int] = {}

    def __bool__(self) -> bool:
        return bool(self._more)

    def lengthen(self, key: bytes | None) -> None:
        """One more record of the key is in the batch, behind its first."""
        self._more[key] = self._more.get(key, 0) + 1

    def goes_on(self, key: bytes | None) -> bool:
        """One has its ending: is the key still held by others?"""
        more = self._more.get(key, 0)
        self.cut(key, 1)
        return more > 0

    def cut(self, key: bytes | None, count: int) -> None:
        """So many are in the batch no longer."""
        more = self._more.pop(key, 0) - count
        if more > 0:
            self._more[key] = more
