"""Single steps of `Unit`, `Rebuild` and the outcome of a handler that the random histories would only show by accident."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

import pytest

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.lane import ARRIVES_WITHIN_MS, LOOK_AGAIN_MS
from pipeline.core.parking import Identity
from pipeline.core.progress import Progress
from pipeline.core.rebuild import Rebuild
from pipeline.core.unit import SKIPPED, DeadLetter, HandOff, LaneSpec, RunAgain, Unit, UnitPolicy
from pipeline.model.headers import HELD, OPENS, DeliveryHeaders, encode
from pipeline.model.outcome import Failure, FailureKind
from pipeline.model.policies import Order, RetryPolicy
from tests.property.history_world import Record

NOW = 1_000_000
FAILURE = Failure(FailureKind.RETRYABLE, "Timeout", "TimeoutError", "no answer")
TIERS = (10_000, 60_000)
LANES = (
    LaneSpec("10s", "t.g.retry.10s", 10_000),
    LaneSpec("1m", "t.g.retry.1m", 60_000),
    LaneSpec("replay", "t.g.replay", None),
)
NAMES = [lane.name for lane in LANES]


def headers(origin: int, hop: int = 1, epoch: int = 1, **more: object) -> DeliveryHeaders:
    return replace(DeliveryHeaders(1, hop, epoch, "t", 0, origin, 0, "g"), **more)  # type: ignore[arg-type]


def lane_record(offset: int, key: bytes | None, delivery: DeliveryHeaders) -> Record:
    return Record(offset, key, encode([], delivery), None)


def source_record(offset: int, key: bytes | None = b"k") -> Record:
    return Record(offset, key, None, None)


def rebuilt(source: Progress, lanes: dict[str, list[Record]], ends: dict[str, int] | None = None) -> Rebuild:
    nothing = dict.fromkeys(NAMES, Progress(0, 0))
    ends = ends or {name: (lanes[name][-1].offset() + 1 if lanes.get(name) else 0) for name in NAMES}
    rebuild = Rebuild(source, NAMES, nothing, ends)
    for name, records in lanes.items():
        for record in records:
            rebuild.observe(NAMES.index(name) + 1, record.offset(), record.key(), record.headers())
    return rebuild


def unit(
    rebuild: Rebuild | None = None,
    order: Order = "key",
    tiers: tuple[int, ...] = TIERS,
    lanes: tuple[LaneSpec, ...] = LANES,
) -> Unit:
    policy = UnitPolicy("t", "g", order, RetryPolicy(attempts=3, tiers_ms=tiers))
    return Unit(0, policy, lanes, rebuild or rebuilt(Progress(0, 0), {}))


def receive(target: Unit, *records: Record) -> deque[Delivery]:
    ready: deque[Delivery] = deque()
    target.receive_source(records, ready)
    return ready


def test_a_skipped_record_in_the_queue_does_not_spin_and_its_successors_run_after_its_dead_letter() -> None:
    target = unit(
        rebuilt(Progress(0, 0), {"10s": [lane_record(0, b"k", headers(0)), lane_record(1, b"k", headers(1))]})
    )
    target.receive_lane(1, [lane_record(0, b"k", headers(0)), lane_record(1, b"k", headers(1))])
    ready = receive(target, source_record(2), source_record(3))
    target.release_due(NOW, ready)
    running = [delivery for delivery in sorted(ready, key=lambda d: d.identity) if target.admit(delivery, NOW)]
    assert [delivery.identity.origin for delivery in running] == [0]
    target.skip(b"k", Identity(1))
    target.skip(b"k", Identity(1))
    assert target.done(running[0], NOW) is None
    (letter,) = target.effects
    assert isinstance(letter, DeadLetter)
    assert (letter.delivery.identity.origin, letter.failure) == (1, SKIPPED)
    assert target.waiting.count == 2
    following = target.dead_lettered(letter.delivery, NOW)
    assert following is not None
    assert following.identity.origin == 2
    assert not target.parking.keys


def test_a_key_stays_busy_behind_a_stale_copy_that_waited_for_it() -> None:
    """Its hand-off was written twice (an acknowledgement got lost). The second copy is settled when its turn comes; what is behind
    it in memory runs next, and whatever comes meanwhile waits for that."""
    target = unit(rebuilt(Progress(0, 0), {"10s": [lane_record(0, b"k", headers(0))]}))
    target.receive_lane(1, [lane_record(at, b"k", headers(0, epoch=target.epoch)) for at in (0, 1)])
    ready: deque[Delivery] = deque()
    target.release_due(NOW, ready)
    first, second = ready
    assert target.admit(first, NOW)
    (later,) = receive(target, source_record(1))
    assert not any(target.admit(delivery, NOW) for delivery in (second, later))
    assert target.done(first, NOW) is later
    (last,) = receive(target, source_record(2))
    assert not target.admit(last, NOW), "it ran beside the one before it"
    assert target.done(later, NOW) is last


def test_a_running_record_that_is_skipped_is_not_retried() -> None:
    target = unit(rebuilt(Progress(0, 0), {"10s": [lane_record(0, b"k", headers(0))]}))
    target.receive_lane(1, [lane_record(0, b"k", headers(0))])
    ready: deque[Delivery] = deque()
    target.release_due(NOW, ready)
    assert target.admit(ready[0], NOW)
    target.skip(b"k", Identity(0))
    target.failed(ready[0], FAILURE, NOW, 0.0)
    assert [effect.failure for effect in target.effects if isinstance(effect, DeadLetter)] == [SKIPPED]


def test_two_skipped_records_of_a_key_both_find_their_end() -> None:
    target = unit(rebuilt(Progress(0, 0), {"10s": [lane_record(at, b"k", headers(at)) for at in (0, 1)]}))
    target.skip(b"k", Identity(0))
    target.skip(b"k", Identity(1))
    target.parking.resolve(b"k", Identity(0))
    assert b"k" in target.parking.keys
    target.parking.resolve(b"k", Identity(1))
    assert not target.parking.keys


def test_ten_thousand_waiting_successors_are_parked_in_linear_time() -> None:
    target = unit()
    ready = receive(target, *(source_record(offset) for offset in range(10_001)))
    assert [target.admit(delivery, NOW) for delivery in ready].count(True) == 1
    began = time.process_time()
    assert target.failed(ready[0], FAILURE, NOW, 0.0) is None
    assert time.process_time() - began < 3
    origins = [effect.delivery.offset for effect in target.effects if isinstance(effect, HandOff)]
    assert origins == list(range(10_001))
    assert {effect.lane for effect in target.effects if isinstance(effect, HandOff)} == {1}


def test_lane_records_wait_for_their_key_in_origin_order() -> None:
    copies = [lane_record(at, b"k", headers(origin)) for at, origin in enumerate((5, 3, 4))]
    target = unit(rebuilt(Progress(6, 6), {"10s": copies}))
    target.receive_lane(1, copies)
    ready: deque[Delivery] = deque()
    target.release_due(NOW, ready)
    target.busy.add(b"k")
    assert not [delivery for delivery in ready if target.admit(delivery, NOW)]
    assert [delivery.identity.origin for delivery in target.waiting.of(b"k")] == [3, 4, 5]


def released(target: Unit, now_ms: int) -> tuple[list[int], int | None]:
    """Origins of what the lanes give now, and when they want to be asked again."""
    ready: deque[Delivery] = deque()
    again_ms = target.release_due(now_ms, ready)
    return [delivery.identity.origin for delivery in ready], again_ms


def test_lanes_wait_for_what_the_source_still_has_to_bring() -> None:
    """The hand-off of 1 was refused and written again behind that of 2, past the fence: a new owner gets 1 from the source only."""
    copies = [lane_record(at, b"k", headers(origin)) for at, origin in enumerate((0, 2))]
    target = unit(rebuilt(Progress(0, 3, (0, 1, 2)), {"10s": copies}))
    target.receive_lane(1, copies)
    assert released(target, NOW) == ([0], NOW + LOOK_AGAIN_MS)
    (late,) = receive(target, source_record(0), source_record(1), source_record(2))
    assert late.offset == 1
    assert released(target, NOW) == ([2], None)


def test_lanes_do_not_wait_for_ever_for_what_the_source_does_not_hold_any_more() -> None:
    copies = [lane_record(0, b"k", headers(2))]
    target = unit(rebuilt(Progress(0, 3, (0, 1, 2)), {"10s": copies}))
    target.receive_lane(1, copies)
    assert released(target, NOW)[0] == []
    assert released(target, NOW + ARRIVES_WITHIN_MS - 1)[0] == []
    assert released(target, NOW + ARRIVES_WITHIN_MS) == ([2], None)


def test_lanes_wait_for_nothing_where_successors_may_overtake() -> None:
    copies = [lane_record(0, b"k", headers(2))]
    target = unit(rebuilt(Progress(0, 3, (0, 1, 2)), {"10s": copies}), order="key_relaxed")
    target.receive_lane(1, copies)
    assert released(target, NOW) == ([2], None)


def test_a_held_copy_that_was_written_twice_is_one_open_offset() -> None:
    """Else the tool sees the first one open for ever, and the release of its key is never taken up."""
    first = lane_record(0, b"k", headers(0, hop=2, hold=HELD))
    target = unit(rebuilt(Progress(0, 1, (0,)), {"replay": [first]}))
    target.receive_lane(3, [first, lane_record(1, b"k", headers(0, hop=2, epoch=target.epoch, hold=HELD))])
    assert list(target.lanes[3].tracker.open) == [1]
    target.receive_lane(3, [lane_record(2, b"k", headers(0, hop=1_002, epoch=1 << 62, hold=OPENS + "r"))])
    assert list(target.lanes[3].tracker.open) == [2]


def test_a_record_already_in_a_lane_is_settled_by_the_rebuild() -> None:
    source = Progress(3, 6, (3, 5))
    target = unit(rebuilt(source, {"10s": [lane_record(0, b"k", headers(5)), lane_record(1, b"k", headers(8))]}))
    assert target.progress()[SOURCE] == replace(source, end=9, open=(3, 6, 7), epoch=target.epoch, fences=target.fences)
    assert [delivery.offset for delivery in receive(target, *(source_record(at) for at in range(3, 11)))] == [
        3,
        6,
        7,
        9,
        10,
    ]


def test_a_copy_from_too_far_ahead_is_settled_when_it_comes() -> None:
    far = 2_000_000
    target = unit(rebuilt(Progress(0, 0), {"10s": [lane_record(0, b"k", headers(far))]}))
    assert target.progress()[SOURCE].open == ()
    (delivery,) = receive(target, source_record(far))
    assert not target.admit(delivery, NOW)
    assert target.progress()[SOURCE].open == ()


def test_the_copy_with_the_most_hops_is_the_only_one_open() -> None:
    lanes = {
        "10s": [lane_record(0, b"k", headers(1, hop=1)), lane_record(1, b"k", headers(1, hop=3))],
        "1m": [lane_record(0, b"k", headers(1, hop=2))],
    }
    target = unit(rebuilt(Progress(0, 0), lanes))
    progress = target.progress()
    assert progress[1].open == (1,)
    assert progress[2].open == ()


def test_a_copy_fetched_before_its_delivery_report_settles_what_fed_it_once() -> None:
    target = unit()
    (delivery,) = receive(target, source_record(0))
    assert target.admit(delivery, NOW)
    target.failed(delivery, FAILURE, NOW, 0.0)
    (effect,) = target.effects
    assert isinstance(effect, HandOff)
    assert target.progress()[SOURCE].open == (0,)
    target.receive_lane(1, [Record(0, b"k", encode([], effect.headers), None)])
    assert target.progress()[SOURCE].open == ()
    target.handed_off(delivery)
    assert target.progress()[SOURCE].open == ()


def test_records_of_a_lane_that_the_previous_owner_did_not_know_are_not_taken_for_a_zombies() -> None:
    parked = lane_record(0, b"k", headers(0, epoch=3))
    by_an_older_version = Progress(1, 1, (), epoch=4, fences={"10s": 0, "replay": 0})
    rebuild = rebuilt(by_an_older_version, {"1m": [parked]})
    assert rebuild.zombies == 0
    assert rebuild.parking.keys == {b"k": [Identity(0)]}
    rebuild = rebuilt(replace(by_an_older_version, fences={"1m": 0}), {"1m": [parked]})
    assert rebuild.zombies == 1
    assert not rebuild.parking.keys


def test_a_long_wait_without_tiers_is_waited_for_in_memory_with_the_key_blocked() -> None:
    retired = tuple(replace(lane, declared=lane.delay_ms is None) for lane in LANES)
    copy = lane_record(0, b"k", headers(0, not_before_ms=NOW + 500))
    target = unit(rebuilt(Progress(0, 0), {"1m": [copy]}), tiers=(), lanes=retired)
    target.receive_lane(2, [copy])
    ready: deque[Delivery] = deque()
    target.release_due(NOW, ready)
    assert not target.admit(ready[0], NOW)
    assert target.effects == [RunAgain(ready[0], NOW + 500)]
    assert target.busy == {b"k"}


def test_a_foreign_record_in_a_lane_is_dead_lettered_as_what_it_is() -> None:
    target = unit()
    target.receive_lane(3, [Record(7, b"k", [("x", b"1")], None)])
    (letter,) = target.effects
    assert isinstance(letter, DeadLetter)
    assert letter.failure.kind is FailureKind.UNDECODABLE
    assert (letter.headers.origin_topic, letter.headers.origin_offset) == ("t.g.replay", 7)
    assert target.progress()[3].open == (7,)
    assert target.dead_lettered(letter.delivery, NOW) is None
    assert target.progress()[3].open == ()


def test_a_closed_unit_sends_nothing() -> None:
    target = unit()
    (delivery,) = receive(target, source_record(0))
    assert target.admit(delivery, NOW)
    target.close()
    assert target.failed(delivery, FAILURE, NOW, 0.0) is None
    assert target.effects == []


@pytest.mark.parametrize("order", ["key_relaxed", "none"])
def test_other_orders_do_not_wait_behind_a_retry(order: Order) -> None:
    target = unit(order=order)
    ready = receive(target, source_record(0), source_record(1))
    assert target.admit(ready[0], NOW)
    target.failed(ready[0], FAILURE, NOW, 0.0)
    assert target.admit(ready[1], NOW)
    assert len(target.effects) == 1


def test_what_waits_behind_a_record_that_failed_is_not_early_where_clocks_differ() -> None:
    """A delay counts from the latest time that it may be; what waits for its own time goes by the earliest."""
    copy = lane_record(0, b"k", headers(0, not_before_ms=NOW + 500))
    target = unit(rebuilt(Progress(1, 0), {"1m": [copy]}), order="key_relaxed")
    (runs,) = receive(target, source_record(1))
    assert target.admit(runs, NOW)
    target.receive_lane(2, [copy])
    ready: deque[Delivery] = deque()
    target.release_due(NOW, ready)
    assert not target.admit(ready[0], NOW), "the key is busy"
    assert target.failed(runs, FAILURE, NOW, 0.0, late=600) is None
    retry, waits = target.effects
    assert isinstance(retry, HandOff)
    assert isinstance(waits, HandOff)
    assert retry.headers.due_ms >= NOW + 10_600
    assert (waits.delivery, waits.headers.not_before_ms) == (ready[0], NOW + 500)


def test_a_rejected_record_keeps_its_key_until_the_dead_letter_is_written() -> None:
    target = unit()
    ready = receive(target, source_record(0), source_record(1))
    assert target.admit(ready[0], NOW)
    assert not target.admit(ready[1], NOW)
    assert target.failed(ready[0], replace(FAILURE, kind=FailureKind.TERMINAL), NOW, 0.0) is None
    assert target.progress()[SOURCE].open == (0, 1)
    assert target.dead_lettered(ready[0], NOW) is ready[1]
