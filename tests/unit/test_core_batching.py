"""Batches in which a key has several records: who may join, and what becomes of those behind one that is not done."""

from __future__ import annotations

from collections import deque

from pipeline.core.batching import admit_many, gather, gathering_ends, hold_back_behind
from pipeline.core.delivery import Delivery
from pipeline.core.effects import HandOff
from pipeline.core.unit import Unit
from tests.unit.test_core_unit import FAILURE, NOW, receive, source_record, unit


def gathered(target: Unit, keys: str, full: int = 100, start: int = 0) -> tuple[list[Delivery], deque[Delivery]]:
    """The batch, and what is left, of one record per letter."""
    ready = receive(target, *(source_record(start + at, key.encode()) for at, key in enumerate(keys)))
    batch: list[Delivery] = []
    admit_many(target, ready, batch, full, NOW, chained=True)
    return batch, ready


def offsets(deliveries: object) -> list[int]:
    return [delivery.offset for delivery in deliveries]  # type: ignore[attr-defined]


def test_several_of_a_key_run_in_one_batch_and_the_next_batch_waits_for_the_last_of_them() -> None:
    target = unit()
    batch, _ = gathered(target, "aabab")
    assert offsets(batch) == [0, 1, 2, 3, 4]
    gathering_ends(batch)
    late, _ = gathered(target, "ac", start=5)
    assert offsets(late) == [6]
    following = [target.done(delivery, NOW) for delivery in batch]
    assert [f.offset if f else None for f in following] == [None, None, None, 5, None]
    assert target.busy == {b"a", b"c"}


def test_what_waits_for_a_key_joins_the_batch_with_its_first() -> None:
    target = unit()
    first, _ = gathered(target, "a")
    gathering_ends(first)
    nothing, _ = gathered(target, "aaa", start=1)
    assert nothing == []
    following = target.done(first[0], NOW)
    assert following is not None
    batch: list[Delivery] = []
    gather(following, batch, 3)
    assert offsets(batch) == [1, 2, 3]
    for delivery in batch:
        assert target.done(delivery, NOW) is None
    assert not target.busy
    assert not target.chains.more


def test_without_leave_a_key_has_one_record_in_a_batch() -> None:
    target = unit()
    ready = receive(target, *(source_record(at, b"a") for at in range(3)))
    batch: list[Delivery] = []
    admit_many(target, ready, batch, 10, NOW)
    assert offsets(batch) == [0]
    assert target.waiting.count == 2


def test_those_behind_a_failure_go_back_before_what_waits_and_hop_behind_it() -> None:
    target = unit()
    batch, _ = gathered(target, "aaaa")
    gathering_ends(batch)
    gathered(target, "a", start=4)
    assert target.done(batch[0], NOW) is None
    assert offsets(hold_back_behind(batch[1], batch[2:])) == [2, 3]
    assert offsets(target.waiting.of(b"a")) == [2, 3, 4]
    assert target.failed(batch[1], FAILURE, NOW, 0.0) is None
    assert offsets(e.delivery for e in target.effects if isinstance(e, HandOff)) == [1, 2, 3, 4]
    assert [e.headers.attempt for e in target.effects if isinstance(e, HandOff)] == [1, 0, 0, 0]
    assert not target.busy
    assert not target.chains.more


def test_an_earlier_one_that_is_not_acknowledged_yet_keeps_the_key() -> None:
    """Its outputs are on their way: what comes after the failure must not run before they are."""
    target = unit()
    batch, _ = gathered(target, "aa")
    gathering_ends(batch)
    gathered(target, "a", start=2)
    assert target.failed(batch[1], FAILURE, NOW, 0.0) is None
    assert target.busy == {b"a"}
    assert target.waiting.count == 1
    assert target.done(batch[0], NOW) is None  # now the key is free: the next one goes behind the failed one
    assert offsets(e.delivery for e in target.effects if isinstance(e, HandOff)) == [1, 2]
    assert not target.busy


def test_when_the_unit_drains_nothing_goes_back_to_wait() -> None:
    target = unit()
    batch, _ = gathered(target, "aaa")
    target.drain()
    assert offsets(hold_back_behind(batch[0], batch[1:])) == [1, 2]
    assert target.waiting.count == 0
    assert set(target.lanes[0].tracker.open) == {0, 1, 2}
