"""What happens to a job whose execution failed: another attempt at an exact time, or none."""

from __future__ import annotations

from binascii import crc32

from pipeline.core.jobs.job import Job
from pipeline.model.history import Attempt, append
from pipeline.model.jobs import STALLED as STALLED
from pipeline.model.outcome import Failure, FailureKind
from pipeline.model.policies import RETRIED

UNKNOWN_TYPE = "UnknownJobType"


def retry_at_ms(job: Job, failure: Failure, now_ms: int) -> int | None:
    """When to try again after this failed attempt; None: give it up. `Retry(after=...)` of the handler goes before the back-off."""
    if failure.kind not in RETRIED or job.attempt >= job.attempts:
        return None
    if failure.after_ms is not None:
        return now_ms + failure.after_ms
    assert job.request is not None
    backoff = job.request.backoff or job.kind.policy.backoff
    delay_ms = backoff.before_retry_ms(job.attempt)
    return now_ms + delay_ms + int(delay_ms * job.kind.policy.jitter * draw(job.id, job.attempt))


def draw(job_id: str, attempt: int) -> float:
    """A number in [0, 1) for jitter: spread over jobs and attempts, and the same whenever it is asked for."""
    return crc32(f"{job_id}/{attempt}".encode()) / (1 << 32)


def with_attempt(job: Job, failure: Failure, now_ms: int) -> bytes:
    """The job's history with this failed attempt."""
    attempt = Attempt(job.attempt, now_ms, failure.error_class, failure.error_type, failure.message, job.started_ms)
    return append(job.outcome.history, attempt)


def terminal(error_class: str, text: str) -> Failure:
    """A failure that no handler had."""
    return Failure(FailureKind.TERMINAL, error_class, error_class, text)
