"""The run summary as a fold: `fold(summary, record_name, event) -> summary`, with no clock and no I/O.

The folded summary is plain JSON (it is what the table holds); `fields` makes the `agent.run.RunSummary` of it.
Folding an event again changes nothing: its sequence is remembered (see `sequences`). Nor does the order matter:
counters add, and the newest sequence wins where one value must. Counted totals and those that the run's last event
states are kept apart and the larger is shown, so neither a lost event nor a late one makes the summary smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.model.errors import UndecodableError
from pipeline.views import sequences

Summary = dict[str, Any]

_END_STATES = {"RunCompleted": "COMPLETED", "RunFailed": "FAILED", "RunCancelled": "CANCELLED"}
_TOTALS = ("steps", "model_calls", "tool_calls", "input_tokens", "output_tokens", "duration_ms")
_FAILED_TOOL = frozenset(("ERROR", "TIMEOUT", "CANCELLED"))
_ENDED_STEP = frozenset(("COMPLETED", "FAILED", "SKIPPED"))
_REQUIRED = ("run_id", "sequence", "occurred_at", "agent", "tenant")


def type_name(record_name: str) -> str:
    """The last part of a record's full name: `agent.run.ModelCall` -> `ModelCall`."""
    return record_name.rpartition(".")[2]


def check(record_name: str, event: Mapping[str, Any]) -> None:
    """Raise `UndecodableError` when the record lacks what every run event carries."""
    for name in _REQUIRED:
        if event.get(name) is None:
            raise UndecodableError(
                f"A record of type {record_name} has no {name}, so it is not a run event and no view can count it."
            )


def failed_tool(event: Mapping[str, Any]) -> bool:
    """Whether a ToolResult counts as a tool error: a bad status, or an error text where the status says nothing."""
    status = event.get("status", "UNKNOWN")
    return status in _FAILED_TOOL or (status == "UNKNOWN" and bool(event.get("error")))


def error_text(kind: str, event: Mapping[str, Any]) -> str | None:
    """The error an event tells of, in words; None when it tells of none."""
    if kind == "RunFailed":
        return ": ".join(part for part in (event.get("error_class"), event.get("error_message")) if part) or "failed"
    if kind == "ToolResult" and failed_tool(event):
        return event.get("error") or f"{event.get('tool', 'tool')}: {event.get('status', 'ERROR')}"
    return event.get("error") or None


def is_new(summary: Summary | None, event: Mapping[str, Any]) -> bool:
    """Whether folding the event would count it."""
    return summary is None or not sequences.seen(summary["seen"], event["sequence"])


def _empty(event: Mapping[str, Any]) -> Summary:
    return {
        "run_id": event["run_id"],
        "agent": event["agent"],
        "tenant": event["tenant"],
        "state": "RUNNING",
        "started_at": None,
        "first_at": event["occurred_at"],
        "updated_at": event["occurred_at"],
        "ended_at": None,
        "ended_sequence": -1,
        "events": 0,
        "messages": 0,
        "steps": 0,
        "step_records": 0,
        "model_calls": 0,
        "tool_calls": 0,
        "tool_errors": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "stated": {},
        "last_error": None,
        "error_sequence": -1,
        "seen": [],
    }


def fold(summary: Summary | None, record_name: str, event: Mapping[str, Any]) -> Summary:
    """The summary with the event in it; the very same object when its sequence was seen. The argument is not changed.

    `event` is the decoded record (times in milliseconds since the epoch). A type that no view knows counts as an event.
    Raises `UndecodableError` when it isn't a run event.
    """
    check(record_name, event)
    if summary is not None and sequences.seen(summary["seen"], event["sequence"]):
        return summary
    out = dict(summary) if summary is not None else _empty(event)
    kind, sequence, at = type_name(record_name), event["sequence"], event["occurred_at"]
    out["seen"] = sequences.add(out["seen"], sequence)
    out["events"] += 1
    out["first_at"] = min(out["first_at"], at)
    out["updated_at"] = max(out["updated_at"], at)
    if event.get("step") is not None:
        out["steps"] = max(out["steps"], event["step"] + 1)
    _count(out, kind, event)
    error = error_text(kind, event)
    if error and sequence > out["error_sequence"]:
        out["last_error"], out["error_sequence"] = error, sequence
    if kind in _END_STATES and sequence > out["ended_sequence"]:
        out["state"], out["ended_at"], out["ended_sequence"] = _END_STATES[kind], at, sequence
        out["stated"] = {name: event.get(name) for name in (*_TOTALS, "cost_usd")}
    return out


def _count(out: Summary, kind: str, event: Mapping[str, Any]) -> None:
    if kind == "ModelCall":
        out["model_calls"] += 1
        out["input_tokens"] += event.get("input_tokens", 0)
        out["output_tokens"] += event.get("output_tokens", 0)
    elif kind == "ToolCall":
        out["tool_calls"] += 1
    elif kind == "ToolResult":
        out["tool_errors"] += failed_tool(event)
    elif kind == "Message":
        out["messages"] += 1
    elif kind == "Step":
        out["step_records"] += event.get("status") in _ENDED_STEP
    elif kind == "RunStarted":
        known = out["started_at"]
        out["started_at"] = event["occurred_at"] if known is None else min(known, event["occurred_at"])


def fields(summary: Summary) -> dict[str, Any]:
    """The fields of `agent.run.RunSummary`: what is written for readers."""
    stated = summary["stated"]
    total = {name: max(summary.get(name, 0), stated.get(name) or 0) for name in _TOTALS}
    total["steps"] = max(total["steps"], summary["step_records"])
    started = summary["started_at"] if summary["started_at"] is not None else summary["first_at"]
    ended = summary["ended_at"] if summary["ended_at"] is not None else summary["updated_at"]
    return {
        **total,
        "run_id": summary["run_id"],
        "agent": summary["agent"],
        "tenant": summary["tenant"],
        "state": summary["state"],
        "started_at": summary["started_at"],
        "ended_at": summary["ended_at"],
        "updated_at": summary["updated_at"],
        "last_sequence": summary["seen"][-1][1],
        "events": summary["events"],
        "messages": summary["messages"],
        "tool_errors": summary["tool_errors"],
        "cost_usd": stated.get("cost_usd"),
        "duration_ms": total["duration_ms"] or max(0, ended - started),
        "last_error": summary["last_error"],
    }
