"""The dead letter of a job, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.core.jobs.entries import Letter
from pipeline.core.unit import Unit
from pipeline.model import history
from pipeline.model.alerts import DeadLetterAlert
from pipeline.model.cluster import Headers
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, clip_error, dead_letter_headers
from pipeline.model.job_types import JobType
from pipeline.model.jobs import JobRequest


def letter_of(unit: Unit, encode: Callable[[JobRequest], bytes], letter: Letter) -> tuple[bytes, bytes, Headers]:
    """Key, value and headers. Key and value are those of an inbox's record, so that it can be redriven."""
    record = letter.record
    request, outcome, error = record.request, record.outcome, record.outcome.error
    told = ErrorInfo()
    if error is not None:
        told = ErrorInfo(error.error_class, error.error_type, error.message, error.stack)
    attempts = history.parse(outcome.history).attempts
    headers = DeliveryHeaders(
        attempt=record.attempt,
        hop=1,
        epoch=unit.epoch,
        origin_topic=unit.policy.source,
        origin_partition=unit.partition,
        origin_offset=max(0, record.offset),
        origin_timestamp_ms=request.created_ms,
        group=unit.policy.group,
        first_failed_ms=attempts[0].failed_ms if attempts else record.finished_ms,
        error=clip_error(told, len(outcome.history)),
        history=outcome.history,
        log=error.log if error is not None else "",
    )
    return request.record_key, encode(request), dead_letter_headers([], headers)


def alert_of(unit: Unit, topic: str, declared: JobType | None, letter: Letter) -> DeadLetterAlert:
    """What is told of a job that was given up, whose dead letter is in `topic`. Its input stays out of it: nobody knows what is personal
    in that, and alerts leave the house."""
    record = letter.record
    request, error, told = record.request, record.outcome.error, history.parse(record.outcome.history)
    allowed = request.attempts or (declared.policy.attempts if declared is not None else 0)
    handler = declared.handler if declared is not None else None
    return DeadLetterAlert(
        group=unit.policy.group,
        topic=topic,
        partition=unit.partition,
        offset=letter.offset,
        origin=(unit.policy.source, unit.partition, max(0, record.offset)),
        key=request.record_key.decode(),
        event_id=request.id,
        handler="" if handler is None else getattr(handler, "__qualname__", type(handler).__name__),
        record=request.type,
        input=None,
        attempt=record.attempt,
        attempts=allowed,
        error=ErrorInfo()
        if error is None
        else ErrorInfo(error.error_class, error.error_type, error.message, error.stack),
        history=told,
        started_ms=record.started_ms,
        failed_ms=record.finished_ms,
        log=tuple(error.log.splitlines()) if error is not None else (),
        traceparent=request.traceparent or "",
    )
