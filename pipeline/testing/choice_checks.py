"""Checks of queues: which job is next, how many at once, and which are the same."""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.model.background import BackgroundQueue, ConsumeOptions
from pipeline.model.job_policies import Fixed, JobOptions
from pipeline.model.outcome import Reject
from pipeline.testing.checking import LATE_S, QueueCheck, queue_check, until

# -- order and choice


@queue_check
async def jobs_of_a_key_run_in_order_and_one_at_a_time(queue: BackgroundQueue, topic: str) -> None:
    running: set[str] = set()
    ended: list[tuple[str, int]] = []

    async def handler(payload: dict[str, Any], job: Any) -> None:
        assert job.key not in running, "two jobs of one key at once"
        running.add(job.key)
        await asyncio.sleep(0.005)
        running.remove(job.key)
        if payload["n"] == 1 and job.attempt == 1:
            raise RuntimeError("once")
        ended.append((job.key, payload["n"]))

    await queue.consume(topic, handler, ConsumeOptions(attempts=2, backoff=Fixed("100ms"), jitter=0))
    for number in range(5):
        for key in ("a", "b"):
            await queue.enqueue(topic, {"n": number}, JobOptions(key=key))
    await until(lambda: len(ended) == 10, "all jobs of both keys have run")
    for key in ("a", "b"):
        assert [n for k, n in ended if k == key] == [0, 1, 2, 3, 4], "also across a retry"


@queue_check
async def so_many_at_once_and_no_more(queue: BackgroundQueue, topic: str) -> None:
    running, most, ended = 0, 0, 0

    async def handler(payload: int) -> None:
        nonlocal running, most, ended
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        ended += 1

    for number in range(24):
        await queue.enqueue(topic, number)
    await queue.consume(topic, handler, ConsumeOptions(concurrency=4))
    await until(lambda: ended == 24, "all have run")
    assert most <= 4, f"{most} ran at once with concurrency=4"
    assert most > 1, "jobs run beside each other"


@queue_check
async def urgent_jobs_pass_others_and_others_are_not_forgotten(queue: BackgroundQueue, topic: str) -> None:
    order: list[str] = []
    await _run_behind_a_gate(
        queue,
        topic,
        order,
        [("normal", JobOptions())] * 30
        + [("low", JobOptions(priority=-1))]
        + [("urgent", JobOptions(priority=10))] * 2,
    )
    urgent = [at for at, each in enumerate(order) if each == "urgent"]
    assert max(urgent) < 15, f"a higher number is more urgent; they came at {urgent} of 33"
    assert "low" in order, "what is less urgent runs too"


@queue_check
async def a_tenant_does_not_wait_for_all_of_anothers_jobs(queue: BackgroundQueue, topic: str) -> None:
    order: list[str] = []
    big, small = JobOptions(tenant="big"), JobOptions(tenant="small")
    await _run_behind_a_gate(queue, topic, order, [("big", big)] * 30 + [("small", small)] * 2)
    late = max(at for at, each in enumerate(order) if each == "small")
    assert late < 20, f"the small tenant's last job was number {late} of 32"


async def _run_behind_a_gate(
    queue: BackgroundQueue, topic: str, order: list[str], jobs: list[tuple[str, JobOptions]]
) -> None:
    go = asyncio.Event()

    async def handler(payload: str) -> None:
        if payload == "gate":
            order.append("gate")
            await go.wait()
            order.clear()
        else:
            order.append(payload)
            await asyncio.sleep(0.02)

    await queue.consume(topic, handler, ConsumeOptions(concurrency=1))
    await queue.enqueue(topic, "gate")
    await until(lambda: order == ["gate"], "the first one runs")
    for payload, options in jobs:
        await queue.enqueue(topic, payload, options)
    go.set()
    await until(lambda: len(order) == len(jobs), "all have run")


# -- duplicates


@queue_check
async def a_dedup_id_runs_once_in_its_window(queue: BackgroundQueue, topic: str) -> None:
    ran: list[int] = []

    async def handler(payload: int) -> None:
        ran.append(payload)

    await queue.consume(topic, handler)
    same = JobOptions(dedup_id="d", dedup_window="2s")
    await queue.enqueue(topic, 1, same)
    await until(lambda: ran == [1], "the first one has run")
    await queue.enqueue(topic, 2, same)  # finished is as good as waiting
    await queue.enqueue(topic, 3, JobOptions(dedup_id="other", dedup_window="2s"))
    await queue.enqueue(topic, 4)
    await until(lambda: {3, 4} <= set(ran), "what is not the same has run")
    await asyncio.sleep(2.2)  # the window must pass
    await queue.enqueue(topic, 5, same)
    await until(lambda: 5 in ran, "behind the window it is another job")
    assert sorted(ran) == [1, 3, 4, 5]


@queue_check
async def a_failed_job_gives_its_dedup_id_back_where_that_is_asked_for(queue: BackgroundQueue, topic: str) -> None:
    ran: list[int] = []

    async def handler(payload: int) -> None:
        ran.append(payload)
        if payload == 1:
            raise Reject("never")

    await queue.consume(topic, handler, ConsumeOptions(release_on_failure=True))
    same = JobOptions(dedup_id="d", dedup_window="1h")
    await queue.enqueue(topic, 1, same)
    await until(lambda: ran == [1], "the first one has run")
    await asyncio.sleep(LATE_S)  # until its ending counts
    await queue.enqueue(topic, 2, same)
    await until(lambda: ran == [1, 2], "the second one is a job of its own")
    await queue.enqueue(topic, 3, same)
    await queue.enqueue(topic, 4)
    await until(lambda: 4 in ran, "what is not the same has run")
    assert ran == [1, 2, 4], "one that ended well keeps it"


CHECKS: tuple[QueueCheck, ...] = (
    jobs_of_a_key_run_in_order_and_one_at_a_time,
    so_many_at_once_and_no_more,
    urgent_jobs_pass_others_and_others_are_not_forgotten,
    a_tenant_does_not_wait_for_all_of_anothers_jobs,
    a_dedup_id_runs_once_in_its_window,
    a_failed_job_gives_its_dedup_id_back_where_that_is_asked_for,
)
