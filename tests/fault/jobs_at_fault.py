"""Jobs under faults: a caller that asks for them all the while, and the judgement of what their workers' ledger and the store say."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline import Pipeline
from pipeline.jobs.handle import JobHandle
from pipeline.model.errors import JobUnsuccessful, PublishError
from pipeline.model.job_states import TERMINAL, JobState
from pipeline.model.jobs import JobRecord
from tests.fault.trial import Trial
from tests.integration.harness import Process
from tests.integration.job_scene import JobScene, Told, make_app

SHARE = 8
"""Of a row's records so many are one job: each is several records of inbox and store."""
KEYS, PLACES = 200, 50
TOGETHER = 200
"""So many are asked for at once, of as many keys: three nodes on a small machine take a tenth of a second to acknowledge a round."""
ENDED_S = 120.0
EARLY_MS = 1.0


@dataclass
class Asked:
    """`follows`: it asks for another job. `unsure`: the brokers did not say that they have the request."""

    name: str
    key: str | None
    dedup: str | None
    fails: int
    due_ms: float = 0.0
    follows: bool = False
    handle: JobHandle | None = None
    unsure: bool = False
    ended: str = ""


class Jobs:
    """In the place of a trial's records: its scene, its load, its judgement."""

    def __init__(self, trial: Trial, concurrency: int = PLACES, **job: Any) -> None:
        """`job`: what the type of job declares besides."""
        self.trial = trial
        self.scene = JobScene(
            trial.ground.direct, trial.scene.prefix.rstrip("."), trial.scene.folder, trial.plan.partitions
        )
        trial.scene = self.scene
        self.concurrency = concurrency
        self._job = job
        self.asked: list[Asked] = []
        self._count = max(200, trial.plan.records // SHARE)
        self._trouble: list[str] = []
        self._thread = threading.Thread(target=self._run, name="asks", daemon=True)
        self.scene.make_topics(make_app(self.spec()))

    def spec(self, **more: Any) -> dict[str, Any]:
        spec = self.scene.job_spec(self._job, concurrency=self.concurrency)
        return {**spec, "app": "tests.fault.workload:app", "kind": "jobs", **more}

    def worker(self, **more: Any) -> Process:
        process = self.scene.start(self.spec(**more))
        self.trial.live.append(process)
        return process

    def begin(self, workers: list[Process]) -> None:
        self.trial.shared(workers)
        self.trial.say(f"{self._count:,} jobs in {self.trial.plan.load_s:.0f} s")
        self._thread.start()

    # -- load

    def _drawn(self, number: int) -> Asked:
        draw = self.trial.draw
        kind = draw.random()
        key = None if kind < 0.1 else f"k{number % KEYS}"
        dedup = f"d{number // 2}" if 0.1 <= kind < 0.14 else None
        fails = 9 if kind > 0.99 else 1 if kind > 0.95 else 0
        return Asked(f"{number}", None if dedup else key, dedup, fails, follows=number % 10 == 0)

    def _run(self) -> None:
        try:
            asyncio.run(self._ask())
        except Exception as error:
            self._trouble.append(f"the caller ended: {type(error).__name__}: {error}")

    async def _ask(self) -> None:
        app = make_app(self.spec())
        began = time.monotonic()
        for first in range(0, self._count, TOGETHER):
            drawn = [self._drawn(number) for number in range(first, min(self._count, first + TOGETHER))]
            self.asked += drawn
            await asyncio.gather(*(self._ask_one(app, each, first + at) for at, each in enumerate(drawn)))
            ahead_s = began + (first + TOGETHER) * self.trial.plan.load_s / self._count - time.monotonic()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
        await asyncio.gather(*(self._follow(each) for each in self.asked if each.handle is not None))
        await app.stop()

    async def _ask_one(self, app: Pipeline, each: Asked, number: int) -> None:
        task: dict[str, Any] = {"name": each.name, "sleep": 0.3 if number % 20 == 0 else 0.005, "fails": each.fails}
        if each.follows:
            task["asks"] = [{"name": f"after {each.name}"}]
        options: dict[str, Any] = {"key": each.key, "dedup_id": each.dedup}
        if each.key is None and each.dedup is None:
            options["delay"] = "1500ms"
            each.due_ms = time.time() * 1000 + 1_500
        try:
            each.handle = await app.enqueue("obey", task, **{k: v for k, v in options.items() if v is not None})
        except PublishError:
            each.unsure = True

    async def _follow(self, each: Asked) -> None:
        assert each.handle is not None
        try:
            await each.handle.result(ENDED_S + self.trial.plan.load_s)
            each.ended = "completed"
        except JobUnsuccessful:
            each.ended = "given up"
        except Exception as error:
            self._trouble.append(f"job {each.name}: {type(error).__name__}: {error}")

    # -- waiting

    def until_done(self, share: float) -> None:
        wanted = int(self._count * share)
        self.trial.wait(
            f"{wanted} jobs are done",
            lambda: len({told.id for told in self.scene.jobs.told("done")}) >= wanted,
            ENDED_S + self.trial.plan.load_s,
        )

    def caught(self) -> Process:
        """A drawn worker in which jobs run at this moment."""

        def found() -> Process | None:
            running: dict[int, int] = Counter()
            for told in self.scene.jobs.told():
                running[told.pid] += 1 if told.what == "start" else -1
            busy = [process for process in self.trial.live if running[process.pid] > 0]
            return self.trial.draw.choice(busy) if busy else None

        process: Process = self.trial.wait("jobs run in some worker", found, 30)
        return process

    # -- the end

    def finish(self) -> None:
        """Every job has its ending, the workers stop in order; then it is judged."""
        trial, result = self.trial, self.trial.result
        self._thread.join(2 * ENDED_S + 2 * trial.plan.load_s)
        if self._thread.is_alive():
            trial.problem("jobs have no ending")
        trial.wait("the inbox is settled", self.scene.inbox_settled, 60)
        with suppress(AssertionError):  # then it is lost, and counted below
            trial.wait("what jobs asked for is done", lambda: not self._missing(self.scene.jobs.told()), 60)
        for process in list(trial.live):
            code = process.stop(60)
            trial.live.remove(process)
            if code != 0:
                trial.problem(f"a worker ended with code {code}")
        for sentence in self._trouble[:5]:
            trial.problem(sentence)
        told = self.scene.jobs.told()
        result.records = len(self.asked)
        result.lost = sum(each.handle is not None and not each.ended for each in self.asked) + len(self._missing(told))
        result.duplicates = self._duplicates(told)
        result.bound = 0 if trial.plan.graceful else self._allowed()
        result.order_breaks = self._disorder(told)
        for many, what in (
            (result.lost, "jobs are lost"),
            (result.order_breaks, "jobs of a key began out of order"),
            (max(0, result.duplicates - result.bound), f"more executions twice than {result.bound}"),
            (self._early(told), "jobs ran early"),
            (self._endings(), "jobs have two endings"),
            (self._dedup(told), "dedup ids ran twice"),
        ):
            if many:
                trial.problem(f"{many} {what}")

    def _missing(self, told: list[Told]) -> set[str]:
        """What was to follow a job that is done, and is not."""
        done = {each.name for each in told if each.what == "done"}
        wanted = {each.name for each in self.asked if each.follows}
        return {f"after {name}" for name in done & wanted} - done

    def _allowed(self) -> int:
        lost = sum(len(process.said("partition lost")) for process in self.scene.processes)
        return (self.trial.deaths + lost) * 2 * self.concurrency

    @staticmethod
    def _duplicates(told: list[Told]) -> int:
        return sum(many - 1 for many in Counter(each.id for each in told if each.what == "done").values())

    def _disorder(self, told: list[Told]) -> int:
        """First executions of a key, in the order in which they were asked for."""
        numbers = defaultdict(list)
        for name, key in dict.fromkeys((each.name, each.key) for each in told if each.what == "start" and each.key):
            numbers[key].append(int(name))
        return sum(a > b for each in numbers.values() for a, b in pairwise(each))

    def _early(self, told: list[Told]) -> int:
        due = {each.name: each.due_ms for each in self.asked if each.due_ms}
        return sum(each.what == "start" and each.at_ms < due.get(each.name, 0.0) - EARLY_MS for each in told)

    def _records(self) -> Iterator[JobRecord]:
        """What the store says, along its log."""
        with closing(make_app(self.spec()).desk()) as desk:
            for message in self.scene.entries():
                if message.value() is not None:
                    entry = desk.unpack(message.key() or b"", message.value() or b"")
                    if isinstance(entry, JobRecord):
                        yield entry

    def newest(self) -> dict[str, JobState]:
        return {record.request.id: record.state for record in self._records()}

    def _endings(self) -> int:
        """How many jobs have two terminal states."""
        endings: dict[str, set[JobState]] = defaultdict(set)
        for record in self._records():
            if record.state in TERMINAL:
                endings[record.request.id].add(record.state)
        return sum(len(states) > 1 for states in endings.values())

    def _dedup(self, told: list[Told]) -> int:
        """Both requests of an id, when the brokers have both, are one job: one name of the two is in the ledger."""
        names = {each.name for each in told if each.what == "start"}
        by_id = defaultdict(list)
        for each in self.asked:
            if each.dedup and not each.unsure:
                by_id[each.dedup].append(each.name in names)
        return sum(sum(ran) > 1 for ran in by_id.values())


@contextmanager
def jobs_of(trial: Trial, workers: int = 2) -> Iterator[Jobs]:
    jobs = Jobs(trial)
    jobs.begin([jobs.worker() for _ in range(workers)])
    yield jobs
    jobs.finish()
