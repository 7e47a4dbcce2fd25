"""Handles and what is read for them: only the partitions of jobs that somebody waits for, from where that is needed."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pipeline import Pipeline, Settings
from pipeline.background import MemoryQueue
from pipeline.jobs.followed import Followed
from pipeline.jobs.following import REFRESH_MS, STEPS_TO_LET_GO, Follower, Reading
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.log import MemoryMessage
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.errors import NotAuthorized, PipelineError
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRecord, JobRequest
from pipeline.topology import Defaults, apply
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.worker import Worker
from tests.unit.jobs.worlds import World, application, play, until

STATE = "jobs.default.default.state"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def follower_of(app: Any) -> Follower:
    found: Follower = app.jobs._queues["jobs.default"].follower
    return found


def read_by(app: Any) -> set[int]:
    return {tp.partition for tp in follower_of(app)._reading._from}


def test_b7_only_partitions_of_jobs_that_somebody_waits_for_are_read() -> None:
    app = application()

    @app.job("echo")
    async def echo(number: int, job: JobContext) -> int:
        await asyncio.sleep(1)
        return number

    async def story(world: World) -> None:
        await world.start(app)
        many = await app.enqueue_many(echo, range(300))  # a partition that gets none: once in 10^16
        assert read_by(app) == set(), "nobody waits"
        assert await many[0].result("60s") == 0
        assert len(read_by(app)) == 1
        assert [await handle.result("60s") for handle in many] == list(range(300))
        assert read_by(app) == set(range(8))
        first = many[0]
        many.clear()
        gc.collect()
        await until(lambda: len(read_by(app)) == 1)
        assert await first.result("1s") == 0
        del first
        gc.collect()
        await until(lambda: not read_by(app))
        late = await app.enqueue(echo, 99, key="k")
        assert await late.result("60s") == 99
        assert len(read_by(app)) == 1
        await world.stop(next(iter(world.workers)))

    play(app, story, partitions=8)


def test_b7_one_that_is_waited_for_late_is_found_and_reading_begins_not_long_before_it_was_asked_for() -> None:
    app = application()

    @app.job("echo")
    async def echo(number: int) -> int:
        return number

    async def story(world: World) -> None:
        await world.start(app)
        old = await app.enqueue(echo, 0, key="k")
        for hour in range(5):
            for number in range(20):
                await app.enqueue(echo, number, key="k")
            await asyncio.sleep(3_600 + hour)
        new = await app.enqueue(echo, 1, key="k")
        newest = await app.enqueue(echo, 2, key="k")
        assert await newest.result("60s") == 2
        (tp,) = follower_of(app)._reading._from
        assert follower_of(app)._reading._from[tp] >= 80, "not from the first request on"
        assert await new.result("60s") == 1
        assert await old.result("60s") == 0, "further back, for its sake"
        assert follower_of(app)._reading._from[tp] == 0

    play(app, story, partitions=1)


def test_b7_reading_further_back_gives_results_of_an_earlier_owner() -> None:
    """What a later owner has written in between does not make the earlier one a stranger."""
    app, other = application("one"), application("other")
    for each in (app, other):

        @each.job("echo")
        async def echo(number: int) -> int:
            return number

    async def story(world: World) -> None:
        worker = await world.start(app)
        old = await app.enqueue("echo", 0, key="k")
        await asyncio.sleep(3_600)
        await app.enqueue("echo", 1, key="k")
        await world.stop(worker)
        await world.start(other)
        await asyncio.sleep(3_600)
        new = await app.enqueue("echo", 2, key="k")
        newest = await app.enqueue("echo", 3, key="k")
        assert [await each.result("60s") for each in (newest, new, old)] == [3, 2, 0]
        other.jobs.close()

    play(app, story, partitions=1)


def test_what_is_wanted_from_further_back_is_read_again() -> None:
    reading, tp, other = Reading(), TopicPartition("s", 0), TopicPartition("s", 1)
    reading.want(tp, 10)
    assert reading.changed() == {tp: 10}
    reading.want(tp, 12)
    assert reading.changed() is None
    reading.want(other, 5)
    reading.want(tp, 3)
    assert reading.changed() == {tp: 3, other: 5}
    reading.keep(lambda: [other])
    assert reading.changed() == {other: 5}
    assert REFRESH_MS < 3_600_000


def test_a_waiter_whose_loop_is_closed_keeps_no_news_from_the_others() -> None:
    followed = Followed("a")
    gone = asyncio.new_event_loop()
    left = gone.create_task(followed.wait(lambda _entry: True))
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()
    entry = JobRecord(JobRequest("a", "t"), JobState.COMPLETED, 1)

    async def wait() -> object:
        waiting = asyncio.create_task(followed.wait(lambda _entry: True))
        await asyncio.sleep(0)
        followed.tell(entry, 1)
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(wait()) is entry
    assert not left.done()


def test_who_may_not_read_a_store_is_told_so() -> None:
    """Until the right comes."""
    followed = Followed("a")
    entry = JobRecord(JobRequest("a", "t"), JobState.COMPLETED, 1)

    async def main() -> None:
        waiting = asyncio.create_task(followed.wait(lambda _entry: True))
        await asyncio.sleep(0)
        followed.deny(NotAuthorized("reading jobs.q.q.state is not authorized"))
        with pytest.raises(NotAuthorized, match="is not authorized"):
            await asyncio.wait_for(waiting, 5)
        followed.tell(entry, 1)
        assert await followed.wait(lambda _entry: True) is entry

    asyncio.run(main())


def test_when_a_store_may_be_read_again_nobody_hears_of_the_time_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a job that nothing was written of meanwhile: it used to be denied until there was."""
    monkeypatch.setattr("pipeline.jobs.following.DENIED_S", 0.0)
    right = threading.Event()

    class Reader:
        def assign(self, _positions: object) -> None: ...
        def close(self) -> None: ...
        def poll(self, _most: int, _timeout_s: float) -> list[Message]:
            time.sleep(0.005)
            if not right.is_set():
                raise NotAuthorized("reading it is not authorized")
            return [MemoryMessage((STATE, 0, 0), b"j/other", b"", [], 0)]

    class Cluster(MemoryCluster):
        def reader(self, client_id: str = "") -> Any:
            return Reader()

    def unpack(_key: bytes, _value: bytes) -> Any: ...

    follower = Follower(STATE, Cluster("alone"), "test", unpack, lambda _id: None, in_memory=False)

    async def main() -> None:
        followed = follower.watch("a")
        follower.follow(followed, 0, {})
        for _ in range(2):
            with pytest.raises(NotAuthorized):
                await asyncio.wait_for(followed.wait(lambda _entry: True), 5)
        right.set()
        await until(lambda: followed.denied is None, 5)
        followed.let_go()
        followed.allow()
        assert followed.denied is not None, "that it was closed stays"

    asyncio.run(main())
    follower.stop()


def test_b7_who_waits_for_a_job_hears_that_its_application_is_stopped() -> None:
    """Nobody follows the store from then on: they used to wait for ever."""
    app = application()

    @app.job("echo")
    async def echo(number: int) -> int:
        if number:
            await asyncio.sleep(3_600)
        return number

    async def story(world: World) -> None:
        worker = await world.start(app)
        done, slow = await app.enqueue_many(echo, [0, 1])
        assert await done.result("10s") == 0
        waiting = asyncio.ensure_future(slow.result())
        await asyncio.sleep(1)
        await world.stop(worker)
        await app.stop()
        for _ in range(2):
            with pytest.raises(PipelineError, match=f"^job {slow.id} is not followed any more: "):
                await asyncio.wait_for(waiting, 10)
            waiting = asyncio.ensure_future(slow.result())
        waiting.cancel()
        assert await done.result() == 0, "what it knows it knows"
        assert await asyncio.wait_for(app.job_handle(echo, done.id).result(), 10) == 0, "a new one follows anew"

    play(app, story)


def test_b7_a_second_event_loop_waits_for_jobs_of_the_same_application() -> None:
    """On memory the loop that waited first follows the store; with it that ended, and whoever waited in the next one waited for ever."""
    app = Pipeline("app", settings=Settings(broker="memory://two-loops"))

    @app.job("echo")
    async def echo(number: int) -> int:
        return number

    async def main(number: int) -> int:
        worker = Worker(app)
        await worker.start()
        ended: int = await (await app.enqueue(echo, number)).result("5s")
        await worker.stop()
        return ended

    apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
    assert [asyncio.run(main(number)) for number in range(2)] == [0, 1]
    app.jobs.close()


def test_b7_who_waits_for_a_job_of_a_queue_in_memory_hears_that_it_is_closed() -> None:
    async def main(loop: VirtualClockLoop) -> None:
        queue = MemoryQueue(clock=loop.clock)

        async def double(number: int) -> int:
            await asyncio.sleep(2)
            return 2 * number

        await queue.consume("runs", double)
        ends, lost = [queue.handle(topic, await queue.enqueue(topic, 1)) for topic in ("runs", "nobody's")]
        ending, waiting = (asyncio.ensure_future(handle.result()) for handle in (ends, lost))
        await asyncio.sleep(1)
        await queue.close()
        assert await asyncio.wait_for(ending, 10) == 2
        for _ in range(2):
            with pytest.raises(PipelineError, match=f"^job {lost.id} is not followed any more: "):
                await asyncio.wait_for(waiting, 10)
            waiting = asyncio.ensure_future(lost.result())
        waiting.cancel()

    run(main)


def a_follower() -> Follower:
    """Of an empty store; its thread is not started, the test takes its steps."""

    def unpack(_key: bytes, _value: bytes) -> Any: ...

    follower = Follower(STATE, MemoryCluster("alone"), "test", unpack, lambda _id: None, in_memory=False)
    follower._begin_reading = lambda: None  # type: ignore[method-assign]
    return follower


def test_a_partition_is_not_let_go_just_as_somebody_begins_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread begins between the look who waits and the letting go: nobody read for it, for ever."""
    follower, place = a_follower(), TopicPartition(STATE, 0)
    assigned: dict[TopicPartition, int] = {}

    class Reader:
        def assign(self, positions: dict[TopicPartition, int]) -> None:
            assigned.clear()
            assigned.update(positions)

        def poll(self, _most: int, _timeout_s: float) -> list[Message]:
            return []

    followed = follower.watch("a")
    begins = threading.Thread(target=follower.follow, args=(followed, 0, {}))
    look = follower._all

    def looked() -> list[Followed]:
        found = look()
        waited_for = [each.partition for each in found]
        if begins.ident is None:
            begins.start()
            if not follower._reading._lock.locked():  # else it waits for us
                begins.join(5)
        return [SimpleNamespace(partition=number) for number in waited_for]  # type: ignore[misc]

    monkeypatch.setattr(follower, "_all", looked)
    follower._reading.steps = STEPS_TO_LET_GO - 1
    reader: Any = Reader()
    follower._step(reader, 0)
    begins.join(5)
    follower._step(reader, 0)
    assert assigned == {place: 0}


def test_two_threads_that_watch_one_job_share_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that came first waited for ever: only what was put down last was told."""
    follower = a_follower()
    seen: list[Followed] = []
    came = threading.Event()

    def watches() -> None:
        seen.append(follower.watch("a"))
        came.set()

    second = threading.Thread(target=watches)

    class Lock:
        """That tells when the second one waits for it."""

        lock = threading.RLock()

        def __enter__(self) -> None:
            if threading.current_thread() is second:
                came.set()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    def made(job_id: str) -> Followed:
        if second.ident is None:
            second.start()
            assert came.wait(5)
        return Followed(job_id)

    monkeypatch.setattr("pipeline.jobs.following.Followed", made)
    monkeypatch.setattr(follower, "_watching", Lock(), raising=False)
    first = follower.watch("a")
    second.join(5)
    assert seen == [first]
