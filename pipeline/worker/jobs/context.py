"""What a job's handler is given beside its input."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.model.job_ids import made_ms
from pipeline.model.jobs import JobProgress, JobRequest
from pipeline.model.outbox import UNDER_WAY, Outbox
from pipeline.worker.jobs.telling import JobLog, Said
from pipeline.worker.sending import OutRecord


@dataclass(frozen=True, slots=True)
class Home:
    """The application whose worker runs the job. `enqueue` is its own."""

    cluster: str
    prefix: str
    enqueue: Callable[..., Awaitable[Any]]


class JobContext:
    """One execution of one job. `teller` gives what hears of what its handler says."""

    __slots__ = (
        *("_attempts", "_home", "_log", "_logger", "_outbox", "_request", "_teller", "asked", "attempt"),
        *("deadline_s", "ended", "last_progress", "stalls"),
    )

    def __init__(self, job: Job, timeout_ms: int, teller: Callable[[], Said], logger: Any, home: Home) -> None:
        assert job.request is not None
        self._request: JobRequest = job.request
        self._attempts = job.attempts
        self._logger = logger
        self._log: JobLog | None = None
        self._teller = teller
        self._home = home
        self._outbox: Outbox | None = None
        self.asked: list[OutRecord] = []
        """Jobs that it asks for."""
        self.ended = False
        self.attempt = job.attempt
        """1 for the first execution."""
        self.stalls = job.stalls
        """Executions of it that ended with their worker; they are not counted as attempts."""
        self.deadline_s = timeout_ms / 1000
        """Seconds that this execution may take in all."""
        self.last_progress: JobProgress | None = job.outcome.progress
        """What the execution before this one said last, also when its worker was killed: where to go on. None for the first."""

    @property
    def id(self) -> str:
        return self._request.id

    @property
    def type(self) -> str:
        return self._request.type

    @property
    def attempts(self) -> int:
        """Executions in all that the job may have."""
        return self._attempts

    @property
    def key(self) -> str | None:
        return self._request.key

    @property
    def tenant(self) -> str:
        return self._request.tenant

    @property
    def workflow_id(self) -> str | None:
        return self._request.workflow_id

    @property
    def tags(self) -> tuple[str, ...]:
        return self._request.tags

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt: give it to the payment provider, the mail service, the model API."""
        return f"{self._request.type}:{self._request.id}"

    def step_key(self, step: str) -> str:
        """An idempotency key for one of several side effects."""
        return f"{self.idempotency_key}:{step}"

    def progress(self, processed: int, total: int = 0, note: str = "") -> None:
        """How far it is, of how many (0: not known), and what it is at. Kept with the job and streamed to whoever follows it, at
        most every 500 ms; a call costs little, so call it for each item. Raises ValueError."""
        self._teller().progress(processed, total, note)

    @property
    def log(self) -> Any:
        """A structlog logger bound to this job; `job.log("text")` is `job.log.info("text")`. Its last lines are kept with the job
        and streamed like progress; should the attempt fail, they go with the failure."""
        if self._log is None:
            bound = self._logger.bind(job=self.id, type=self.type, tenant=self.tenant, attempt=self.attempt)
            self._log = JobLog(bound, self._teller().logged())
        return self._log

    async def enqueue(self, job: str | Callable[..., Any], given: object = None, **options: Any) -> Any:
        """`Pipeline.enqueue`, whose options it takes: the job goes out when this execution has succeeded, before its ending counts.

        Its id is the same on every attempt. Gives a `JobHandle`, whose result can't be awaited here.
        """
        before = UNDER_WAY.set(self)  # in a batch it is not told by itself
        try:
            return await self._home.enqueue(job, given, **options)
        finally:
            UNDER_WAY.reset(before)

    def outbox(self) -> Outbox | None:
        """See `model.outbox`."""
        if self.ended:
            return None
        if self._outbox is None:
            home, request = self._home, self._request
            asked_ms = max(made_ms(request.id) or 0, request.due_ms)  # what a job asks for is not as old as its delay
            self._outbox = Outbox(home.cluster, home.prefix, self.idempotency_key, asked_ms, self._put)
        return self._outbox

    def _put(self, topic: str, key: bytes, value: bytes) -> None:
        self.asked.append(OutRecord(self._home.prefix + topic, key, value, []))
