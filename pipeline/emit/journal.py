"""One agent run as a sequence of events: what happened goes in, RunEvents come out. Pure: `now_ms` and event
ids are arguments.

    RunStarted, then any of ModelCall / ToolCall + ToolResult / Step / Message / Memory / Approval, then one of
    RunCompleted / RunFailed / RunCancelled, which carries the totals of all

A value that does not fit raises pydantic's ValidationError naming the field, and then nothing was counted or
numbered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pipeline.emit.coerce import python_text
from pipeline.model.errors import PublishError
from pipeline.model.events import (
    Approval,
    Memory,
    Message,
    ModelCall,
    RunCancelled,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunStarted,
    RunTotals,
    Step,
    ToolCall,
    ToolResult,
    ToolStatus,
)

E = TypeVar("E", bound=RunEvent)
T = TypeVar("T", bound=RunTotals)


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who runs: what every event of the run repeats."""

    run_id: str
    agent: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Scope:
    """Where in the run something happens: number of its step, and event_id of what caused it."""

    step: int | None = None
    parent_id: str | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """When and under which id an event is recorded, and where in the run. `now_ms`: milliseconds since the epoch."""

    event_id: str
    now_ms: int
    scope: Scope = field(default_factory=Scope)

    def at(self, scope: Scope) -> Stamp:
        """The same elsewhere in the run."""
        return Stamp(self.event_id, self.now_ms, scope)


class RunJournal:
    """The events of one run, numbered from 0. Not thread-safe."""

    def __init__(self, identity: RunIdentity) -> None:
        self.identity = identity
        self.ended = False
        self._sequence = 0
        self._started_ms = 0
        self._steps = 0
        self._model_calls = 0
        self._tool_calls = 0
        self._input_tokens = 0
        self._output_tokens = 0
        self._cost_usd: float | None = None

    def started(
        self,
        stamp: Stamp,
        input: str | None,  # noqa: A002 - the field's own name
        labels: Mapping[str, str],
        parent_run_id: str | None,
    ) -> RunStarted:
        """The first event."""
        event = RunStarted(**self._base(stamp), input=input, labels=dict(labels), parent_run_id=parent_run_id)
        self._started_ms = stamp.now_ms
        return self._count(event)

    def model_call(
        self, stamp: Stamp, model: str, answer: Mapping[str, Any], cost_usd: float | None = None
    ) -> ModelCall:
        """A model call has ended; `answer` holds the other fields of ModelCall."""
        event = self._count(ModelCall(**self._base(stamp), model=model, **answer))
        self._model_calls += 1
        self._input_tokens += event.input_tokens
        self._output_tokens += event.output_tokens
        if cost_usd is not None:
            self._cost_usd = (self._cost_usd or 0.0) + cost_usd
        return event

    def check_model_call(self, stamp: Stamp, model: str, answer: Mapping[str, Any]) -> None:
        """Raises the ValidationError that `model_call` would."""
        ModelCall(**self._base(stamp), model=model, **answer)

    def tool_call(self, stamp: Stamp, tool: str, call_id: str, arguments: Any) -> ToolCall:
        """A tool is about to run; `arguments` is JSON text or anything JSON can hold."""
        event = ToolCall(**self._base(stamp), tool=tool, call_id=call_id, arguments=json_text(arguments))
        self._tool_calls += 1
        return self._count(event)

    def tool_result(
        self, stamp: Stamp, call: ToolCall, status: ToolStatus, content: str | None, error: str | None, started_ms: int
    ) -> ToolResult:
        """The tool has ended, one way or another."""
        duration_ms = max(0, stamp.now_ms - started_ms)
        base = self._base(stamp) | {"step": call.step, "parent_id": call.event_id}
        return self._count(
            ToolResult(
                **base,
                tool=call.tool,
                call_id=call.call_id,
                status=status,
                content=content,
                error=error,
                duration_ms=duration_ms,
            )
        )

    def step_number(self) -> int:
        """The number that the next step gets."""
        return self._steps

    def step_started(self, stamp: Stamp, name: str, detail: str | None) -> Step:
        """A step begins; it gets the next number."""
        base = self._base(stamp) | {"step": self._steps}
        event = self._count(Step(**base, name=name, status="STARTED", detail=detail))
        self._steps += 1
        return event

    def step_ended(self, stamp: Stamp, begun: Step, error: str | None, skipped: bool) -> Step:
        """A step has ended."""
        base = self._base(stamp) | {"step": begun.step, "parent_id": begun.event_id}
        status: Literal["FAILED", "SKIPPED", "COMPLETED"] = (
            "FAILED" if error is not None else "SKIPPED" if skipped else "COMPLETED"
        )
        duration_ms = max(0, stamp.now_ms - begun.occurred_at)
        return self._count(Step(**base, name=begun.name, status=status, error=error, duration_ms=duration_ms))

    def message(self, stamp: Stamp, role: str, content: str, name: str | None) -> Message:
        """Someone spoke."""
        return self._count(
            Message.model_validate(self._base(stamp) | {"role": role.upper(), "content": content, "name": name})
        )

    def memory(self, stamp: Stamp, operation: str, fields: Mapping[str, Any]) -> Memory:
        """The agent used its memory."""
        return self._count(Memory.model_validate({**self._base(stamp), "operation": operation.upper(), **fields}))

    def approval(self, stamp: Stamp, decision: str, fields: Mapping[str, Any]) -> Approval:
        """A human was asked, or has decided."""
        return self._count(Approval.model_validate({**self._base(stamp), "decision": decision.upper(), **fields}))

    def completed(self, stamp: Stamp, output: str | None) -> RunCompleted:
        """The run ended well."""
        return self._end(RunCompleted(**self._totals(stamp), output=output))

    def failed(self, stamp: Stamp, error_class: str, error_message: str) -> RunFailed:
        """The run ended with an error."""
        return self._end(RunFailed(**self._totals(stamp), error_class=error_class, error_message=error_message))

    def cancelled(self, stamp: Stamp, reason: str | None, cancelled_by: str | None = None) -> RunCancelled:
        """The run was stopped."""
        return self._end(RunCancelled(**self._totals(stamp), reason=reason, cancelled_by=cancelled_by))

    def _base(self, stamp: Stamp) -> dict[str, Any]:
        if self.ended:
            raise PublishError(f"Run {self.identity.run_id} has ended: record inside its `with` block.")
        who, scope = self.identity, stamp.scope
        return {
            "event_id": stamp.event_id,
            "run_id": who.run_id,
            "sequence": self._sequence,
            "occurred_at": stamp.now_ms,
            "agent": who.agent,
            "tenant": who.tenant,
            "parent_id": scope.parent_id,
            "step": scope.step,
        }

    def _totals(self, stamp: Stamp) -> dict[str, Any]:
        return self._base(stamp) | {
            "steps": self._steps,
            "model_calls": self._model_calls,
            "tool_calls": self._tool_calls,
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
            "cost_usd": self._cost_usd,
            "duration_ms": max(0, stamp.now_ms - self._started_ms),
        }

    def _count(self, event: E) -> E:
        self._sequence += 1
        return event

    def _end(self, event: T) -> T:
        self.ended = True
        return self._count(event)


def json_text(value: Any) -> str:
    """A JSON document: `value` itself when it is text that is one, else its JSON (text of other things for
    what JSON can't hold)."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return json.dumps(value)
        return value
    return _dumped({} if value is None else value)


def text_of(value: Any) -> str | None:
    """Text as it is, None as None, anything else as JSON."""
    return value if value is None or isinstance(value, str) else _dumped(value)


def _dumped(value: Any) -> str:
    """What an agent hands to a tool may be anything: to record it must not end the call."""
    try:
        return json.dumps(value, default=str)
    except Exception:
        return json.dumps(python_text(value))
