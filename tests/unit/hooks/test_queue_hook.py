"""`queue_hook`: what follows a run is enqueued behind the agent's back, and no trouble with it reaches the agent."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from pipeline import queue_hook
from pipeline.background import MemoryQueue
from pipeline.emit.hooks import queueing
from pipeline.emit.hooks.pydantic_ai import PydanticAIHooks
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import JobOptions
from pipeline.model.outbox import UNDER_WAY, Outbox, current
from tests.unit.docs_reader import ROOT
from tests.unit.hooks.harness import Recording


class Plain:
    """A queue without asyncio; `go` lets it take what it is given."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, Any, JobOptions]] = []
        self.threads: set[str] = set()
        self.go = threading.Event()
        self.go.set()

    def enqueue(self, topic: str, payload: Any, options: JobOptions) -> str:
        assert self.go.wait(30)
        self.threads.add(threading.current_thread().name)
        self.jobs.append((topic, payload, options))
        return f"job-{len(self.jobs)}"


class Asynchronous:
    """A queue that lives in an event loop."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, Any, JobOptions]] = []
        self.loops: set[Any] = set()
        self.go = asyncio.Event()

    async def enqueue(self, topic: str, payload: Any, options: JobOptions) -> str:
        await self.go.wait()
        self.loops.add(asyncio.get_running_loop())
        self.jobs.append((topic, payload, options))
        return "job"


async def test_A2_an_agent_returns_before_its_hooks_have_enqueued_and_each_topic_gets_its_job(rec: Recording) -> None:
    queue = Plain()
    queue.go.clear()
    hooks = [
        queue_hook(queue, "evaluate", lambda run: {"run": run.run_id, "output": run.output}, priority=10),
        queue_hook(queue, "index", lambda run: run.agent, delay="5m"),
    ]
    recording = PydanticAIHooks(rec.recorder, replace(rec.options, after_run=hooks))
    agent = Agent(TestModel(custom_output_text="yes"), name="support", capabilities=[recording])
    async with asyncio.timeout(20):
        assert (await agent.run("x")).output == "yes"  # though the queue takes nothing yet
    assert queue.jobs == []
    queue.go.set()
    assert [await hook.drain_async() for hook in hooks] == [True, True]
    run_id = rec.run()[0].run_id
    assert sorted(queue.jobs, key=lambda job: job[0]) == [
        ("evaluate", {"run": run_id, "output": "yes"}, JobOptions(priority=10)),
        ("index", "support", JobOptions(delay="5m")),
    ]
    assert threading.current_thread().name not in queue.threads
    assert hooks[0].stats() == queueing.QueueHookStats(called=1, enqueued=1, failed=0, dropped=0, waiting=0)


async def test_A2_a_failed_run_calls_on_error_alone(rec: Recording) -> None:
    queue = Plain()
    good, bad = (queue_hook(queue, topic, lambda run: run.error) for topic in ("good", "bad"))
    recording = PydanticAIHooks(rec.recorder, replace(rec.options, after_run=[good], on_error=[bad]))

    def broken() -> str:
        raise LookupError("gone")

    with pytest.raises(LookupError):
        await Agent(TestModel(), tools=[broken], capabilities=[recording]).run("x")
    assert await bad.drain_async()
    assert queue.jobs == [("bad", "LookupError: gone", JobOptions())]


async def test_A2_an_async_queue_is_used_in_the_agents_own_loop() -> None:
    queue = Asynchronous()
    hook = queue_hook(queue, "t", lambda run: run + 1)
    hook(1)
    hook(2)
    assert hook.stats().waiting == 2
    assert not await hook.drain_async(0.01)
    queue.go.set()
    assert await hook.drain_async()
    assert sorted(queue.jobs, key=lambda job: job[1]) == [("t", 2, JobOptions()), ("t", 3, JobOptions())]
    assert queue.loops == {asyncio.get_running_loop()}


async def test_A2_a_background_queue_runs_what_follows_a_run_also_when_the_hook_is_called_without_asyncio() -> None:
    queue, ran = MemoryQueue(), list[Any]()

    await queue.consume("index", lambda run, job: ran.append((run, job.tenant)))
    hook = queue_hook(queue, "index", lambda run: run + 1, tenant="acme")
    hook(1)
    await asyncio.to_thread(hook, 2)  # as an agent without asyncio would call it
    assert await hook.drain_async()
    async with asyncio.timeout(20):
        while len(ran) < 2:
            await asyncio.sleep(0.001)
    assert sorted(ran) == [(2, "acme"), (3, "acme")]
    await queue.close()


def test_A2_an_agents_loop_that_stops_right_after_the_run_cuts_nothing_off() -> None:
    """As `run_sync` of agent frameworks does: the loop is still there, and does not turn."""
    queue = MemoryQueue()
    hook = queue_hook(queue, "index", lambda run: run)

    async def run() -> None:
        hook(1)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(run())
    assert hook.drain(20)
    assert hook.stats().enqueued == 1
    loop.close()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"prio": 1}, "no argument 'prio'"), ({"delay": "-1s"}, "delay"), ({"attempts": 0}, "attempts=0"),
        ({"dedup_window": "1m"}, "dedup_window"),
    ],
)  # fmt: skip
def test_A2_a_wrong_option_is_told_when_the_hook_is_made(option: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        queue_hook(MemoryQueue(), "t", lambda run: run, **option)


def test_A2_by_hand_and_without_asyncio_jobs_keep_their_order() -> None:
    queue = Plain()

    async def payload(run: int) -> dict[str, int]:
        return {"n": run}

    hook = queue_hook(queue, "t", payload)
    for n in range(20):
        hook(n)
    assert hook.drain()
    assert [job[1]["n"] for job in queue.jobs] == list(range(20))


@pytest.mark.parametrize("which", ["payload", "queue", "async queue"])
async def test_A2_an_error_is_counted_and_logged_once_and_the_next_job_goes_on(
    which: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Refuses(Plain):
        def enqueue(self, topic: str, payload: Any, options: JobOptions) -> str:
            if payload < 2 and which == "queue":
                raise ConnectionError("no broker")
            return super().enqueue(topic, payload, options)

    class RefusesLater(Refuses):
        async def enqueue(self, topic: str, payload: Any, options: JobOptions) -> str:  # type: ignore[override]
            if payload < 2:
                raise ConnectionError("no broker")
            return super().enqueue(topic, payload, options)

    def payload(run: int) -> int:
        if run < 2 and which == "payload":
            raise ZeroDivisionError
        return run

    queue = RefusesLater() if which == "async queue" else Refuses()
    hook = queue_hook(queue, "t", payload)
    for n in range(3):
        hook(n)
    assert await hook.drain_async()
    assert [job[1] for job in queue.jobs] == [2]
    assert (hook.stats().failed, hook.stats().enqueued) == (2, 1)
    assert sum("no job was enqueued to t" in record.message for record in caplog.records) == 1


def test_A2_a_queue_that_hangs_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queueing, "PENDING_MAX", 5)
    queue = Plain()
    queue.go.clear()
    hook = queue_hook(queue, "t", lambda run: run)
    for n in range(8):
        hook(n)
    assert not hook.drain(0.01)
    assert (hook.stats().waiting, hook.stats().dropped) == (5, 3)
    queue.go.set()
    assert hook.drain()
    assert [job[1] for job in queue.jobs] == [0, 1, 2, 3, 4]
    assert sum("are dropped" in record.message for record in caplog.records) == 1


def test_A2_a_job_that_the_end_of_the_loop_cuts_off_is_counted() -> None:
    queue = Asynchronous()

    async def main() -> Any:
        hook = queue_hook(queue, "t", lambda run: run)
        hook(1)
        await asyncio.sleep(0)
        return hook

    hook = asyncio.run(main())
    assert (hook.stats().failed, hook.stats().waiting) == (1, 0)


def test_A2_a_process_that_ends_waits_for_what_is_being_enqueued() -> None:
    code = """
import time
from pipeline import queue_hook

class Slow:
    def enqueue(self, topic, payload, options):
        time.sleep(0.3)
        print(topic, payload, flush=True)

hook = queue_hook(Slow(), "t", lambda run: run)
hook(1)
hook(2)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert (out.stdout.split("\n"), out.stderr) == (["t 1", "t 2", ""], "")


def test_A2_a_process_that_ends_has_its_jobs_enqueued_though_there_are_no_more_threads() -> None:
    """When the exit is waited for, executors take nothing any more: a script that ended right after its run lost the job."""
    code = """
import atexit
from pipeline import Pipeline, Settings, queue_hook
from pipeline.background import KafkaQueue

hook = queue_hook(KafkaQueue(Pipeline("script", settings=Settings(broker="memory://script"))), "t", lambda run: run)
atexit.register(lambda: print(hook.stats().enqueued, hook.stats().failed))
hook(1)
hook(2)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert (out.stdout, out.stderr) == ("2 0\n", "")


def test_A2_after_a_fork_what_waits_is_enqueued_by_the_parent_alone() -> None:
    """Both enqueued it, and a child that called no hook waited 5 seconds, when it ended, for what was not its own."""
    code = """
import os, threading
from pipeline import queue_hook

class Queue:
    go = threading.Event()

    def enqueue(self, topic, payload, options):
        self.go.wait(30)
        print(payload, flush=True)

hook = queue_hook(Queue(), "t", lambda run: run)
for n in range(3):
    hook(n)
child = os.fork()
if not child:
    print(hook.drain(0), hook.stats().called, flush=True)
    Queue.go.set()
    hook("child")
    print(hook.drain(20), hook.stats().enqueued, flush=True)
    os._exit(0)
os.waitpid(child, 0)
Queue.go.set()
print(hook.drain(20), hook.stats().enqueued, flush=True)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.splitlines() == ["True 0", "child", "True 1", "0", "1", "2", "True 3"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_A2_inside_a_handler_a_hook_asks_for_its_job_directly(asynchronous: bool) -> None:
    """Its outbox may be taken at any moment: what came just after that was lost, and what came before changed the numbers, and so the
    ids, of what the handler itself asks for."""

    class Handler:
        def outbox(self) -> Outbox | None:
            raise AssertionError("it is not the handler that asks")

    class Queue(Asynchronous if asynchronous else Plain):  # type: ignore[misc]
        def payload(self, run: str) -> str:
            assert current("memory://", "t") is None
            return run

    queue = Queue()
    before = UNDER_WAY.set(Handler())
    try:
        hook = queue_hook(queue, "t", queue.payload)
        hook("run")
    finally:
        UNDER_WAY.reset(before)
    queue.go.set()
    assert await hook.drain_async()
    assert (hook.stats().enqueued, len(queue.jobs)) == (1, 1)
