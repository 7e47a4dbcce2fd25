"""Lane records that wait in memory behind a lower one of their key."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.parking import Identity
from pipeline.core.progress import Progress
from pipeline.core.unit import DeadLetter, HandOff, Unit
from tests.unit.test_core_unit import NOW, headers, lane_record, rebuilt, source_record, unit

KEY = b"k"


def parked(count: int, blocked: int = 100, held_back: int = 100) -> tuple[Unit, deque[Delivery]]:
    """A unit whose head (origin 0) waits in 1m and its successors, due already, in 10s; what is due is in the queue."""
    head = [lane_record(0, KEY, replace(headers(0), due_ms=NOW + 60_000))]
    successors = [lane_record(at, KEY, headers(at + 1)) for at in range(count)]
    target = unit(rebuilt(Progress(0, 0), {"1m": head, "10s": successors}))
    target.policy = replace(target.policy, blocked=blocked, held_back=held_back)
    target.receive_lane(2, head)
    target.receive_lane(1, successors)
    return target, due(target, NOW)


def due(target: Unit, now_ms: int) -> deque[Delivery]:
    ready: deque[Delivery] = deque()
    target.release_due(now_ms, ready)
    return ready


def origins(deliveries: object) -> list[int]:
    return [delivery.identity.origin for delivery in deliveries]  # type: ignore[attr-defined]


def test_successors_do_not_hop_and_run_in_order_when_the_head_is_done() -> None:
    target, ready = parked(3)
    assert origins(ready) == [1, 2, 3]
    assert not any(target.admit(delivery, NOW) for delivery in ready)
    assert not target.effects
    assert target.blocked.count == 3
    (head,) = due(target, NOW + 60_000)
    assert target.admit(head, NOW)
    ran = []
    following = target.done(head, NOW)
    while following is not None:
        ran.append(following)
        following = target.done(following, NOW)
    assert origins(ran) == [1, 2, 3]
    assert not target.blocked.count
    assert not target.parking.keys
    assert target.progress()[1].open == ()


def test_they_are_still_open_in_their_lane_so_a_crash_forgets_nothing() -> None:
    target, ready = parked(3)
    for delivery in ready:
        target.admit(delivery, NOW)
    assert target.progress()[1].open == (0, 1, 2)
    target.drain()
    assert not target.blocked.count
    assert target.progress()[1].open == (0, 1, 2)


def test_beyond_the_bound_they_hop_behind_the_one_before_them() -> None:
    target, ready = parked(3, blocked=2)
    for delivery in ready:
        target.admit(delivery, NOW)
    (effect,) = target.effects
    assert isinstance(effect, HandOff)
    assert (effect.delivery.identity.origin, effect.lane, effect.caused_by) == (3, 1, "wait")
    assert effect.headers.due_ms == NOW + 10_000, "due at once it would go round as fast as the brokers answer"


def test_what_holds_the_commit_back_too_far_hops_behind_the_head() -> None:
    target, ready = parked(1, held_back=5)
    target.admit(ready[0], NOW)
    target.receive_lane(1, [lane_record(at, b"other", headers(at + 100)) for at in range(1, 5)])
    due(target, NOW)
    assert not target.effects
    target.receive_lane(1, [lane_record(5, b"other", headers(105))])
    due(target, NOW)
    (effect,) = target.effects
    assert isinstance(effect, HandOff)
    assert (effect.delivery.identity.origin, effect.lane, effect.caused_by) == (1, 2, "wait")
    assert effect.headers.due_ms >= NOW + 60_000
    due(target, NOW)
    assert len(target.effects) == 1


def test_a_skipped_head_lets_them_go() -> None:
    target, ready = parked(2)
    for delivery in ready:
        target.admit(delivery, NOW)
    target.skip(KEY, Identity(0))
    free = due(target, NOW)
    assert origins(free) == [1, 2]
    assert [target.admit(delivery, NOW) for delivery in free] == [True, False]
    following = target.done(free[0], NOW)
    assert following is not None
    assert following.identity.origin == 2


def test_a_skipped_successor_goes_to_the_dead_letters_at_once() -> None:
    target, ready = parked(2)
    for delivery in ready:
        target.admit(delivery, NOW)
    target.skip(KEY, Identity(1))
    for delivery in due(target, NOW):
        target.admit(delivery, NOW)
    (letter,) = target.effects
    assert isinstance(letter, DeadLetter)
    assert letter.delivery.identity.origin == 1


def test_a_released_key_lets_them_go() -> None:
    target, ready = parked(2)
    for delivery in ready:
        target.admit(delivery, NOW)
    target.release(KEY, Identity(9))
    free = due(target, NOW)
    assert [target.admit(delivery, NOW) for delivery in free] == [True, False]
    assert target.waiting.count == 1


def test_a_source_record_goes_behind_them() -> None:
    target, ready = parked(2)
    for delivery in ready:
        target.admit(delivery, NOW)
    fetched: deque[Delivery] = deque()
    target.receive_source([source_record(7)], fetched)
    assert not target.admit(fetched[0], NOW)
    (effect,) = target.effects
    assert isinstance(effect, HandOff)
    assert (effect.delivery.lane, effect.lane) == (SOURCE, 1)


def test_a_second_copy_of_a_head_that_runs_does_not_hop() -> None:
    """Its write was answered late, and made twice. Handed on it would count in place of the one that runs, and run beside it."""
    target, ready = parked(1, held_back=5)
    target.receive_lane(1, [lane_record(1, KEY, headers(1, epoch=target.epoch))])
    first, second = *ready, *due(target, NOW)
    assert not target.admit(first, NOW)
    assert not target.admit(second, NOW)
    (head,) = due(target, NOW + 60_000)
    assert target.admit(head, NOW)
    runs = target.done(head, NOW)
    assert runs is not None
    assert (runs.identity, target.blocked.count) == (second.identity, 1)
    target.receive_lane(1, [lane_record(at, b"other", headers(at + 100, epoch=target.epoch)) for at in range(2, 9)])
    due(target, NOW)
    assert not target.effects
    assert target.done(runs, NOW) is None
    assert target.blocked.count == 0
    assert 1 not in target.progress()[1].open, "it says nothing any more"
