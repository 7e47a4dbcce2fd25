"""What is committed again: although nothing has changed, or because it was refused."""

from __future__ import annotations

from typing import Any

from pipeline.core.progress import Progress
from pipeline.core.rebuild import Rebuild
from pipeline.core.unit import LaneSpec, Unit, UnitPolicy
from pipeline.model.cluster import TopicPartition
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.policies import RetryPolicy
from pipeline.worker.committing import ANSWER_TIMEOUT_MS, DOUBT_MS, RECOMMIT_MS, Committer

SOURCE, LANE = TopicPartition("t", 0), TopicPartition("t.g.replay", 0)
NOW_MS = 1_000_000


def unit() -> Unit:
    rebuild = Rebuild(Progress(0, 0), ["replay"], {"replay": Progress(0, 0)}, {"replay": 0})
    return Unit(0, UnitPolicy("t", "g", "key", RetryPolicy()), [LaneSpec("replay", "t.g.replay", None)], rebuild)


def committed(
    committer: Committer, owned: Unit, now_ms: int, errors: dict[TopicPartition, Any] | None = None
) -> set[TopicPartition]:
    """What went out, answered at once."""
    asked = committer.next([owned], now_ms)
    if asked is None:
        return set()
    committer.answered(dict.fromkeys(asked) | (errors or {}), now_ms, asked)
    return set(asked)


def test_what_may_have_been_put_back_is_committed_once_more() -> None:
    """By a late commit of the owner before, or by one of ours whose answer was lost."""
    committer, owned = Committer(), unit()
    assert committed(committer, owned, NOW_MS) == {SOURCE, LANE}
    assert committed(committer, owned, NOW_MS + DOUBT_MS) == set()
    assert committed(committer, owned, NOW_MS + DOUBT_MS + 1) == {SOURCE, LANE}
    assert committed(committer, owned, NOW_MS + 3 * DOUBT_MS) == set(), "and then it is out of doubt"
    owned.lanes[1].tracker.next_offset += 1
    assert committed(committer, owned, NOW_MS + 3 * DOUBT_MS, {LANE: ClusterUnavailable("no answer")}) == {LANE}
    assert committed(committer, owned, NOW_MS + 3 * DOUBT_MS + 1) == {LANE}, "the same again, now stored"
    assert committed(committer, owned, NOW_MS + 4 * DOUBT_MS) == set()
    assert committed(committer, owned, NOW_MS + 4 * DOUBT_MS + 1) == {LANE}
    assert committed(committer, owned, NOW_MS + 9 * DOUBT_MS) == set()


def test_what_never_changes_is_committed_again_before_its_offsets_expire() -> None:
    """Nobody subscribes to a lane, so its offsets expire though the group lives: a day (`offsets.retention.minutes`) at the least."""
    assert RECOMMIT_MS <= 24 * 3_600_000
    committer, owned = Committer(), unit()
    committed(committer, owned, NOW_MS)
    last_ms = NOW_MS + DOUBT_MS + 1
    assert committed(committer, owned, last_ms) == {SOURCE, LANE}, "out of doubt"
    for _ in range(3):
        assert committed(committer, owned, last_ms + RECOMMIT_MS) == set()
        last_ms += RECOMMIT_MS + 1
        assert committed(committer, owned, last_ms) == {SOURCE, LANE}


def test_a_partition_in_doubt_is_committed_when_it_is_let_go() -> None:
    committer, owned = Committer(), unit()
    committed(committer, owned, NOW_MS)
    assert set(committer.positions(owned, NOW_MS + 2, last=True)) == {SOURCE, LANE}
    committed(committer, owned, NOW_MS + DOUBT_MS + 2)
    assert not committer.positions(owned, NOW_MS + DOUBT_MS + 3, last=True)


def test_what_was_refused_goes_out_again_before_anything_newer() -> None:
    """Or a lane's progress could be durable before the hand-off that fed it: its record would run again."""
    committer, owned = Committer(), unit()
    committed(committer, owned, NOW_MS)
    source, lane = owned.lanes[0].tracker, owned.lanes[1].tracker
    source.next_offset = 1  # handed off
    asked = committer.next([owned], NOW_MS)
    assert asked is not None
    lane.next_offset = 1  # its copy is done
    refused = {SOURCE: ClusterUnavailable("no")}
    assert set(committer.answered(refused, NOW_MS, asked)) == {SOURCE}
    source.next_offset = 2
    for _ in range(2):
        again = committer.next([owned], NOW_MS)
        assert again == {SOURCE: asked[SOURCE]}
        committer.answered(refused, NOW_MS, again)
    assert committed(committer, owned, NOW_MS) == {SOURCE}
    newer = committer.next([owned], NOW_MS)
    assert newer is not None
    assert (newer[SOURCE].offset, newer[LANE].offset) == (2, 1)


def test_the_next_commit_waits_for_the_answer_to_the_last() -> None:
    """Across a connection that is cut the second may be stored first, and the first over it."""
    committer, owned = Committer(), unit()
    asked = committer.next([owned], NOW_MS)
    owned.lanes[0].tracker.next_offset = 1
    for at_ms in (NOW_MS, NOW_MS + ANSWER_TIMEOUT_MS - 1):
        assert committer.next([owned], at_ms) is None
    assert asked is not None
    committer.answered(dict.fromkeys(asked), NOW_MS + ANSWER_TIMEOUT_MS - 1, asked)
    assert committed(committer, owned, NOW_MS + ANSWER_TIMEOUT_MS - 1) == {SOURCE}
