"""What a job's handler is given beside its input."""

from __future__ import annotations

from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.model.jobs import JobRequest
from pipeline.worker.log_tail import LogTail, TailLogger


class JobContext:
    """One execution of one job."""

    __slots__ = ("_attempts", "_log", "_logger", "_request", "attempt", "deadline_s", "stalls", "tail")

    def __init__(self, job: Job, timeout_ms: int, logger: Any) -> None:
        assert job.request is not None
        self._request: JobRequest = job.request
        self._attempts = job.attempts
        self._logger = logger
        self._log: TailLogger | None = None
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
