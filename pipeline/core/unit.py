"""A source partition and its lanes: assigned, processed, committed and let go as one (rule f).

    fetched -> receive -> ready -> admit -> run -> finish -> settled
                            ^        |                |
                            |        +-> hand-off <---+        (acknowledged -> settled)
                            +-- look-ahead <- lane <-+

The unit decides; the worker performs. Decisions that need I/O are appended to `effects`; the worker takes them after each step.
Rules (a)-(h) are explained in docs/design.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pipeline.core.blocked import Blocked, shed
from pipeline.core.care import HEALTHY, SOURCE_NAME, Care
from pipeline.core.chains import Chains
from pipeline.core.copies import Hop, copy_headers, note_failure
from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.effects import DeadLetter, Effect, HandOff, LaneSpec, RunAgain, UnitPolicy
from pipeline.core.holding import Holds
from pipeline.core.lane import NOWHERE, Arriving, Lane
from pipeline.core.offsets import OffsetTracker
from pipeline.core.parking import Identity, Parking
from pipeline.core.progress import Progress
from pipeline.core.rebuild import Rebuild
from pipeline.core.retry import GiveUp, WaitInMemory, after_failure, next_hop, tier_for
from pipeline.core.store_scan import Floor
from pipeline.core.unreadable import Missing, let_go_of_missing
from pipeline.core.waiting import Waiting
from pipeline.model.cluster import Message
from pipeline.model.headers import HeaderError, decode, headers_in
from pipeline.model.outcome import Failure, FailureKind

__all__ = ["DeadLetter", "Effect", "HandOff", "Lane", "LaneSpec", "RunAgain", "Unit", "UnitPolicy"]

GO_ROUND_MS = 1_000  # in a lane without a delay of its own
SKIPPED = Failure(FailureKind.TERMINAL, "Skipped", "Skipped", "an operator skipped this record")


class Unit:
    """See the module. `closed` units ignore everything: a stale completion changes nothing."""

    def __init__(self, partition: int, policy: UnitPolicy, lanes: Sequence[LaneSpec], rebuild: Rebuild) -> None:
        self.partition = partition
        self.policy = policy
        self.epoch = rebuild.epoch
        self.fences = rebuild.fences
        self.parking: Parking = rebuild.parking
        self.open = True
        self.draining = False
        self.unclean = HEALTHY
        self.care: Care | None = None
        self.floor = Floor()
        self.effects: list[Effect] = []
        self.busy: set[bytes | None] = set()
        self.waiting = Waiting()
        self.blocked = Blocked()
        self.chains = Chains()
        self._unblocked: deque[Delivery] = deque()
        self.skipped: set[Identity] = set()
        self.released: dict[bytes | None, Identity] = {}
        self.sending: dict[tuple[Identity, int], Delivery] = {}
        self.missing: list[Missing] = []
        source = LaneSpec(SOURCE_NAME, policy.source, None)
        self.lanes = [Lane(source, OffsetTracker(rebuild.source_progress()))]
        self._arriving = Arriving(self.lanes[SOURCE].tracker)
        for index, spec in enumerate(lanes, start=1):
            tracker: OffsetTracker[Delivery] = OffsetTracker(rebuild.lane_progress(index))
            lane = Lane(spec, tracker, rebuild.fences[spec.name], rebuild.last_due_ms(index), rebuild.damaged(index))
            self.lanes.append(lane)
        self.holds = Holds(self, rebuild.held)
        self.by_key = policy.order != "none"
        self.waits = policy.order == "key"
        self._tier_lanes = [
            i for i, lane in enumerate(self.lanes) if i and lane.spec.declared and lane.spec.delay_ms is not None
        ]
        self.replay_lane = next((i for i, lane in enumerate(self.lanes) if i and lane.spec.delay_ms is None), SOURCE)

    # -- fetched records in

    def receive_source(self, messages: Sequence[Message], ready: deque[Delivery]) -> None:
        """New source records, in offset order; those to be processed are appended to `ready`."""
        tracker = self.lanes[SOURCE].tracker
        opened = tracker.open
        append = ready.append
        first = messages[0].offset()
        if tracker.restoring or first < tracker.next_offset:
            for message in messages:
                offset = message.offset()
                delivery = Delivery(self, SOURCE, offset, message.key(), message)
                if tracker.receive(offset, delivery):
                    append(delivery)
            return
        for message in messages:
            offset = message.offset()
            opened[offset] = delivery = Delivery(self, SOURCE, offset, message.key(), message)
            append(delivery)
        tracker.next_offset = offset + 1

    def receive_lane(self, index: int, messages: Sequence[Message]) -> None:
        """New records of a lane: to the look-ahead, but for what is settled, a zombie's, or not readable."""
        lane = self.lanes[index]
        for message in messages:
            offset = message.offset()
            delivery = Delivery(self, index, offset, message.key(), message)
            if not lane.tracker.receive(offset, delivery):
                continue
            try:
                headers = decode(headers_in(message))
            except HeaderError as error:
                failure = Failure(
                    FailureKind.UNDECODABLE, "ForeignRecord", "HeaderError", f"{lane.spec.topic}: {error}"
                )
                self.effects.append(DeadLetter(delivery, copy_headers(delivery, 0, failure), failure))
                continue
            if offset >= lane.fence and headers.epoch < self.epoch and headers.hop:
                lane.tracker.settle(offset)  # (g); a replay tool's own records have hop 0 and no epoch
                continue
            delivery.headers = headers
            delivery.attempt, delivery.hop = headers.attempt, headers.hop
            if headers.epoch == self.epoch and self.sending:
                # Our own copy, fetched before its delivery report: what fed it is settled first, or it could end and be
                # committed while the record it came from is still open (e).
                self._settle_fed_by(delivery)
            if headers.hold and index == self.replay_lane:
                self.holds.received(delivery, headers.hold)
                continue
            if index == self.replay_lane and not headers.hop and self.parking.holder(delivery.identity) is None:
                self.parking.observe(delivery.key, delivery.identity, headers.hop, index)
            lane.look_ahead.append(delivery)
        if self.missing:
            let_go_of_missing(self)

    def _settle_fed_by(self, copy: Delivery) -> None:
        fed_by = self.sending.pop((copy.identity, copy.hop), None)
        if fed_by is not None:
            self.lanes[fed_by.lane].tracker.settle(fed_by.offset)

    def release_due(self, now_ms: int, ready: deque[Delivery]) -> int | None:
        """Move due lane records to `ready`; returns when the next one is due (None: nothing waits in the look-ahead)."""
        next_due: int | None = None
        if self._unblocked:
            ready.extend(self._unblocked)
            self._unblocked.clear()
        if self.holds.copies and not self.draining:
            self.holds.renew(now_ms)
        awaited = self._arriving.first(now_ms) if self.waits else None
        for lane in self.lanes:
            if self.blocked.count and lane.tracker.next_offset - lane.tracker.position > self.policy.held_back:
                shed(self, lane, now_ms)
            if lane.look_ahead and (due := lane.release(now_ms, ready, awaited)) is not None:
                next_due = due if next_due is None else min(next_due, due)
        return next_due

    # -- may it run?

    def admit(self, delivery: Delivery, now_ms: int) -> bool:
        """True: run it now (its key is busy until `finish`). False: it waits, was handed on, or needs nothing."""
        if self.draining:
            return False
        key = delivery.key
        if self.by_key and key is not None:
            if key in self.busy:
                self.waiting.add(delivery)
                return False
            if (delivery.lane or key in self.parking.keys) and not self._admit_parked(delivery, now_ms):
                return False
            self.busy.add(key)
            return True
        return not (delivery.lane or key in self.parking.keys) or self._admit_parked(delivery, now_ms)

    def _admit_parked(self, delivery: Delivery, now_ms: int) -> bool:
        identity, key, parking = delivery.identity, delivery.key, self.parking
        if delivery.lane == SOURCE:
            if parking.holder(identity) is not None:
                self.lanes[SOURCE].tracker.settle(delivery.offset)  # (d), for what the rebuild could not settle
                return False
        elif not parking.counts(identity, delivery.hop, delivery.lane):
            self.lanes[delivery.lane].tracker.settle(delivery.offset)  # (c)
            return False
        if identity in self.skipped:
            self._dead_letter(delivery, SKIPPED, now_ms)
            return False
        head = self.holds.head_below(key, identity) if self.holds.heads and self.waits else None
        if head is not None:
            self.holds.follow(delivery, head, now_ms)
            return False
        tail = parking.tail_before(key, identity) if self.waits and key is not None else None
        if tail is not None and (identity > self.released.get(key, Identity(-1)) or key in self.holds.releasing):
            if delivery.lane and self.blocked.count < self.policy.blocked:
                self.blocked.add(delivery)
            else:
                self.hand_off_behind(tail, delivery, now_ms)
            return False
        if delivery.not_before_ms > now_ms:
            self._not_yet(delivery, now_ms)
            return False
        return True

    def hand_off_behind(self, unresolved: Identity, delivery: Delivery, now_ms: int) -> None:
        target, due_ms = self._lane_behind(unresolved), max(delivery.due_ms, now_ms)
        if target == delivery.lane == self.replay_lane and self._tier_lanes:
            target = self._tier_lanes[0]
        if delivery.lane and self.lanes[target].last_due_ms <= now_ms:  # or it would go round at full speed
            due_ms = now_ms + (self.policy.retry.tiers_ms[0] if self._tier_lanes else GO_ROUND_MS)
        self.hand_off(delivery, Hop(target, due_ms, delivery.not_before_ms, "wait"), now_ms)

    def _not_yet(self, delivery: Delivery, now_ms: int) -> None:
        """A due record whose own wait is longer than its tier: on to the next one, or without tiers wait in memory."""
        hop = next_hop(self.policy.retry.tiers_ms, delivery.not_before_ms, now_ms)
        if hop is None:
            if self.by_key and delivery.key is not None:
                self.busy.add(delivery.key)
            self.effects.append(RunAgain(delivery, delivery.not_before_ms))
        else:
            target = self._tier_lanes[hop]
            self.hand_off(delivery, Hop(target, self._due(target, now_ms), delivery.not_before_ms, "hop"), now_ms)

    def _lane_behind(self, tail: Identity) -> int:
        """The lane that holds the key's tail (a); for a retired tier the declared one nearest to it, so that it can run dry."""
        holder = self.parking.holder(tail)
        assert holder is not None, f"{tail} is unresolved, so a copy of it counts"
        spec = self.lanes[holder.lane].spec
        if spec.declared or not self._tier_lanes:
            return holder.lane
        return self._tier_lanes[tier_for(spec.delay_ms or 0, self.policy.retry.tiers_ms)]

    def _due(self, lane: int, now_ms: int) -> int:
        return now_ms + (self.lanes[lane].spec.delay_ms or 0)

    # -- what became of it

    def done(self, delivery: Delivery, now_ms: int) -> Delivery | None:
        """Processed, and its outputs acknowledged. Returns the key's next record, already admitted, if there is one."""
        key, lane = delivery.key, delivery.lane
        del self.lanes[lane].tracker.open[delivery.offset]
        if lane or key in self.parking.keys:
            self.parking.resolve(key, delivery.identity)
        if self.chains.more and self.chains.goes_on(key):
            return None
        if key in self.waiting.by_key or (self.blocked.count and key in self.blocked):
            return self.free(key, now_ms)
        self.busy.discard(key)
        return None

    def free(self, key: bytes | None, now_ms: int) -> Delivery | None:
        """The key is not busy any more: its next record that may run, if any."""
        while (delivery := self._next(key)) is not None:
            if not delivery.lane and key not in self.parking.keys:
                self.busy.add(key)  # it is not any more where a stale copy was settled in the turn before
                return delivery
            self.busy.discard(key)
            if self.admit(delivery, now_ms):
                return delivery
            if key in self.busy:  # a skipped record is on its way to the dead letters
                return None
        self.busy.discard(key)
        return None

    def _next(self, key: bytes | None) -> Delivery | None:
        """The key's next record to be looked at: a blocked one whose turn has come, else the next that came while it was busy."""
        if self.blocked.count:
            first = self.blocked.first(key)
            if first is not None and self.parking.tail_before(key, first.identity) is None:
                self.blocked.remove(first)
                return first
        return self.waiting.pop(key)

    def failed(self, delivery: Delivery, failure: Failure, now_ms: int, draw: float, late: int = 0) -> Delivery | None:
        """It failed: retry, wait, give up; the key's next record, if it is free. By others' clocks it may be `late` ms later (I8)."""
        if not self.open:
            return None
        true_ms, now_ms = now_ms, now_ms + late
        delivery.attempt += 1
        note_failure(delivery, failure, now_ms)
        if self.skipped and delivery.identity in self.skipped:
            self._dead_letter(delivery, SKIPPED, now_ms)
            return None
        decision = after_failure(self.policy.retry, delivery.attempt, failure, now_ms, draw)
        if isinstance(decision, WaitInMemory):
            self.effects.append(RunAgain(delivery, decision.until_ms))
            return None
        if isinstance(decision, GiveUp):
            self._dead_letter(delivery, failure, now_ms)
            return None
        target = self._tier_lanes[decision.tier]
        hop = Hop(target, self._due(target, now_ms), decision.not_before_ms, "retry")
        self.hand_off(delivery, hop, now_ms, failure)
        if self.chains.more and self.chains.goes_on(delivery.key):
            return None
        return self.free(delivery.key, true_ms)

    def is_sending(self, identity: Identity, hop: int) -> bool:
        """That copy is under way to its lane."""
        return (identity, hop) in self.sending

    def unblock(self, key: bytes | None) -> None:
        """What waited in memory for others of the key is looked at again."""
        self._unblocked.extend(self.blocked.take(key))

    def handed_off(self, delivery: Delivery, lane: int = SOURCE, offset: int = -1, now_ms: int = 0) -> Delivery | None:
        """The copy is acknowledged, at this offset of that lane: this one is settled (unless the copy was fetched first).

        Returns the key's next record where the key had to wait for that: a head that is held.
        """
        target = self.lanes[lane]
        if offset >= target.landed:
            target.landed = offset + 1
        elif offset < 0:
            target.landed = NOWHERE
        fed_by = self.sending.pop((delivery.identity, delivery.hop + 1), None)
        if fed_by is not None:
            self.lanes[fed_by.lane].tracker.settle(fed_by.offset)
        if self.missing:
            let_go_of_missing(self)
        return self.holds.written(delivery, now_ms) if self.holds.writing else None

    def dead_lettered(self, delivery: Delivery, now_ms: int) -> Delivery | None:
        """Acknowledged: the record has its ending. Returns the key's next record."""
        if delivery.lane and delivery.headers is None:
            # A foreign record in a lane: it never took part in its key's order.
            self.lanes[delivery.lane].tracker.settle(delivery.offset)
            return None
        self.skipped.discard(delivery.identity)
        return None if self.holds.dead_lettered(delivery, now_ms) else self.done(delivery, now_ms)

    def _dead_letter(self, delivery: Delivery, failure: Failure, now_ms: int) -> None:
        if delivery.key is not None and self.by_key:
            # Until it is written: a crash now runs it again, and its successors must not be ahead.
            self.busy.add(delivery.key)
            if self.policy.hold and self.waits and failure is not SKIPPED:
                self.holds.giving_up[delivery] = failure
        self.effects.append(DeadLetter(delivery, copy_headers(delivery, now_ms, failure, log=failure.log), failure))

    def hand_off(
        self, delivery: Delivery, hop: Hop, now_ms: int, failure: Failure | None = None, hold: str = ""
    ) -> None:
        holder = self.parking.holder(delivery.identity)
        if holder is not None and holder.hop > delivery.hop:
            # A second copy of the same hop ran beside the first (no order keeps them apart): the first one's hand-off counts.
            self.lanes[delivery.lane].tracker.settle(delivery.offset)
            return
        lane = self.lanes[hop.lane]
        lane.last_due_ms = due_ms = max(hop.due_ms, lane.last_due_ms)  # (b)
        self.parking.hand_off(delivery.key, delivery.identity, delivery.hop + 1, hop.lane)
        self.sending[delivery.identity, delivery.hop + 1] = delivery
        headers = copy_headers(delivery, now_ms, failure, due_ms, hop.not_before_ms)
        if hold:
            headers = replace(headers, hold=hold)
        self.effects.append(HandOff(delivery, hop.lane, headers, hop.cause))

    # -- operators, and letting go

    def skip(self, key: bytes | None, identity: Identity) -> None:
        """The record goes to the dead letters when it comes up; its successors stop waiting for it now."""
        if self.holds.knows(key, identity):
            return  # it has its dead letter, and comes up no more
        if self.parking.holder(identity) is not None:
            self.skipped.add(identity)
            self.parking.step_aside(key, identity)
            self.unblock(key)
        elif not identity.replay_id and identity.origin in self.lanes[SOURCE].tracker.open:
            self.skipped.add(identity)  # it runs, or waits in memory: no more attempts

    def release(self, key: bytes | None, up_to: Identity) -> None:
        """Records of the key up to this one no longer wait for each other: each runs when it is due."""
        self.released[key] = up_to
        self.unblock(key)

    def progress(self) -> dict[int, Progress]:
        """What may be committed, by lane index; the source's carries epoch and fences."""
        found = {index: lane.tracker.progress() for index, lane in enumerate(self.lanes) if index}
        found[SOURCE] = self.lanes[SOURCE].tracker.progress(self.epoch, self.fences)
        return found

    def drain(self) -> None:
        """Take no more work; what runs may finish."""
        self.draining = True
        self.waiting.clear()
        self.blocked.clear()
        self._unblocked.clear()
        if self.care is not None:
            self.care.clear()
        for lane in self.lanes:
            lane.look_ahead.clear()

    def hand_back(self, delivery: Delivery, now_ms: int) -> None:
        """A wait in memory that the drain cuts short: the first tier takes it, so that its attempts are not forgotten."""
        if self._tier_lanes and delivery.attempt > (delivery.headers.attempt if delivery.headers else 0):
            target = self._tier_lanes[0]
            self.hand_off(delivery, Hop(target, self._due(target, now_ms), delivery.not_before_ms, "retry"), now_ms)

    def close(self) -> None:
        self.drain()
        self.open = False
