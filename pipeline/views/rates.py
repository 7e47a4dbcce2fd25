"""Per-minute counts by agent and tenant, as two folds with no clock and no I/O.

Events are keyed by run, so one minute of an agent is spread over all partitions. Each source partition therefore keeps a
*partial* (a running count, replaced as it grows) and sends that on under the rate's key; whoever owns that key adds the
newest partials of all partitions up. A partial that comes twice replaces itself, so no delivery counts twice; regrouping
every event instead would double the traffic and need a memory of every event id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pipeline.views.summaries import failed_tool, type_name

Partial = dict[str, Any]
"""`agent, tenant, minute`, the source `partition`, `last_offset` = the highest source offset in it, and `counts`."""

MINUTE_MS = 60_000
COUNTS = (
    "events",
    "runs_started",
    "runs_completed",
    "runs_failed",
    "runs_cancelled",
    "model_calls",
    "tool_calls",
    "tool_errors",
    "input_tokens",
    "output_tokens",
)
_ONE_OF_TYPE = {
    "RunStarted": "runs_started",
    "RunCompleted": "runs_completed",
    "RunFailed": "runs_failed",
    "RunCancelled": "runs_cancelled",
    "ModelCall": "model_calls",
    "ToolCall": "tool_calls",
}


def minute_of(at_ms: int) -> int:
    """The start of the minute that holds `at_ms`."""
    return at_ms - at_ms % MINUTE_MS


def rate_key(agent: str, tenant: str, minute: int) -> str:
    """`agent|tenant|minute`; `|` and `%` inside a name are percent-encoded, so two pairs never share a key."""
    return f"{_escaped(agent)}|{_escaped(tenant)}|{minute}"


def key_of(event: Mapping[str, Any]) -> str:
    """The rate's key of an event, by when it occurred."""
    return rate_key(event["agent"], event["tenant"], minute_of(event["occurred_at"]))


def _escaped(name: str) -> str:
    return quote(name, safe=" /:@!$&'()*+,;=[]") if "|" in name or "%" in name else name


def fold(partial: Partial | None, record_name: str, event: Mapping[str, Any], partition: int, offset: int) -> Partial:
    """The partial with the event of that source position in it; the same object when the position was counted before."""
    if partial is not None and offset <= partial["last_offset"]:
        return partial
    counts = dict(partial["counts"]) if partial is not None else dict.fromkeys(COUNTS, 0)
    kind = type_name(record_name)
    counts["events"] += 1
    if kind in _ONE_OF_TYPE:
        counts[_ONE_OF_TYPE[kind]] += 1
    if kind == "ModelCall":
        counts["input_tokens"] += event.get("input_tokens", 0)
        counts["output_tokens"] += event.get("output_tokens", 0)
    elif kind == "ToolResult":
        counts["tool_errors"] += failed_tool(event)
    return {
        "agent": event["agent"],
        "tenant": event["tenant"],
        "minute": minute_of(event["occurred_at"]),
        "partition": partition,
        "last_offset": offset,
        "counts": counts,
    }


Total = dict[str, Partial]
"""The newest partial by source partition (as text, since JSON keys are)."""


def merge(total: Total | None, partial: Partial) -> Total:
    """The total with the partial in the place of its partition's former one, unless that one is newer."""
    out = dict(total or {})
    place = str(partial["partition"])
    if place not in out or out[place]["last_offset"] <= partial["last_offset"]:
        out[place] = partial
    return out


def fields(total: Total) -> dict[str, Any]:
    """The fields of `agent.run.RunRate`: the sum over the partitions."""
    newest = next(iter(total.values()))
    counts = {name: sum(partial["counts"][name] for partial in total.values()) for name in COUNTS}
    return {"agent": newest["agent"], "tenant": newest["tenant"], "minute": newest["minute"], **counts}
