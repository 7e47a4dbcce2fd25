"""What callers believe of a store: what its owners wrote, not what a worker writes late that was taken for dead."""

from __future__ import annotations

import asyncio
import pickle

from pipeline.jobs.following import Follower
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobEntry, JobRecord, JobRequest
from pipeline.model.store_keys import job_key
from tests.unit.jobs.worlds import until

STATE = "jobs.q.q.state"
QUEUED = JobRecord(JobRequest("a", "t"), JobState.QUEUED)
OTHER = JobRecord(JobRequest("b", "t"), JobState.QUEUED)


def unpack(_key: bytes, value: bytes) -> JobEntry:
    entry: JobEntry = pickle.loads(value)
    return entry


def test_an_earlier_owner_s_late_entry_says_nothing_and_a_later_owner_s_counts() -> None:
    late = QUEUED._replace(state=JobState.COMPLETED, version=9)
    again = QUEUED._replace(state=JobState.RUNNING, version=1)

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("following", clock=loop.clock, scheduler=loop.call_later_ms)
        cluster.admin().create_topics([TopicSpec(STATE, 1, 1, {})])
        follower = Follower(STATE, cluster, "caller", unpack, lambda _id: None, in_memory=True)
        follower.begin(0)
        followed = follower.watch("a")
        follower.follow(followed, 0, follower.since)
        producer = cluster.producer("owners")

        def write(record: JobRecord, epoch: int) -> None:
            producer.send(STATE, job_key(record.request.id), pickle.dumps(record), [("pl.epoch", b"%d" % epoch)], 0)

        for record, epoch in ((QUEUED, 1), (OTHER, 2), (late, 1)):
            write(record, epoch)
        write(OTHER._replace(version=1), 2)
        other = follower.watch("b")
        await until(lambda: isinstance(other.entry, JobRecord) and other.entry.version == 1)
        assert followed.entry == QUEUED
        assert follower.look_up("a")[:2] == (QUEUED, 1)
        write(again._replace(version=5), 2)
        await until(lambda: followed.entry != QUEUED)
        write(again, 3)  # a later owner, whose store did not have what the one before wrote last
        await until(lambda: followed.entry == again)
        assert follower.look_up("a")[:2] == (again, 3)
        old = follower.watch("old")
        follower.follow(old, 0, {TopicPartition(STATE, 0): 0})
        await asyncio.sleep(1)
        assert followed.entry == again, "what is read again is older"
        follower.stop()

    run(main)
