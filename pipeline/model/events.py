"""The run events as Python values: one frozen pydantic class per contract in `schemas/`.

The `.avsc` files are the contract for every language; a test holds these classes to them, both ways.
Building a value checks it (an unknown or missing field is a `ValidationError` that names the field);
reading one that came through the codec does not check it again, since its schema already has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.model.errors import ConfigurationError
from pipeline.model.instants import epoch_ms_of
from pipeline.model.scrubbing import PII, SECRET, Tag

NAMESPACE = "agent.run"

_LONG_MAX = 2**63 - 1


def epoch_ms(value: object) -> object:
    """Milliseconds since the epoch from an aware `datetime` or ISO 8601 text; anything else unchanged.

    Raises ValueError for a time without a zone: it would mean something else on every machine.
    """
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("needs a time zone, such as 2026-01-31T12:00:00Z")
        return epoch_ms_of(value)
    return value


Long = Annotated[int, Field(ge=-_LONG_MAX - 1, le=_LONG_MAX)]
Count = Annotated[int, Field(ge=0, le=_LONG_MAX)]
Name = Annotated[str, Field(min_length=1)]
Timestamp = Annotated[int, Field(ge=0, le=_LONG_MAX), BeforeValidator(epoch_ms)]
Personal = Annotated[str, Tag(PII)]
PersonalOrNone = Annotated[str | None, Tag(PII)]
"""May hold personal data: tagged `pii` in the contract too."""

ToolStatus = Literal["UNKNOWN", "OK", "ERROR", "TIMEOUT", "CANCELLED"]
StepStatus = Literal["UNKNOWN", "STARTED", "COMPLETED", "FAILED", "SKIPPED"]
MemoryOperation = Literal["UNKNOWN", "READ", "SEARCH", "WRITE", "DELETE"]
ApprovalDecision = Literal["UNKNOWN", "REQUESTED", "APPROVED", "REJECTED", "EXPIRED"]
MessageRole = Literal["UNKNOWN", "SYSTEM", "DEVELOPER", "USER", "ASSISTANT", "TOOL"]
RunState = Literal["UNKNOWN", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]


class TypedValue(BaseModel):
    """A value with an Avro contract of its own; `record_name` is the contract's full name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record_name: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "record_name" not in cls.__dict__:
            cls.record_name = f"{NAMESPACE}.{cls.__name__}"

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Build from what a newer writer may have sent: fields unknown here are left out, not refused."""
        return cls.model_validate(fields, extra="ignore")


class RunEvent(TypedValue):
    """What every event of an agent run carries.

    `occurred_at` is an int, milliseconds since the epoch (a `datetime` or ISO text is taken when building):
    making a `datetime` of it for each record would cost a fifth of the decoding; `occurred` gives it on
    demand.
    """

    event_id: Name
    run_id: Name
    sequence: Count
    occurred_at: Timestamp
    agent: str
    tenant: str
    parent_id: str | None = None
    step: Long | None = None

    @property
    def occurred(self) -> datetime:
        """`occurred_at` as an aware UTC `datetime`."""
        return datetime.fromtimestamp(self.occurred_at / 1_000, UTC)


class RunTotals(RunEvent):
    """What the last event of a run says of the whole run."""

    steps: Count = 0
    model_calls: Count = 0
    tool_calls: Count = 0
    input_tokens: Count = 0
    output_tokens: Count = 0
    cost_usd: float | None = None
    duration_ms: Count = 0


class RunStarted(RunEvent):
    """An agent run began; the first event of a run."""

    input: PersonalOrNone = None
    parent_run_id: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class ModelCall(RunEvent):
    """A call of a language model ended."""

    model: str
    provider: str | None = None
    input_tokens: Count = 0
    output_tokens: Count = 0
    duration_ms: Count = 0
    finish_reason: str | None = None
    error: PersonalOrNone = None
    content: PersonalOrNone = None


class ToolCall(RunEvent):
    """The agent called a tool; `arguments` is one JSON document as text, `{}` when there are none."""

    tool: str
    call_id: str
    arguments: Annotated[str, Tag(SECRET, json=True), Tag(PII, json=True)]


class ToolResult(RunEvent):
    """A tool call ended; `call_id` ties it to its `ToolCall`."""

    tool: str
    call_id: str
    status: ToolStatus = "UNKNOWN"
    content: Annotated[str | None, Tag(SECRET), Tag(PII)] = None
    error: PersonalOrNone = None
    duration_ms: Count = 0


class Step(RunEvent):
    """A step of the agent's loop or plan changed its state."""

    name: str
    status: StepStatus = "UNKNOWN"
    detail: PersonalOrNone = None
    error: PersonalOrNone = None
    duration_ms: Count = 0


class Memory(RunEvent):
    """The agent read or changed its memory."""

    operation: MemoryOperation = "UNKNOWN"
    store: str
    memory_key: str | None = None
    content: PersonalOrNone = None
    items: Count = 0


class Approval(RunEvent):
    """A human approval was asked for or decided."""

    approval_id: str
    decision: ApprovalDecision = "UNKNOWN"
    subject: Personal
    approver: PersonalOrNone = None
    comment: PersonalOrNone = None


class Message(RunEvent):
    """A message of the conversation."""

    role: MessageRole = "UNKNOWN"
    content: Personal
    name: PersonalOrNone = None


class RunCompleted(RunTotals):
    """An agent run ended well; the last event of a run."""

    output: PersonalOrNone = None


class RunFailed(RunTotals):
    """An agent run ended with an error; the last event of a run."""

    error_class: str
    error_message: Personal = ""


class RunCancelled(RunTotals):
    """An agent run was stopped before its end; the last event of a run."""

    reason: PersonalOrNone = None
    cancelled_by: PersonalOrNone = None


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """A record whose type this build has no class for: a policy decides whether to skip or dead-letter it.

    `fields` is the decoded record in the writer's own shape.
    """

    record_name: str
    fields: Mapping[str, Any]


EVENT_TYPES: Mapping[str, type[RunEvent]] = MappingProxyType(
    {
        kind.record_name: kind
        for kind in (
            RunStarted,
            ModelCall,
            ToolCall,
            ToolResult,
            Step,
            Memory,
            Approval,
            Message,
            RunCompleted,
            RunFailed,
            RunCancelled,
        )
    }
)
"""Every run event by the full name of its record, such as `agent.run.ModelCall`."""


def event_type(name: str) -> type[RunEvent]:
    """The class of a run event, by full name or by the last part of it.

    Raises ConfigurationError that lists the names when there is none.
    """
    kind = EVENT_TYPES.get(name) or EVENT_TYPES.get(f"{NAMESPACE}.{name}")
    if kind is None:
        known = ", ".join(known.__name__ for known in EVENT_TYPES.values())
        raise ConfigurationError(f"Event type {name!r} is not known; use one of {known}.")
    return kind
