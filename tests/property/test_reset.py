"""A reset's pure part against what it must mean: which offsets run again, which are skipped, what survives in the commit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.progress import Progress, decode, encode
from pipeline.model.cluster import TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.replay import reset
from pipeline.replay.reset import Standing, format_csv, moved, parse_csv, plan_moves

PLACE = TopicPartition("t", 0)


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    """A log, and a group somewhere on it, also with a commit that retention or a new topic has left outside."""
    beginning = draw(st.integers(0, 30))
    end = beginning + draw(st.integers(0, 40))
    if draw(st.booleans()):
        offset = draw(st.integers(0, 80))
        top = offset + draw(st.integers(0, 30))
        opened = sorted(draw(st.sets(st.integers(offset, top - 1)))) if top > offset else []
        progress = Progress(offset, top, tuple(opened), draw(st.integers(0, 300)), {"10s": draw(st.integers(0, 9))})
        return Standing(progress, beginning, end)
    return Standing(None, beginning, end)


def unsettled(progress: Progress | None, at: Standing) -> set[int]:
    """By the meaning of a commit: what the log holds and a worker that starts with it would process."""
    if progress is None:
        return set(range(at.beginning, at.end))
    return {
        offset
        for offset in range(at.beginning, at.end)
        if offset >= progress.end or offset in progress.open
    }  # fmt: skip


@given(standings(), st.integers(0, 100))
def test_again_and_skipped_are_the_difference_of_what_waits_before_and_after(at: Standing, wanted: int) -> None:
    mode = reset.to_offset(wanted, {})
    if not at.beginning <= wanted <= at.end:
        with pytest.raises(ConfigurationError, match=f"takes {at.beginning} to {at.end}"):
            plan_moves(mode, {PLACE: at})
        return
    (move,) = plan_moves(mode, {PLACE: at})
    assert move.new == wanted
    before = unsettled(at.progress, at)
    after = unsettled(moved(at.progress or Progress(wanted, wanted), wanted), at)
    assert move.again == len(after - before)
    assert move.skipped == len(before - after)


@given(standings(), st.integers(0, 100))
def test_the_epoch_and_the_fences_survive_every_move(at: Standing, new: int) -> None:
    if at.progress is None:
        return
    found = moved(at.progress, new)
    assert (found.offset, found.epoch, found.fences) == (new, at.progress.epoch, at.progress.fences)
    again = decode(new, encode(found))
    assert (again.epoch, dict(again.fences)) == (at.progress.epoch, dict(at.progress.fences))
    known = [offset for offset in range(new, found.end) if offset not in found.open]
    if new < at.progress.offset:
        assert known == [], "moved back: all of it runs again"
    else:
        assert all(offset < at.progress.end and offset not in at.progress.open for offset in known)


@given(standings())
def test_every_mode_says_where_it_says(at: Standing) -> None:
    def to(mode: reset.Mode) -> list[int]:
        return [move.new for move in plan_moves(mode, {PLACE: at})]

    assert to(reset.to_earliest()) == [at.beginning]
    assert to(reset.to_latest()) == [at.end]
    assert to(reset.to_found("--to-datetime", {PLACE: at.beginning})) == [at.beginning]
    assert to(reset.to_found("--from-file", {})) == []
    assert to(reset.to_offset(None, {1: 5})) == []
    if at.progress is None:
        assert to(reset.to_current()) == []
        with pytest.raises(ConfigurationError, match="nothing to shift"):
            to(reset.shift_by(1))
    else:
        if at.beginning <= at.progress.offset <= at.end:
            assert to(reset.to_current()) == [at.progress.offset]
            (move,) = plan_moves(reset.to_current(), {PLACE: at})
            assert (move.again, move.skipped) == (0, 0)
        for count in (None, -7, 0, 7):  # None: where it stands, which the log may not hold any more
            wanted = at.progress.offset + (count or 0)
            (move,) = plan_moves(reset.to_current() if count is None else reset.shift_by(count), {PLACE: at})
            assert move.new == min(max(wanted, at.beginning), at.end)
            assert bool(move.note) is (move.new != wanted)


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["t", "a.b_c-d", 'odd,"name"']), st.integers(0, 9)).map(lambda p: TopicPartition(*p)),
        st.integers(0, 2**62),
    )
)
def test_a_file_that_was_exported_is_read_back(positions: dict[TopicPartition, int]) -> None:
    text = format_csv(positions.items())
    assert parse_csv(text, "g", "file") == positions
    theirs = "".join(f"g,{line}\n" for line in text.splitlines()) + "other,t,0,99\n"
    assert parse_csv(theirs, "g", "file") == positions, "with the group first, as Kafka's tool writes for several"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t,0\n", "line 1"),
        ("t,0,5\nt,x,5\n", "line 2"),
        ("t,0,-5\n", "line 1"),
        ("t,0,5\nt,0,6\n", "second time"),
        ("t;0;5\n", "line 1"),
    ],
)
def test_a_file_that_is_none_is_refused_by_its_line(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_csv(text, "g", "f.csv")
