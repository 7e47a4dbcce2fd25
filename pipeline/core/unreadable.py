"""A batch that can't be read: one pointer in the dead letters stands for all its offsets, and keys stop waiting for what was in it.

The lowest offset that is not settled stays open until the pointer is acknowledged, so no commit passes the batch before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.core.copies import copy_headers
from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.effects import DeadLetter
from pipeline.core.lane import NOWHERE
from pipeline.core.parking import Holder, Identity
from pipeline.model.cluster import Headers
from pipeline.model.headers import Pointer
from pipeline.model.outcome import Failure, FailureKind

if TYPE_CHECKING:
    from pipeline.core.unit import Unit

ERROR_CLASS = "UnreadableBatch"


@dataclass(frozen=True, slots=True)
class Damage:
    """Offsets `first` to `next` - 1 of a partition that no client can read; `kind` and `text` as the `FetchFault` has them."""

    first: int
    next: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """Stands for what could not be read: a `Message` with a position only."""

    at: tuple[str, int, int]

    def topic(self) -> str:
        return self.at[0]

    def partition(self) -> int:
        return self.at[1]

    def offset(self) -> int:
        return self.at[2]

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return None

    def headers(self) -> Headers | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 0, 0


@dataclass(slots=True)
class Missing:
    """Copies that nobody has seen come out of a lane with a damaged batch. When all of them have landed, below `until` (None
    before that), and the lane is read up to there, those that did not come were in that batch."""

    lane: int
    copies: Mapping[Identity, tuple[bytes | None, Holder]]
    until: int | None = None


def may_hold_ours(unit: Unit, lane: int, damage: Damage) -> bool:
    """Copies that this owner wrote to the lane may be in the batch, and it was not told where they are (exactly_once): whoever opens the
    partition anew finds out. If it was opened so already, they are not: those that are missing are not parked any more.
    """
    there = unit.lanes[lane]
    return there.landed == NOWHERE and damage.next > there.damaged


def point_at(unit: Unit, lane: int, damage: Damage) -> bool:
    """Take the batch for received: its pointer is among the unit's effects. False when all of it was settled before."""
    tracker, topic = unit.lanes[lane].tracker, unit.lanes[lane].spec.topic
    at = tracker.first_awaited(damage.first, damage.next)
    if at is None:
        tracker.pass_over(damage.next)
        return False
    delivery = Delivery(unit, lane, at, None, Nothing((topic, unit.partition, at)))
    tracker.receive(at, delivery)
    tracker.pass_over(damage.next)
    last = damage.next - 1
    text = f"offsets {at} to {last} of {topic}[{unit.partition}] can't be read, only passed over: {damage.text}"
    failure = Failure(FailureKind.UNDECODABLE, ERROR_CLASS, damage.kind, text, scrubbed=True)
    headers = replace(copy_headers(delivery, 0, failure), pointer=Pointer(damage.kind, last))
    unit.effects.append(DeadLetter(delivery, headers, failure))
    if lane != SOURCE:
        unit.missing.append(_missing(unit, lane))
        let_go_of_missing(unit)
    return True


def _missing(unit: Unit, lane: int) -> Missing:
    seen = _seen(unit, lane)
    copies = {identity: (key, holder) for key, identity, holder in unit.parking.held_in(lane) if identity not in seen}
    return Missing(lane, copies)


def _seen(unit: Unit, lane: int) -> set[Identity]:
    """Copies that did come out of the lane. (Records that are not ours, and pointers, have the lane's offset for an identity.)"""
    return {
        each.identity
        for each in unit.lanes[lane].tracker.open.values()
        if each is not None and each.headers is not None
    }


def let_go_of_missing(unit: Unit) -> None:
    """Resolve the copies that went down with a batch: their keys would wait for them for ever."""
    for missing in tuple(unit.missing):
        lane = unit.lanes[missing.lane]
        if missing.until is None:
            if any(unit.is_sending(identity, holder.hop) for identity, (_, holder) in missing.copies.items()):
                continue
            missing.until = max(lane.fence, lane.landed)
        if lane.tracker.restoring or lane.tracker.next_offset < missing.until:
            continue
        unit.missing.remove(missing)
        seen = _seen(unit, missing.lane)
        for identity, (key, holder) in missing.copies.items():
            if unit.parking.holder(identity) == holder and identity not in seen:
                unit.parking.resolve(key, identity)
                unit.unblock(key)
