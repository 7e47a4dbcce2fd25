"""What a job's handler is given beside its input."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.model.job_ids import made_ms
from pipeline.model.jobs import JobRequest
from pipeline.model.outbox import Outbox
from pipeline.worker.log_tail import LogTail, TailLogger
from pipeline.worker.sending import OutRecord


@dataclass(frozen=True, slots=True)
class Home:
    """The application whose worker runs the job. `enqueue` is its own."""

    cluster: str
    prefix: str
    enqueue: Callable[..., Awaitable[Any]]


class JobContext:
    """One execution of one job."""

    __slots__ = (
        *("_attempts", "_home", "_log", "_logger", "_outbox", "_request", "asked", "attempt"),
        *("deadline_s", "ended", "stalls", "tail"),
    )

    def __init__(self, job: Job, timeout_ms: int, logger: Any, home: Home) -> None:
        assert job.request is not None
        self._request: JobRequest = job.request
        self._attempts = job.attempts
        self._logger = logger
        self._log: TailLogger | None = None
        self._home = home
        self._outbox: Outbox | None = None
        self.asked: list[OutRecord] = []
        """Jobs that it asks for."""
        self.ended = False
        self.tail: LogTail | None = None
        self.attempt = job.attempt
        """1 for the first execution."""
        self.stalls = job.stalls
        """Executions of it that ended with their worker; they are not counted as attempts."""
        self.deadline_s = timeout_ms / 1000
        """Seconds that this execution may take in all."""

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

    @property
    def log(self) -> Any:
        """A structlog logger bound to this job. Should the attempt fail, its last lines go with the failure."""
        if self._log is None:
            bound = self._logger.bind(job=self.id, type=self.type, tenant=self.tenant, attempt=self.attempt)
            self.tail = LogTail()
            self._log = TailLogger(bound, self.tail)
        return self._log

    async def enqueue(self, job: str | Callable[..., Any], given: object = None, **options: Any) -> Any:
        """`Pipeline.enqueue`, whose options it takes: the job goes out when this execution has succeeded, before its ending counts.

        Its id is the same on every attempt. Gives a `JobHandle`, whose result can't be awaited here.
        """
        return await self._home.enqueue(job, given, **options)

    def outbox(self) -> Outbox | None:
        """See `model.outbox`."""
        if self.ended:
            return None
        if self._outbox is None:
            home = self._home
            self._outbox = Outbox(home.cluster, home.prefix, self.idempotency_key, made_ms(self.id) or 0, self._put)
        return self._outbox

    def _put(self, topic: str, key: bytes, value: bytes) -> None:
        self.asked.append(OutRecord(self._home.prefix + topic, key, value, []))
