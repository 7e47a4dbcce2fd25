"""Crash loops in the pure core: who counts what, how far the horizon is, which records are suspects."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from pipeline.core.care import (
    HELD_MAX,
    STEADY_MS,
    UNCLEAN,
    WINDOW,
    WINDOW_MAX,
    Care,
    let_go,
    marking_of,
    marks_of,
    of_records,
    take_care,
)
from pipeline.core.delivery import SOURCE, Delivery
from pipeline.core.progress import Progress, decode, encode
from pipeline.core.store_scan import Floor
from pipeline.core.unit import Unit
from pipeline.worker.committing import Committer
from tests.unit.test_core_unit import NOW, rebuilt, source_record
from tests.unit.test_core_unit import unit as a_unit


def owned(found: Progress, ours: bool = False, now_ms: int = NOW, isolated: bool = False) -> Unit:
    """A unit whose claim found this."""
    rebuild = rebuilt(found, {})
    unit = a_unit(rebuild)
    unit.policy = replace(unit.policy, isolated=isolated)
    take_care(unit, found.marks, now_ms, ours)
    return unit


def committed(unit: Unit) -> Progress:
    """What its next commit would say, through the wire."""
    ((_, position),) = [item for item in Committer().positions(unit, NOW).items() if item[0].topic == "t"]
    return decode(position.offset, position.metadata)


def sort(unit: Unit, ready: deque[Delivery], at_once: int = 100_000) -> None:
    """As the quarantine does it in each step."""
    assert unit.care is not None
    unit.care.sort(ready, at_once, unit.lanes[SOURCE].tracker.under_way)


def receive(unit: Unit, *offsets: int, key: bytes | None = b"k") -> deque[Delivery]:
    """What of these records the unit lets through now."""
    assert unit.care is not None
    ready: deque[Delivery] = deque()
    unit.receive_source([source_record(offset, key) for offset in offsets], unit.care.inbox)
    sort(unit, ready)
    return ready


def test_a_clean_life_counts_nothing() -> None:
    first = owned(Progress(0, 0))
    assert first.care is None
    assert committed(first).marks == {UNCLEAN: 1}
    let_go(first)
    assert marks_of(owned(committed(first))) == {UNCLEAN: 1}


def test_each_owner_that_does_not_let_go_is_counted() -> None:
    found = Progress(5, 5)
    counts = []
    for _ in range(4):
        unit = owned(found)
        counts.append((unit.unclean, unit.care is not None))
        found = committed(unit)
    assert counts == [(1, False), (2, True), (3, True), (4, True)]
    assert owned(found, ours=True).unclean == 4, "the same process again: nobody died"
    assert owned(found, isolated=True).care is None


def test_a_worker_that_does_not_know_marks_reads_epoch_and_fences_and_forgets_the_rest() -> None:
    text = encode(Progress(7, 9, (7,), 4, {"10s": 3}, {UNCLEAN: 3, "source": 90}))
    found = decode(7, text)
    assert (found.fences, found.marks) == ({"10s": 3}, {UNCLEAN: 3, "source": 90})
    as_before = encode(replace(found, marks={}))
    assert decode(7, as_before).marks == {}
    assert decode(7, as_before) == replace(found, marks={})
    assert text.startswith("pl1:"), "another prefix would lose the map of what is done"


def test_nothing_passes_the_horizon_before_it_is_stored() -> None:
    unit = owned(Progress(100, 100, (), 1, {}, {UNCLEAN: 1}))
    care = unit.care
    assert care is not None
    assert receive(unit, *range(100, 300)) == deque(), "the claim is not stored yet"
    care.stored(0)
    ready: deque[Delivery] = deque()
    sort(unit, ready)
    assert [delivery.offset for delivery in ready] == list(range(100, 100 + WINDOW))
    assert committed(unit).marks["source"] > 100 + WINDOW
    sort(unit, ready)
    assert len(ready) == WINDOW, "it was asked for, and not answered"
    care.stored(marking_of(unit))
    sort(unit, ready)
    assert len(ready) == 3 * WINDOW, "records waited, so the window doubled"


def test_the_window_is_bounded_and_so_is_what_waits() -> None:
    unit = owned(Progress(0, 0, (), 1, {}, {UNCLEAN: 1}))
    care = unit.care
    assert care is not None
    receive(unit, *range(HELD_MAX))
    assert care.full
    for _ in range(20):
        before = care.marks()["source"]
        care.stored(care.ask())
        sort(unit, deque())
        assert care.marks()["source"] - before <= WINDOW_MAX
    assert not care.full


def test_no_more_is_let_through_than_can_run() -> None:
    unit = owned(Progress(100, 100, (), 1, {}, {UNCLEAN: 1}))
    care = unit.care
    assert care is not None
    receive(unit, *range(100, 1_000))
    ready: deque[Delivery] = deque()
    for _ in range(20):
        care.stored(care.ask())
        sort(unit, ready, at_once=30)
    assert len(ready) == 30 + WINDOW, "a little stands in line, so that no place is ever empty"
    assert care.marks()["source"] <= 100 + (30 + WINDOW) + 2 * WINDOW, "who comes next suspects no more than could run"
    assert not care.moving, "nothing waits for a commit"
    for _ in range(10):
        unit.lanes[SOURCE].tracker.settle(ready.popleft().offset)
    sort(unit, ready, at_once=30)
    assert len(ready) == 30 + WINDOW, "each ending makes room for one"


def third_life() -> Unit:
    """Offsets 10 and 12 were open, and up to 20 records could be running."""
    return owned(Progress(10, 13, (10, 12), 2, {}, {UNCLEAN: 2, "source": 20}))


def test_suspects_are_what_was_open_below_the_horizon_and_the_rest_goes_on() -> None:
    unit = third_life()
    care = unit.care
    assert care is not None
    care.stored(0)
    ready = deque(
        [
            *receive(unit, 10, key=b"a"),
            *receive(unit, 12, 13, 19, key=b"b"),
            *receive(unit, 20, key=b"b"),
            *receive(unit, 21, key=b"c"),
        ]
    )
    assert [delivery.offset for delivery in care.suspects] == [10, 12, 13, 19]
    assert [delivery.offset for delivery in ready] == [21], "20 waits for the suspects of its key"
    assert not care.over(NOW + STEADY_MS, [10], False)


def test_a_key_has_one_suspect_at_a_time_and_its_successors_follow_the_last() -> None:
    unit = third_life()
    care = unit.care
    assert care is not None
    care.stored(0)
    receive(unit, 10, 12, 20, key=b"a")
    first = care.next_suspect(lambda one: one.key not in unit.busy)
    assert first is not None
    assert unit.admit(first, NOW)
    assert care.next_suspect(lambda one: one.key not in unit.busy) is None, "its key is busy"
    assert unit.done(first, NOW) is None
    second = care.next_suspect(lambda one: one.key not in unit.busy)
    assert second is not None
    assert (first.offset, second.offset) == (10, 12)
    ready: deque[Delivery] = deque()
    sort(unit, ready)
    assert [delivery.offset for delivery in ready] == [20]


def test_it_is_over_when_the_suspects_are_done_or_after_a_steady_minute() -> None:
    unit = third_life()
    care = unit.care
    assert care is not None
    assert not care.over(NOW, [19, 0, 0, 0], False)
    assert care.over(NOW, [20, 0, 0, 0], False)
    assert not care.over(NOW, [20, 0, 0, 0], True), "one runs alone still"
    assert care.over(NOW + STEADY_MS, [12, 0, 0, 0], False), "fewer records exist than the horizon allowed"
    watched = owned(Progress(0, 0, (), 1, {}, {UNCLEAN: 1})).care
    assert watched is not None
    assert not watched.over(NOW + STEADY_MS - 1, [50, 0, 0, 0], False)
    assert watched.over(NOW + STEADY_MS, [50, 0, 0, 0], False)


def test_who_lets_go_before_the_suspects_ended_hands_them_over_as_it_found_them() -> None:
    """A worker that was started again joins, and partitions move in order: a killer among them must not be anybody's again."""
    unit = third_life()
    before = marking_of(unit)
    assert committed(unit).marks["source"] == 20 + WINDOW
    let_go(unit)
    assert marking_of(unit) != before, "worth a commit"
    found = committed(unit)
    assert (found.marks[UNCLEAN], found.marks["source"]) == (2, 20)
    assert {number for name, number in found.marks.items() if name not in (UNCLEAN, "source")} <= {0}
    heir = owned(found)
    assert heir.unclean == 3
    receive(heir, 10, 12, 20)
    assert heir.care is not None
    assert [delivery.offset for delivery in heir.care.suspects] == [10, 12]
    for delivery in tuple(heir.care.suspects):
        assert heir.admit(delivery, NOW)
        heir.done(delivery, NOW)
    let_go(heir)
    assert (heir.care, committed(heir).marks) == (None, {UNCLEAN: 0})


def test_what_was_not_written_yet_is_not_suspected() -> None:
    marks = of_records({UNCLEAN: 2, "source": 90, "10s": 7, "gone": 3}, {"source": 50, "10s": 9, "unclean": 1 << 40})
    assert marks == {UNCLEAN: 2, "source": 50, "10s": 7, "gone": 3}


def test_a_new_horizon_covers_the_old_suspects() -> None:
    """The worker may die while they run alone: the next owner must suspect them again."""
    unit = third_life()
    assert committed(unit).marks["source"] == 20 + WINDOW
    assert committed(unit).marks[UNCLEAN] == 3


def test_marks_alone_are_worth_a_commit_and_are_not_repeated() -> None:
    unit, committer = owned(Progress(3, 3)), Committer()

    def answered() -> bool:
        positions = committer.next([unit], NOW)
        if positions:
            committer.answered(dict.fromkeys(positions), NOW, positions)
        return bool(positions)

    assert answered()
    assert not answered()
    unit.unclean = 0
    assert answered()
    assert committer.marking(unit) == marking_of(unit)
    assert not answered()


def test_a_store_s_floor_goes_with_them_and_is_worth_a_commit() -> None:
    unit, committer = owned(Progress(3, 3)), Committer()
    assert Floor.of(committed(unit).marks) == Floor()
    positions = committer.next([unit], NOW)
    assert positions
    committer.answered(dict.fromkeys(positions), NOW, positions)
    unit.floor = Floor(70_000, 4)
    assert committer.next([unit], NOW)
    assert Floor.of(committed(unit).marks) == unit.floor
    assert committed(unit).marks[UNCLEAN] == 1
    watched = third_life()
    watched.floor = Floor(5, 1)
    assert Floor.of(committed(watched).marks) == Floor(5, 1)
    assert committed(watched).marks["source"] == 20 + WINDOW


@pytest.mark.parametrize("lane", [1, 2])
def test_lane_records_are_watched_as_well(lane: int) -> None:
    names = ["source", "10s", "replay"]
    care = Care(3, names, [0, 5, 5], {UNCLEAN: 2, "10s": 7, "replay": 7}, NOW)
    unit = third_life()
    care.inbox.extend(Delivery(unit, lane, offset, b"k%d" % offset, source_record(offset)) for offset in (5, 6, 7))
    ready: deque[Delivery] = deque()
    care.stored(0)
    care.sort(ready, 1, 0)
    assert [one.offset for one in care.suspects] == [5, 6]
    assert [one.offset for one in ready] == [7]
    assert care.marks()[names[lane]] == 7 + WINDOW
    assert not care.is_suspect(Delivery(unit, SOURCE, 0, b"k", source_record(0)))
