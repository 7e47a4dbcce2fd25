"""Jobs under test on real Kafka: one application whose job does what its input says and writes it to a ledger, and the scene around it.

As a module (`tests.integration.job_scene:app`) it is what worker processes run, made from HARNESS_SPEC.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import FlowPolicy, Pipeline, Settings
from pipeline.core.progress import Progress
from pipeline.core.store_scan import StoreScan
from pipeline.jobs.handle import JobHandle
from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.cron import Misfire
from pipeline.model.errors import JobMissing
from pipeline.model.job_policies import Fixed, RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRequest, PutSchedule, Schedule
from pipeline.worker.jobs.context import JobContext
from tests.integration.harness import Process, Scene, until_async
from tests.patience import PATIENCE

APP_NAME = "tests.integration.job_scene:app"
INBOX, STATE, DEAD = "jobs.default", "jobs.default.{0}default.state", "jobs.default.{0}default.dlq"


class Told(NamedTuple):
    """One line of the ledger: an execution's `start`, or how it ended (`done`, `fail`)."""

    at_ms: float
    pid: int
    what: str
    name: str
    key: str
    id: str
    attempt: int
    stalls: int


class JobLedger:
    """Appended to by every process of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        self._reader = path.open("rb")
        self._told: list[Told] = []
        self._rest = b""

    def tell(self, what: str, name: str, job: JobContext) -> None:
        line = [time.time() * 1000, os.getpid(), what, name, job.key or "", job.id, job.attempt, job.stalls]
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def told(self, *kinds: str) -> list[Told]:
        *lines, self._rest = (self._rest + self._reader.read()).split(b"\n")
        self._told += [Told(*json.loads(line)) for line in lines]
        return [each for each in self._told if not kinds or each.what in kinds]

    def names(self, *kinds: str) -> list[str]:
        return [each.name for each in self.told(*kinds)]

    def __str__(self) -> str:
        return "jobs: " + "; ".join(
            f"{t.at_ms:.0f} {t.pid} {t.what} {t.name} #{t.attempt}/{t.stalls}" for t in self.told()[-20:]
        )


async def _obey(task: dict[str, Any], job: JobContext, ledger: JobLedger) -> dict[str, Any]:
    """`gate`: a file to wait for; `sleep`: seconds; `fails`: so many attempts fail; `mended`: so do all until that file is there;
    `asks`: inputs of jobs that follow."""
    name = str(task.get("name", job.id))
    ledger.tell("start", name, job)
    while "gate" in task and not os.path.exists(task["gate"]):
        await asyncio.sleep(0.02)
    if "sleep" in task:
        await asyncio.sleep(task["sleep"])
    for following in task.get("asks", ()):
        await job.enqueue("obey", following)
    if job.attempt <= task.get("fails", 0) or ("mended" in task and not os.path.exists(task["mended"])):
        ledger.tell("fail", name, job)
        raise RuntimeError("the input says so")
    ledger.tell("done", name, job)
    return {"name": name, "attempt": job.attempt}


def make_app(spec: dict[str, Any]) -> Pipeline:
    app = Pipeline("t", settings=Settings(**spec["settings"]))
    ledger = JobLedger(Path(spec["ledger"]))
    # Many are given up on purpose here: the guard against a flood of dead letters has tests of its own.
    app.queue("default", concurrency=spec.get("concurrency", 50), flow=FlowPolicy(dead_letter_flood=0))
    options = {"attempts": 4, "jitter": 0, "backoff": Fixed("300ms"), "timeout": "60s", **spec.get("job", {})}
    if "retention" in options:
        options["retention"] = RetentionPolicy(**options["retention"])

    @app.job("obey", **options)
    async def obey(task: dict[str, Any], job: JobContext) -> dict[str, Any]:
        return await _obey(task, job, ledger)

    return app


class JobScene(Scene):
    """A scene with a queue of jobs beside (or in the place of) its subscription."""

    def __init__(self, bootstrap: str, name: str, folder: Path, partitions: int = 2) -> None:
        super().__init__(bootstrap, name, folder, partitions)
        self.jobs = JobLedger(folder / "jobs")
        self.inbox = self.prefix + INBOX
        self.state = self.prefix + STATE.format(self.prefix)
        self.dead_jobs = self.prefix + DEAD.format(self.prefix)

    def job_spec(self, job: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        spec = {"app": APP_NAME, "job": job or {}, **self.spec(), **more}
        return {**spec, "ledger": str(self.jobs.path)}

    def describe(self) -> str:
        return f"{self.jobs}\n{super().describe()}"

    def entries(self) -> list[Message]:
        return self.read(self.state)

    def entries_of(self, job_id: str) -> int:
        return sum(each.key() == f"j/{job_id}".encode() for each in self.entries())

    def inbox_settled(self) -> bool:
        positions = self.admin.group_positions(f"{self.prefix}default")
        ends = self.admin.end_offsets([TopicPartition(self.inbox, number) for number in range(self.partitions)])
        return all(tp in positions and positions[tp].offset == end for tp, end in ends.items() if end)

    @contextlib.asynccontextmanager
    async def caller(self, spec: dict[str, Any]) -> AsyncIterator[Pipeline]:
        """The same application as one that asks for jobs and runs none, as a service does."""
        app = make_app(spec)
        await asyncio.to_thread(self.make_topics, app)
        try:
            yield app
        finally:
            await app.stop()

    async def owned(self, *processes: Process, each: int | None = None) -> None:
        """Until these own all partitions between them (`each`: so many each)."""

        def shared() -> bool:
            counts = [len(process.partitions()) for process in processes]
            return sum(counts) == self.partitions and (each is None or set(counts) == {each})

        await self.soon("the partitions are shared out", shared, 40)

    async def owned_by(self, process: Process) -> None:
        """Until it has all partitions, whatever a silent one would say."""
        await self.soon("it has all partitions", lambda: len(process.partitions()) == self.partitions, 40)

    def strangers(self) -> list[bytes]:
        """Keys of the store whose last record one that was taken for dead has written."""
        found: list[bytes] = []
        for number in range(self.partitions):
            scan = StoreScan(self.state, Progress(0, 0), 0, 1 << 60)
            for each in self.entries():
                if each.partition() == number:
                    scan.observe(each.offset(), each.key(), each.value(), each.headers())
            found += scan.strangers
        return found

    async def becomes(self, handle: JobHandle, state: JobState, stalls: int = 0) -> None:
        """Until the store says so."""
        async with asyncio.timeout(30 * PATIENCE):
            while True:
                with contextlib.suppress(JobMissing):
                    status = await handle.status()
                    if (status.state, status.stalls) == (state, stalls):
                        return
                await asyncio.sleep(0.1)

    async def soon(self, what: str, condition: Callable[[], Any], deadline_s: float = 30.0) -> None:
        """`until` for a story; a failure tells what is known."""
        try:
            await until_async(what, condition, deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None


async def put_schedule(app: Pipeline, name: str, cron: str, task: dict[str, Any]) -> None:
    """As the command does: a record of the inbox, on the partition of the schedule's name."""
    request = JobRequest("", "obey", json.dumps(task).encode())
    schedule = Schedule(name, cron, request, "UTC", Misfire.ALL)
    await app.jobs._command("obey", PutSchedule(schedule), name)


def __getattr__(name: str) -> Any:
    if name == "app":
        return make_app(json.loads(os.environ["HARNESS_SPEC"]))
    raise AttributeError(name)
