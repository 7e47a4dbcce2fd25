"""Where a lane ends, for those who must read it to its end: also past offsets that hold no record."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from pipeline import Context, Pipeline, Settings
from pipeline.core.progress import Progress
from pipeline.core.rebuild import Rebuild
from pipeline.model.cluster import TopicPartition
from pipeline.topology import Defaults, apply
from tests.conformance.sides import MemberInTest, Side, wait_until
from tests.patience import PATIENCE


def member_with_lane(side: Side) -> tuple[MemberInTest, TopicPartition]:
    source, lane = side.topic(), TopicPartition(side.topic(), 0)
    member = side.member(source)
    wait_until(lambda: bool(member.listener.owned), "an assignment", member.poll)
    return member, lane


def read_to(member: MemberInTest, lane: TopicPartition, end: int) -> None:
    wait_until(lambda: member.consumer.ended().get(lane) == end, f"the lane's end {end}", member.poll)


def test_a_lane_is_read_to_its_end_past_markers_and_aborted_records(grouped: Side) -> None:
    member, lane = member_with_lane(grouped)
    grouped.fill(lane, 3)
    grouped.aborted_transaction(lane, 2)
    end = grouped.admin.end_offsets([lane])[lane]
    assert end >= 6
    member.consumer.add({lane: 0})
    read_to(member, lane, end)
    assert member.offsets(lane) == [0, 1, 2]


def test_an_end_that_was_met_before_a_seek_is_forgotten(grouped: Side) -> None:
    member, lane = member_with_lane(grouped)
    grouped.fill(lane, 3)
    member.consumer.add({lane: 0})
    read_to(member, lane, 3)
    member.consumer.remove([lane])
    assert lane not in member.consumer.ended()
    member.consumer.add({lane: 0})
    member.records.clear()
    read_to(member, lane, 3)
    assert member.offsets(lane) == [0, 1, 2], "the end came before the records below it"


@pytest.mark.parametrize("records", [0, 2])
def test_a_worker_opens_a_partition_whose_lane_ends_in_a_marker(side: Side, records: int) -> None:
    """The rebuild reads lanes to their ends: one that waited for a record there would wait for ever."""
    prefix = f"ends{uuid.uuid4().hex[:8]}."
    app = Pipeline("t", settings=Settings(broker=side.cluster.address, prefix=prefix, session_timeout_s=3.0))
    if side.cluster.address.startswith("memory://"):
        from pipeline import memory

        memory.cluster.register(side.cluster)  # type: ignore[arg-type]
    done: list[bytes] = []

    @app.subscribe("events", group="g", value="bytes", tiers=("1s",))
    async def handle(value: bytes, ctx: Context) -> None:
        done.append(value)

    apply(side.admin, app.subscriptions, Defaults(partitions=1), prefix)
    lane = TopicPartition(f"{prefix}events.{prefix}g.retry.1s", 0)
    side.fill(lane, records)  # foreign records: they go to the dead letters
    side.aborted_transaction(lane, 2)
    side.fill(TopicPartition(f"{prefix}events", 0), 1)

    async def go() -> None:
        await app.start()
        try:
            async with asyncio.timeout(20 * PATIENCE):
                while not done:
                    await asyncio.sleep(0.02)
        finally:
            await app.stop()

    asyncio.run(go())
    assert done == [b"0"]


def test_a_rebuild_is_complete_when_its_lanes_were_read_to_the_fence() -> None:
    rebuild = Rebuild(Progress(0, 0), ["10s"], {"10s": Progress(2, 2)}, {"10s": 9})
    rebuild.observe(1, 5, b"k", None)
    rebuild.reached(1, 8)
    rebuild.reached(1, 6)
    assert not rebuild.complete
    rebuild.reached(1, 9)
    assert rebuild.complete
    assert rebuild.lane_progress(1) == Progress(5, 9, (5,))
