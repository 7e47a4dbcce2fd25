"""Each rule of parking broken in turn, in the real classes: a random history has to notice, or the check is worth nothing."""

from __future__ import annotations

import contextlib
from bisect import insort
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from pipeline.core import rebuild as rebuild_module
from pipeline.core import unit as unit_module
from pipeline.core.blocked import Blocked
from pipeline.core.delivery import SOURCE
from pipeline.core.holding import Holds
from pipeline.core.offsets import OffsetTracker
from pipeline.core.parking import Holder, Parking
from pipeline.core.progress import Progress
from pipeline.core.rebuild import Rebuild
from pipeline.core.retry import ToTier, after_failure
from pipeline.core.unit import Unit
from tests.property import histories
from tests.property.histories import Rules, check

FAR = 1 << 60


class Broken(contextlib.ExitStack):
    """Replaces attributes while it is entered."""

    def set(self, target: object, name: str, value: Any) -> None:
        self.enter_context(patch.object(target, name, value))


def _no_wait(broken: Broken) -> None:
    broken.set(Parking, "tail_before", lambda self, key, identity: None)


def _first_tier(broken: Broken) -> None:
    broken.set(Unit, "_lane_behind", lambda self, tail: 1)


def _wait_behind_any(broken: Broken) -> None:
    """Takes the key's highest record for the tail, also when it is above the one that waits."""
    broken.set(
        Parking,
        "tail_before",
        lambda self, key, identity: next((i for i in reversed(self.keys.get(key, ())) if i != identity), None),
    )


def _due_not_monotone(broken: Broken) -> None:
    hand_off = Unit.hand_off

    def wrong(self: Unit, delivery: Any, hop: Any, *rest: Any) -> None:
        self.lanes[hop.lane].last_due_ms = 0
        hand_off(self, delivery, hop, *rest)

    broken.set(Unit, "hand_off", wrong)


def _due_forgotten(broken: Broken) -> None:
    broken.set(Rebuild, "last_due_ms", lambda self, lane: 0)


def _every_copy_runs(broken: Broken) -> None:
    broken.set(Parking, "counts", lambda self, identity, hop, lane: True)
    broken.set(Rebuild, "_observe_copy", _observe_all)


def _observe_all(self: Rebuild, key: bytes | None, identity: Any, hop: int, lane: int, offset: int) -> None:
    self.parking.observe(key, identity, hop, lane)


def _fewest_hops(broken: Broken) -> None:
    def observe(self: Rebuild, key: bytes | None, identity: Any, hop: int, lane: int, offset: int) -> None:
        best = self.parking.holder(identity)
        if best is None or hop < best.hop:
            self.parking.hand_off(key, identity, hop, lane)

    broken.set(Rebuild, "_observe_copy", observe)


def _stale_copies_stay_open(broken: Broken) -> None:
    broken.set(Rebuild, "_observe_copy", _observe_all)


def _source_runs_again(broken: Broken) -> None:
    broken.set(Rebuild, "source_progress", lambda self: self.source)
    admit_parked = Unit._admit_parked

    def wrong(self: Unit, delivery: Any, now_ms: int) -> bool:
        return delivery.lane == SOURCE or admit_parked(self, delivery, now_ms)

    broken.set(Unit, "_admit_parked", wrong)


def _source_settled_late(broken: Broken) -> None:
    """(d) only when the record is admitted: its copy may have had its ending by then."""
    broken.set(Rebuild, "source_progress", lambda self: self.source)


def _no_fence(broken: Broken) -> None:
    _no_fence_at_rebuild(broken)
    _no_fence_live(broken)


def _no_fence_at_rebuild(broken: Broken) -> None:
    init = Rebuild.__init__

    def wrong(self: Rebuild, *arguments: Any) -> None:
        init(self, *arguments)
        for scan in self._scans:
            scan.previous_fence = FAR

    broken.set(Rebuild, "__init__", wrong)


def _no_fence_live(broken: Broken) -> None:
    init = Unit.__init__

    def wrong(self: Unit, *arguments: Any) -> None:
        init(self, *arguments)
        for lane in self.lanes:
            lane.fence = FAR
        self.parking.counts = lambda identity, hop, lane: True  # type: ignore[method-assign]

    broken.set(Unit, "__init__", wrong)
    broken.set(Parking, "__slots__", ())
    broken.set(rebuild_module, "Parking", type("OpenParking", (Parking,), {}))


def _no_epoch(broken: Broken) -> None:
    """The fence without the epoch: everything past the end is taken for a zombie's."""
    receive_lane = Unit.receive_lane

    def wrong(self: Unit, index: int, messages: Any) -> None:
        epoch, self.epoch = self.epoch, FAR
        receive_lane(self, index, messages)
        self.epoch = epoch

    broken.set(Unit, "receive_lane", wrong)


def _replays_fenced(broken: Broken) -> None:
    """Records of a redrive (hop 0, no epoch) taken for a zombie's."""
    decode = unit_module.decode

    def wrong(headers: Any) -> Any:
        found = decode(headers)
        if found.hop == 0 and found.epoch == 0:
            raise unit_module.HeaderError("a zombie")
        return found

    broken.set(unit_module, "decode", wrong)


def _no_rebuild(broken: Broken) -> None:
    broken.set(Rebuild, "_observe_copy", lambda *arguments: None)
    broken.set(Parking, "counts", lambda self, identity, hop, lane: True)


def _no_lane_per_key(broken: Broken) -> None:
    def wrong(self: Unit, delivery: Any, now_ms: int) -> bool:
        if self.draining:
            return False
        return not (delivery.lane or delivery.key in self.parking.keys) or self._admit_parked(delivery, now_ms)

    broken.set(Unit, "admit", wrong)


def _commit_seen(broken: Broken) -> None:
    def wrong(self: OffsetTracker[Any], epoch: int = 0, fences: Any = None) -> Progress:
        return Progress(self.next_offset, self.next_offset, (), epoch, fences or {})

    broken.set(OffsetTracker, "progress", wrong)


def _forget_open(broken: Broken) -> None:
    """Only the committed offset is right: what is open beyond it is claimed as settled."""
    right = OffsetTracker.progress

    def wrong(self: OffsetTracker[Any], epoch: int = 0, fences: Any = None) -> Progress:
        found = right(self, epoch, fences)
        return Progress(found.offset, found.end, found.open[:1], found.epoch, found.fences)

    broken.set(OffsetTracker, "progress", wrong)


def _map_ignored(broken: Broken) -> None:
    """Only the committed offset is read back: what was done beyond it runs again."""
    decode = histories.decode

    def wrong(offset: int, metadata: str) -> Progress:
        found = decode(offset, metadata)
        return Progress(offset, offset, (), found.epoch, found.fences)

    broken.set(histories, "decode", wrong)


def _epoch_lost(broken: Broken) -> None:
    """Commits do not carry epoch and fences."""
    broken.set(unit_module.OffsetTracker, "progress", _without_epoch(OffsetTracker.progress))


def _without_epoch(progress: Callable[..., Progress]) -> Callable[..., Progress]:
    return lambda self, epoch=0, fences=None: progress(self)


def _early_release(broken: Broken) -> None:
    release_due = Unit.release_due
    broken.set(Unit, "release_due", lambda self, now_ms, ready: release_due(self, now_ms + 10, ready))


def _early_hop(broken: Broken) -> None:
    """A wait longer than the last tier ends with the tier's."""

    def wrong(*arguments: Any) -> Any:
        decision = after_failure(*arguments)
        return ToTier(decision.tier) if isinstance(decision, ToTier) else decision

    broken.set(unit_module, "after_failure", wrong)


def _fetched_before_report(broken: Broken) -> None:
    broken.set(Unit, "_settle_fed_by", lambda self, copy: None)


def _skip_forgets(broken: Broken) -> None:
    """A skipped record is resolved at once, as if its copy in the lane did not matter."""
    broken.set(Parking, "step_aside", Parking.resolve)


def _holder_forgets_hop(broken: Broken) -> None:
    hand_off = Parking.hand_off

    def wrong(self: Parking, key: bytes | None, identity: Any, hop: int, lane: int) -> None:
        best = self.holder(identity)
        hand_off(self, key, identity, hop, lane)
        if best is not None:
            self._holders[identity] = Holder(best.hop, best.lane)

    broken.set(Parking, "hand_off", wrong)


def _blocked_runs_early(broken: Broken) -> None:
    """What is blocked runs when its key is free, whether or not a lower one is unresolved."""
    admit_parked = Unit._admit_parked

    def wrong(self: Unit, delivery: Any, now_ms: int) -> bool:
        was = self.blocked.count
        may_run = admit_parked(self, delivery, now_ms)
        return may_run or (self.blocked.count > was and self.blocked.remove(delivery))

    broken.set(Unit, "_admit_parked", wrong)


def _blocked_forgotten(broken: Broken) -> None:
    broken.set(Blocked, "first", lambda self, key: None)


def _blocked_not_shed(broken: Broken) -> None:
    """What is shed stays blocked too: it is handed off again and again, or runs twice."""

    def remove(self: Blocked, delivery: Any) -> bool:
        return self.first(delivery.key) is not None

    broken.set(Blocked, "remove", remove)


def _hold_not_written(broken: Broken) -> None:
    """What is held is known to its owner only."""

    def wrong(self: Holds, delivery: Any, now_ms: int) -> None:
        insort(self.heads.setdefault(delivery.key, []), delivery.identity)
        self._unit.lanes[delivery.lane].tracker.settle(delivery.offset)
        self._unit.parking.hand_off(delivery.key, delivery.identity, delivery.hop, delivery.lane)
        self._unit.busy.discard(delivery.key)

    broken.set(Holds, "hold", wrong)


def _hold_before_it_is_written(broken: Broken) -> None:
    """Successors follow while the held copy is on its way."""
    dead_lettered = Unit.dead_lettered

    def wrong(self: Unit, delivery: Any, now_ms: int) -> Any:
        following = dead_lettered(self, delivery, now_ms)
        if delivery in self.holds.writing:
            self.holds.writing.remove(delivery)
            return self.free(delivery.key, now_ms)
        return following

    broken.set(Unit, "dead_lettered", wrong)


def _hold_ignored(broken: Broken) -> None:
    """A held key's successors are not kept from running."""

    def wrong(self: Holds, delivery: Any, now_ms: int) -> None:
        self.writing.add(delivery)
        self._write(delivery, now_ms, self.giving_up.pop(delivery))
        self._unit.parking.step_aside(delivery.key, delivery.identity)

    broken.set(Holds, "hold", wrong)


def _hold_ends_when_it_is_opened(broken: Broken) -> None:
    """The key goes on before what is sent back was read."""
    opens = Holds._opens

    def wrong(self: Holds, delivery: Any) -> None:
        opens(self, delivery)
        for identity, opened in self.releasing.pop(delivery.key, {}).items():
            self._unit.parking.resolve(delivery.key, identity)
            self._unit.lanes[delivery.lane].tracker.settle(opened.offset)  # type: ignore[union-attr]
        self._unit.unblock(delivery.key)

    broken.set(Holds, "_opens", wrong)


def _hold_opened_and_followed(broken: Broken) -> None:
    """While a key is released its new records still follow into the dead letters."""
    opens = Holds._opens

    def wrong(self: Holds, delivery: Any) -> None:
        heads = list(self.heads.get(delivery.key, ()))
        opens(self, delivery)
        if heads:
            self.heads[delivery.key] = heads

    broken.set(Holds, "_opens", wrong)


def _hold_taken_up_too_early(broken: Broken) -> None:
    """The tool is told while successors are on their way to the dead letters."""

    def wrong(self: Holds, key: bytes | None) -> None:
        for offset in self._ended.pop(key, ()):
            self._unit.lanes[self._unit.replay_lane].tracker.settle(offset)

    broken.set(Holds, "_settle_ended", wrong)


CORE_MUTANTS: dict[str, Callable[[Broken], None]] = {
    "a-no-wait": _no_wait,
    "a-first-tier": _first_tier,
    "a-wait-behind-any": _wait_behind_any,
    "b-due-not-monotone": _due_not_monotone,
    "b-due-forgotten": _due_forgotten,
    "c-every-copy-runs": _every_copy_runs,
    "c-fewest-hops": _fewest_hops,
    "c-stale-copies-stay-open": _stale_copies_stay_open,
    "d-source-runs-again": _source_runs_again,
    "d-source-settled-late": _source_settled_late,
    "e-fetched-before-report": _fetched_before_report,
    "g-no-fence": _no_fence,
    "g-no-fence-at-rebuild": _no_fence_at_rebuild,
    "g-no-fence-live": _no_fence_live,
    "g-no-epoch": _no_epoch,
    "g-epoch-not-committed": _epoch_lost,
    "g-replays-fenced": _replays_fenced,
    "no-rebuild": _no_rebuild,
    "no-lane-per-key": _no_lane_per_key,
    "commit-seen": _commit_seen,
    "commit-forgets-open": _forget_open,
    "commit-map-ignored": _map_ignored,
    "early-release": _early_release,
    "early-hop": _early_hop,
    "skip-forgets": _skip_forgets,
    "holder-forgets-hop": _holder_forgets_hop,
    "blocked-runs-early": _blocked_runs_early,
    "blocked-forgotten": _blocked_forgotten,
    "blocked-not-shed": _blocked_not_shed,
    "hold-not-written": _hold_not_written,
    "hold-before-it-is-written": _hold_before_it_is_written,
    "hold-ignored": _hold_ignored,
    "hold-ends-when-opened": _hold_ends_when_it_is_opened,
    "hold-opened-and-followed": _hold_opened_and_followed,
    "hold-taken-up-too-early": _hold_taken_up_too_early,
}
"""Rules that the core holds."""

WORKER_MUTANTS: dict[str, Rules] = {
    "claim-before-lanes": Rules(lanes_before_claim=False),
    "e-lanes-apart": Rules(lanes_together=False),
    "hand-offs-overtake": Rules(lands_in_order=False),
    "e-commits-overtake": Rules(one_commit_in_flight=False),
    "settle-before-ack": Rules(settle_after_ack=False),
    "free-before-dead-letter": Rules(free_after_dead_letter=False),
}
"""Rules that the worker has to hold around it."""

MUTANTS = (*CORE_MUTANTS, *WORKER_MUTANTS)

FOUND_BY = {
    "a-first-tier": 27,
    "b-due-forgotten": 16,
    "c-fewest-hops": 12,
    "c-stale-copies-stay-open": 289,
    "claim-before-lanes": 132,
    "d-source-settled-late": 41,
    "e-fetched-before-report": 54,
    "e-lanes-apart": 20,
    "g-no-fence-at-rebuild": 61,
    "hold-before-it-is-written": 90,
    "skip-forgets": 13,
}
"""Seeds that have found what few others find: tried first, which saves time and proves the same. When histories are drawn in another
way they are out of date; then all are tried, and the new seed belongs here."""


def seeds(name: str, most: int) -> Iterator[int]:
    """The histories that are to find it."""
    if name in FOUND_BY:
        yield FOUND_BY[name]
    yield from range(most)


@contextlib.contextmanager
def mutant(name: str) -> Iterator[Rules]:
    """The product with one rule broken."""
    with Broken() as broken:
        if name in CORE_MUTANTS:
            CORE_MUTANTS[name](broken)
        yield WORKER_MUTANTS.get(name, Rules())


def check_mutants(seeds: range) -> int:
    """Prints what catches each mutant; the number of those that nothing caught."""
    survivors = 0
    for name in MUTANTS:
        with mutant(name) as rules:
            found = check(seeds, rules)
        survivors += not found
        print(f"{name:26}", f"caught by seed {found[0][0]}: {found[0][1][:90]}" if found else "NOT CAUGHT", flush=True)
    return survivors
