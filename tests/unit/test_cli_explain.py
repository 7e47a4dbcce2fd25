"""Where a record is: every state from hand-made lanes and commits, and the rules of which copy counts."""

from __future__ import annotations

import pytest

from pipeline.cli.why import sentences
from pipeline.core.progress import Progress
from pipeline.inspect.explain import Explanation, PartitionView, explain, parked_keys
from pipeline.inspect.records import LaneRecord, SourceRecord
from pipeline.model.cluster import GroupMember
from pipeline.model.headers import DeliveryHeaders, ErrorInfo
from pipeline.model.partitioner import murmur2, partition_of
from pipeline.model.topics import lane_topics

TOPICS = lane_topics("events", "billing", (10_000, 60_000))
SHORT, LONG = TOPICS.tiers
NOW = 1_000_000
OWNER = GroupMember("m-1", "worker", "/127.0.0.1", ())


def copy(
    origin: int,
    lane: str = SHORT,
    offset: int = 0,
    *,
    key: bytes = b"run-1",
    hop: int = 1,
    due_ms: int = NOW + 5_000,
    epoch: int = 3,
    attempt: int = 1,
) -> LaneRecord:
    error = ErrorInfo("retryable", "TimeoutError", "too slow")
    delivery = DeliveryHeaders(attempt, hop, epoch, "events", 0, origin, 0, "billing", due_ms=due_ms, error=error)
    return LaneRecord(lane, 0, offset, key, f"e-{origin}", NOW, delivery)


def source(offset: int, key: bytes = b"run-1") -> SourceRecord:
    return SourceRecord("events", 0, offset, key, f"e-{offset}", NOW)


def view(*lanes: LaneRecord, progress: dict[str, Progress] | None = None, **more: object) -> PartitionView:
    known = {"events": Progress(50, 50, epoch=3), **(progress or {})}
    return PartitionView("billing", TOPICS, 0, known, lanes, owner=OWNER, **more)  # type: ignore[arg-type]


def one(place: PartitionView, origin: int) -> Explanation:
    (found,) = explain(place, [(origin, "")], NOW)
    return found


def test_below_the_commit_and_in_no_lane_means_done() -> None:
    assert one(view(source=[source(4)]), 4).state == "done"


def test_beyond_the_commit_means_queued_with_its_owner() -> None:
    found = one(view(source=[source(50)]), 50)
    assert (found.state, found.owner) == ("queued", OWNER)


def test_the_offset_map_is_looked_at() -> None:
    commit = {"events": Progress(40, 50, (40, 45), epoch=3)}
    place = view(source=[source(41), source(45)], progress=commit)
    assert [e.state for e in explain(place, [(41, ""), (45, "")], NOW)] == ["done", "queued"]


def test_the_head_of_a_key_is_parked_until_its_tier_lets_it_go() -> None:
    found = one(view(copy(7)), 7)
    assert (found.state, found.lane, found.due_ms, found.blocked_by) == ("parked", SHORT, NOW + 5_000, None)
    assert found.error == "TimeoutError: too slow"
    assert one(view(copy(7, due_ms=NOW - 1)), 7).state == "due"


def test_a_successor_is_blocked_by_the_lowest_unresolved_origin_of_its_key() -> None:
    place = view(copy(7, attempt=2), copy(9, offset=1), copy(8, offset=2, key=b"run-2"))
    found = one(place, 9)
    assert found.state == "blocked"
    assert found.blocked_by is not None
    assert (found.blocked_by.origin_offset, found.blocked_by.attempt) == (7, 2)
    assert one(place, 8).state == "parked"


def test_settled_copies_do_not_count() -> None:
    place = view(copy(7, offset=3), progress={SHORT: Progress(4, 4)}, source=[source(7)])
    assert one(place, 7).state == "done"


def test_of_several_copies_the_one_with_the_most_hops_counts() -> None:
    place = view(copy(7, LONG, 0, hop=2, due_ms=NOW + 60_000), copy(7, SHORT, 5, hop=1))
    assert (one(place, 7).lane, one(place, 7).hops) == (LONG, 2)


@pytest.mark.parametrize("name", [SHORT, "retry.10s", "10s"])
def test_what_a_zombie_wrote_past_the_fence_does_not_count(name: str) -> None:
    commit = {"events": Progress(50, 50, epoch=3, fences={name: 5})}
    zombie, before = copy(7, offset=5, epoch=2), copy(8, offset=4, epoch=2)
    assert parked_keys(view(zombie, before, progress=commit)) == {b"run-1": [before]}
    own = copy(7, offset=6, epoch=3)
    assert parked_keys(view(own, progress=commit)) == {b"run-1": [own]}


def test_a_hand_off_whose_source_offset_is_not_committed_yet_is_parked() -> None:
    place = view(copy(50), source=[source(50)])
    assert one(place, 50).state == "parked"


def test_a_dead_letter_is_found_with_its_error() -> None:
    place = view(dead=[copy(7, TOPICS.dead_letters, 12, hop=4, attempt=5)], source=[source(7)])
    found = one(place, 7)
    assert (found.state, found.lane_offset, found.attempt, found.owner) == ("dead letter", 12, 5, None)


def test_a_dead_letter_that_was_brought_back_counts_where_it_is_now() -> None:
    letter = copy(7, TOPICS.dead_letters, 12, hop=4)
    assert one(view(copy(7, TOPICS.replay, 0, hop=5, due_ms=0), dead=[letter]), 7).state == "due"
    assert one(view(copy(7, SHORT, 0, hop=3), dead=[letter]), 7).state == "dead letter"


@pytest.mark.parametrize(("unclean", "died"), [(0, 0), (1, 0), (2, 0), (3, 2), (4, 3)])
def test_a_crash_loop_of_its_partition_is_said_of_what_is_not_done(unclean: int, died: int) -> None:
    place = view(progress={"events": Progress(3, 3, marks={"unclean": unclean})}, source=[source(2), source(7)])
    assert [found.owners_died for found in explain(place, [(2, ""), (7, "")], NOW)] == [0, died]
    told = " ".join(sentences(one(place, 7), NOW))
    assert (f"the last {died} owners of partition" in told) == bool(died)


def test_nothing_is_made_up() -> None:
    assert explain(view(), [(3, "")], NOW) == []


def test_the_partitioner_agrees_with_kafka() -> None:
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    for key, value in known.items():
        assert murmur2(key) == value & 0xFFFFFFFF
        assert partition_of(key, 12) == (value & 0x7FFFFFFF) % 12
