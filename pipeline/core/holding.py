"""Keys that are held: their last given-up record keeps its successors from running until an operator lets them go.

What is held lives in the replay lane, so that crashes, zombies and owners are covered by the rules that cover every copy:

    held     a copy of the given-up record (the head), written after its dead letter: it stays open, its successors follow it
    open/ID  an operator's copy of it, of more hops: the key is being released, its new records wait as behind any other
    close/ID an operator's mark behind everything that is sent back: from here the head has its ending
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.core.copies import Hop, copy_headers
from pipeline.core.delivery import Delivery
from pipeline.core.effects import DeadLetter
from pipeline.core.parking import Identity
from pipeline.model.headers import BEHIND, HELD, HELD_CLASS, OPENS
from pipeline.model.outcome import Failure, FailureKind

if TYPE_CHECKING:
    from pipeline.core.unit import Unit


def held_behind(head: Identity) -> Failure:
    """Why a successor goes to the dead letters without running."""
    return Failure(
        FailureKind.TERMINAL, HELD_CLASS, HELD_CLASS, f"held behind the dead letter of origin offset {head.origin}"
    )


def _release_of(delivery: Delivery) -> str:
    """Which release an operator's copy or mark belongs to: two of them may overlap."""
    assert delivery.headers is not None, "it was told by its headers"
    return delivery.headers.hold.partition("/")[2]


class Holds:
    """Of one unit. `heads`: held records by key, lowest first. `copies`: their open copies in the replay lane, oldest first.

    `giving_up`: heads on their way to the dead letters; `writing`: then on their way to the replay lane. `following`:
    successors on their way to the dead letters, and what no lane takes. `releasing`: operators' copies, by key.
    """

    __slots__ = ("_ended", "_under_way", "_unit", "copies", "following", "giving_up", "heads", "releasing", "writing")

    def __init__(self, unit: Unit, held: Mapping[Identity, tuple[bytes | None, str]]) -> None:
        self.heads: dict[bytes | None, list[Identity]] = {}
        self.copies: dict[Identity, Delivery] = {}
        self.giving_up: dict[Delivery, Failure] = {}
        self.writing: set[Delivery] = set()
        self.following: set[Delivery] = set()
        self.releasing: dict[bytes | None, dict[Identity, Delivery | None]] = {}
        self._unit = unit
        self._ended: dict[bytes | None, list[int]] = {}
        self._under_way: Counter[bytes | None] = Counter()
        for identity, (key, hold) in held.items():
            if hold == HELD:
                insort(self.heads.setdefault(key, []), identity)
            elif hold.startswith(OPENS):
                self.releasing.setdefault(key, {})[identity] = None  # it is fetched again

    def knows(self, key: bytes | None, identity: Identity) -> bool:
        """Is it a held record, or one that is about to be, or one that is being released?"""
        held = identity in self.heads.get(key, ()) or identity in self.releasing.get(key, ())
        return held or any(delivery.identity == identity for delivery in self.giving_up)

    def head_below(self, key: bytes | None, identity: Identity) -> Identity | None:
        """The held record that this one follows, if any."""
        heads = self.heads.get(key)
        return heads[0] if heads and heads[0] < identity else None

    # -- held

    def hold(self, delivery: Delivery, now_ms: int) -> None:
        """Its dead letter is written. Its key stays busy until the copy is written too: a successor that followed before
        could be followed by a crash in which nothing says that the key is held."""
        insort(self.heads.setdefault(delivery.key, []), delivery.identity)
        self.writing.add(delivery)
        self._write(delivery, now_ms, self.giving_up.pop(delivery))

    def dead_lettered(self, delivery: Delivery, now_ms: int) -> bool:
        """Its dead letter is acknowledged. True: it holds its key, or follows one that does, and that is all for now."""
        if delivery in self.giving_up:
            self.hold(delivery, now_ms)
        elif delivery in self.following:
            self.followed(delivery)
        else:
            return False
        return True

    def written(self, delivery: Delivery, now_ms: int) -> Delivery | None:
        """A hand-off is acknowledged. Where it was a held copy: the key's next record, if there is one that may run."""
        unit, key = self._unit, delivery.key
        if delivery not in self.writing:
            return None
        self.writing.remove(delivery)
        unit.unblock(key)  # they follow now
        return None if unit.chains.more and unit.chains.goes_on(key) else unit.free(key, now_ms)

    def _write(self, delivery: Delivery, now_ms: int, failure: Failure | None = None) -> None:
        self._unit.hand_off(delivery, Hop(self._unit.replay_lane, now_ms, 0, "hold"), now_ms, failure, HELD)

    def renew(self, now_ms: int) -> None:
        """Copies that are old (their lane has a retention), or keep the lane's commit far back for few, are written anew."""
        unit = self._unit
        tracker, policy = unit.lanes[unit.replay_lane].tracker, unit.policy
        until = tracker.next_offset - policy.held_back
        if tracker.next_offset - tracker.position <= 4 * len(self.heads):
            until = 0  # they are most of what is there: writing them anew would only go round
        for identity, delivery in tuple(self.copies.items()):
            if delivery.offset >= until and now_ms - delivery.due_ms < policy.renew_ms:
                return
            del self.copies[identity]
            self._write(delivery, now_ms)

    def follow(self, delivery: Delivery, head: Identity, now_ms: int) -> None:
        """A successor goes to the dead letters."""
        self.passes(delivery)
        failure = held_behind(head)
        headers = replace(copy_headers(delivery, now_ms, failure), hold=f"{BEHIND}{head.origin}")
        self._unit.effects.append(DeadLetter(delivery, headers, failure))

    def passes(self, delivery: Delivery) -> None:
        """It goes to the dead letters, and its key is not busy with that: nothing of it runs."""
        self.following.add(delivery)
        self._under_way[delivery.key] += 1

    def followed(self, delivery: Delivery) -> None:
        """Its dead letter is acknowledged."""
        unit, key = self._unit, delivery.key
        self.following.remove(delivery)
        self._under_way[key] -= 1
        unit.lanes[delivery.lane].tracker.settle(delivery.offset)
        unit.parking.resolve(key, delivery.identity)
        unit.unblock(key)
        if not self._under_way[key]:
            del self._under_way[key]
            self._settle_ended(key)

    # -- released

    def received(self, delivery: Delivery, hold: str) -> None:
        """A record of the replay lane that is about a held key."""
        if hold == HELD:
            self._held(delivery)
        elif hold.startswith(OPENS):
            self._opens(delivery)
        else:
            self._closes(delivery)

    def _held(self, delivery: Delivery) -> None:
        identity = delivery.identity
        if self._unit.parking.counts(identity, delivery.hop, delivery.lane):
            before = self.copies.pop(identity, None)
            self.copies[identity] = delivery
            if before is not None:  # written twice; left open it would keep every release from being taken up
                self._end(before)
        else:
            self._end(delivery)

    def _opens(self, delivery: Delivery) -> None:
        """From here on the key's new records wait. The held copy is settled, which tells the tool: it reads the dead letters next."""
        unit, identity, key = self._unit, delivery.identity, delivery.key
        holder = unit.parking.holder(identity)
        if holder is None or holder.hop > delivery.hop:
            unit.lanes[delivery.lane].tracker.settle(delivery.offset)
            return
        before = self.releasing.setdefault(key, {}).get(identity)
        if before is not None:
            unit.lanes[delivery.lane].tracker.settle(before.offset)
        unit.parking.hand_off(key, identity, delivery.hop, delivery.lane)
        self.releasing[key][identity] = delivery
        heads = self.heads.get(key, [])
        if identity in heads:
            heads.remove(identity)
            if not heads:
                del self.heads[key]
        copy = self.copies.pop(identity, None)
        if copy is not None:
            self._end(copy)

    def _end(self, copy: Delivery) -> None:
        """A copy that counts no more. (One that is being written anew is settled when that is acknowledged: it is not in `copies`.)"""
        self._ended.setdefault(copy.key, []).append(copy.offset)
        self._settle_ended(copy.key)

    def _settle_ended(self, key: bytes | None) -> None:
        """Not while a successor is on its way to the dead letters: the tool would read them too early."""
        if key not in self._under_way:
            for offset in self._ended.pop(key, ()):
                self._unit.lanes[self._unit.replay_lane].tracker.settle(offset)

    def _closes(self, delivery: Delivery) -> None:
        """Everything that was sent back has been received by now, and waits in its order."""
        unit, key = self._unit, delivery.key
        tracker = unit.lanes[delivery.lane].tracker
        releasing, number = self.releasing.get(key, {}), _release_of(delivery)
        for identity, opened in tuple(releasing.items()):
            if opened is not None and _release_of(opened) == number:
                del releasing[identity]
                unit.parking.resolve(key, identity)
                tracker.settle(opened.offset)
        if not releasing:
            self.releasing.pop(key, None)
        unit.parking.resolve(key, delivery.identity)  # where the rebuild took it for a record
        tracker.settle(delivery.offset)
        if key not in unit.busy:
            unit.unblock(key)
