"""Checks of queues: what becomes of jobs that fail, and of what can't be a job."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pipeline.model.background import BackgroundQueue, ConsumeOptions
from pipeline.model.errors import ConfigurationError, InvalidJob, PipelineError
from pipeline.model.job_policies import Fixed, JobOptions
from pipeline.model.outcome import Reject, Retry, Warn
from pipeline.testing.checking import LATE_S, QueueCheck, queue_check, refused, until

# -- failures


@queue_check
async def a_failed_job_is_tried_again_after_its_back_off(queue: BackgroundQueue, topic: str) -> None:
    began: list[tuple[float, int]] = []

    async def handler(payload: int, job: Any) -> None:
        began.append((time.monotonic(), job.attempt))
        if job.attempt < 3:
            raise RuntimeError("not yet")

    await queue.consume(topic, handler, ConsumeOptions(attempts=5, backoff=Fixed("200ms"), jitter=0))
    await queue.enqueue(topic, 1)
    await until(lambda: len(began) == 3, "it has run three times")
    await asyncio.sleep(LATE_S)
    assert [attempt for _, attempt in began] == [1, 2, 3]
    assert began[1][0] - began[0][0] > 0.15, "a retry comes no sooner than its back-off says"


@queue_check
async def retries_stop(queue: BackgroundQueue, topic: str) -> None:
    ran: list[int] = []

    async def handler(payload: int) -> None:
        ran.append(payload)
        if payload:
            raise RuntimeError("never")

    await queue.consume(topic, handler, ConsumeOptions(attempts=3, backoff=Fixed(0)))
    await queue.enqueue(topic, 3)
    await queue.enqueue(topic, 2, JobOptions(attempts=2))
    await queue.enqueue(topic, 1, JobOptions(attempts=1))
    await until(lambda: len(ran) == 6, "each has had its attempts")
    await queue.enqueue(topic, 0)
    await until(lambda: 0 in ran, "the topic goes on after jobs that were given up")
    await asyncio.sleep(LATE_S)
    assert sorted(ran) == [0, 1, 2, 2, 3, 3, 3], "attempts count executions in all"


@queue_check
async def a_handler_steers_its_job(queue: BackgroundQueue, topic: str) -> None:
    ran: list[str] = []

    async def handler(payload: str, job: Any) -> Any:
        ran.append(payload)
        if payload == "reject":
            raise Reject("never")
        if payload == "terminal":
            raise LookupError("never")
        if payload == "retry" and job.attempt == 1:
            raise Retry(after="10ms")
        return Warn("so so")

    options = ConsumeOptions(attempts=5, backoff=Fixed("1h"), terminal=(LookupError,))
    await queue.consume(topic, handler, options)
    for each in ("reject", "terminal", "retry", "warn"):
        await queue.enqueue(topic, each)
    await until(lambda: len(ran) == 5, "all have run, and the one that asked for it a second time")
    await asyncio.sleep(LATE_S)
    assert sorted(ran) == ["reject", "retry", "retry", "terminal", "warn"]


@queue_check
async def what_takes_too_long_is_stopped(queue: BackgroundQueue, topic: str) -> None:
    seen: list[str] = []

    async def handler(payload: int, job: Any) -> None:
        seen.append(f"attempt {job.attempt}")
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            seen.append("stopped")
            raise

    await queue.consume(topic, handler, ConsumeOptions(attempts=2, backoff=Fixed(0), timeout="1h"))
    await queue.enqueue(topic, 1, JobOptions(timeout="100ms"))
    await until(lambda: len(seen) == 4, "both attempts are stopped")
    assert seen == ["attempt 1", "stopped", "attempt 2", "stopped"]


@queue_check
async def a_payload_that_does_not_fit_stops_nobody(queue: BackgroundQueue, topic: str) -> None:
    got: list[int] = []

    async def handler(payload: int) -> None:
        got.append(payload)

    await queue.consume(topic, handler)
    await queue.enqueue(topic, {"not": "a number"})
    await queue.enqueue(topic, 1)
    await until(lambda: got == [1], "the job behind one that does not fit has run")


# -- what can't be


@queue_check
async def wrong_options_and_payloads_are_told_to_the_caller(queue: BackgroundQueue, topic: str) -> None:
    wrong = [
        JobOptions(delay="-1s"),
        JobOptions(delay="soon"),
        JobOptions(delay="1s", run_at=10**11),
        JobOptions(attempts=0),
        JobOptions(timeout=0),
        JobOptions(expires=0),
        JobOptions(dedup_window="1m"),
        JobOptions(key=""),
        JobOptions(tags=("",)),
    ]
    for options in wrong:
        await refused(queue.enqueue(topic, 1, options), ConfigurationError, str(options))
    secret = "AKIA" + "IOSFODNN7EXAMPLE"
    for payload in (object(), "x" * 2_000_000, {"key": secret}):
        await refused(queue.enqueue(topic, payload), InvalidJob, f"payload {payload!r:.40}")


@queue_check
async def a_closed_queue_finishes_what_runs_and_takes_nothing(queue: BackgroundQueue, topic: str) -> None:
    seen: list[str] = []

    async def handler(payload: int) -> None:
        seen.append("began")
        await asyncio.sleep(0.2)
        seen.append("ended")

    await queue.consume(topic, handler)
    await queue.enqueue(topic, 1)
    await until(lambda: seen == ["began"], "it runs")
    await queue.close()
    assert seen == ["began", "ended"]
    await refused(queue.enqueue(topic, 2), PipelineError, "a closed queue")
    await queue.close()


CHECKS: tuple[QueueCheck, ...] = (
    a_failed_job_is_tried_again_after_its_back_off,
    retries_stop,
    a_handler_steers_its_job,
    what_takes_too_long_is_stopped,
    a_payload_that_does_not_fit_stops_nobody,
    wrong_options_and_payloads_are_told_to_the_caller,
    a_closed_queue_finishes_what_runs_and_takes_nothing,
)
