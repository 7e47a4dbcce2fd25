"""What callers believe of a store: what its owners wrote, not what a worker writes late that was taken for dead."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.jobs import following
from pipeline.jobs.following import Follower
from pipeline.jobs.handle import JobHandle, Reach
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import JobMissing, SchemaUnavailable
from pipeline.model.job_ids import job_id
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobDuplicate, JobEntry, JobOutcome, JobRecord, JobRequest
from pipeline.model.store_keys import job_key
from tests.unit.jobs.worlds import until

STATE = "jobs.q.q.state"
QUEUED = JobRecord(JobRequest("a", "t"), JobState.QUEUED)
OTHER = JobRecord(JobRequest("b", "t"), JobState.QUEUED)


def unpack(_key: bytes, value: bytes) -> JobEntry:
    entry: JobEntry = pickle.loads(value)
    return entry


async def _at_once(work: Callable[[], Any]) -> Any:
    return work()


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


def test_b7_an_entry_that_comes_while_the_registry_is_away_is_told_when_it_is_back() -> None:
    """A newer worker's ending has a schema that is asked for first: who waited for it waited for ever."""
    ended, away, asked = QUEUED._replace(state=JobState.COMPLETED, version=2), [True], list[int]()

    def of_schema_7(key: bytes, value: bytes) -> JobEntry:
        if value.startswith(b"7") and 7 not in asked:
            raise SchemaUnavailable("schema 7 is not known", 7)
        return unpack(key, value.removeprefix(b"7"))

    def fetch(schema_id: int) -> None:
        if away:
            raise SchemaUnavailable("the registry does not answer", schema_id)
        asked.append(schema_id)

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("away", clock=loop.clock, scheduler=loop.call_later_ms)
        cluster.admin().create_topics([TopicSpec(STATE, 1, 1, {})])
        follower = Follower(STATE, cluster, "caller", of_schema_7, fetch, in_memory=True)
        follower.begin(0)
        producer = cluster.producer("owner")
        handle = JobHandle(Reach(follower, None, _at_once, loop.clock), "a", b"a")
        other = JobHandle(Reach(follower, None, _at_once, loop.clock), "b", b"b")
        waiting = asyncio.ensure_future(handle.result())
        for record, schema in ((QUEUED, b""), (ended, b"7"), (OTHER._replace(state=JobState.COMPLETED), b"")):
            value = schema + pickle.dumps(record)
            producer.send(STATE, job_key(record.request.id), value, [("pl.epoch", b"1")], 0)
        assert await other.result("1m") is None, "others are told meanwhile"
        assert not waiting.done()
        with pytest.raises(SchemaUnavailable):
            await handle.status()
        away.clear()
        assert await asyncio.wait_for(waiting, 60) is None
        assert (await handle.status()).state is JobState.COMPLETED
        follower.stop()

    run(main)


def test_b7_a_duplicate_may_be_in_the_store_before_the_job_that_came_first() -> None:
    """Where the first one's write failed, and is repeated: it used to be told as not known, for good."""

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("firsts", clock=loop.clock, scheduler=loop.call_later_ms)
        cluster.admin().create_topics([TopicSpec(STATE, 1, 1, {})])
        follower = Follower(STATE, cluster, "caller", unpack, lambda _id: None, in_memory=True)
        follower.begin(0)
        producer = cluster.producer("owner")
        soon_ms = loop.clock() + 60_000  # without a job type nothing is kept: they are not to be taken for expired
        first, second = (job_id(soon_ms, random) for random in (b"0123456789", b"9876543210"))

        async def at_once(work: Callable[[], Any]) -> Any:
            return work()

        def write(name: str, entry: JobEntry) -> None:
            producer.send(STATE, job_key(name), pickle.dumps(entry), [("pl.epoch", b"1")], 0)

        def handle() -> JobHandle:
            return JobHandle(Reach(follower, None, at_once, loop.clock), second)

        write(second, JobDuplicate(second, "t", first, loop.clock()))
        with pytest.raises(JobMissing, match=f"job {first} is not known"):
            await handle().result()
        with pytest.raises(JobMissing, match=f"job {first} is not known"):
            await handle().result("2s")
        waiting = asyncio.create_task(handle().result())
        await asyncio.sleep(1)
        write(first, JobRecord(JobRequest(first, "t"), JobState.COMPLETED, outcome=JobOutcome(result=b"7")))
        assert await waiting == 7
        follower.stop()

    run(main)


def test_b7_the_reader_s_thread_outlives_callers_who_ask_for_jobs_while_it_looks_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It went through those who wait while another thread added one: a RuntimeError that ended it, and who waited waited for ever."""
    monkeypatch.setattr(following, "STEPS_TO_LET_GO", 1)
    monkeypatch.setattr(following, "POLL_S", 0.0)

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("threads", clock=loop.clock, scheduler=loop.call_later_ms)
        cluster.admin().create_topics([TopicSpec(STATE, 1, 1, {})])
        follower = Follower(STATE, cluster, "caller", unpack, lambda _id: None, in_memory=False)
        follower.begin(0)
        kept = [follower.watch(f"old-{number}") for number in range(20_000)]
        follower.follow(kept[0], 0, follower.since)
        assert follower._thread is not None
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s and follower._thread.is_alive():
            kept.append(follower.watch(f"new-{len(kept)}"))
        assert follower._thread.is_alive()
        follower.stop()

    run(main)


def test_b7_two_threads_that_wait_first_at_the_same_time_share_one_reader() -> None:
    """Each made one, and the one that stayed was told by neither where to read: who waited waited for ever."""

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("at once", clock=loop.clock, scheduler=loop.call_later_ms)
        cluster.admin().create_topics([TopicSpec(STATE, 1, 1, {})])
        follower = Follower(STATE, cluster, "caller", unpack, lambda _id: None, in_memory=False)
        follower.begin(0)
        made, of_cluster = list[Any](), cluster.reader

        def slowly(client_id: str) -> Any:
            time.sleep(0.2)
            made.append(of_cluster(client_id))
            return made[-1]

        cluster.reader = slowly  # type: ignore[assignment, method-assign]
        followed = [follower.watch(name) for name in "ab"]
        callers = [threading.Thread(target=follower.follow, args=(each, 0, follower.since)) for each in followed]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(made) == 1
        follower.stop()

    run(main)
