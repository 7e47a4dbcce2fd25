"""Subscribers to what happens to jobs: completed, failed, cancelled, retrying, stalled, progress (B6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pipeline import Pipeline
from pipeline.core.jobs.sweeping import Sweep
from pipeline.jobs.events import JobEvent, Source, Telling, check_kinds, follow
from pipeline.jobs.ordering import InOrder
from pipeline.jobs.topics import topics_of
from pipeline.model.errors import ConfigurationError, SchemaUnavailable
from pipeline.model.job_policies import Fixed
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobOutcome, JobProgress, JobRecord, JobRequest
from pipeline.model.outcome import Warn
from tests.unit.jobs.worlds import World, application, play, until


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Heard:
    """Events as they come, in a task of its own; `stop` it."""

    def __init__(self, app: Pipeline, **chosen: Any) -> None:
        self.events: list[JobEvent] = []
        self._iterator: AsyncIterator[JobEvent] = app.job_events(**chosen)
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for event in self._iterator:
            self.events.append(event)

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(event.kind, event.type) for event in self.events]

    async def began(self) -> None:
        """It reads from where the store ends by now."""
        await asyncio.sleep(0.5)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def declare(app: Pipeline) -> None:
    @app.job("good")
    async def good(_given: None) -> int:
        return 1

    @app.job("warns")
    async def warns(_given: None) -> Warn:
        return Warn("half of it")

    @app.job("bad", attempts=2, backoff=Fixed("1s"), jitter=0)
    async def bad(_given: None) -> None:
        raise RuntimeError("down")

    @app.job("silent", attempts=1, dead_letter=False)
    async def without_letters(_given: None) -> None:
        raise RuntimeError("down")

    @app.job("later")
    async def later(_given: None) -> None: ...


def test_b6_endings_of_all_kinds_are_told_once_each() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        await world.start(app)
        heard = Heard(app)
        await heard.began()
        for job in ("good", "warns", "bad", "silent"):
            await app.enqueue(job)
        waiting = await app.enqueue("later", delay="1h")
        await asyncio.sleep(5)
        await app.desk().cancel(waiting.id, "not needed")
        await until(lambda: ("cancelled", "later") in heard.told)
        await asyncio.sleep(3)
        assert sorted(heard.told) == [
            ("cancelled", "later"), ("completed", "good"), ("completed", "warns"), ("failed", "bad"), ("failed", "silent"),
            ("retrying", "bad"),
        ]  # fmt: skip
        by_kind = {(event.kind, event.type): event for event in heard.events}
        assert by_kind["failed", "bad"].error == "RuntimeError: down"
        assert by_kind["failed", "bad"].record.attempt == 2
        assert by_kind["retrying", "bad"].record.next_ms > by_kind["retrying", "bad"].time_ms
        assert by_kind["completed", "warns"].record.outcome.warning == "half of it"
        assert by_kind["cancelled", "later"].record.outcome.reason == "not needed"
        await heard.stop()

    play(app, story)


def test_b6_a_job_whose_worker_died_is_told_as_stalled() -> None:
    app, ran = application(), list[str]()

    @app.job("long")
    async def long(_given: None) -> None:
        ran.append("began")
        if len(ran) == 1:
            await asyncio.sleep(3_600)

    async def story(world: World) -> None:
        first = await world.start(app)
        heard = Heard(app)
        await heard.began()
        handle = await app.enqueue(long)
        await until(lambda: bool(ran))
        await asyncio.sleep(5)  # it is written that it runs
        world.kill(first)
        await world.start(app)
        await until(lambda: ("completed", "long") in heard.told, 300)
        assert heard.told == [("stalled", "long"), ("completed", "long")]
        assert heard.events[0].record.stalls == 1
        assert {event.job_id for event in heard.events} == {handle.id}
        await heard.stop()

    play(app, story)


def test_b6_a_stall_of_before_is_not_told_with_what_is_heard_first_of_a_job() -> None:
    app, gate, ran = application(), asyncio.Event(), list[str]()

    @app.job("long")
    async def long(_given: None) -> None:
        ran.append("began")
        await gate.wait()

    async def story(world: World) -> None:
        first = await world.start(app)
        await app.enqueue(long)
        await until(lambda: len(ran) == 1)
        await asyncio.sleep(5)  # it is written that it runs
        world.kill(first)
        await world.start(app)
        await until(lambda: len(ran) == 2, 300)
        await asyncio.sleep(5)
        heard = Heard(app)
        await heard.began()
        gate.set()
        await until(lambda: ("completed", "long") in heard.told)
        assert heard.told == [("completed", "long")]
        await heard.stop()

    play(app, story)


def test_b6_what_the_registry_does_not_tell_just_now_is_told_when_it_does() -> None:
    """It used to be passed over without a word."""
    app, away = application(), list[bool]()
    declare(app)

    async def story(world: World) -> None:
        await world.start(app)
        desk = app.desk()
        unpack = desk.reader.unpack

        def asked(key: bytes, value: bytes) -> Any:
            if away:
                raise SchemaUnavailable("the registry does not answer", 7)
            return unpack(key, value)

        desk.reader.unpack = asked  # type: ignore[assignment]
        heard = Heard(app)
        await heard.began()
        await app.enqueue("good")
        await until(lambda: heard.told == [("completed", "good")])
        away.append(True)
        await app.enqueue("bad")
        await asyncio.sleep(10)
        assert len(heard.told) == 1
        away.clear()
        await app.enqueue("warns")
        await until(lambda: len(heard.told) == 4)
        assert sorted(heard.told[1:]) == [("completed", "warns"), ("failed", "bad"), ("retrying", "bad")]
        await heard.stop()

    play(app, story)


def test_what_a_sweep_writes_again_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "every", 0)
    monkeypatch.setattr(Sweep, "times", 0)
    app, told = application(), list[tuple[str, str]]()
    declare(app)

    async def story(world: World) -> None:
        worker = await world.start(app)
        first = Heard(app)
        await first.began()
        await (await app.enqueue("good")).result("10s")
        await asyncio.sleep(1)
        told.extend(first.told)
        await first.stop()
        before = len(world.read("jobs.default.default.state"))
        later = Heard(app)  # knows nothing of the first one's ending
        await later.began()
        await (await app.enqueue("good")).result("10s")
        await asyncio.sleep(20)
        again = len(world.read("jobs.default.default.state")) - before
        assert again > 10, "it was written again and again"
        told.extend(later.told)
        await later.stop()
        assert told == 2 * [("completed", "good")]
        await world.stop(worker)

    play(app, story)


def test_b6_kinds_and_types_are_chosen_and_the_past_is_read_and_gone_on_with() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        await world.start(app)
        for job in ("good", "good", "bad"):
            await app.enqueue(job)
        await asyncio.sleep(8)
        everything = Heard(app, since="1h")
        failed = Heard(app, since="1h", kinds=("failed",))
        good = Heard(app, since="1h", types=("good",))
        none = Heard(app)
        await until(lambda: len(everything.events) == 4)
        await until(lambda: len(failed.events) == 1 and len(good.events) == 2)
        assert none.events == []
        assert [event.kind for event in failed.events] == ["failed"]
        positions = {event.at[0]: event.at[1] for event in everything.events}
        await app.enqueue("good")
        on = Heard(app, after=positions)
        await until(lambda: len(on.events) == 1)
        await asyncio.sleep(2)
        assert on.told == [("completed", "good")]
        for each in (everything, failed, good, none, on):
            await each.stop()
        with pytest.raises(ConfigurationError, match="kinds='done' must be some of completed"):
            async for _ in app.job_events(kinds=("done",)):
                pass
        with pytest.raises(ConfigurationError, match="queue 'other' is not on this cluster"):
            async for _ in app.job_events("other"):
                pass

    play(app, story)


# -- from entries to events


def entry(state: JobState, version: int, stalls: int = 0, progress: JobProgress | None = None) -> JobRecord:
    return JobRecord(JobRequest("j", "t"), state, version, stalls=stalls, outcome=JobOutcome(progress=progress))


def test_progress_is_told_when_it_changes() -> None:
    telling = Telling()
    first, second = JobProgress(1, 10), JobProgress(2, 10)
    running = JobState.RUNNING
    assert telling.kinds(entry(running, 1)) == []
    assert telling.kinds(entry(running, 1, progress=first)) == ["progress"]
    assert telling.kinds(entry(running, 1, progress=first)) == []
    assert telling.kinds(entry(running, 1, progress=second)) == ["progress"]
    assert telling.kinds(entry(JobState.COMPLETED, 2, progress=second)) == ["completed"]


def test_an_ending_that_is_written_twice_is_told_once_and_a_new_round_anew() -> None:
    telling = Telling()
    assert telling.kinds(entry(JobState.DEAD_LETTER, 2)._replace(letter_due=True)) == []
    assert telling.kinds(entry(JobState.DEAD_LETTER, 2)) == ["failed"], "when its dead letter is acknowledged"
    assert telling.kinds(entry(JobState.DEAD_LETTER, 2)) == []
    assert telling.kinds(entry(JobState.QUEUED, 3)) == []
    assert telling.kinds(entry(JobState.DEAD_LETTER, 5)) == ["failed"]
    assert telling.kinds(entry(JobState.RUNNING, 4)) == [], "an older version says nothing"
    assert telling.kinds(entry(JobState.DEAD_LETTER, 5)) == [], "and what was told before it is not told again"


def test_a_stall_is_told_with_whatever_else_the_entry_says() -> None:
    telling = Telling()
    assert telling.kinds(entry(JobState.QUEUED, 2, stalls=1)) == ["stalled"]
    assert telling.kinds(entry(JobState.QUEUED, 4, stalls=1)) == []  # let go in order
    assert telling.kinds(entry(JobState.DEAD_LETTER, 6, stalls=2)) == ["stalled", "failed"]


def test_what_a_worker_that_was_taken_for_dead_writes_is_not_told() -> None:
    telling = Telling()
    assert telling.trusted(0, 3)
    assert not telling.trusted(0, 2)
    assert telling.trusted(1, 2)
    assert telling.trusted(0, 4)


def test_so_many_jobs_are_remembered_and_no_more() -> None:
    telling = Telling(remembered=2)
    for number in range(3):
        record = JobRecord(JobRequest(str(number), "t"), JobState.COMPLETED, 1)
        assert telling.kinds(record) == ["completed"]
    assert telling.kinds(JobRecord(JobRequest("2", "t"), JobState.COMPLETED, 1)) == []
    assert telling.kinds(JobRecord(JobRequest("0", "t"), JobState.COMPLETED, 1)) == ["completed"], (
        "forgotten: told again"
    )


def test_what_happened_in_several_partitions_is_told_in_the_order_of_its_time() -> None:
    """Partition 0 is read first as a whole, as a broker may give it."""
    order = InOrder[tuple[int, int, int]]({0: 4, 1: 3}, lambda event: event[:2], lambda event: event[2])
    first, second = [(0, 0, 10), (0, 1, 30), (0, 2, 20), (0, 3, 50)], [(1, 0, 15), (1, 1, 40), (1, 2, 60)]
    told = []
    for batch in (first, second[:1], second[1:]):
        order.add(batch)
        for partition, offset, at_ms in batch:
            order.read(partition, offset, at_ms)
        told.append(order.ready(idle=False))
    assert told == [
        [],
        [(0, 0, 10), (1, 0, 15)],
        [(0, 1, 30), (0, 2, 20), (1, 1, 40), (0, 3, 50), (1, 2, 60)],
    ], "those of one partition stay in its order"
    order.add([(0, 4, 70), (1, 3, 65)])
    assert order.ready(idle=False) == [(1, 3, 65), (0, 4, 70)], "what comes later is told at once"


def test_a_partition_that_ends_with_nothing_to_read_holds_nobody_up() -> None:
    order = InOrder[tuple[int, int, int]]({0: 2, 1: 9}, lambda event: event[:2], lambda event: event[2])
    order.add([(0, 0, 10), (0, 1, 20)])
    order.read(0, 1, 20)
    assert order.ready(idle=False) == []
    assert order.ready(idle=True) == [(0, 0, 10), (0, 1, 20)]


def test_events_since_some_time_ago_come_in_the_order_of_their_time_across_partitions() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        await world.start(app)
        for number in range(40):
            await (await app.enqueue("good", key=f"k{number}")).result("30s")
        heard = Heard(app, since="1h")
        await until(lambda: len(heard.events) == 40)
        assert len({event.at[0] for event in heard.events}) > 1
        times = [event.time_ms for event in heard.events]
        assert times == sorted(times)
        await heard.stop()

    play(app, story, partitions=4)


class Polled:
    """A reader of Kafka's kind: whoever closes it while it is polled in another thread may end the process."""

    def __init__(self) -> None:
        self.polling = False
        self.closed: list[bool] = []

    def assign(self, _positions: object) -> None: ...

    def poll(self, _records: int, _timeout_s: float) -> list[Any]:
        self.polling = True
        time.sleep(0.3)
        self.polling = False
        return []

    def close(self) -> None:
        self.closed.append(self.polling)


def test_b6_a_subscriber_that_is_cancelled_closes_its_reader_when_the_poll_is_over() -> None:
    reader, topics = Polled(), topics_of("q")
    admin = SimpleNamespace(
        topics=lambda names: {name: SimpleNamespace(partitions=1) for name in names},
        end_offsets=lambda places: dict.fromkeys(places, 0),
        close=lambda: None,
    )
    cluster: Any = SimpleNamespace(reader=lambda _name: reader, admin=lambda: admin)
    source = Source(cluster, topics, lambda _key, _value: pytest.fail("nothing is read"), False, "c")

    async def listen() -> None:
        async for _ in follow(source, check_kinds(())):
            pass

    async def main() -> None:
        task = asyncio.ensure_future(listen())
        while not reader.polling:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert reader.closed == [False]
