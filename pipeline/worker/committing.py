"""One OffsetCommit in flight per group: a lane's progress must never be durable before the hand-off that fed it (rule e)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.core.care import marking_of, marks_of
from pipeline.core.delivery import SOURCE
from pipeline.core.progress import METADATA_LIMIT, encode
from pipeline.core.unit import Unit
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ClusterError

RECOMMIT_MS = 6 * 3_600_000
"""Offsets of lanes nobody subscribes to expire on the broker, so they are committed again though nothing changed."""
DOUBT_MS = 10_000
"""A commit whose answer got lost may be stored later, over those that were sent after it, also over the next owner's, and nothing
tells: so long after it became ours, or after the last such answer, a partition is committed once more, and when it is let go."""
REQUEST_BYTES = 900_000
ANSWER_TIMEOUT_MS = 60_000
FULL_TEXT_MARGIN = 8
"""A text this near to its limit may have been cut."""


@dataclass(slots=True)
class _Lane:
    """`seen` identifies the state that `position` stands for; `asked` the one last looked at, `sent` the one under way.

    (open offsets, next offset, of the source's marks, the store's floor)
    `doubted_ms`: when it became ours, or when a commit of it was last refused or not answered (0: long ago).
    """

    seen: tuple[int, int, int, int] = (-1, -1, 0, 0)
    asked: tuple[int, int, int, int] = (-1, -1, 0, 0)
    sent: tuple[int, int, int, int] = (-1, -1, 0, 0)
    position: Position | None = None
    at_ms: int = 0
    doubted_ms: int = 0


class Committer:
    """Decides what to commit and takes note of the answers. Pure: the fetcher does the I/O."""

    def __init__(self, limit: int = METADATA_LIMIT) -> None:
        self._limit = limit
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._sent: dict[TopicPartition, Position] | None = None
        self._asked: Mapping[TopicPartition, Position] | None = None
        self._sent_ms = 0
        self._begin = 0
        self._refused: dict[TopicPartition, Position] = {}
        self.loads: dict[Unit, float] = {}
        self.failures = 0

    @property
    def in_flight(self) -> bool:
        return self._sent is not None

    def next(self, units: Iterable[Unit], now_ms: int) -> Mapping[TopicPartition, Position] | None:
        """What has changed, for one request; None: nothing has, or the last one is not answered yet. A unit is never split."""
        if self._sent is not None:
            if now_ms - self._sent_ms < ANSWER_TIMEOUT_MS:
                return None
            self.failures += 1
            self._doubt(self._sent, now_ms)
        if self._refused:
            # The same again before anything newer: a lane's newer progress must not be durable before what fed it (e).
            found, self._refused = self._refused, {}
            return self._send(found, now_ms)
        found = {}
        size = 0
        ordered = list(units)
        begin, self._begin = min(self._begin, len(ordered)), 0
        for unit in (*ordered[begin:], *ordered[:begin]):
            changed = self.positions(unit, now_ms)
            weight = sum(len(position.metadata) + len(tp.topic) + 40 for tp, position in changed.items())
            if size and size + weight > REQUEST_BYTES:
                self._begin = ordered.index(unit)  # its turn is first next time
                break
            found |= changed
            size += weight
        if not found:
            self._sent = None
            return None
        for tp in found:
            self._lanes[tp].sent = self._lanes[tp].asked
        return self._send(found, now_ms)

    def everything(self, units: Iterable[Unit], now_ms: int) -> Mapping[TopicPartition, Position] | None:
        """What has changed in all units, for a transaction, which must say all that is settled. None: a text has no room for it."""
        found: dict[TopicPartition, Position] = {}
        for unit in units:
            found |= self.positions(unit, now_ms)
        if any(len(position.metadata) > self._limit - FULL_TEXT_MARGIN for position in found.values()):
            return None
        for tp in found:
            self._lanes[tp].sent = self._lanes[tp].asked
        return self._send(found, now_ms) if found else found

    def given_up(self) -> None:
        """The transaction did not happen."""
        self._sent = None

    def _send(self, positions: dict[TopicPartition, Position], now_ms: int) -> Mapping[TopicPartition, Position]:
        self._sent, self._asked, self._sent_ms = dict(positions), positions, now_ms
        return positions

    def _doubt(self, partitions: Iterable[TopicPartition], now_ms: int) -> None:
        for tp in partitions:
            if tp in self._lanes:
                self._lanes[tp].doubted_ms = now_ms

    def positions(self, unit: Unit, now_ms: int, last: bool = False) -> dict[TopicPartition, Position]:
        """The unit's lanes whose progress is not committed yet, or may have been put back; `last`: the unit is let go."""
        found: dict[TopicPartition, Position] = {}
        load = 0.0
        if unit.care is not None:
            unit.care.ask()
        for index, lane in enumerate(unit.lanes):
            tp = TopicPartition(lane.spec.topic, unit.partition)
            tracker = lane.tracker
            known = self._lanes.get(tp) or self._lanes.setdefault(tp, _Lane(doubted_ms=now_ms))
            seen = (len(tracker.open), tracker.next_offset, 0 if index else marking_of(unit), unit.floor.at)
            again = now_ms - known.at_ms > RECOMMIT_MS
            if known.doubted_ms:
                again = again or last or now_ms - known.doubted_ms > DOUBT_MS
            if seen != known.seen or again or known.position is None:
                progress = tracker.progress(unit.epoch, unit.fences) if index == SOURCE else tracker.progress()
                if index == SOURCE:
                    progress = replace(progress, marks={**marks_of(unit), **unit.floor.marks()})
                position = Position(progress.offset, encode(progress, self._limit))
                known.asked = seen
                if again or position != known.position:
                    found[tp] = position
            else:
                position = known.position
            load = max(load, len(position.metadata) / self._limit)
        self.loads[unit] = load
        return found

    def committed(self, unit: Unit) -> int:
        """The source's offset that is durable; 0 before the first answer."""
        known = self._lanes.get(TopicPartition(unit.policy.source, unit.partition))
        return known.position.offset if known is not None and known.position is not None else 0

    def marking(self, unit: Unit) -> int | None:
        """Which of the unit's marks are durable; None before the first answer."""
        known = self._lanes.get(TopicPartition(unit.policy.source, unit.partition))
        return known.seen[2] if known is not None and known.position is not None else None

    def answered(
        self,
        errors: Mapping[TopicPartition, ClusterError | None],
        now_ms: int,
        asked: Mapping[TopicPartition, Position] | None = None,
    ) -> dict[TopicPartition, ClusterError]:
        """Every partition's own answer; returns the failed ones, which go out again unchanged, alone, next.

        `asked` is what `next` gave: the late answer to a request that was given up says nothing of the one after it.
        """
        if asked is not None and asked is not self._asked:
            return {}
        sent, self._sent = self._sent or {}, None
        bad: dict[TopicPartition, ClusterError] = {}
        for tp, position in sent.items():
            error = errors.get(tp)
            lane = self._lanes.get(tp)
            if lane is None:
                continue
            if error is None and tp in errors:
                lane.position, lane.at_ms, lane.seen = position, now_ms, lane.sent
                if lane.doubted_ms and now_ms - lane.doubted_ms > DOUBT_MS:
                    lane.doubted_ms = 0
            elif error is not None:
                bad[tp] = error
                self._refused[tp] = position
        self.failures += len(bad)
        self._doubt(bad, now_ms)
        return bad

    def forget(self, unit: Unit) -> None:
        self.loads.pop(unit, None)
        for lane in unit.lanes:
            tp = TopicPartition(lane.spec.topic, unit.partition)
            self._lanes.pop(tp, None)
            self._refused.pop(tp, None)
            if self._sent is not None:
                # Owned again before the answer comes, the partition would take the old unit's positions for its own.
                self._sent.pop(tp, None)
