"""A5: one suite over every back-end of `BackgroundQueue`; and it is not blind."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from pipeline import Pipeline, Settings
from pipeline.background import KafkaQueue, MemoryQueue, memory_queue
from pipeline.background.memory_queue import CLOSING_S
from pipeline.model.background import BackgroundQueue, ConsumeOptions, ResultQueue
from pipeline.model.errors import BufferFull, ConfigurationError, InvalidJob, JobMissing, PipelineError
from pipeline.model.job_policies import JobOptions, RetentionPolicy
from pipeline.testing import QUEUE_CHECKS, QueueCheck, check_queue
from pipeline.topology import Defaults, apply
from tests.conformance.conftest import kafka_queue
from tests.patience import PATIENCE
from tests.topics import forget_topics

Make = Callable[[], BackgroundQueue]


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


@pytest.fixture(params=["memory", "kafka-in-memory", "kafka"])
def make(request: pytest.FixtureRequest) -> Make:
    """In memory; on jobs over the memory cluster; on jobs over Kafka."""
    if request.param == "memory":
        return MemoryQueue
    return kafka_queue(request, request.param, "a5")


def topic() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("check", QUEUE_CHECKS, ids=lambda check: check.__name__)
def test_a5_every_queue_keeps_the_contract(check: QueueCheck, make: Make) -> None:
    async def main() -> None:
        queue = make()
        assert isinstance(queue, ResultQueue)
        await check(queue, topic())

    asyncio.run(main())


class Naive:
    """What people write in an afternoon: a list and some tasks."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.jobs: dict[str, asyncio.Queue[tuple[str, Any]]] = {}

    async def enqueue(self, topic: str, payload: Any, options: JobOptions | None = None) -> str:
        job = uuid.uuid4().hex
        self.jobs.setdefault(topic, asyncio.Queue()).put_nowait((job, payload))
        return job

    async def consume(self, topic: str, handler: Callable[..., Any], options: ConsumeOptions | None = None) -> None:
        jobs = self.jobs.setdefault(topic, asyncio.Queue())

        async def serve() -> None:
            while True:
                await handler((await jobs.get())[1])

        for _ in range((options or ConsumeOptions()).concurrency):
            task = asyncio.create_task(serve())
            self.tasks.add(task)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()


def test_a5_the_suite_is_not_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check but those that a list and some tasks do well enough fails for them."""
    from pipeline.testing import checking

    monkeypatch.setattr(checking, "PATIENCE_S", 0.5)

    async def main() -> set[str]:
        passed = set()
        for check in QUEUE_CHECKS:
            try:
                await check(Naive(), "t")
            except Exception:
                continue
            passed.add(check.__name__)  # type: ignore[attr-defined]
        return passed

    well_enough = {"jobs_wait_for_a_consumer", "topics_are_apart", "so_many_at_once_and_no_more"}
    nothing_asked = {"results_are_kept_apart_from_the_caller"}  # of what has no `handle`
    assert asyncio.run(main()) == well_enough | nothing_asked


def test_a5_without_pytest_the_first_check_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.testing import checking

    monkeypatch.setattr(checking, "PATIENCE_S", 0.2)
    with pytest.raises(AssertionError, match=r"^a_handler_gets_what_was_enqueued: AssertionError: not within"):
        asyncio.run(check_queue(Naive))


# -- what is the memory queue's own


def test_a5_a_memory_queue_is_bounded_and_its_room_comes_back() -> None:
    async def main() -> None:
        queue, ran = MemoryQueue(jobs_max=3), list[int]()

        async def handler(number: int) -> None:
            ran.append(number)
            if number == 1:
                raise ValueError("no")

        for number in (1, 0, 2):
            last = await queue.enqueue("t", number, JobOptions(attempts=1))
        with pytest.raises(BufferFull, match=r"holds 3 jobs: raise jobs_max"):
            await queue.enqueue("t", 3)
        await queue.consume("t", handler)
        async with asyncio.timeout(10 * PATIENCE):
            while len(ran) < 3:
                await asyncio.sleep(0.001)
        await queue.handle("t", last).result("10s")
        for number in range(3, 6):
            await queue.enqueue("t", number, JobOptions(delay="1h"))
        with pytest.raises(BufferFull):
            await queue.enqueue("t", 6)
        await queue.close()

    asyncio.run(main())


def test_a5_what_a_memory_queue_holds_is_lost_with_it() -> None:
    async def main() -> None:
        queue = MemoryQueue()
        job_id = await queue.enqueue("t", 1, JobOptions(delay="1h"))
        assert (await queue.handle("t", job_id).status()).state.value == "scheduled"
        await queue.close()
        with pytest.raises(PipelineError, match="not known"):
            await MemoryQueue().handle("t", job_id).result("1s")

    asyncio.run(main())


def test_a5_another_thread_with_its_own_event_loop_enqueues(make: Make) -> None:
    async def main() -> Any:
        queue = make()
        assert isinstance(queue, ResultQueue)

        async def double(number: int) -> int:
            return 2 * number

        await queue.consume("t", double)
        job_id = await asyncio.to_thread(lambda: asyncio.run(queue.enqueue("t", 4)))
        result = await queue.handle("t", job_id).result("30s")
        await queue.close()
        return result

    assert asyncio.run(main()) == 8


def test_a5_finished_jobs_of_a_memory_queue_are_forgotten() -> None:
    async def main() -> None:
        queue = MemoryQueue()

        async def handler(number: int) -> None: ...

        await queue.consume("t", handler, ConsumeOptions(retention=RetentionPolicy(completed=5)))
        ids = [await queue.enqueue("t", number) for number in range(50)]
        await queue.handle("t", ids[-1]).result("10s")
        await queue.handle("t", await queue.enqueue("t", 50)).result("10s")
        await queue.enqueue("t", 51)
        async with asyncio.timeout(10 * PATIENCE):
            while len(queue._topics["t"].board.jobs) > 7:
                await asyncio.sleep(0.001)
        await queue.close()

    asyncio.run(main())


def test_a5_a_memory_queue_is_closed_once_nothing_runs() -> None:
    """Tasks that rest between jobs were waited for: each close took the ten seconds that are for what runs."""

    async def main() -> None:
        queue, done = MemoryQueue(), list[int]()

        async def handler(number: int) -> None:
            await asyncio.sleep(0.2)
            done.append(number)

        await queue.consume("t", handler)
        first, second = [await queue.enqueue("t", number) for number in (1, 2)]
        await queue.handle("t", first).result("10s")
        async with asyncio.timeout(CLOSING_S - 1):
            await queue.close()
        assert done == [1, 2], "what runs may end"
        assert (await queue.handle("t", second).status()).state.value == "completed"

    asyncio.run(main())


def test_a5_what_does_not_end_holds_a_close_up_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_queue, "CLOSING_S", 0.2)

    async def main() -> None:
        queue, started, cancelled = MemoryQueue(), asyncio.Event(), list[int]()

        async def handler(number: int) -> None:
            started.set()
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                cancelled.append(number)
                raise

        await queue.consume("t", handler)
        await queue.enqueue("t", 1)
        await started.wait()
        async with asyncio.timeout(5 * PATIENCE):
            await queue.close()
        await asyncio.sleep(0)
        assert cancelled == [1]

    asyncio.run(main())


# -- what is the Kafka queue's own


async def _kafka_queue(app: Pipeline, story: Callable[[KafkaQueue], Any]) -> None:
    queue = KafkaQueue(app, create=Defaults(partitions=1))
    try:
        await story(queue)
    finally:
        await queue.close()
        await app.stop()


def _application(request: pytest.FixtureRequest, broker: str) -> Pipeline:
    prefix = f"{uuid.uuid4().hex[:8]}."
    request.addfinalizer(lambda: forget_topics(broker, prefix))
    return Pipeline("a5", settings=Settings(broker=broker, prefix=prefix, session_timeout_s=6.0))


@pytest.fixture(params=["memory", "kafka"])
def app(request: pytest.FixtureRequest) -> Pipeline:
    kafka = request.param == "kafka"
    return _application(request, request.getfixturevalue("kafka") if kafka else f"memory://{uuid.uuid4().hex}")


def test_a5_a_topic_that_is_a_job_of_the_application_is_that_job(app: Pipeline) -> None:
    @app.job("double", queue="calc")
    async def double(number: int) -> int:
        return 2 * number

    async def story(queue: KafkaQueue) -> None:
        apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1), app.settings.prefix)
        await app.start()
        job_id = await queue.enqueue("double", 4)
        assert await queue.handle("double", job_id).result("30s") == 8
        with pytest.raises(InvalidJob, match="does not fit job 'double'"):
            await queue.enqueue("double", "four")
        with pytest.raises(ConfigurationError, match="its workers run it"):
            await queue.consume("double", double)

    asyncio.run(_kafka_queue(app, story))


async def _there(queue: KafkaQueue, job_id: str) -> Any:
    """Another process sees a short job when it has its ending."""
    async with asyncio.timeout(30 * PATIENCE):
        while True:
            try:
                return await queue.handle("t", job_id).result("30s")
            except JobMissing:
                await asyncio.sleep(0.05)


def test_a5_what_waits_is_there_for_another_process(app: Pipeline) -> None:
    async def main() -> None:
        first = KafkaQueue(app)
        job_id = await first.enqueue("t", 4)
        await first.close()
        again = app.sibling()
        second = KafkaQueue(again)

        async def double(number: int) -> int:
            return 2 * number

        await second.consume("t", double)
        assert await _there(second, job_id) == 8
        await second.close()
        third = KafkaQueue(app.sibling())
        assert await third.handle("t", job_id).result("30s") == 8, "its consumer is gone, the result is kept"
        await third.close()

    asyncio.run(main())


def test_a5_without_create_a_queue_that_is_not_there_is_told(app: Pipeline) -> None:
    async def main() -> None:
        queue = KafkaQueue(app, create=None)
        with pytest.raises(PipelineError, match=r"jobs\.t.* does not exist"):
            await queue.enqueue("t", 1)
        await queue.close()

    asyncio.run(main())


def test_a5_a_webhook_is_refused_where_nobody_would_tell_it(make: Make) -> None:
    async def main() -> None:
        queue = make()
        with pytest.raises(ConfigurationError, match=r"webhook='crm' of a job on topic 't': only jobs of @app\.job"):
            await queue.enqueue("t", 1, JobOptions(webhook="crm"))
        await queue.close()

    asyncio.run(main())
