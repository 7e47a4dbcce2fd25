"""One OffsetCommit in flight per group: a lane's progress must never be durable before the hand-off that fed it (rule e)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.core.progress import METADATA_LIMIT, encode
from pipeline.core.unit import Unit
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ClusterError

RECOMMIT_MS = 6 * 3_600_000
"""Offsets of lanes nobody subscribes to expire on the broker, so they are committed again though nothing changed."""
REQUEST_BYTES = 900_000
ANSWER_TIMEOUT_MS = 60_000


@dataclass(slots=True)
class _Lane:
    """`seen` identifies the tracker's state that `position` stands for; `asked` the one last looked at, `sent` the one under way."""

    seen: tuple[int, int] = (-1, -1)
    asked: tuple[int, int] = (-1, -1)
    sent: tuple[int, int] = (-1, -1)
    position: Position | None = None
    at_ms: int = 0


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

    def _send(self, positions: dict[TopicPartition, Position], now_ms: int) -> Mapping[TopicPartition, Position]:
        self._sent, self._asked, self._sent_ms = dict(positions), positions, now_ms
        return positions

    def positions(self, unit: Unit, now_ms: int) -> dict[TopicPartition, Position]:
        """The unit's lanes whose progress is not committed yet."""
        found: dict[TopicPartition, Position] = {}
        load = 0.0
        for index, lane in enumerate(unit.lanes):
            tp = TopicPartition(lane.spec.topic, unit.partition)
            tracker = lane.tracker
            known = self._lanes.setdefault(tp, _Lane())
            seen = (len(tracker.open), tracker.next_offset)
            if seen != known.seen or now_ms - known.at_ms > RECOMMIT_MS or known.position is None:
                progress = tracker.progress(unit.epoch, unit.fences) if index == 0 else tracker.progress()
                position = Position(progress.offset, encode(progress, self._limit))
                known.asked = seen
                if position != known.position or now_ms - known.at_ms > RECOMMIT_MS:
                    found[tp] = position
            else:
                position = known.position
            load = max(load, len(position.metadata) / self._limit)
        self.loads[unit] = load
        return found

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
            elif error is not None:
                bad[tp] = error
                self._refused[tp] = position
        self.failures += len(bad)
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
