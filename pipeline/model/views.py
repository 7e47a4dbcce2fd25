"""What is derived from run events: the records the stream views write, and the demo's ledger.

They have contracts in `schemas/` like the run events, and are held to them by the same test.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from pipeline.model.events import EVENT_TYPES, Count, Long, PersonalOrNone, RunState, Timestamp, TypedValue

Int = Annotated[int, Field(ge=0, le=2**31 - 1)]


class RunSummary(TypedValue):
    """What is known of one run so far, keyed by run id; times are milliseconds since the epoch."""

    run_id: str
    agent: str
    tenant: str
    state: RunState = "UNKNOWN"
    started_at: Timestamp | None = None
    ended_at: Timestamp | None = None
    updated_at: Timestamp
    last_sequence: Long = 0
    events: Count = 0
    messages: Count = 0
    tool_errors: Count = 0
    steps: Count = 0
    model_calls: Count = 0
    tool_calls: Count = 0
    input_tokens: Count = 0
    output_tokens: Count = 0
    cost_usd: float | None = None
    duration_ms: Count = 0
    last_error: PersonalOrNone = None


class RunRate(TypedValue):
    """Counts of one minute for one agent and tenant, keyed by the three; `minute` is its start."""

    agent: str
    tenant: str
    minute: Timestamp
    events: Count = 0
    runs_started: Count = 0
    runs_completed: Count = 0
    runs_failed: Count = 0
    runs_cancelled: Count = 0
    model_calls: Count = 0
    tool_calls: Count = 0
    tool_errors: Count = 0
    input_tokens: Count = 0
    output_tokens: Count = 0


class Ledger(TypedValue):
    """One action of a worker on one record, for a reader that accounts for every record by itself."""

    group: str
    event_id: str
    key: str | None = None
    origin_topic: str
    origin_partition: Int
    origin_offset: Count
    attempt: Int
    action: str
    worker: str
    at_ms: Long


VALUE_TYPES: Mapping[str, type[TypedValue]] = MappingProxyType(
    {**EVENT_TYPES, **{kind.record_name: kind for kind in (RunSummary, RunRate, Ledger)}}
)
"""Every typed value by the full name of its record: the run events and what is derived from them."""
