"""The workers of a simulated history of jobs, those who ask for jobs, and what is done to them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from pipeline import Exponential, Fixed, Pipeline, QueuePolicy, Reject, RetentionPolicy, Retry, Warn
from pipeline.app import _memory_logs
from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.jobs.asking import Asker
from pipeline.jobs.handle import JobHandle
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop
from pipeline.model.cron import Misfire
from pipeline.model.errors import JobMissing, JobUnsuccessful, PublishError
from pipeline.model.headers import DeliveryHeaders
from pipeline.model.headers import encode as encode_headers
from pipeline.model.jobs import (
    CancelJob,
    DropSchedule,
    JobCommand,
    JobRequest,
    PauseSchedule,
    PutSchedule,
    RetryJob,
    RunJobNow,
    RunScheduleNow,
    Schedule,
)
from pipeline.model.policies import FlowPolicy
from pipeline.worker.jobs.context import JobContext
from tests.simulation.facts import Facts, JobAsked, JobBegan, JobEnded, Landed
from tests.simulation.fleet import SETTINGS, TRANSACTION_MS, Fleet
from tests.simulation.jobs.scenario import (
    AGEING_MS,
    CRON,
    DEAD,
    INBOX,
    KINDS,
    LANES,
    MISFIRE_MS,
    QUEUE,
    REPLAY,
    STORE,
    TIMEOUT_MS,
    Asked,
    JobScenario,
    Kind,
)
from tests.simulation.scenario import Event

STUBBORN_S = 0.4
LOOK_S, OPENING_WITHIN_S = 0.002, 3.0


@cache
def codec() -> AvroCodec:
    """One for all: it knows schemas, and nothing of any history."""
    return AvroCodec(LocalRegistry(MemorySchemaLog(), product_catalogue()))


class JobFleet(Fleet):
    """`told`: what callers were told, as tasks that end when their job has ended."""

    source, group, dead = INBOX, QUEUE, DEAD

    def __init__(self, scenario: JobScenario, cluster: MemoryCluster, loop: VirtualClockLoop, facts: Facts) -> None:
        super().__init__(scenario, cluster, loop, facts)
        self.asked = {each.number: each for each in scenario.asked}
        self.ids: dict[int, str] = {}
        self.handles: dict[int, JobHandle] = {}
        self.waiting: list[asyncio.Task[None]] = []
        self.again: set[str] = set()
        self._random = random.Random(f"{scenario.seed}/ids")
        self._due = scenario.due
        self.caller = self.app("callers", ())
        self._looked = 0

    # -- what is asked

    def open(self) -> None:
        """The caller's client, with ids that a seed gives."""
        client = self.caller.jobs
        for name in KINDS:
            found = client._found(name)
            queue = client._queue(found[1])
            queue.askers[name] = Asker(found[0], found[1].inbox, random=self._random.randbytes)
        client._prepare(queue)

    async def ask(self, asked: Asked) -> None:
        try:
            if asked.kind.startswith("!"):
                command, key = self._command(asked)
                if command is not None:
                    await self.caller.jobs._command("steady", command, key)
                    self._asked(asked.number, "", "accepted")
            else:
                await self._enqueue(asked)
        except PublishError:
            self._asked(asked.number, "", "refused")

    async def _enqueue(self, asked: Asked) -> None:
        options: dict[str, Any] = {"key": asked.key, "tenant": asked.tenant, "priority": asked.priority}
        if asked.delay_ms:
            options |= (
                {"run_at": self.cluster.clock() + asked.delay_ms} if asked.exact else {"delay": asked.delay_ms / 1000}
            )
        if asked.expires_ms:
            options["expires"] = asked.expires_ms / 1000
        if asked.attempts:
            options["attempts"] = asked.attempts
        if asked.dedup_id is not None:
            options |= {"dedup_id": asked.dedup_id, "dedup_window": asked.window_ms / 1000}
        handle = await self.caller.enqueue(asked.kind, asked.number, **options)
        self.handles[asked.number] = handle
        self._asked(asked.number, handle.id, "accepted")
        if asked.waited:
            self.waiting.append(asyncio.create_task(self._wait(asked.number, handle)))

    async def _wait(self, number: int, handle: JobHandle) -> None:
        try:
            told = f"completed {await handle.result()}"
        except JobUnsuccessful as error:
            told = error.state
        except JobMissing:
            told = "missing"
        self._asked(number, handle.id, told)

    def _asked(self, number: int, job_id: str, told: str) -> None:
        self.facts.append(JobAsked(self.cluster.clock(), number, job_id, told))

    def _id_of(self, number: int) -> tuple[str, str] | None:
        """Id and key of the record of a request that is in the inbox: what somebody finds who lists jobs."""
        for fact in self.facts[self._looked :]:
            if isinstance(fact, Landed) and fact.place[0] == INBOX:
                name, fields = codec().decode_dict(INBOX, fact.value)
                if name.endswith("JobRequest"):
                    self.ids.setdefault(int(fields["payload"]), fields["id"])
        self._looked = len(self.facts)
        asked = self.asked.get(number)
        if asked is None or number not in self.ids:
            return None
        return self.ids[number], asked.key or asked.dedup_id or self.ids[number]

    def _command(self, asked: Asked) -> tuple[JobCommand | None, str]:
        if asked.name:
            return self._of_schedule(asked), asked.key or asked.name
        found = self._id_of(asked.about)
        if found is None:
            return None, ""
        job_id, key = found
        if asked.kind == "!cancel":
            return CancelJob(job_id), key
        if asked.kind == "!retry":
            self.again.add(job_id)
            return RetryJob(job_id), key
        return RunJobNow(job_id), key

    def _of_schedule(self, asked: Asked) -> JobCommand:
        if asked.kind == "!put":
            request = JobRequest("", "steady", b"%d" % asked.number, key=asked.key)
            return PutSchedule(Schedule(asked.name, CRON, request, misfire=Misfire(asked.misfire)))
        if asked.kind == "!drop":
            return DropSchedule(asked.name)
        if asked.kind == "!run":
            return RunScheduleNow(asked.name, self.cluster.clock())
        return PauseSchedule(asked.name, asked.kind == "!pause")

    # -- handlers

    def app(self, name: str, tiers: tuple[str, ...], broker: str = "") -> Pipeline:
        scenario = self.scenario
        address = broker or self.cluster.address
        _memory_logs.setdefault(address, MemorySchemaLog())
        app = Pipeline(name, settings=SETTINGS.model_copy(update={"broker": address}))
        app.__dict__["codec"] = codec()
        for kind, declared in KINDS.items():
            if declared.declared or name == "callers":
                app.job(kind, **_arguments(declared))(
                    self._plain(name) if declared.plain else self._coroutine(name, kind)
                )
        app.queue(
            QUEUE,
            concurrency=scenario.concurrency,
            policy=QueuePolicy(LANES, AGEING_MS, misfire_ms=MISFIRE_MS, ticks=5, due=self._due),
            flow=FlowPolicy(
                buffered=scenario.limits.buffered,
                commit_interval_ms=scenario.commit_ms,
                drain_timeout_ms=1_000,
                transaction_timeout_ms=TRANSACTION_MS,
            ),
        )
        return app

    def _coroutine(self, worker: str, kind: str) -> Callable[..., Any]:
        async def handle(given: int, job: JobContext) -> Any:
            number, asked = self._begin_job(worker, job), self.asked[given]
            step = self._step(asked, job)
            try:
                await asyncio.sleep(10 if step in ("hang", "stubborn") else asked.takes_ms / 1000)
            except asyncio.CancelledError:
                if step == "stubborn":
                    await asyncio.sleep(STUBBORN_S)
                self._job_ended(number, "cancelled", KINDS[kind], job.attempt)
                raise
            return self._end_job(number, step, KINDS[kind], job.attempt)

        return handle

    def _plain(self, worker: str) -> Callable[..., Any]:
        def handle(given: int, job: JobContext) -> Any:
            number, step = self._begin_job(worker, job), self._step(self.asked[given], job)
            return self._end_job(number, "ok" if step in ("hang", "stubborn") else step, KINDS["plain"], job.attempt)

        return handle

    def _step(self, asked: Asked, job: JobContext) -> str:
        """What was given another round is sound by then."""
        return "ok" if job.id in self.again else asked.step(job.attempt)

    def _begin_job(self, worker: str, job: JobContext) -> int:
        self._executions += 1
        run = self._run_of(worker, job.id)
        unit = run.host.unit
        self.facts.append(
            JobBegan(
                self.cluster.clock(),
                self._executions,
                worker,
                unit.partition,
                unit.epoch,
                job.id,
                job.attempt,
                job.stalls,
            )
        )
        return self._executions

    def _run_of(self, worker: str, job_id: str) -> Any:
        task = asyncio.current_task()
        for engine in self.alive[worker].engines:
            for run in engine.executor._runs.running:
                if run.task is task:
                    return run
        raise LookupError(f"{worker} does not know that it runs {job_id}")

    def _end_job(self, number: int, step: str, kind: Kind, attempt: int) -> Any:
        if step in ("ok", "warn"):
            self._job_ended(number, "ok" if step == "ok" else "warned", kind, attempt)
            return number if step == "ok" else Warn("mind this")
        if step == "reject":
            self._job_ended(number, "rejected", kind, attempt)
            raise Reject
        if step.startswith("retry:"):
            wait_ms = int(step[6:])
            self.facts.append(JobEnded(self.cluster.clock(), number, "failed", wait_ms))
            raise Retry(after=wait_ms / 1000)
        self._job_ended(number, "failed", kind, attempt)
        raise ValueError(step)

    def _job_ended(self, number: int, outcome: str, kind: Kind, attempt: int) -> None:
        waits = kind.waits_ms or (0,)
        self.facts.append(JobEnded(self.cluster.clock(), number, outcome, waits[min(attempt, len(waits)) - 1]))

    # -- what happens to them

    async def _on_restoring(self, event: Event) -> None:
        """Somebody dies in the middle of taking a partition over."""
        until = self.loop.time() + OPENING_WITHIN_S
        while self.loop.time() < until:
            for name, member in self.alive.items():
                if name not in self.frozen and any(engine._ownership._openings for engine in member.engines):
                    self.stats["killed while it restored"] += 1
                    self.kill(name, None if event.value < 0 else event.value)
                    return
            await asyncio.sleep(LOOK_S)

    async def _on_shut(self, event: Event) -> None:
        """Writing to the store is refused for a while."""
        self.facts.happened("shut", STORE)
        self.cluster.faults.denied_topics.add(STORE)
        self.loop.call_later(event.value / 1000, lambda: self.cluster.faults.denied_topics.discard(STORE))

    async def _on_redrive(self, event: Event) -> None:
        letters = [fact for fact in self.facts.visible() if fact.place[0] == DEAD]
        if not letters:
            return
        letter = letters[event.pick % len(letters)]
        job_id = codec().decode_dict(INBOX, letter.value)[1]["id"]
        self._replays += 1
        self.again.add(job_id)
        partition = letter.place[1]
        headers = DeliveryHeaders(0, 0, 0, INBOX, partition, 0, 1, QUEUE, replay_id=f"r{self._replays}", replay_count=1)
        self.facts.happened("redrive", job_id)
        self.cluster.producer("replayer").send(REPLAY, letter.key, letter.value, encode_headers([], headers), partition)


def _arguments(kind: Kind) -> dict[str, Any]:
    waits = kind.waits_ms
    doubling = len(set(waits)) > 1
    return {
        "queue": QUEUE,
        "attempts": kind.attempts,
        "backoff": Exponential(waits[0] / 1000, factor=waits[1] / waits[0])
        if doubling
        else Fixed(sum(waits[:1]) / 1000),
        "jitter": kind.jitter,
        "timeout": TIMEOUT_MS / 1000,
        "concurrency": kind.concurrency,
        "max_stalled_count": kind.stalls,
        "dead_letter": kind.dead_letter,
        "release_on_failure": kind.release,
        "retention": RetentionPolicy(kind.kept, kind.kept),
    }
