"""One board over its whole life, with owners that die: what is asked of it at random, what of its entries is durable, and the facts.

The store keeps entries in the order in which the board wants them written; a crash keeps all that were acknowledged and some of those
under way, always a beginning of them. The next owner restores from there, and reads the inbox again from the committed offset.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from pipeline.core.jobs import commands, delivering
from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import DeliveryWritten, Effect, Entry, Letter, Settle
from pipeline.core.jobs.job import Job
from pipeline.core.jobs.repairing import write_again
from pipeline.core.jobs.restoring import Restoring
from pipeline.core.jobs.sweeping import Sweep
from pipeline.model.cron import Misfire
from pipeline.model.job_ids import job_id
from pipeline.model.job_policies import JobPolicy, QueuePolicy, RetentionPolicy
from pipeline.model.job_states import TERMINAL, JobState
from pipeline.model.jobs import (
    CancelJob,
    Completed,
    DropSchedule,
    JobCommand,
    JobEnding,
    JobEntry,
    JobRecord,
    JobRequest,
    PauseSchedule,
    PutSchedule,
    RetryJob,
    RunJobNow,
    RunScheduleNow,
    Schedule,
)
from pipeline.model.outcome import Cancelled, Failure, FailureKind
from pipeline.model.policies import Backoff

START_MS = 1_767_225_600_000
EVERYTHING = RetentionPolicy(10**6, 10**6, 10**12)
KEPT = {"plain": EVERYTHING, "narrow": RetentionPolicy(3, 3, 10**12), "released": EVERYTHING, "ticked": EVERYTHING}
TYPES = {
    "plain": JobPolicy(attempts=3, backoff=Backoff(1_000), retention=KEPT["plain"]),
    "narrow": JobPolicy(attempts=2, backoff=Backoff(50), concurrency=2, dead_letter=False, retention=KEPT["narrow"]),
    "released": JobPolicy(attempts=1, release_on_failure=True, max_stalled_count=1, retention=KEPT["released"]),
    "ticked": JobPolicy(attempts=1, max_stalled_count=10**6, retention=KEPT["ticked"]),
}
EVERY_MS = 60_000


class Often(Sweep):
    __slots__ = ()
    every, times, at_once = 25, 1, 3


class Pickled:
    """A stand-in for the codec of entries."""

    def pack(self, entry: JobEntry) -> bytes:
        return pickle.dumps(entry)

    def unpack(self, key: bytes, packed: bytes) -> JobEntry:
        entry: JobEntry = pickle.loads(packed)
        return entry


@dataclass(frozen=True, slots=True)
class Fact:
    """`what`: admitted, began, wrote (`how`: the state), ended (`how`), lost, applied, crashed (`how`: so many entries are durable).

    `version`: of the job afterwards.
    """

    what: str
    job_id: str = ""
    now_ms: int = 0
    life: int = 0
    version: int = 0
    how: object = None


@dataclass(slots=True)
class Told:
    """All that a checker may know."""

    inbox: list[tuple[int, JobRequest | JobCommand]] = field(default_factory=list)
    log: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    letters: list[JobRecord] = field(default_factory=list)
    floors: list[int] = field(default_factory=list)
    put_ms: dict[str, int] = field(default_factory=dict)
    now_ms: int = START_MS
    problems: list[str] = field(default_factory=list)


class World:
    def __init__(self, seed: int, steps: int = 150) -> None:
        self.random = Random(seed)
        self.told = Told()
        self.steps = steps
        self.life = 0
        self.committed = self.floor = 0
        self.crashes = self.random.choice((0.0, 0.02, 0.06))
        self._restore()

    # -- owners

    def _restore(self) -> None:
        self.life += 1
        told = self.told
        self.board = board = Board(QueuePolicy(ageing_ms=5_000, misfire_ms=10_000, ticks=50, due=2), TYPES, Pickled())
        board.committed = self.committed
        board.careful = self.random.random() < 0.3
        self.position = self.committed
        self.settled: set[int] = set()
        self.under_way: list[Effect] = []
        self.running: dict[Job, int] = {}
        self.sweep, self.swept = Often(board, self.floor), (-1, 0)
        self._check_floor()
        restoring = Restoring(board)
        restoring.entries(told.log[self.floor :])
        restoring.finish(told.now_ms)
        if any(board.read_ms > at_ms for at_ms, _ in told.inbox[self.committed :]):
            told.problems.append("windows may be forgotten into which the inbox has a request that is read again")
        self._collect()

    def _check_floor(self) -> None:
        """Whoever reads from there finds all that counts."""
        all_of_it, above = dict(self.told.log), dict(self.told.log[self.floor :])
        for key, value in all_of_it.items():
            if value is not None and key not in above:
                self.told.problems.append(f"{key!r} counts and stands below the floor {self.floor}")

    def _sweep(self) -> None:
        floor, count = self.swept
        if floor >= 0:
            if count <= 0:
                self.sweep.floor, self.swept = floor, (-1, 0)
                self.told.floors.append(floor)
        elif (found := self.sweep.step(len(self.told.log))) is not None:
            self._collect()
            self.swept = found, len(self.under_way)

    def crash(self) -> None:
        kept = self.random.randint(0, len(self.under_way))
        durable, lost = self.under_way[:kept], self.under_way[kept:]
        self._land(durable, acknowledged=False)
        for effect in lost:
            if isinstance(effect, Entry) and effect.key.startswith(b"j/") and effect.value is not None:
                record = pickle.loads(effect.value)
                if isinstance(record, JobRecord):
                    self._fact("lost", record.request.id, record.version)
        for job, version in self.running.items():
            self._fact("lost", job.id, version)
        self._fact("crashed", how=len(self.told.log))
        if self.random.random() < 0.5:
            self.told.now_ms += self.random.choice((100, 30_000, 300_000))
        self._restore()

    def hand_over(self) -> None:
        """An owner that lets go in order: what runs is stopped, and everything is acknowledged."""
        for job, version in list(self.running.items()):
            self._end(job, version, Cancelled())
        self.board.chosen.give_back(self.told.now_ms)
        self.board.sync()
        self.board.sync()
        self._collect()
        self._acknowledge(len(self.under_way))
        self._check_nothing_runs()
        for job, version in self.running.items():
            self._fact("lost", job.id, version)
        self._fact("crashed", how=len(self.told.log))
        self._restore()

    def _check_nothing_runs(self) -> None:
        """Else the next owner counts a stall."""
        for value in dict(self.told.log).values():
            entry = None if value is None else pickle.loads(value)
            if isinstance(entry, JobRecord) and entry.state is JobState.RUNNING:
                self.told.problems.append(f"{entry.request.id} was let go in order, and runs as the store has it")

    def _fact(self, what: str, job_id: str = "", version: int = 0, how: object = None) -> None:
        self.told.facts.append(Fact(what, job_id, self.told.now_ms, self.life, version, how))

    # -- the store

    def _collect(self) -> None:
        for effect in self.board.effects():
            self.under_way.append(effect)
            if isinstance(effect, Entry) and effect.value is not None:
                record = pickle.loads(effect.value)
                if isinstance(record, JobRecord):
                    self._fact("wrote", record.request.id, record.version, record.state.value)

    def _land(self, effects: list[Effect], acknowledged: bool) -> None:
        for effect in effects:
            if isinstance(effect, Entry):
                self.told.log.append((effect.key, effect.value))
                if acknowledged:
                    if effect.settles >= 0:
                        self.settled.add(effect.settles)
                    self.board.stored(effect)
            elif isinstance(effect, Settle) and acknowledged:
                self.settled.add(effect.offset)
            elif isinstance(effect, DeliveryWritten) and acknowledged:
                delivering.written(self.board, effect)
            elif isinstance(effect, Letter):
                self.told.letters.append(effect.record)
                if acknowledged:
                    self.board.lettered(effect.record.request.id, effect.record.version)

    def _acknowledge(self, count: int) -> None:
        effects = self.under_way[:count]
        self.swept = self.swept[0], self.swept[1] - count
        del self.under_way[:count]
        self._land(effects, acknowledged=True)
        self._collect()

    def commit(self) -> None:
        while self.committed in self.settled:
            self._durable(self.committed)
            self.committed += 1
        self.board.committed = self.committed
        self.floor = self.sweep.floor

    def _durable(self, offset: int) -> None:
        """What is settled must be found again without the inbox."""
        asked = self.told.inbox[offset][1]
        if isinstance(asked, JobRequest) and f"j/{asked.id}".encode() not in {key for key, _ in self.told.log}:
            self.told.problems.append(f"{asked.id} is settled and not in the store")

    # -- what is asked

    def enqueue(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            self.told.inbox.append((self.told.now_ms, self._asked()))

    def _asked(self) -> JobRequest | JobCommand:
        draw, known = self.random.random(), [a for _, a in self.told.inbox if isinstance(a, JobRequest)]
        if draw < 0.8 or not known:
            return self._request(len(self.told.inbox))
        if draw < 0.83:
            again = known[-1]  # written twice; later on it may be forgotten, and be a new one
            return again if again.type != "narrow" else self._request(len(self.told.inbox))
        one = self.random.choice(known[-12:])
        if draw < 0.89:
            return CancelJob(one.id)
        if draw < 0.92:
            return RunJobNow(one.id)
        if draw < 0.95:
            return RetryJob(one.id) if one.key is None else CancelJob(one.id)
        name, misfire = self.random.choice((("all", Misfire.ALL), ("once", Misfire.ONCE), ("skip", Misfire.SKIP)))
        if draw < 0.975:
            template = JobRequest("", "ticked", key=self.random.choice((None, "k1")) if name != "all" else None)
            return PutSchedule(Schedule(name, "* * * * *", template, misfire=misfire))
        if name != "all" and draw < 0.99:
            return self.random.choice((PauseSchedule(name), PauseSchedule(name, paused=False), DropSchedule(name)))
        return RunScheduleNow(name, self.told.now_ms)

    def _request(self, offset: int) -> JobRequest:
        random, now_ms = self.random, self.told.now_ms
        kind = random.choice(("plain", "plain", "narrow", "released"))
        dedup = random.choice((None, None, None, "d1", "d2")) if kind != "narrow" else None
        return JobRequest(
            job_id(now_ms, offset.to_bytes(10)),
            kind,
            created_ms=now_ms,
            key=random.choice((None, "k1", "k1", "k2")),
            tenant=random.choice(("a", "b")),
            priority=random.choice((-1, 0, 0, 5, 10, 20)),
            due_ms=now_ms + random.choice((10, 2_000, 20_000, 90_000)) if random.random() < 0.35 else 0,
            expires_ms=now_ms + random.choice((5_000, 100_000)) if random.random() < 0.1 else 0,
            attempts=random.choice((0, 0, 1, 4)),
            dedup_id=dedup,
            dedup_window_ms=0 if dedup is None else random.choice((3_000, 60_000)),
        )

    # -- what the owner does

    def fetch(self) -> None:
        told = self.told
        until = min(len(told.inbox), self.position + self.random.randint(1, 6))
        while self.position < until:
            asked = told.inbox[self.position][1]
            if isinstance(asked, JobRequest):
                self._fact("admitted", asked.id)
                self.board.admit([(self.position, asked)], told.now_ms)
            else:
                changed = commands.apply(self.board, asked, self.position, told.now_ms)
                if isinstance(asked, PutSchedule) and changed:
                    told.put_ms.setdefault(asked.schedule.name, told.now_ms)
                self._fact("applied", getattr(asked, "job_id", ""), how=(asked, changed))
            self.position += 1

    def take(self) -> None:
        self._collect()
        for job in self.board.take(self.random.randint(1, 5), self.told.now_ms):
            self.running[job] = job.version
            self._fact("began", job.id, job.version)

    def end(self) -> None:
        for job, version in list(self.running.items()):
            if self.random.random() < 0.6:
                if self.random.random() < 0.1:
                    del self.running[job]
                    self.board.stalled(job, version, self.told.now_ms)
                    self._fact("ended", job.id, job.version, "stalled")
                else:
                    self._end(job, version, self._ending())
            elif self.random.random() < 0.05:  # late, of another execution
                self.board.ended([(job, version - 1, Completed())], self.told.now_ms)

    def _end(self, job: Job, version: int, ending: JobEnding) -> None:
        del self.running[job]
        self.board.ended([(job, version, ending)], self.told.now_ms)
        self._fact("ended", job.id, job.version, ending)
        if self.random.random() < 0.1:
            self.board.ended([(job, version, Completed())], self.told.now_ms)  # a second time

    def _ending(self) -> JobEnding:
        draw = self.random.random()
        if draw < 0.55:
            return Completed(b"result", "a warning" if draw < 0.05 else None)
        if draw < 0.6:
            return Cancelled()
        if draw < 0.7:
            return Failure(FailureKind.TERMINAL, "BadArguments", "ValueError", "no")
        after_ms = 3_000 if draw < 0.75 else None
        return Failure(FailureKind.RETRYABLE, "RateLimit", "Error", "later", after_ms=after_ms)

    def wait(self) -> None:
        self.told.now_ms += self.random.choice((1, 5, 50, 400, 1_500, 10_000))
        if self.random.random() < 0.02:
            self.told.now_ms += self.random.choice((70_000, 200_000))

    def step(self) -> None:
        board, random = self.board, self.random
        chosen = random.random()
        if chosen < self.crashes:
            self.crash() if random.random() < 0.8 else self.hand_over()
            return
        work: Callable[[], None] = random.choice(
            (self.enqueue, self.fetch, self.fetch, self.take, self.take, self.end, self.wait, self.sync)
        )
        work()
        if random.random() < 0.3:
            board.due(self.told.now_ms)
        self._collect()
        if random.random() < 0.5:
            self._acknowledge(random.randint(0, len(self.under_way)))
            self.commit()

    def sync(self) -> None:
        self.board.sync()
        self._sweep()

    def run(self) -> Told:
        for _ in range(self.steps):
            self.step()
        self._quiesce()
        return self.told

    def _quiesce(self) -> None:
        """Everything gets its ending: whoever starves is seen."""
        told, board = self.told, self.board
        for _ in range(2_000):
            self.fetch()
            board.due(told.now_ms)
            self.take()
            for job, version in list(self.running.items()):
                self._end(job, version, Completed())
            self.sync()
            self._collect()
            self._acknowledge(len(self.under_way))
            self.commit()
            jobs = [job for job in board.jobs.values() if isinstance(job, Job) and job.state not in TERMINAL]
            if not jobs and not self.under_way and self.position == len(told.inbox):
                break
            if not self.running and not len(board.lanes):
                told.now_ms = max(told.now_ms, min((job.timer_ms for job in jobs if job.timer_ms), default=0))
        else:
            told.problems.append("it does not come to an end")
        board.due(told.now_ms)
        self._collect()
        self._acknowledge(len(self.under_way))
        self._agrees()

    def _agrees(self) -> None:
        """What the board would write of each entry is what stands in the store."""
        self._check_floor()
        store = dict(self.told.log)
        write_again(self.board, store)
        for effect in self.board.effects():
            if isinstance(effect, Entry) and _read(store[effect.key]) != _read(effect.value):
                self.told.problems.append(f"the board and the store differ about {effect.key!r}")


def _read(value: bytes | None) -> object:
    return None if value is None else pickle.loads(value)


def lives(seed: int, steps: int = 150) -> Told:
    return World(seed, steps).run()
