"""A `BackgroundQueue` in this process's memory: the board that schedules jobs on Kafka, with no store beneath it. What it holds is
lost with the process.

Any thread may enqueue. Handlers run in the event loop that called `consume`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, cast
from weakref import WeakValueDictionary

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import Entry, Interrupt, Letter
from pipeline.core.jobs.job import Job
from pipeline.core.jobs.telling import told
from pipeline.jobs.asking import Asker
from pipeline.jobs.followed import Followed
from pipeline.jobs.following import Ends, Found
from pipeline.jobs.handle import JobHandle, Reach
from pipeline.model.background import ConsumeOptions, check_options, consuming, given_options
from pipeline.model.errors import BufferFull, ConfigurationError, PublishError
from pipeline.model.job_policies import JobOptions, JobPolicy, QueuePolicy, check_text, options_of
from pipeline.model.job_states import TERMINAL
from pipeline.model.job_types import JobType
from pipeline.model.jobs import Completed, JobDuplicate, JobEnding, JobEntry, JobProgress, JobRecord, JobRequest
from pipeline.model.outbox import current
from pipeline.model.permissions import Permissions
from pipeline.worker.jobs.blobs import PayloadBlobs
from pipeline.worker.jobs.context import Home
from pipeline.worker.jobs.declaring import declaration_of, declared_policy
from pipeline.worker.jobs.running import JobRuns, Shell
from pipeline.worker.jobs.runs import Run
from pipeline.worker.jobs.values import Values
from pipeline.worker.logs import logger
from pipeline.worker.parts import wall_clock_ms
from pipeline.worker.stalls import Stalls

JOBS_MAX = 100_000
CLOSING_S = 10.0
_LOOK_S = 0.01
ALL = Permissions(frozenset({"*"}))
"""What is in memory runs in the process that asked for it."""
OWNER = 1
"""The epoch of the one owner that there is."""


class _AsTheyAre:
    """Entries that go nowhere are kept as they are."""

    @staticmethod
    def pack(entry: JobEntry) -> bytes:
        return cast(bytes, entry)

    @staticmethod
    def unpack(_key: bytes, packed: bytes) -> JobEntry:
        return cast(JobEntry, packed)


async def _nobody(_payload: Any) -> None:
    """Nobody calls it: it stands for a handler in a type that jobs are asked for with."""


async def _inline(work: Callable[[], Any]) -> Any:
    return work()


class _Topic:
    """The jobs of one topic, under the queue's lock; handles follow it."""

    settling_ms = 0
    since: Ends = MappingProxyType({})

    def __init__(self, name: str, policy: QueuePolicy, lock: threading.RLock, random: Callable[[int], bytes]) -> None:
        self.lock = lock
        self.board = Board(policy, {name: JobPolicy()}, _AsTheyAre())
        self.asker = Asker(JobType(name, _nobody), name, random=random)
        self.number = 0
        self.followed: WeakValueDictionary[str, Followed] = WeakValueDictionary()
        self.served: _Served | None = None
        self.closed = False

    def watch(self, job_id: str) -> Followed:
        with self.lock:
            found = self.followed.get(job_id)
            if found is None:
                found = self.followed[job_id] = Followed(job_id)
            return found

    def partition_of(self, record_key: bytes) -> int:
        return 0

    def follow(self, followed: Followed, partition: int, since: Ends) -> None:
        followed.partition = partition
        if self.closed:
            followed.let_go()

    def close(self) -> None:
        """Nothing happens to its jobs any more."""
        with self.lock:
            self.closed = True
            for followed in list(self.followed.values()):
                followed.let_go()

    def look_up(self, job_id: str, partition: int | None = None) -> Found:
        with self.lock:
            found = self.board.jobs.get(job_id)
            if isinstance(found, Job):
                self.board.ledger.open(found)
                return Found(found.record(), OWNER, 0, self.since)
            return Found(found, OWNER, 0, self.since)


class _Served:
    """A topic that is consumed. In the consumer's loop."""

    def __init__(self, runs: JobRuns, concurrency: int, loop: asyncio.AbstractEventLoop) -> None:
        self.runs = runs
        self.concurrency = concurrency
        self.loop = loop
        self.endings: list[tuple[Job, int, JobEnding]] = []
        self.timer: asyncio.TimerHandle | None = None
        self.planned = False


class MemoryQueue:
    """At most `jobs_max` that have no ending are held: then `enqueue` raises BufferFull. `policy`: how it chooses among a topic's jobs."""

    from_any_loop = True

    def __init__(
        self,
        *,
        jobs_max: int = JOBS_MAX,
        policy: QueuePolicy | None = None,
        clock: Callable[[], int] = wall_clock_ms,
        random: Callable[[int], bytes] = secrets.token_bytes,
        log: Any = None,
    ) -> None:
        self._jobs_max = jobs_max
        self._policy = policy or QueuePolicy()
        self._clock = clock
        self._random = random
        self._topics: dict[str, _Topic] = {}
        self._unfinished = 0
        self._lock = threading.RLock()
        self._address = f"memory-queue://{id(self)}"
        self._asked: dict[str, JobRequest] = {}
        self._closed = False
        self._home = Home(self._address, "", self._enqueue_for_job)
        self._log = log or logger(queue="memory")

    # -- `BackgroundQueue`

    async def enqueue(self, topic: str, payload: Any, options: JobOptions | None = None) -> str:
        """See `BackgroundQueue`."""
        with self._lock:
            if self._closed:
                raise PublishError(f"a job for {topic!r} came when the queue was closed")
            chosen = given_options(options)
            check_options(topic, chosen)
            found = self._topic(topic)
            now_ms = self._clock()
            outbox = current(self._address, topic)
            own_id = None if outbox is None else outbox.ids(1)[0]
            request = found.asker.request(payload, chosen, now_ms, own_id)
            if self._unfinished >= self._jobs_max:
                raise BufferFull(f"the queue holds {self._unfinished} jobs: raise jobs_max, or enqueue less")
            if outbox is None:
                self._admit(found, request, now_ms)
            else:  # it goes out with the handler's ending
                self._asked[request.id] = request
                outbox.put(topic, request.id.encode(), b"")
        return request.id

    async def consume(self, topic: str, handler: Callable[..., Any], options: ConsumeOptions | None = None) -> None:
        """See `BackgroundQueue`."""
        chosen = consuming(options)
        self._serve(declaration_of(topic, chosen.of_type()).type(handler), chosen.concurrency)

    def serve(self, declared: JobType, concurrency: int) -> None:
        """`consume` for a type of job that is declared already: what does not fit it is refused when it is enqueued."""
        self._serve(declared, concurrency).asker = Asker(declared, declared.name, random=self._random)

    def _serve(self, declared: JobType, concurrency: int) -> _Topic:
        if concurrency < 1:
            raise ConfigurationError(f"concurrency={concurrency!r} must be at least 1")
        with self._lock:
            if self._closed:
                raise ConfigurationError(f"topic {declared.name!r} can't be consumed: the queue is closed")
            found = self._topic(declared.name)
            if found.served is not None:
                raise ConfigurationError(f"topic {declared.name!r} is consumed already: one handler is enough")
            loop = asyncio.get_running_loop()
            types = {declared.name: declared}
            shell = Shell(
                loop, self._ended, self._told, self._clock, self._log, self._home, self._failed, Stalls(self._log), concurrency
            )  # fmt: skip
            runs = JobRuns(types, shell, Values(types, ALL, PayloadBlobs(declared.name, None)), {})
            found.served = _Served(runs, concurrency, loop)
            kind = found.board.kinds[declared.name]
            kind.policy, kind.limit = declared.policy, declared.policy.concurrency or kind.limit
            self._soon(found)
            return found

    def handle(self, topic: str, job_id: str) -> JobHandle:
        """Follows a job; JobMissing when it is asked and there is none."""
        with self._lock:
            found = self._topic(topic)
        return JobHandle(Reach(found, found.asker.type, _inline, self._clock), job_id)

    async def close(self) -> None:
        """What runs has CLOSING_S to end. Everything else is lost, and who waits for it is told."""
        with self._lock:
            self._closed = True
            served = [topic.served for topic in self._topics.values() if topic.served is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                while any(each.runs.running or each.endings for each in served):
                    await asyncio.sleep(_LOOK_S)
        for each in served:
            each.runs.abandon()
            if each.timer is not None:
                each.timer.cancel()
        for topic in tuple(self._topics.values()):
            topic.close()

    # -- parts

    async def _enqueue_for_job(self, job: str | Callable[..., Any], given: object = None, **options: Any) -> JobHandle:
        """`JobContext.enqueue`; a job of `@app.job` has the topic of its name."""
        known = None if isinstance(job, str) else declared_policy(job)
        topic = job if isinstance(job, str) else known[0] if known is not None else job.__name__
        return self.handle(topic, await self.enqueue(topic, given, options_of(options)))

    def _topic(self, name: str) -> _Topic:
        found = self._topics.get(name)
        if found is None:
            found = self._topics[check_text("topic", name)] = _Topic(name, self._policy, self._lock, self._random)
        return found

    def _admit(self, topic: _Topic, request: JobRequest, now_ms: int) -> None:
        topic.board.admit([(topic.number, request)], now_ms)
        topic.number += 1
        if isinstance(topic.board.jobs.get(request.id), Job):
            self._unfinished += 1
        self._perform(topic)
        self._soon(topic)

    def _soon(self, topic: _Topic) -> None:
        served = topic.served
        if served is not None and not served.planned:
            served.planned = True
            served.loop.call_soon_threadsafe(self._step, topic)

    def _step(self, topic: _Topic) -> None:
        served = topic.served
        assert served is not None
        with self._lock:
            served.planned = False
            now_ms, board = self._clock(), topic.board
            endings, served.endings = served.endings, []
            board.ended(endings, now_ms)
            board.read_ms = now_ms
            board.committed = topic.number
            board.due(now_ms)
            board.sync()
            if not self._closed:
                for job in board.take(served.concurrency - len(served.runs.running), now_ms):
                    served.runs.start(topic, job)
            self._perform(topic)
            self._set_timer(topic, served, now_ms)

    def _set_timer(self, topic: _Topic, served: _Served, now_ms: int) -> None:
        if served.timer is not None:
            served.timer.cancel()
        at_ms = topic.board.next_ms()
        if at_ms is not None and not self._closed:
            served.timer = served.loop.call_later(max(1, at_ms - now_ms) / 1000, self._step, topic)

    def _perform(self, topic: _Topic) -> None:
        """The board's effects: nothing is written, so each is done at once."""
        while effects := topic.board.effects():
            for effect in effects:
                if isinstance(effect, Entry):
                    self._tell(topic, cast("JobEntry | None", effect.value))
                    topic.board.stored(effect)
                elif isinstance(effect, Letter):
                    self._given_up(effect.record)
                    topic.board.lettered(effect.record.request.id, effect.record.version)
                elif isinstance(effect, Interrupt) and topic.served is not None:
                    for run in tuple(topic.served.runs.running):
                        if run.job is effect.job and run.version == effect.version:
                            topic.served.runs.interrupt(run, "cancelled")

    def _tell(self, topic: _Topic, entry: JobEntry | None) -> None:
        if not isinstance(entry, JobRecord | JobDuplicate):
            return
        job_id = entry.request.id if isinstance(entry, JobRecord) else entry.id
        if isinstance(entry, JobRecord) and entry.state in TERMINAL and not entry.letter_due:
            self._unfinished -= 1
        followed = topic.followed.get(job_id)
        if followed is not None:
            followed.tell(entry, OWNER)

    def _given_up(self, record: JobRecord) -> None:
        error = record.outcome.error
        self._log.error(
            "job given up", job=record.request.id, topic=record.request.type, attempts=record.attempt,
            error=None if error is None else f"{error.error_type}: {error.message[:300]}",
        )  # fmt: skip

    def _told(self, run: Run, progress: JobProgress, write: bool) -> None:
        topic: _Topic = run.host
        with self._lock:
            if told(topic.board, run.job, run.version, progress, write):
                self._soon(topic)

    def _failed(self, error: BaseException) -> None:
        self._log.error("a defect in the queue in memory", error=repr(error), exc_info=error)

    def _ended(self, run: Run, ending: JobEnding) -> None:
        topic: _Topic = run.host
        assert topic.served is not None
        with self._lock:
            for record in run.asked:
                request = self._asked.pop((record.key or b"").decode(), None)
                if request is not None and isinstance(ending, Completed):
                    now_ms = self._clock()
                    self._admit(self._topic(record.topic), request._replace(created_ms=now_ms), now_ms)
        topic.served.endings.append((run.job, run.version, ending))
        self._soon(topic)
