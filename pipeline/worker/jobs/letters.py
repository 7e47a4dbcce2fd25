"""The dead letter of a job."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.core.jobs.entries import Letter
from pipeline.core.unit import Unit
from pipeline.model.cluster import Headers
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, clip_error, dead_letter_headers
from pipeline.model.jobs import JobRequest


def letter_of(unit: Unit, encode: Callable[[JobRequest], bytes], letter: Letter) -> tuple[bytes, bytes, Headers]:
    """Key, value and headers. Key and value are those of an inbox's record, so that it can be redriven."""
    record = letter.record
    request, outcome, error = record.request, record.outcome, record.outcome.error
    told = ErrorInfo()
    if error is not None:
        told = ErrorInfo(error.error_class, error.error_type, error.message, error.stack)
    headers = DeliveryHeaders(
        attempt=record.attempt,
        hop=1,
        epoch=unit.epoch,
        origin_topic=unit.policy.source,
        origin_partition=unit.partition,
        origin_offset=max(0, record.offset),
        origin_timestamp_ms=request.created_ms,
        group=unit.policy.group,
        first_failed_ms=record.finished_ms,
        error=clip_error(told, len(outcome.history)),
        history=outcome.history,
    )
    return request.record_key, encode(request), dead_letter_headers([], headers)
