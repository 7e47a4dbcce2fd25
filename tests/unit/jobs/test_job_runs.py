"""Executions of jobs, without a worker around them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from pipeline.blobs.folder import FolderBlobs
from pipeline.core.jobs.job import Job, Kind
from pipeline.model.blobs import BlobPolicy, Blobs
from pipeline.model.job_policies import JobPolicy
from pipeline.model.job_types import JobType
from pipeline.model.jobs import Completed, JobEnding, JobRequest
from pipeline.model.outbox import Outbox, current
from pipeline.model.outcome import Cancelled, Failure
from pipeline.model.permissions import Permissions
from pipeline.model.policies import BatchPolicy
from pipeline.worker.jobs.blobs import PayloadBlobs
from pipeline.worker.jobs.context import Home
from pipeline.worker.jobs.running import JobRuns, Shell
from pipeline.worker.jobs.runs import Run
from pipeline.worker.jobs.values import Values
from pipeline.worker.stalls import Stalls


class Bench:
    """In a running loop: jobs of one type, and what came of them. `async with`: it ends with a failure too."""

    def __init__(
        self,
        handler: Callable[..., object],
        places: int = 10,
        policy: JobPolicy | None = None,
        blobs: Blobs | None = None,
    ) -> None:
        self.ended: list[tuple[Run, JobEnding]] = []
        self.failed: list[BaseException] = []
        self.freed: list[None] = []
        log = structlog.get_logger()
        self.stalls = Stalls(log)
        self.policy = policy or JobPolicy()
        is_async = asyncio.iscoroutinefunction(handler)
        declared = JobType("j", handler, is_async=is_async, alone=True, policy=self.policy)

        async def never(*_: object) -> None:
            raise AssertionError("it asks for nothing")

        shell = Shell(
            asyncio.get_running_loop(), lambda run, ending: self.ended.append((run, ending)), lambda *_: None, lambda: 0, log,
            Home("memory://", "", never), self.failed.append, self.stalls, places, lambda: self.freed.append(None),
        )  # fmt: skip
        values = Values({"j": declared}, Permissions(), PayloadBlobs("jobs.q", blobs))
        self.runs = JobRuns({"j": declared}, shell, values, {})

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.runs.abandon()

    def start(self, timeout_ms: int = 60_000) -> Run:
        self.runs.start(None, Job(Kind("j", self.policy), JobRequest("1", "j", b"null", timeout_ms=timeout_ms), 0, 0))
        return list(self.runs.running)[-1]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_one_that_is_stopped_ends_also_before_its_first_turn(turns: int) -> None:
    began: list[None] = []

    async def handler(_given: object) -> None:
        began.append(None)
        await asyncio.sleep(3_600)

    async def main() -> None:
        async with Bench(handler) as bench:
            run = bench.start()
            for _ in range(turns):
                await asyncio.sleep(0)
            bench.runs.interrupt(run, "cancelled")
            for _ in range(5):
                await asyncio.sleep(0)
            assert bench.ended == [(run, Cancelled())]
            assert not bench.runs.running
            assert not bench.failed

    asyncio.run(main())
    assert len(began) == (turns > 0)


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_a_thread_that_goes_on_has_no_ending_before_it_returns(reason: str) -> None:
    """It may still have its effect: were its job ended before, its retry or the next one of its key would run beside it."""
    gate, returned = threading.Event(), threading.Event()

    def handler(_given: object) -> str:
        gate.wait(20)
        returned.set()
        return "late"

    async def main() -> None:
        async with Bench(handler) as bench:
            run = bench.start(30 if reason == "timeout" else 60_000)
            await bench.until(lambda: run.thread)
            if reason == "cancelled":
                bench.runs.interrupt(run, reason)
            await bench.until(lambda: run.ended_by == reason)
            for _ in range(5):
                await asyncio.sleep(0)
            assert list(bench.runs.running) == [run]
            assert bench.ended == []
            assert [found["job"] for found in bench.stalls.seen()] == (["1"] if reason == "timeout" else [])
            gate.set()
            await bench.until(lambda: bench.ended)
            ((_, ending),) = bench.ended
            if reason == "timeout":
                assert isinstance(ending, Failure)
                assert "longer than timeout=0.03s" in ending.message
            else:
                assert ending == Cancelled()
            assert not bench.stalls.current
            assert bench.stalls.count == (reason == "timeout")

    asyncio.run(main())
    assert returned.is_set()


@pytest.mark.parametrize("late", [False, True])
def test_a_thread_that_is_let_go_is_not_waited_for(late: bool) -> None:
    """The next owner waits for this one's last word. One that is past its deadline has used its attempt. Its thread goes on, and takes its
    place until it returns, which is told as stalled at its deadline."""
    gate = threading.Event()

    async def main() -> None:
        async with Bench(lambda _given: gate.wait(40)) as bench:
            run = bench.start(30 if late else 1_000)
            await bench.until(lambda: run.ended_by == "timeout" if late else run.thread)
            for _ in range(3):
                bench.runs.interrupt(run, "let go")
            await bench.until(lambda: bench.ended)
            ((_, ending),) = bench.ended
            assert isinstance(ending, Failure) if late else ending == Cancelled()
            assert list(bench.runs.left) == [run]
            await bench.until(lambda: bench.stalls.current)
            assert [found["job"] for found in bench.stalls.seen()] == ["1"]
            assert bench.freed == []
            gate.set()
            await bench.until(lambda: bench.freed)
            assert not bench.stalls.current
            assert not bench.runs.left
            other = bench.start()
            await bench.until(lambda: len(bench.ended) == 2)
            assert bench.ended[1] == (other, Completed(b"true"))

    try:
        asyncio.run(main())
    finally:
        gate.set()


def test_one_that_swallows_its_cancellation_is_told_as_stalled() -> None:
    async def handler(_given: object) -> None:
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    gate = threading.Event()

    async def main() -> None:
        async with Bench(handler) as bench:
            bench.start(30)
            await bench.until(lambda: bench.stalls.current)
            gate.set()
            await bench.until(lambda: bench.ended)
            assert not bench.stalls.current
            assert bench.stalls.count == 1

    asyncio.run(main())


def test_a_batch_that_is_stopped_takes_its_places_until_it_has_ended() -> None:
    """Its jobs have their endings at once; the next one began beside what its handler still cleaned up."""
    began, cleaning, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(_given: object) -> None:
        began.set()
        try:
            await asyncio.sleep(3_600)
        finally:
            cleaning.set()
            await cleaned.wait()

    async def main() -> None:
        async with Bench(handler, policy=JobPolicy(batch=BatchPolicy(2, 5))) as bench:
            one, other = bench.start(80), bench.start(80)
            await bench.until(began.is_set)
            bench.runs.interrupt(one, "cancelled")
            assert [run for run, _ in bench.ended] == [one]
            assert list(bench.runs.left) == [one]
            bench.runs.interrupt(other, "cancelled")
            await bench.until(cleaning.is_set)
            assert (len(bench.ended), list(bench.runs.left), bench.freed) == (2, [one, other], [])
            await bench.until(lambda: len(bench.stalls.current) == 2)
            assert other.task in bench.runs.tasks()
            cleaned.set()
            await bench.until(lambda: len(bench.freed) == 2)
            assert (list(bench.runs.left), bench.stalls.current, len(bench.ended)) == ([], (), 2)

    asyncio.run(main())


def test_what_is_abandoned_is_stalled_no_more() -> None:
    gate = threading.Event()

    async def main() -> None:
        async with Bench(lambda _given: gate.wait(20)) as bench:
            run = bench.start(30)
            await bench.until(lambda: run.thread)
            bench.runs.interrupt(run, "let go")
            await bench.until(lambda: bench.stalls.current)
            bench.runs.abandon()
            assert not bench.stalls.current

    try:
        asyncio.run(main())
    finally:
        gate.set()


@pytest.mark.parametrize("is_async", [True, False])
def test_one_whose_result_is_being_stored_can_be_stopped(is_async: bool, tmp_path: Path) -> None:
    """Its thread has returned: it was told as stalled there, and neither its deadline nor a cancel ended it."""
    gate = threading.Event()

    class Slow(FolderBlobs):
        def put(self, name: str, data: bytes) -> None:
            gate.wait(20)

    async def waits(_given: object) -> str:
        return "x" * 100_000

    def returns(_given: object) -> str:
        return "x" * 100_000

    async def main() -> None:
        blobs = Blobs(Slow(tmp_path), BlobPolicy(inline_bytes=10))
        async with Bench(waits if is_async else returns, blobs=blobs) as bench:
            bench.start(50)
            await bench.until(lambda: bench.ended or bench.stalls.current)
            assert not bench.stalls.current
            ending = bench.ended[0][1]
            assert isinstance(ending, Failure)
            assert ending.error_type == "TimeoutError"
            gate.set()

    try:
        asyncio.run(main())
    finally:
        gate.set()


def test_there_is_a_thread_for_each_place() -> None:
    """Its time would pass while it waits for one."""
    at_once = 80
    together = threading.Barrier(at_once)

    async def main() -> None:
        async with Bench(lambda _given: together.wait(20) >= 0, places=at_once) as bench:
            for _ in range(at_once):
                bench.start(15_000)
            await bench.until(lambda: len(bench.ended) == at_once)
            assert {ending for _, ending in bench.ended} == {Completed(b"true")}

    asyncio.run(main())


def test_time_begins_when_the_handler_does() -> None:
    """Not while a loop that is held up has not come to it: it would fail without having run."""

    async def handler(_given: object) -> int:
        await asyncio.sleep(0)
        return 7

    async def main() -> None:
        async with Bench(handler) as bench:
            bench.start(50)
            time.sleep(0.1)
            await bench.until(lambda: bench.ended)
            assert [ending for _, ending in bench.ended] == [Completed(b"7")]

    asyncio.run(main())


@pytest.mark.parametrize("timeout_ms", [50, 1_000])
def test_time_does_not_pass_while_one_waits_for_a_thread(timeout_ms: int) -> None:
    """One that was let go has it: the next one's time passed, and it was told as stalled, before its handler was called."""
    gate, called = threading.Event(), list[float]()

    def handler(_given: object) -> int:
        called.append(time.monotonic())
        gate.wait(20)
        if len(called) > 1 and timeout_ms < 100:
            later.wait(20)
        return len(called)

    later = threading.Event()

    async def main() -> None:
        async with Bench(handler, places=1) as bench:
            first = bench.start()
            await bench.until(lambda: first.thread)
            bench.runs.interrupt(first, "let go")
            await bench.until(lambda: bench.ended)
            second = bench.start(timeout_ms)
            waits_until = asyncio.get_running_loop().time() + timeout_ms / 1000 * 1.5
            await bench.until(lambda: asyncio.get_running_loop().time() > waits_until)
            assert (second.ended_by, len(called)) == ("", 1)
            assert not bench.stalls.current
            gate.set()
            if timeout_ms < 100:
                await bench.until(lambda: second.ended_by == "timeout")
                assert time.monotonic() - called[1] >= timeout_ms / 1000, "its whole time"
                later.set()
            await bench.until(lambda: len(bench.ended) == 2)
            ending = bench.ended[1][1]
            assert isinstance(ending, Failure) if timeout_ms < 100 else ending == Completed(b"2")

    try:
        asyncio.run(main())
    finally:
        gate.set()
        later.set()


@pytest.mark.parametrize("reason", ["cancelled", "let go"])
def test_one_that_is_stopped_while_it_waits_for_a_thread_does_not_begin(reason: str) -> None:
    gate, called = threading.Event(), list[None]()

    def handler(_given: object) -> None:
        called.append(None)
        gate.wait(20)

    async def main() -> None:
        async with Bench(handler, places=1) as bench:
            first = bench.start()
            await bench.until(lambda: first.thread)
            waits = bench.start()
            await bench.until(lambda: waits.thread == 0)
            bench.runs.interrupt(waits, reason)
            if reason == "let go":
                await bench.until(lambda: bench.ended)
            gate.set()
            await bench.until(lambda: len(bench.ended) == 2 and not bench.runs.left)
            assert dict(bench.ended)[waits] == Cancelled()
            third = bench.start()
            await bench.until(lambda: len(bench.ended) == 3)
            assert bench.ended[2] == (third, Completed(None))
            assert len(called) == 2, "the first one, and the third"

    try:
        asyncio.run(main())
    finally:
        gate.set()


@pytest.mark.parametrize("raises", [False, True])
def test_what_one_asks_for_after_it_was_let_go_goes_nowhere(raises: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It went out at once, under a new id: what its next execution asks for came beside it."""
    gate, found, threads = threading.Event(), list[Outbox | None](), list[threading.Thread]()

    def handler(_given: object) -> None:
        threads.append(threading.current_thread())
        found.append(current("memory://", "jobs.q"))
        gate.wait(20)
        found.append(current("memory://", "jobs.q"))
        if raises:
            raise RuntimeError("nobody hears of it")

    async def main() -> None:
        async with Bench(handler) as bench:
            run = bench.start()
            await bench.until(lambda: run.thread)
            bench.runs.interrupt(run, "let go")
            await bench.until(lambda: bench.ended)
            gate.set()
            await bench.until(lambda: bench.freed)
            assert found[0] is not None
            assert found[1] is found[0]
            assert [ending for _, ending in bench.ended] == [Cancelled()]

    try:
        asyncio.run(main())
    finally:
        gate.set()
    threads[0].join(10)
    found.clear()  # all that holds what came of it
    gc.collect()
    assert not caplog.records, "an error that nobody asks for is not told as forgotten"


def test_one_that_is_stopped_just_when_its_thread_has_failed_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    def handler(_given: object) -> None:
        gate.wait(20)
        raise RuntimeError("nobody hears of it")

    gate = threading.Event()

    async def main() -> None:
        async with Bench(handler) as bench:
            run = bench.start()
            await bench.until(lambda: run.thread)
            assert run.call is not None
            run.call.add_done_callback(lambda _: bench.runs.interrupt(run, "let go"))
            gate.set()
            await bench.until(lambda: bench.ended)
            assert [ending for _, ending in bench.ended] == [Cancelled()]

    try:
        asyncio.run(main())
    finally:
        gate.set()
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("closed", [False, True])
def test_a_thread_that_fails_after_its_worker_has_gone_is_quiet(closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    gate, began = threading.Event(), list[threading.Thread]()

    def handler(_given: object) -> None:
        began.append(threading.current_thread())
        gate.wait(20)
        raise RuntimeError("nobody hears of it")

    def let_them_return() -> None:
        gate.set()
        for thread in began:
            thread.join(10)
            assert not thread.is_alive()

    async def main() -> None:
        async with Bench(handler) as bench:
            runs = [bench.start(), bench.start()]
            await bench.until(lambda: len(began) == 2)
            bench.runs.interrupt(runs[0], "let go")
        if not closed:
            await asyncio.to_thread(let_them_return)

    asyncio.run(main())
    let_them_return()
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("raised", [StopIteration, GeneratorExit])
def test_a_next_too_many_in_a_thread_is_a_failure(raised: type[BaseException]) -> None:
    """No asyncio future takes a StopIteration, and no task goes on after a GeneratorExit: its job never ended."""

    def handler(_given: object) -> object:
        raise raised

    async def main() -> None:
        async with Bench(handler) as bench:
            bench.start()
            await bench.until(lambda: bench.ended)
            ending = bench.ended[0][1]
            assert isinstance(ending, Failure)
            assert raised.__name__ in ending.message

    asyncio.run(main())


HANGS = """
import asyncio, sys, threading
from pipeline import FlowPolicy, Pipeline, Settings
from pipeline.topology import Defaults, apply

app, began = Pipeline("hangs", settings=Settings(broker="memory://hangs")), threading.Event()

@app.job("hangs")
def hangs(_given):
    began.set()
    threading.Event().wait()

async def main():
    app.queue("default", flow=FlowPolicy(drain_timeout_ms=200))
    apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
    await app.start()
    await app.enqueue("hangs")
    while not began.is_set():
        await asyncio.sleep(0.01)
    await app.stop()

asyncio.run(main())
sys.exit(7)
"""


def test_one_in_a_thread_that_never_returns_does_not_keep_the_process_from_ending() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], timeout=15, check=False, capture_output=True)
    assert ended.returncode == 7, ended.stderr.decode()
