"""Checks of queues: what is enqueued gets to its handler, at its time, and what came of it can be read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pipeline.model.background import BackgroundQueue, ConsumeOptions, ResultQueue
from pipeline.model.errors import ConfigurationError, JobMissing, JobUnsuccessful, ResultTimeout
from pipeline.model.job_ids import job_id
from pipeline.model.job_policies import Fixed, JobOptions
from pipeline.model.outcome import Reject
from pipeline.testing.checking import LATE_S, PATIENCE_S, QueueCheck, queue_check, refused, until

# -- delivery


@queue_check
async def a_handler_gets_what_was_enqueued(queue: BackgroundQueue, topic: str) -> None:
    got: list[Any] = []

    async def handler(payload: Any, job: Any) -> None:
        got.append((job.id, payload))

    await queue.consume(topic, handler)
    payloads = [{"n": 1, "text": "ä", "list": [1, None, True]}, "text", 7, None, []]
    ids = [await queue.enqueue(topic, payload) for payload in payloads]
    await until(lambda: len(got) == len(payloads), "each job has run")
    assert all(isinstance(each, str) and each for each in ids)
    assert len(set(ids)) == len(ids), "each job has its own id"
    assert dict(zip(ids, payloads, strict=True)) == dict(got)


@queue_check
async def jobs_wait_for_a_consumer(queue: BackgroundQueue, topic: str) -> None:
    got: list[int] = []

    def handler(payload: int) -> None:  # a plain function, with no context
        got.append(payload)

    for number in range(10):
        await queue.enqueue(topic, number)
    await queue.consume(topic, handler)
    await until(lambda: len(got) == 10, "jobs that were there before the consumer have run")
    assert sorted(got) == list(range(10))


@queue_check
async def topics_are_apart(queue: BackgroundQueue, topic: str) -> None:
    got: list[tuple[str, int]] = []

    async def first(payload: int) -> None:
        got.append(("first", payload))

    async def second(payload: int) -> None:
        got.append(("second", payload))

    await queue.consume(topic, first)
    await queue.consume(topic + ".2", second)
    for number in range(4):
        await queue.enqueue(topic + (".2" if number % 2 else ""), number)
    await until(lambda: len(got) == 4, "jobs of both topics have run")
    assert sorted(got) == [("first", 0), ("first", 2), ("second", 1), ("second", 3)]


@queue_check
async def a_topic_has_one_handler(queue: BackgroundQueue, topic: str) -> None:
    async def handler(payload: int) -> None: ...

    await queue.consume(topic, handler)
    await refused(queue.consume(topic, handler), ConfigurationError, "a second handler of one topic")


@queue_check
async def what_a_handler_enqueues_goes_out_when_it_has_succeeded(queue: BackgroundQueue, topic: str) -> None:
    ran: list[Any] = []

    async def first(payload: str, job: Any) -> None:
        await queue.enqueue(topic + ".then", f"{payload}, attempt {job.attempt}")
        await asyncio.sleep(0.05)
        ran.append(payload)
        if payload == "never" or job.attempt == 1:
            raise RuntimeError("not yet")

    async def then(payload: str) -> None:
        ran.append(payload)

    await queue.consume(topic + ".then", then)
    await queue.consume(topic, first, ConsumeOptions(attempts=2, backoff=Fixed(0)))
    await queue.enqueue(topic, "never")
    await queue.enqueue(topic, "twice")
    await until(lambda: "twice, attempt 2" in ran, "what the attempt that succeeded asked for has run")
    await asyncio.sleep(LATE_S)
    assert sorted(ran) == ["never", "never", "twice", "twice", "twice, attempt 2"], "nothing of one that failed"


@queue_check
async def a_job_knows_what_was_asked_for(queue: BackgroundQueue, topic: str) -> None:
    got: list[Any] = []

    async def handler(payload: int, job: Any) -> None:
        got.append(job)

    await queue.consume(topic, handler, ConsumeOptions(attempts=4))
    options = JobOptions(key="k", tenant="acme", workflow_id="w", tags=("a", "b"))
    await queue.enqueue(topic, 1, options)
    await queue.enqueue(topic, 2, JobOptions(key="k", attempts=2))
    await until(lambda: len(got) == 2, "both jobs have run")
    first, second = got
    assert (first.key, first.tenant, first.workflow_id, tuple(first.tags)) == ("k", "acme", "w", ("a", "b"))
    assert (first.attempt, first.attempts, second.attempts) == (1, 4, 2), "what a request asks for goes before"


# -- time


@queue_check
async def a_delayed_job_is_never_early_and_nobody_waits_behind_it(queue: BackgroundQueue, topic: str) -> None:
    ran: dict[str, int] = {}

    async def handler(payload: str) -> None:
        ran[payload] = time.time_ns() // 1_000_000

    await queue.consume(topic, handler)
    await queue.enqueue(topic, "first", JobOptions(key="k"))
    await until(lambda: "first" in ran, "the consumer is at work")
    asked_ms = time.time_ns() // 1_000_000
    at_ms = asked_ms + 1_200
    await queue.enqueue(topic, "delay", JobOptions(delay="1s", key="k"))
    await queue.enqueue(topic, "run_at", JobOptions(run_at=at_ms, key="k"))
    await queue.enqueue(topic, "past", JobOptions(run_at=at_ms - 3_600_000, key="k"))
    await queue.enqueue(topic, "later", JobOptions(delay="30d", key="k"))
    await queue.enqueue(topic, "now", JobOptions(key="k"))
    await until(lambda: len(ran) >= 5, "all but the one of next month have run")
    await asyncio.sleep(LATE_S)
    assert "later" not in ran
    assert ran["delay"] >= asked_ms + 1_000, "a delay is never cut short"
    assert ran["run_at"] >= at_ms, "run_at is never early"
    assert max(ran["now"], ran["past"]) < min(ran["delay"], ran["run_at"]), "nobody waits behind a delayed job"


@queue_check
async def an_expired_job_does_not_run(queue: BackgroundQueue, topic: str) -> None:
    ran: list[str] = []
    go = asyncio.Event()

    async def handler(payload: str) -> None:
        ran.append(payload)
        if payload == "long":
            await go.wait()

    await queue.consume(topic, handler, ConsumeOptions(concurrency=1))
    await queue.enqueue(topic, "long")
    await until(lambda: ran == ["long"], "the first one runs")
    await queue.enqueue(topic, "expires", JobOptions(expires="200ms"))
    await queue.enqueue(topic, "kept", JobOptions(expires="1h"))
    await asyncio.sleep(0.4)  # its time must pass
    go.set()
    await until(lambda: "kept" in ran, "the job that is not expired has run")
    await asyncio.sleep(LATE_S)
    assert ran == ["long", "kept"]


# -- results


@queue_check
async def results_are_kept_apart_from_the_caller(queue: BackgroundQueue, topic: str) -> None:
    if not isinstance(queue, ResultQueue):
        return

    async def handler(payload: int) -> dict[str, int]:
        if payload < 0:
            raise Reject("below zero")
        return {"double": 2 * payload}

    await queue.consume(topic, handler)
    good, bad = await queue.enqueue(topic, 4), await queue.enqueue(topic, -1)
    later = await queue.enqueue(topic, 1, JobOptions(delay="1h"))
    same = [await queue.enqueue(topic, n, JobOptions(dedup_id="d")) for n in (5, 6)]
    assert await _result(queue, topic, good) == {"double": 8}
    assert [await _result(queue, topic, each) for each in same] == [{"double": 10}] * 2, "the first one's, for both"
    await refused(_result(queue, topic, bad), JobUnsuccessful, "the result of a job that was given up")
    await refused(queue.handle(topic, later).result("100ms"), ResultTimeout, "a result that is not there yet")
    unknown = job_id(time.time_ns() // 1_000_000, b"0123456789")
    await refused(queue.handle(topic, unknown).result("5s"), JobMissing, "the result of a job that there is not")


async def _result(queue: ResultQueue, topic: str, each: str) -> Any:
    """It may take a moment until others can see the job."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await queue.handle(topic, each).result(PATIENCE_S)
        except JobMissing:
            assert time.monotonic() < deadline, f"job {each} can't be found"
            await asyncio.sleep(0.05)


CHECKS: tuple[QueueCheck, ...] = (
    a_handler_gets_what_was_enqueued,
    jobs_wait_for_a_consumer,
    topics_are_apart,
    a_topic_has_one_handler,
    what_a_handler_enqueues_goes_out_when_it_has_succeeded,
    a_job_knows_what_was_asked_for,
    a_delayed_job_is_never_early_and_nobody_waits_behind_it,
    an_expired_job_does_not_run,
    results_are_kept_apart_from_the_caller,
)
