"""The headers that a published event carries beside its bytes: event id, trace, CloudEvents attributes. Pure
but for `current_traceparent`."""

from __future__ import annotations

import contextlib
import re
import sys
from datetime import UTC, datetime

from pipeline.model.cluster import Headers
from pipeline.model.events import RunEvent
from pipeline.model.headers import EVENT_ID, TRACEPARENT

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def event_headers(event: RunEvent, traceparent: str | None = None, ce_source: str | None = None) -> Headers:
    """Headers of one event: `pl.event_id`, `traceparent` when there is one, and `ce_*` when `ce_source` is set.

    CloudEvents 1.0, Kafka binding, binary mode, with the partitioning extension. There is no `content-type`:
    bytes with a schema id in
    front have no registered media type.
    """
    headers: Headers = [(EVENT_ID, event.event_id.encode())]
    if traceparent:
        headers.append((TRACEPARENT, traceparent.encode()))
    if ce_source:
        headers += (
            ("ce_specversion", b"1.0"),
            ("ce_id", event.event_id.encode()),
            ("ce_source", ce_source.encode()),
            ("ce_type", event.record_name.encode()),
            ("ce_subject", event.run_id.encode()),
            ("ce_partitionkey", event.run_id.encode()),
        )
        with contextlib.suppress(ValueError, OverflowError, OSError):  # beyond the calendar: the attribute is optional
            time = datetime.fromtimestamp(event.occurred_at / 1_000, UTC).isoformat(timespec="milliseconds")
            headers.append(("ce_time", time.replace("+00:00", "Z").encode()))
    return headers


def is_traceparent(text: str) -> bool:
    """Whether it has the form of W3C Trace Context, version and all."""
    return _TRACEPARENT.fullmatch(text) is not None


def current_traceparent() -> str | None:
    """The traceparent of OpenTelemetry's current span; None without one, or when the service does not use
    OpenTelemetry.

    A service that uses it has imported it: nothing is imported here.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 0xFF:02x}"
