"""What a new owner of a partition learns by reading its lanes before it processes anything.

It reads every lane from the committed offset to the end as it was when ownership began (the *fence*), and finds: which
copies are unsettled, which keys are parked, and which records a zombie wrote. Rule (g): a record at or past the previous
owner's fence with an epoch below that owner's was written by a zombie and is settled unseen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.core.parking import Identity, Parking
from pipeline.core.progress import Progress
from pipeline.model.cluster import Headers
from pipeline.model.headers import HELD, HeaderError, Standing, standing_of

_AHEAD_MAX = 1_000_000
"""How far past the source's committed end a lane's record may come from, before memory bounds what is settled at once."""


@dataclass(slots=True)
class _Scan:
    """One lane being read: the settled part before, and what is found open."""

    name: str
    index: int
    before: Progress
    fence: int
    previous_fence: int
    at: int
    last_due_ms: int = 0
    damaged: int = 0
    open: list[int] = field(default_factory=list)
    stale: set[int] = field(default_factory=set)


class Rebuild:
    """Feed it every record of the lanes up to their fences; then `complete` is true and the results stand.

    `lanes` are names in index order starting at 1; `progress` is each lane's settled part (its offset not below the log's start);
    `ends` are the lanes' ends, read *after* the committed offsets. A lane that the previous owner did not fence (a worker of
    another version, with other tiers) tells no zombies: running one again is better than losing what another owner parked.
    Where the commit says nothing of the owners before (a newer version wrote it, or another tool), the lanes' records do.
    """

    def __init__(
        self, source: Progress, lanes: Sequence[str], progress: Mapping[str, Progress], ends: Mapping[str, int]
    ) -> None:
        self.epoch = source.epoch + 1
        self.source = source
        self.fences = {name: ends[name] for name in lanes}
        self.parking = Parking()
        self.zombies = 0
        self.held: dict[Identity, tuple[bytes | None, str]] = {}
        self._found_at: dict[Identity, int] = {}
        self._scans = [
            _Scan(
                name, index, progress[name], ends[name], source.fences.get(name, ends[name]), at=progress[name].offset
            )
            for index, name in enumerate(lanes, start=1)
        ]

    @property
    def scan_from(self) -> dict[int, int]:
        """Lane index -> offset to read from, for lanes that have something to read."""
        return {scan.index: scan.at for scan in self._scans if scan.at < scan.fence}

    @property
    def complete(self) -> bool:
        return all(scan.at >= scan.fence for scan in self._scans)

    def observe(self, lane: int, offset: int, key: bytes | None, headers: Headers | None) -> None:
        """A record of a lane, in order."""
        scan = self._scans[lane - 1]
        if offset < scan.at or offset >= scan.fence:
            scan.at = max(scan.at, offset + 1)
            return
        scan.at = offset + 1
        before = scan.before
        if offset < before.end and not _contains(before.open, offset):
            return
        try:
            copy = standing_of(headers)
        except HeaderError:
            scan.open.append(offset)  # not ours: it comes up again and goes to the dead letters
            return
        if offset >= scan.previous_fence and copy.epoch < self.source.epoch and copy.hop:
            self.zombies += 1
            return
        self._outrank(copy)
        scan.open.append(offset)
        scan.last_due_ms = max(scan.last_due_ms, copy.due_ms)
        identity = Identity(copy.origin_offset, copy.replay_id)
        self._observe_copy(key, identity, copy.hop, lane, offset)
        if copy.hold or identity in self.held:
            self._observe_hold(key, identity, copy, lane)

    def _outrank(self, copy: Standing) -> None:
        """An epoch that starts over would be below that of owners who may still write: none of what they write late would be
        told. An operator's copy has no owner's epoch."""
        if not self.source.epoch and copy.hold in ("", HELD):
            self.epoch = max(self.epoch, copy.epoch + 1)

    def reached(self, lane: int, offset: int) -> None:
        """The lane was read to here. Its end may hold no record: a transaction's marker, aborted records, a gap of compaction."""
        scan = self._scans[lane - 1]
        scan.at = max(scan.at, offset)

    def unreadable(self, lane: int, first: int, until: int) -> None:
        """Offsets of a lane that can't be read: what of them is not settled comes up again, as one pointer."""
        scan = self._scans[lane - 1]
        scan.damaged = max(scan.damaged, until)
        before, until = scan.before, min(until, scan.fence)
        at = next((offset for offset in before.open if first <= offset < until), max(first, before.end, scan.at))
        if at < until:
            scan.open.append(at)
        scan.at = max(scan.at, until)

    def _observe_copy(self, key: bytes | None, identity: Identity, hop: int, lane: int, offset: int) -> None:
        """Of several copies the one with the most hops counts (c). The others are settled now: one that is left open until
        it is due would be the only one, and run, for an owner that comes after the right copy's ending."""
        best = self.parking.holder(identity)
        if best is not None and hop <= best.hop:
            self._scans[lane - 1].stale.add(offset)
            return
        if best is not None:
            self._scans[best.lane - 1].stale.add(self._found_at[identity])
        self._found_at[identity] = offset
        self.parking.observe(key, identity, hop, lane)

    def _observe_hold(self, key: bytes | None, identity: Identity, copy: Standing, lane: int) -> None:
        """Is the key held by this record, or being released? The copy that counts says so."""
        if self.parking.counts(identity, copy.hop, lane):
            self.held.pop(identity, None)
            if copy.hold:
                self.held[identity] = key, copy.hold

    def source_progress(self) -> Progress:
        """The source's settled part: a record that is already in a lane is settled unseen (d), before its copy has its ending."""
        before = self.source
        ahead_max = before.end + _AHEAD_MAX
        in_lanes = {origin for origin in self.parking.origins() if before.offset <= origin < ahead_max}
        if not in_lanes:
            return before
        end = max(before.end, max(in_lanes) + 1)
        opened = tuple(offset for offset in (*before.open, *range(before.end, end)) if offset not in in_lanes)
        return Progress(opened[0] if opened else end, end, opened, before.epoch, before.fences)

    def lane_progress(self, lane: int) -> Progress:
        scan = self._scans[lane - 1]
        opened = tuple(offset for offset in scan.open if offset not in scan.stale) if scan.stale else tuple(scan.open)
        end = max(scan.fence, scan.before.offset)
        return Progress(opened[0] if opened else end, end, opened)

    def last_due_ms(self, lane: int) -> int:
        return self._scans[lane - 1].last_due_ms

    def damaged(self, lane: int) -> int:
        """The end of the last batch that could not be read (0: all could)."""
        return self._scans[lane - 1].damaged


def _contains(ascending: Sequence[int], offset: int) -> bool:
    at = bisect_left(ascending, offset)
    return at < len(ascending) and ascending[at] == offset
