"""Webhooks of jobs: whoever asked for one hears of its ending by a signed POST, which is a job of a type of its own on the same queue."""

from __future__ import annotations

import json
from typing import Any

from pipeline.model.errors import ConfigurationError
from pipeline.model.job_ids import tick_id
from pipeline.model.job_policies import INLINE_BYTES_MAX, JobPolicy, RetentionPolicy
from pipeline.model.jobs import JobRecord, JobRequest
from pipeline.model.policies import Backoff

DELIVERY = "pipeline.webhook"
"""Type of the jobs that tell a webhook of an ending."""
DELIVERY_POLICY = JobPolicy(
    attempts=15,
    backoff=Backoff(1_000, 2.0, 600_000),
    timeout_ms=30_000,
    retention=RetentionPolicy(completed=100, failed=500),
)
"""15 attempts within about an hour; then it is a dead letter, which can be redriven."""


def delivery_of(record: JobRecord, now_ms: int) -> JobRequest:
    """The job that tells of this ending: the same one, by its id, whoever asks for it and however often."""
    request = record.request
    assert request.webhook is not None
    payload = _payload(request.webhook, body_of(record))
    if len(payload) > INLINE_BYTES_MAX:  # the result is a job's largest and this one carries more than that
        bare = record._replace(outcome=record.outcome._replace(result=None))
        payload = _payload(request.webhook, body_of(bare, omitted=True))
    return JobRequest(
        tick_id(f"webhook/{request.id}/{record.version}", record.finished_ms),
        DELIVERY,
        payload,
        created_ms=now_ms,
        tenant=request.tenant,
        workflow_id=request.workflow_id,
        priority=request.priority,
        tags=request.tags,
        traceparent=request.traceparent,
    )


def body_of(record: JobRecord, omitted: bool = False) -> bytes:
    """What is posted, as JSON. The result is put in as it is: it is JSON already, however deep. `omitted`: it is too large for that."""
    request, outcome = record.request, record.outcome
    error = outcome.error
    told: dict[str, Any] = {
        "id": request.id,
        "type": request.type,
        "state": record.state.value,
        "attempt": record.attempt,
        "created_ms": request.created_ms,
        "started_ms": record.started_ms,
        "finished_ms": record.finished_ms,
        "tenant": request.tenant,
        "workflow_id": request.workflow_id,
        "tags": list(request.tags),
        "warning": outcome.warning,
        "reason": outcome.reason,
        "error": None
        if error is None
        else {"class": error.error_class, "type": error.error_type, "message": error.message},
        "result_ref": outcome.result_ref,
    }
    if omitted:
        told["result_omitted"] = True
    head = json.dumps(told, separators=(",", ":")).encode()
    return head[:-1] + b',"result":' + (outcome.result or b"null") + b"}"


def _payload(webhook: str, body: bytes) -> bytes:
    return b'{"webhook":%b,"body":%b}' % (json.dumps(webhook).encode(), body)


def check_type_name(name: str) -> str:
    """Raises ConfigurationError for the name of a type that the pipeline has itself."""
    if name.startswith("pipeline."):
        raise ConfigurationError(
            f"job {name!r}: names that begin with 'pipeline.' are the pipeline's own; choose another"
        )
    return name
