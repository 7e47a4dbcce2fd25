"""What a job's handler is given beside its input."""

from __future__ import annotations

from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.model.jobs import JobProgress, JobRequest
from pipeline.worker.jobs.telling import JobLog, Said


class JobContext:
    """One execution of one job."""

    __slots__ = (
        "_attempts",
        "_log",
        "_logger",
        "_request",
        "_teller",
        "attempt",
        "deadline_s",
        "last_progress",
        "stalls",
    )

    def __init__(self, job: Job, timeout_ms: int, teller: Said, logger: Any) -> None:
        assert job.request is not None
        self._request: JobRequest = job.request
        self._attempts = job.attempts
        self._logger = logger
        self._log: JobLog | None = None
        self._teller = teller
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
        self._teller.progress(processed, total, note)

    @property
    def log(self) -> Any:
        """A structlog logger bound to this job; `job.log("text")` is `job.log.info("text")`. Its last lines are kept with the job
        and streamed like progress; should the attempt fail, they go with the failure."""
        if self._log is None:
            bound = self._logger.bind(job=self.id, type=self.type, tenant=self.tenant, attempt=self.attempt)
            self._log = JobLog(bound, self._teller.logged())
        return self._log
