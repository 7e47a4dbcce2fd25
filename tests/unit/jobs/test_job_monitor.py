"""How a queue does (F1), as API and as metrics (F2), its health (B10), and the index that answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from pipeline import Pipeline, Settings
from pipeline.core.jobs.sweeping import Sweep
from pipeline.jobs.latencies import WIDTH, class_of, percentile, upper_ms
from pipeline.jobs.monitor import QueueStats
from pipeline.model.errors import ConfigurationError, SchemaUnavailable
from pipeline.model.job_policies import Fixed, RetentionPolicy
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.metrics import WorkerCollector
from tests.unit.jobs.worlds import ADDRESS, World, application, play, until


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def declare(app: Pipeline, gate: asyncio.Event | None = None) -> None:
    @app.job("good", retention=RetentionPolicy(completed=2))
    async def good(_given: None) -> None:
        await asyncio.sleep(0.2)

    @app.job("bad", attempts=2, backoff=Fixed("1s"), jitter=0)
    async def bad(_given: None) -> None:
        raise RuntimeError("down")

    @app.job("held", concurrency=1)
    async def held(_given: None) -> None:
        if gate is not None:
            await gate.wait()


async def until_stats(app: Pipeline, holds: Any, seconds: float = 120) -> QueueStats:
    async with asyncio.timeout(seconds):
        while True:
            found = await app.job_stats(last="10m")
            if holds(found):
                return found
            await asyncio.sleep(0.5)


def test_f1_a_queue_is_counted_by_type_and_state_with_rates_and_ages() -> None:
    app, gate = application(), asyncio.Event()
    declare(app, gate)

    async def story(world: World) -> None:
        await world.start(app)
        for _ in range(20):
            await app.enqueue("good")
        for _ in range(5):
            await app.enqueue("bad")
        for _ in range(3):
            await app.enqueue("held", key="k")
        await app.enqueue("held", delay="1h")
        found = await until_stats(app, lambda s: s.total.ended == 25 and s.inbox == 0 and s.total.waiting == 2)
        by_type = {each.type: each for each in found.types}
        good, bad, held = by_type["good"], by_type["bad"], by_type["held"]
        assert (good.ended_well, good.completed) == (20, 2), "more have ended than are kept"
        assert (bad.ended_badly, bad.dead_letter, bad.retried) == (5, 5, 5)
        assert (held.active, held.waiting, held.delayed) == (1, 2, 1)
        assert bad.error_rate == 1.0
        assert found.total.error_rate == 0.2
        assert 25 / 11 <= found.total.per_minute <= 25 / 10
        assert good.latency_p50_ms is not None
        assert 200 <= good.latency_p50_ms <= good.latency_p99_ms <= 2_000  # type: ignore[operator]
        assert held.oldest_ms is not None
        await asyncio.sleep(100)
        later = await app.job_stats(last="10m")
        assert later.total.oldest_ms is not None
        assert 90_000 < later.total.oldest_ms < 130_000
        gate.set()
        after = await until_stats(app, lambda s: s.total.ended == 28)
        assert (after.total.waiting, after.total.active, after.total.oldest_ms) == (0, 0, None)
        await asyncio.sleep(700)
        assert (await app.job_stats(last="5m")).total.ended == 0, "what ended long ago is not of the span"
        with pytest.raises(ConfigurationError, match="last must be from 1m to 60m"):
            await app.job_stats(last="2h")

    play(app, story, partitions=1)  # of each partition so many are kept


def test_f1_jobs_that_no_worker_has_come_to_are_counted_in_the_inbox() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        for _ in range(7):
            await app.enqueue("good")
        await asyncio.sleep(90)
        found = await app.job_stats()
        assert found.inbox == 7
        assert found.inbox_oldest_ms is not None
        assert 85_000 < found.inbox_oldest_ms < 100_000
        assert found.total.waiting == 0

    play(app, story)


def test_a_dead_letter_that_was_retried_counts_with_each_ending_and_stalls_count_apart() -> None:
    app, ran = application(), list[str]()

    @app.job("long", attempts=1)
    async def long(_given: None) -> None:
        ran.append("began")
        if len(ran) == 1:
            await asyncio.sleep(3_600)
        if len(ran) == 2:
            raise RuntimeError("down")

    async def story(world: World) -> None:
        first = await world.start(app)
        handle = await app.enqueue(long)
        await until(lambda: bool(ran))
        await asyncio.sleep(5)
        world.kill(first)
        await world.start(app)
        await until_stats(app, lambda s: s.total.ended_badly == 1, 300)
        await app.retry(long, handle.id)
        found = await until_stats(app, lambda s: s.total.ended_well == 1)
        assert (found.total.ended, found.total.ended_badly, found.total.stalled) == (2, 1, 1)

    play(app, story)


# -- the index


def test_the_index_is_brought_up_to_date_by_what_is_new_and_forgets_with_the_store(tmp_path: Path) -> None:
    app = Pipeline("app", settings=Settings(broker=ADDRESS, session_timeout_s=6.0, state_dir=str(tmp_path)))
    declare(app)

    async def story(world: World) -> None:
        await world.start(app)
        for _ in range(6):
            await app.enqueue("good")
        await until_stats(app, lambda s: s.total.ended == 6 and s.total.completed == 2)
        reader = app.desk().reader
        assert reader.refresh().read == 0
        await app.enqueue("bad")
        await until_stats(app, lambda s: s.total.ended_badly == 1)
        assert list(tmp_path.glob("jobs/*/jobs.default.default.state.sqlite"))
        again = Pipeline("tool", settings=app.settings)
        refreshed = again.desk().reader.refresh()
        assert (refreshed.read, refreshed.rebuilt) == (0, ""), "another process goes on where the last one was"
        rebuilt = again.desk().reader.refresh(rebuild=True)
        assert rebuilt.read > 5
        assert (await again.job_stats(last="10m")).total.ended == 7
        again.close_desks()
        again.jobs.close()

    play(app, story, partitions=1)


def test_a_store_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    settings = Settings(broker=ADDRESS, session_timeout_s=6.0, state_dir=str(tmp_path))

    def application_of_this() -> Pipeline:
        app = Pipeline("app", settings=settings)
        declare(app)
        return app

    first = application_of_this()

    async def story(world: World) -> None:  # one key: all in one partition, so that it has more than the index knows of
        await world.start(first)
        for _ in range(3):
            await first.enqueue("bad", key="k")
        await until_stats(first, lambda s: s.total.dead_letter == 3)

    play(first, story)
    second = application_of_this()

    async def other_story(world: World) -> None:
        await world.start(second)
        for _ in range(9):
            await second.enqueue("bad", key="k")
        await until(lambda: len(world.read("jobs.default.default.dlq")) == 9)
        await asyncio.sleep(3)
        refreshed = second.desk().reader.refresh()
        assert "made anew" in refreshed.rebuilt
        assert len((await second.desk().jobs()).jobs) == 9

    play(second, other_story)


def test_entries_that_no_queue_wrote_and_those_of_strangers_are_left_out() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue("bad", key="k")
        found = await until_stats(app, lambda s: s.total.dead_letter == 1)
        assert found.total.ended == 1
        (row,) = (await app.desk().jobs()).jobs
        state = "jobs.default.default.state"
        entries = [
            m for m in world.read(state) if m.partition() == row.partition and m.key() == f"j/{handle.id}".encode()
        ]
        producer = world.cluster.producer("stranger")
        for key, value, epoch in (
            (b"j/other", b"no avro", b"99"), (b"\xff", b"x", b"0"), (entries[0].key(), entries[0].value(), b"0"),
        ):  # fmt: skip
            producer.send(state, key, value, [("pl.epoch", epoch)], row.partition)
        await asyncio.sleep(1)
        refreshed = app.desk().reader.refresh()
        assert refreshed.unreadable == 1
        assert [each.state for each in (await app.desk().jobs()).jobs] == ["dead_letter"]

    play(app, story)


@pytest.mark.parametrize("ms", [0, 1, 2, 7, 100, 1_234, 86_400_000])
def test_classes_of_latency_are_a_fifth_wide(ms: int) -> None:
    upper = upper_ms(class_of(ms))
    assert ms <= upper <= max(2, ms * 2 ** (1 / WIDTH) + 1)


def test_percentiles_come_out_of_classes() -> None:
    assert percentile({}, 0.5) is None
    assert percentile({class_of(10): 99, class_of(5_000): 1}, 0.5) == upper_ms(class_of(10))
    assert percentile({class_of(10): 99, class_of(5_000): 1}, 1.0) == upper_ms(class_of(5_000))


# -- metrics


def test_f2_metrics_of_jobs_say_what_stands_where_and_what_ended() -> None:
    app, gate = application(), asyncio.Event()
    declare(app, gate)

    async def story(world: World) -> None:
        worker = await world.start(app)
        registry = CollectorRegistry()
        registry.register(WorkerCollector(worker))

        for job in ("good", "good", "bad", "held", "held"):
            await app.enqueue(job)
        await app.enqueue("held", delay="1h")
        await app.schedule("hourly", "good", cron="0 * * * *")
        await asyncio.sleep(10)
        text = generate_latest(registry).decode()
        lines = {
            (name, tuple(sorted(part.split("=")[1].strip('"') for part in labels_.split(",")))): float(number)
            for name, labels_, number in _samples(text)
        }
        assert lines["pipeline_jobs_ended_total", ("bad", "dead_letter", "default")] == 1
        assert lines["pipeline_job_attempts_failed_total", ("bad", "default", "retryable")] == 2
        assert lines["pipeline_jobs", ("default", "held", "running")] == 1
        assert lines["pipeline_jobs", ("default", "held", "queued")] == 1
        assert lines["pipeline_jobs", ("default", "held", "scheduled")] == 1
        assert lines["pipeline_job_schedules", ("default",)] == 1
        assert 9 <= lines["pipeline_jobs_oldest_due_seconds", ("default", "held")] <= 15
        assert lines["pipeline_job_duration_seconds_count", ("default", "good")] >= 1
        assert lines["pipeline_job_latency_seconds_count", ("default", "good")] >= 1
        gate.set()
        await until(lambda: worker.running[0].engine.executor.running() == 0)

    play(app, story)


def test_f2_counters_of_jobs_never_go_back_when_partitions_move() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        worker = await world.start(app)
        registry = CollectorRegistry()
        registry.register(WorkerCollector(worker))

        def completed() -> float:
            samples = _samples(generate_latest(registry).decode())
            return sum(
                float(n) for name, labels, n in samples if name == "pipeline_jobs_ended_total" and "good" in labels
            )

        for _ in range(20):
            await app.enqueue("good")
        await until(lambda: completed() == 20)
        other = application("other")
        declare(other)
        second = await world.start(other)
        await until(lambda: all(len(each.running[0].engine.partitions) == 1 for each in (worker, second)))
        assert completed() == 20

    play(app, story)


def _samples(text: str) -> list[tuple[str, str, str]]:
    found = []
    for each in text.splitlines():
        if each.startswith("pipeline_job") and "{" in each and "_bucket" not in each:
            name, _, rest = each.partition("{")
            labels, _, number = rest.partition("} ")
            found.append((name, labels, number))
    return found


# -- health


def test_b10_health_of_a_queue_says_what_is_wrong_with_it() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        health = await app.health_check()
        assert (health.healthy, health.connected, health.workers) == (False, True, 0)
        assert "no worker runs queue 'default'" in health.why
        worker = await world.start(app)
        await asyncio.sleep(2)
        health = await app.health_check()
        assert (health.healthy, health.why, health.workers, health.partitions) == (True, "", 1, 2)
        await world.stop(worker)
        await app.enqueue("good")
        await asyncio.sleep(120)
        health = await app.health_check()
        assert health.inbox == 1
        assert health.inbox_oldest_ms is not None
        assert health.inbox_oldest_ms >= 119_000
        other = await app.health_check("other")
        assert (other.healthy, other.connected) == (False, True)
        assert "topic jobs.other does not exist" in other.why
        world.cluster.admin().delete_topics(["jobs.default.default.replay"])
        assert "jobs.default.default.replay does not exist" in (await app.health_check()).why

    play(app, story)


def test_b10_health_of_a_queue_whose_workers_stand_still() -> None:
    app = application()
    declare(app)

    async def story(world: World) -> None:
        await app.enqueue("good")
        worker = await world.start(app)
        worker.running[0].engine.executor.pump = lambda: None  # type: ignore[method-assign]
        await app.enqueue("good")
        await asyncio.sleep(90)
        health = await app.health_check()
        assert not health.healthy
        assert "has not been taken up for" in health.why
        world.kill(worker)

    play(app, story)


def test_f1_what_the_registry_does_not_tell_just_now_is_read_when_it_does() -> None:
    """It used to be passed over: a job that has ended ran for ever in the index."""
    app, gate, away = application(), asyncio.Event(), list[bool]()
    declare(app, gate)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue("held")
        await until_stats(app, lambda s: s.total.active == 1)
        reader = app.desk().reader
        unpack = reader.unpack

        def asked(key: bytes, value: bytes) -> Any:
            if away:
                raise SchemaUnavailable("the registry does not answer", 7)
            return unpack(key, value)

        reader.unpack = reader._opened()._unpack = asked  # type: ignore[assignment]
        away.append(True)
        gate.set()
        await handle.result("60s")
        with pytest.raises(SchemaUnavailable):
            await app.job_stats()
        away.clear()
        found = await app.job_stats()
        assert (found.total.active, found.total.completed, found.total.ended) == (0, 1, 1)

    play(app, story, partitions=1)


def test_f1_what_a_sweep_writes_again_is_no_retry_and_no_stall_of_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an index that was made after it: it knows nothing of before, and counted them at the time at which they were written again."""
    monkeypatch.setattr(Sweep, "every", 0)
    monkeypatch.setattr(Sweep, "times", 0)
    app, other = application(), application("other")

    @app.job("waits", backoff=Fixed("10h"), jitter=0)
    async def waits(_given: None, job: JobContext) -> None:
        if not job.stalls:
            await asyncio.sleep(3_600)
        raise RuntimeError("down")

    async def story(world: World) -> None:
        worker = await world.start(app)
        await app.enqueue(waits)
        await asyncio.sleep(5)  # it is written that it runs
        world.kill(worker)
        worker = await world.start(app)
        found = await until_stats(app, lambda s: s.total.delayed == 1)
        assert (found.total.retried, found.total.stalled) == (1, 1)
        await asyncio.sleep(4_000)  # so long nothing is compacted away, and what counts then is counted
        await app.enqueue(waits, delay="1h")  # something to write, so that the store is swept once more
        await asyncio.sleep(30)
        world.cluster.compact("jobs.default.default.state")
        for each in (app, other):
            found = await each.job_stats(last="5m")
            assert (found.total.delayed, found.total.retried, found.total.stalled) == (2, 0, 0)
        other.jobs.close()

    play(app, story, partitions=1)
