"""What a new owner reads of a partition's store before it works: the newest entry of each key, and which of them strangers wrote.

Every entry carries its owner's epoch, and along the log of a store epochs only grow. So a record whose epoch is below one that
stands before it was written by a worker that was taken for dead; and so was one at or past the previous owner's fence with
an epoch below that owner's, where that owner had written nothing yet (rule g). Such a record says nothing: what its key
held before it counts, for which the topic's compaction leaves time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.core.progress import Progress
from pipeline.model.cluster import Headers
from pipeline.model.headers import epoch_of
from pipeline.model.store_keys import PREFIXES

STORE = "state"
"""Its name among the fences."""
_FLOOR, _FLOOR_EPOCH = "store", "store-epoch"


class Floor(NamedTuple):
    """Below this offset of a store nothing counts, and what is no stranger's from there on has this `epoch` at least. It only rises, so an
    older one is as true. Committed among the marks of the source."""

    at: int = 0
    epoch: int = 0

    @classmethod
    def of(cls, marks: Mapping[str, int]) -> Floor:
        return cls(marks.get(_FLOOR, 0), marks.get(_FLOOR_EPOCH, 0))

    def marks(self) -> dict[str, int]:
        return {_FLOOR: self.at, _FLOOR_EPOCH: self.epoch} if self.at else {}


class StoreScan:
    """Feed it the store's records in order up to `fence`; then it is `complete`. `entries` are the values by key.

    `begin`: where the store's log begins; `fence`: where it ended when ownership began; `source`: what the last owner committed, with
    the `floor` from which it is read (none, where the store does not reach that far: it was made anew).
    `epoch`: the highest seen, which the new owner must be above. `strangers`: keys that one of them wrote last.
    """

    def __init__(self, topic: str, source: Progress, begin: int, fence: int) -> None:
        self.topic = topic
        floor = Floor.of(source.marks)
        self.floor = floor if floor.at <= fence else Floor()
        self.at = self.begin = max(begin, self.floor.at)
        self.fence = fence
        self.epoch = self.floor.epoch
        self.entries: dict[bytes, bytes] = {}
        self.strangers: dict[bytes, None] = {}  # a set that keeps its order
        self._owner = source.epoch
        self._owner_fence = source.fences.get(STORE, fence)

    @property
    def complete(self) -> bool:
        return self.at >= self.fence

    def observe(self, offset: int, key: bytes | None, value: bytes | None, headers: Headers | None) -> None:
        """A record of the store, in order. What lies at or past the fence is not looked at: its owner is dead to us."""
        if offset < self.at or offset >= self.fence:
            self.at = max(self.at, min(offset + 1, self.fence))
            return
        self.at = offset + 1
        if key is None or not key.startswith(PREFIXES) or not _is_text(key):
            return  # no queue wrote it
        epoch = epoch_of(headers)
        if epoch < self.epoch or (offset >= self._owner_fence and epoch < self._owner):
            self.strangers[key] = None
            return
        self.epoch = epoch
        self.strangers.pop(key, None)
        if value is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = value

    def reached(self, offset: int) -> None:
        """It was read to here: its end may hold no record."""
        self.at = max(self.at, offset)


def strangers_among(records: Iterable[tuple[bytes | None, Headers | None]], epoch: int) -> tuple[list[bytes], int]:
    """Of records that were written since the owner of `epoch` has the partition: keys that are not from it, each once, and the
    highest epoch among them."""
    keys, highest = dict[bytes, None](), 0
    for key, headers in records:
        found = epoch_of(headers)
        if found != epoch and key is not None and key.startswith(PREFIXES) and _is_text(key):
            keys[key] = None
            highest = max(highest, found)
    return list(keys), highest


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
