"""B10: resources of a job type, stated and held in child processes; a job that takes its process with it is a stall, and bounded."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pipeline import Batch, JobContext, Pipeline, Resources, Settings
from pipeline.core.jobs.job import Job, Kind
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_resources import JobResources
from pipeline.model.jobs import Completed, JobEnding, JobOutcome, JobProgress, JobRequest, Stalled
from pipeline.model.outcome import Cancelled, Failure, FailureKind
from pipeline.model.permissions import Permissions
from pipeline.worker.child_frames import FrameBuffer
from pipeline.worker.jobs import child_work
from pipeline.worker.jobs.blobs import PayloadBlobs
from pipeline.worker.jobs.context import Home
from pipeline.worker.jobs.processes import JobProcesses, head_of, places, with_places
from pipeline.worker.jobs.running import JobRuns, Shell
from pipeline.worker.jobs.runs import Run
from pipeline.worker.jobs.values import Values
from pipeline.worker.stalls import Stalls
from tests.unit.jobs.process_app import app
from tests.unit.jobs.worlds import application

TARGET = "tests.unit.jobs.process_app:app"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Bench:
    """Runs jobs of the application's types in processes, in real time and without a cluster."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.types = with_places(app.job_types)
        self.endings: dict[str, asyncio.Future[JobEnding]] = {}
        self.told: list[JobProgress] = []
        self.failed: list[BaseException] = []
        log = structlog.get_logger()
        shell = Shell(
            loop,
            self._ended,
            self._told,
            lambda: time.time_ns() // 1_000_000,
            log,
            Home("memory://processes", "", app.enqueue),
            self.failed.append,
            Stalls(log),
            10,
        )
        values = Values(self.types, Permissions(), PayloadBlobs("jobs.q", None))
        self.processes = {
            name: JobProcesses(declared, TARGET, "default", loop, log) for name, declared in self.types.items()
        }
        self.runs = JobRuns(self.types, shell, values, self.processes)

    def _ended(self, run: Run, ending: JobEnding) -> None:
        self.endings[run.job.id].set_result(ending)

    def _told(self, _run: Run, progress: JobProgress, _write: bool) -> None:
        self.told.append(progress)

    def start(
        self, name: str, payload: bytes = b"null", progress: JobProgress | None = None
    ) -> asyncio.Future[JobEnding]:
        request = JobRequest(f"{name}-{len(self.endings)}", name, payload)
        job = Job(Kind(name, self.types[name].policy), request, 0, 0)
        job.attempt = job.version = 1
        job.outcome = JobOutcome(progress=progress)
        ending = self.endings[request.id] = asyncio.get_running_loop().create_future()
        self.runs.start(SimpleNamespace(unit=None), job)
        return ending

    async def run(self, name: str, payload: bytes = b"null", progress: JobProgress | None = None) -> Any:
        return await asyncio.wait_for(self.start(name, payload, progress), 60)


def play(story: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            await story(bench)
        finally:
            bench.runs.abandon()

    asyncio.run(main())


def test_b10_a_job_runs_in_a_process_of_its_own_and_its_failure_comes_back() -> None:
    async def story(bench: Bench) -> None:
        ended = await bench.run("pid", b"7")
        assert isinstance(ended, Completed)
        assert ended.result is not None
        assert f'"pid":{os.getpid()}' not in ended.result.decode()
        assert '"number":7,"attempt":1' in ended.result.decode()
        failed = await bench.run("pid", b'"x"')
        assert isinstance(failed, Failure)
        assert failed.error_class == "BadInput"
        failed = await bench.run("misfit")
        assert isinstance(failed, Failure)
        assert (failed.kind, failed.error_class) == (FailureKind.TERMINAL, "BadResult")
        failed = await bench.run("fails")
        assert (failed.kind, failed.error_class) == (FailureKind.TERMINAL, "Reject")
        assert failed.message == "password=[secret] is wrong"
        assert "about to" in failed.log

    play(story)


def test_b10_a_process_is_killed_at_its_jobs_deadline_and_by_a_cancel() -> None:
    async def story(bench: Bench) -> None:
        for name in ("slow", "slow_async"):
            ended = await bench.run(name)
            assert isinstance(ended, Failure)
            assert ended.kind is FailureKind.TIMED_OUT
        waiting = bench.start("slow")
        await asyncio.sleep(0)
        (run,) = bench.runs.running
        bench.runs.interrupt(run, "cancelled")
        assert await asyncio.wait_for(waiting, 10) == Cancelled()

    play(story)


def test_b10_a_process_that_ends_with_its_job_is_a_stall() -> None:
    async def story(bench: Bench) -> None:
        assert await bench.run("dies") == Stalled("killed by SIGKILL")

    play(story)


@pytest.mark.parametrize(
    ("how", "warning"),
    [
        ("an error", "partly done"),
        ("bytes", "b'partly'"),
        ("no text", "Textless, which can't be turned into text"),
        ("nothing", None),
    ],
)
def test_b10_a_warning_that_is_no_text_is_a_warning_all_the_same(how: str, warning: str | None) -> None:
    """No frame takes it: the process ended, for stalls and a dead letter."""
    here, there = socket.socketpair()
    with here, there:
        work = child_work.JobWork(app, "warns", there)
        job = Job(Kind("warns", app.job_types["warns"].policy), JobRequest("a", "warns"), 0, 0)
        frame = work.run(head_of(job, 1_000), [f'"{how}"'.encode()])
    ((head, blobs),) = FrameBuffer().feed(frame)
    assert (head["kind"], head["warning"], blobs) == ("done", warning, [None])


def test_b10_what_a_validator_raises_is_its_jobs_failure() -> None:
    """Pydantic takes only some exceptions for a misfit. Others ended the process."""

    async def story(bench: Bench) -> None:
        assert await bench.run("weighs", b'{"unit": "kg"}') == Completed(b'"kilogram"')
        failed = await bench.run("weighs", b'{"unit": "lb"}')
        assert isinstance(failed, Failure)
        assert (failed.kind, failed.error_class) == (FailureKind.TERMINAL, "KeyError")
        assert failed.message == "the input of weighs can't be checked: a validator raised KeyError: 'lb'"
        assert "in known" in failed.stack
        failed = await bench.run("weighs", b'{"unit": "exit"}')
        assert isinstance(failed, Failure)
        assert (failed.kind, failed.error_class) == (FailureKind.RETRYABLE, "SystemExit")

    play(story)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux bounds the address space and the processors of a process"
)
def test_b10_memory_and_processors_are_held_by_the_operating_system() -> None:
    async def story(bench: Bench) -> None:
        ended = await bench.run("hungry", b"1000000")
        assert ended == Completed(b"1000000")
        ended = await bench.run("hungry", b"3000000000")
        assert isinstance(ended, Failure)
        assert ended.error_type == "MemoryError"
        assert await bench.run("narrow") == Completed(b"1")

    play(story)


def test_b10_what_a_process_says_of_its_job_is_heard_and_it_sees_what_was_said_before() -> None:
    async def story(bench: Bench) -> None:
        ended = await bench.run("tells", b"20000", JobProgress(5, 20_000))
        assert ended == Completed(b"5")
        last = bench.told[-1]
        assert (last.processed, last.total) == (20_000, 20_000)
        assert "counted until=20000" in last.log
        assert len(bench.told) < 20

    play(story)


def test_b10_what_a_thread_of_a_job_says_after_its_end_is_not_taken_for_the_next_one_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_work, "TELL_EVERY_S", 0.0)
    late, contexts = Pipeline("late", settings=Settings(broker="memory://late")), list[JobContext]()

    @late.job("leaves", executor="process")
    def leaves(_given: None, job: JobContext) -> None:
        contexts.append(job)
        job.progress(1, 2)

    here, there = socket.socketpair()
    with here, there:
        work = child_work.JobWork(late, "leaves", there)
        request = JobRequest("a", "leaves")
        head = head_of(Job(Kind("leaves", late.job_types["leaves"].policy), request, 0, 0), 1_000)
        there.sendall(work.run(head, [b"null"]))
        frames = FrameBuffer()
        assert [head["kind"] for head, _ in frames.feed(here.recv(1 << 16))] == ["told", "done"]
        contexts[0].progress(2, 2)
        contexts[0].log("and one more thing")
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            here.recv(1)


@pytest.mark.parametrize(
    ("resources", "most", "processors", "at_once"),
    [
        (JobResources(), 8, 2, 8),
        (JobResources(cpu=0.5), 8, 2, 4),
        (JobResources(cpu=2), 8, 2, 1),
        (JobResources(cpu=3), 8, 2, 1),
        (JobResources(cpu=0.1), 8, 2, 8),
    ],
)
def test_b10_no_more_run_at_once_than_their_share_of_the_processors_is_there_for(
    resources: JobResources, most: int, processors: int, at_once: int
) -> None:
    assert resources.at_once(most, processors) == at_once


def test_b10_resources_are_shown_with_the_type() -> None:
    assert app.job_types["hungry"].policy.resources == JobResources(2**30)
    limited = with_places(app.job_types)["narrow"]
    assert limited.policy.concurrency == places(app.job_types["narrow"]) >= 1


@pytest.mark.parametrize(
    ("memory", "found"),
    [("512MB", 512_000_000), ("64MiB", 2**26), ("1.5GiB", 3 * 2**29), (2**30, 2**30), ("2G", 2 * 10**9)],
)
def test_b10_sizes_as_people_write_them(memory: str | int, found: int) -> None:
    assert Resources(memory=memory).memory_bytes == found


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"memory": "lots"}, "memory='lots'"),
        ({"memory": "1MB"}, "at least 64MiB"),
        ({"memory": True}, "memory=True"),
        ({"cpu": 0}, "cpu=0"),
        ({"cpu": "half"}, "cpu='half'"),
    ],
)
def test_b10_resources_that_mean_nothing_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Resources(**arguments)


def test_b10_a_batch_does_not_run_in_processes() -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        application().job("one", executor="process", batch=Batch())
    with pytest.raises(ConfigurationError, match=r'executor=.* must be "auto" or "process"'):
        application().job("one", executor="thread")


def test_b10_children_that_end_before_they_are_ready_are_not_waited_for_for_ever() -> None:
    async def story(bench: Bench) -> None:
        declared = replace(bench.types["pid"], policy=replace(bench.types["pid"].policy, concurrency=1, timeout_ms=200))
        target = "tests.unit.jobs.process_app_that_dies:app"
        processes = JobProcesses(declared, target, "default", asyncio.get_running_loop(), structlog.get_logger())
        job = Job(Kind("pid", declared.policy), JobRequest("a", "pid", b"1"), 0, 0)
        run = Run(SimpleNamespace(unit=None), job, 200)
        ended = await asyncio.wait_for(processes.call(run, b"1", lambda _progress: None), 90)
        processes.abandon()
        assert isinstance(ended, Failure)
        assert (ended.kind, ended.error_class) == (FailureKind.RETRYABLE, "ProcessUnloadable")
        assert "they end before that" in ended.message

    play(story)
