"""Offsets and commit texts against naive models: sets of numbers."""

from __future__ import annotations

import string

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.offsets import OffsetTracker
from pipeline.core.progress import METADATA_LIMIT, Progress, decode, encode

offsets = st.integers(0, 2**40)


@st.composite
def progresses(draw: st.DrawFn, most: int = 60_000) -> Progress:
    offset = draw(offsets)
    span = draw(st.integers(0, most))
    if draw(st.booleans()):
        opened = (
            {offset + at for at in draw(st.sets(st.integers(0, max(0, span - 1)), max_size=200))} if span else set()
        )
    else:
        step = draw(st.integers(1, 7))
        opened = set(range(offset, offset + span, step))
    fences = draw(st.dictionaries(st.text(string.printable, max_size=20), offsets, max_size=6))
    return Progress(offset, offset + span, tuple(sorted(opened)), draw(st.integers(0, 2**40)), fences)


def settled(progress: Progress) -> set[int]:
    return set(range(progress.offset, progress.end)) - set(progress.open)


@given(progresses())
@example(Progress(5, 5))
@example(Progress(0, 1, (0,)))
@example(Progress(0, 24_544, tuple(range(0, 24_544, 2))))
def test_a_commit_text_says_what_is_settled_and_never_more(progress: Progress) -> None:
    text = encode(progress)
    assert len(text) <= METADATA_LIMIT
    assert "\0" not in text
    found = decode(progress.offset, text)
    assert (found.offset, found.epoch, found.fences) == (progress.offset, progress.epoch, progress.fences)
    assert settled(found) <= settled(progress)
    if found.end >= progress.end:  # not cut
        assert settled(found) == settled(progress)


@given(progresses(most=3_000), st.integers(0, 600))
def test_a_short_limit_cuts_the_far_end_only(progress: Progress, limit: int) -> None:
    text = encode(progress, limit)
    bare = encode(Progress(0, 1, (0,), progress.epoch, progress.fences), 0)
    assert len(text) <= max(limit, len(bare) + 16)
    found = decode(progress.offset, text)
    assert settled(found) <= settled(progress)
    assert (found.epoch, found.fences) == (progress.epoch, progress.fences)


@given(progresses(most=20_000))
def test_what_fits_is_kept_whole(progress: Progress) -> None:
    if len(encode(progress, limit=1 << 30)) <= METADATA_LIMIT:
        assert settled(decode(progress.offset, encode(progress))) == settled(progress)


@given(offsets, st.one_of(st.text(max_size=80), st.text(max_size=80).map("pl1:".__add__), st.binary().map(str)))
def test_foreign_text_means_nothing_known_beyond_the_offset_or_is_read_without_harm(offset: int, text: str) -> None:
    found = decode(offset, text)
    assert found.offset == offset
    if not text.startswith("pl1:"):
        assert found == Progress(offset, offset)


@given(progresses(most=500), st.data())
def test_a_torn_text_claims_no_open_offset(progress: Progress, data: st.DataObject) -> None:
    text = encode(progress)
    cut = data.draw(st.integers(0, len(text)))
    found = decode(progress.offset, text[:cut])
    if progress.open:
        assert not set(progress.open) & settled(found)


def test_a_forged_run_does_not_fill_the_memory() -> None:
    import base64

    raw = bytes([1, 0, 2]) + b"\xff" * 8 + b"\x7f"
    text = "pl1:" + base64.urlsafe_b64encode(raw).decode().rstrip("=")
    assert decode(7, text) == Progress(7, 7)


def test_one_slow_record_before_millions_of_done_ones_is_remembered() -> None:
    progress = Progress(3, 50_000_000, (3,))
    assert decode(3, encode(progress)) == progress


class Naive:
    """A set of what was received and a set of what is settled."""

    def __init__(self, restored: Progress) -> None:
        self.next = restored.end
        self.open = set(restored.open)
        self.missing = set(restored.open)

    def receive(self, offset: int) -> bool:
        self.open -= {gone for gone in self.missing if gone < offset}
        self.missing = {awaited for awaited in self.missing if awaited > offset}
        if offset >= self.next:
            self.next = offset + 1
            self.open.add(offset)
            return True
        return offset in self.open

    def position(self) -> int:
        return min(self.open, default=self.next)


@given(
    st.integers(0, 50),
    st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 60), max_size=50),
    st.randoms(use_true_random=False),
)
def test_tracker_agrees_with_sets(start: int, opened: set[int], fetched: set[int], rng: object) -> None:
    import random

    assert isinstance(rng, random.Random)
    restored_open = tuple(sorted(start + at for at in opened))
    end = start + max(opened, default=-1) + 1 + rng.randrange(5)
    restored = Progress(restored_open[0] if restored_open else end, end, restored_open)
    tracker: OffsetTracker[str] = OffsetTracker(restored)
    naive = Naive(restored)
    running: set[int] = set()
    for offset in sorted(restored.offset + at for at in fetched):
        took = tracker.receive(offset, "x")
        assert took == naive.receive(offset)
        if took:
            running.add(offset)
        while running and rng.random() < 0.5:
            done = rng.choice(sorted(running))
            running.remove(done)
            tracker.settle(done)
            naive.open.remove(done)
        progress = tracker.progress(3, {"a": 1})
        assert list(tracker.open) == sorted(naive.open)
        assert tracker.position == progress.offset == naive.position()
        assert (progress.end, progress.open, progress.epoch) == (naive.next, tuple(sorted(naive.open)), 3)
        assert running <= set(tracker.open)
    assert tracker.restoring == bool(naive.missing)


@given(progresses(most=300))
def test_a_restored_tracker_commits_what_it_read(progress: Progress) -> None:
    first = progress.open[0] if progress.open else progress.end
    tracker: OffsetTracker[str] = OffsetTracker(decode(progress.offset, encode(progress)))
    assert tracker.position == first
    assert set(progress.open) <= set(tracker.open)
