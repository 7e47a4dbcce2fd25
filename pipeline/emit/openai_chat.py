"""Chat transcripts as run events: one run in OpenAI chat format -> the events that its agent would have
recorded. Pure.

    system / developer / user message -> Message      assistant message -> ModelCall, and a ToolCall per call in it
    tool / function message -> ToolResult             reward -> RunCompleted (1.0 or none given) or RunFailed

Formats vary, so it takes what it can and says what it left out, as data. The same transcript always gives
the same run id,
event ids and times: importing twice makes duplicates that consumers can tell, never new events.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipeline.emit.coerce import TIME_MAX_MS, as_count, as_json, as_text, clean, content_text, time_of
from pipeline.model.events import (
    Message,
    ModelCall,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunStarted,
    ToolCall,
    ToolResult,
)

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pipeline.agent.run/transcripts")
BASE_MS = 1_704_067_200_000
"""2024-01-01: where runs without times of their own begin."""
STEP_MS = 1_000
"""Between two messages without times."""
SUCCESS = 1.0
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MESSAGE_ROLES = {"system": "SYSTEM", "developer": "DEVELOPER", "user": "USER", "human": "USER"}
_ASSISTANT_ROLES = frozenset({"assistant", "ai", "model"})
_TOOL_ROLES = frozenset({"tool", "function", "ipython"})


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that did not become an event, or not all of it: line of the file (from 1), path in the line,
    and why."""

    line: int
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a transcript does not say. `source`: part of every run id; `base_ms`: milliseconds since the epoch."""

    source: str
    agent: str | None = None
    tenant: str = "default"
    model: str = "unknown"
    base_ms: int = BASE_MS


@dataclass(frozen=True, slots=True)
class ImportedRun:
    """The events of one transcript in order, and what was left out. `events` is empty when nothing could be used."""

    run_id: str
    events: tuple[RunEvent, ...]
    skipped: tuple[Skipped, ...]


@dataclass(slots=True)
class _Call:
    tool: str
    call_id: str
    event_id: str
    at_ms: int


@dataclass(slots=True)
class _Totals:
    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    last_text: str | None = None
    first_user: str | None = None
    error: str | None = None
    open_calls: deque[_Call] = field(default_factory=deque)


def import_run(transcript: object, options: ImportOptions, line: int = 1, occurrence: int = 1) -> ImportedRun:
    """The events of one transcript: `{messages, reward?, task_id?, trial?, ...}`, or the bare list of
    messages. Never raises on any JSON.

    `occurrence`: the how-manieth transcript of this source with the same identity; its number becomes part
    of the run id.
    """
    record: Mapping[str, Any] = transcript if isinstance(transcript, Mapping) else {"messages": transcript}
    messages = _messages(record)
    run_id = run_id_of(record, options.source)
    if occurrence > 1:
        run_id = f"{run_id}-{occurrence}"
    if messages is None:
        return ImportedRun(run_id, (), (Skipped(line, "messages", "there is no list of messages"),))
    builder = _Builder(run_id, record, options, line)
    builder.start()
    for index, message in enumerate(messages):
        builder.message(index, message)
    builder.finish()
    return ImportedRun(run_id, tuple(builder.events), tuple(builder.skipped))


def run_id_of(record: Mapping[str, Any], source: str) -> str:
    """`source-task_id-trial` where they are plain words, else a UUID of them; without a task id, of the content."""
    given = record.get("run_id")
    if isinstance(given, str) and _PLAIN.fullmatch(given):
        return given
    task, trial = record.get("task_id"), record.get("trial")
    if task is None:
        return str(uuid.uuid5(NAMESPACE, f"{source}\n{content_hash(record)}"))
    parts = [clean(source), as_text(task) or "", as_text(trial) if trial is not None else None]
    words = [part for part in parts if part is not None]
    if all(_PLAIN.fullmatch(word) for word in words):
        return "-".join(words)
    return str(uuid.uuid5(NAMESPACE, as_json(words)))


def content_hash(record: object) -> str:
    """Of everything in it."""
    return hashlib.sha256(as_json(record).encode()).hexdigest()


class _Builder:
    """Walks one transcript. Everything that is not understood is noted and passed by."""

    def __init__(self, run_id: str, record: Mapping[str, Any], options: ImportOptions, line: int) -> None:
        self.events: list[RunEvent] = []
        self.skipped: list[Skipped] = []
        self._run_id = run_id
        self._record = record
        self._options = options
        self._line = line
        self._agent = as_text(record.get("agent")) or options.agent or options.source
        self._tenant = as_text(record.get("tenant")) or options.tenant
        self._now_ms = self._first_ms = time_of(record) or options.base_ms
        self._totals = _Totals()

    def start(self) -> None:
        record, labels = self._record, {"source": clean(self._options.source)}
        for name in ("task_id", "trial"):
            if record.get(name) is not None:
                labels[name] = (as_text(record[name]) or "")[:200]
        messages: list[Any] = _messages(record) or []
        first = next((m for m in messages if isinstance(m, Mapping) and _role(m) == "user"), None)
        self._add(RunStarted, "", input=content_text(first.get("content"))[0] if first else None, labels=labels)

    def message(self, index: int, message: object) -> None:
        path = f"messages[{index}]"
        if not isinstance(message, Mapping):
            self._skip(path, f"a message must be an object, this is {type(message).__name__}")
            return
        given = time_of(message)
        self._now_ms = max(self._now_ms, given) if given is not None else min(self._now_ms + STEP_MS, TIME_MAX_MS)
        role = _role(message)
        text, others = content_text(message.get("content"))
        for kind in others:
            self._skip(f"{path}.content", f"a part of type {kind} holds no text")
        if role in _MESSAGE_ROLES:
            name = message.get("name")
            self._add(Message, path, role=_MESSAGE_ROLES[role], content=text or "", name=as_text(name))
        elif role in _ASSISTANT_ROLES:
            self._assistant(path, message, text)
        elif role in _TOOL_ROLES:
            self._tool(path, message, text)
        else:
            self._skip(f"{path}.role", f"role {clean(str(message.get('role')))[:40]!r} is not known")

    def finish(self) -> None:
        reward = self._record.get("reward")
        if reward is not None and not isinstance(reward, (int, float)):
            self._skip("reward", f"a reward must be a number, this is {type(reward).__name__}")
        totals = self._totals
        fields: dict[str, Any] = {
            "model_calls": totals.model_calls,
            "tool_calls": totals.tool_calls,
            "input_tokens": totals.input_tokens,
            "output_tokens": totals.output_tokens,
            "duration_ms": max(0, self._now_ms - self._first_ms),
        }
        if isinstance(reward, (int, float)) and not reward >= SUCCESS:
            message = f"reward {reward} is below {SUCCESS}"
            self._add(RunFailed, "reward", error_class="Reward", error_message=message, **fields)
        else:
            self._add(RunCompleted, "reward", output=totals.last_text, **fields)

    def _assistant(self, path: str, message: Mapping[str, Any], text: str | None) -> None:
        usage = message.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}
        reason = message.get("finish_reason")
        call = self._add(
            ModelCall,
            path,
            model=as_text(message.get("model")) or as_text(self._record.get("model")) or self._options.model,
            input_tokens=as_count(usage.get("prompt_tokens", usage.get("input_tokens"))),
            output_tokens=as_count(usage.get("completion_tokens", usage.get("output_tokens"))),
            finish_reason=as_text(reason),
            content=text,
        )
        if isinstance(call, ModelCall):
            self._totals.model_calls += 1
            self._totals.input_tokens = as_count(self._totals.input_tokens + call.input_tokens)
            self._totals.output_tokens = as_count(self._totals.output_tokens + call.output_tokens)
            self._totals.last_text = text or self._totals.last_text
        parent = call.event_id if call else None
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            self._skip(f"{path}.tool_calls", "tool calls must be a list")
            calls = None
        for index, item in enumerate(calls or ()):
            self._tool_call(f"{path}.tool_calls[{index}]", item, parent)
        legacy = message.get("function_call")
        if legacy is not None and not calls:
            self._tool_call(f"{path}.function_call", {"function": legacy}, parent)

    def _tool_call(self, path: str, item: object, parent: str | None) -> None:
        function = item.get("function", item) if isinstance(item, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(item, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            self._skip(path, "a tool call needs a function with a name")
            return
        given = item.get("id")
        call_id = clean(given) if isinstance(given, str) and given else self._id(path)
        arguments = function.get("arguments", function.get("input"))
        event = self._add(
            ToolCall, path, tool=clean(name), call_id=call_id, arguments=_arguments(arguments), parent_id=parent
        )
        if event is not None:
            self._totals.tool_calls += 1
            self._totals.open_calls.append(_Call(clean(name), call_id, event.event_id, self._now_ms))

    def _tool(self, path: str, message: Mapping[str, Any], text: str | None) -> None:
        call = self._answered(message)
        name = as_text(message.get("name"))
        if call is None:
            self._skip(f"{path}.tool_call_id", "no open tool call matches this result; it is kept without one")
            given = as_text(message.get("tool_call_id"))
            call = _Call(name or "unknown", given or self._id(path), "", self._now_ms)
        error = text if message.get("is_error") is True or (text or "").startswith("Error:") else None
        self._add(
            ToolResult,
            path,
            tool=call.tool,
            call_id=call.call_id,
            status="OK" if error is None else "ERROR",
            content=text,
            error=error,
            duration_ms=max(0, self._now_ms - call.at_ms),
            parent_id=call.event_id or None,
        )

    def _answered(self, message: Mapping[str, Any]) -> _Call | None:
        """The open call this answers: by id; without one by name, else the oldest."""
        waiting, wanted, name = self._totals.open_calls, message.get("tool_call_id"), message.get("name")
        if isinstance(wanted, str) and wanted:
            found = next((call for call in waiting if call.call_id == clean(wanted)), None)
        else:
            found = (
                next((call for call in waiting if call.tool == name), None) if isinstance(name, str) and name else None
            )
            found = found or (waiting[0] if waiting else None)
        if found is not None:
            waiting.remove(found)
        return found

    def _id(self, path: str) -> str:
        return str(uuid.uuid5(NAMESPACE, f"{self._run_id}\n{path}"))

    def _add(self, kind: type[RunEvent], path: str, **fields: Any) -> RunEvent | None:
        base: dict[str, Any] = {
            "event_id": str(uuid.uuid5(NAMESPACE, f"{self._run_id}\n{kind.__name__}\n{path}")),
            "run_id": self._run_id,
            "sequence": len(self.events),
            "occurred_at": self._now_ms,
            "agent": self._agent,
            "tenant": self._tenant,
        }
        try:
            event = kind(**(base | fields))
        except ValidationError as error:
            first = error.errors()[0]
            self._skip(path, f"{kind.__name__}.{'.'.join(map(str, first['loc']))}: {first['msg']}")
            return None
        self.events.append(event)
        return event

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(self._line, path, reason))


def _messages(record: Mapping[str, Any]) -> list[Any] | None:
    return next(
        (record[name] for name in ("messages", "traj", "conversation") if isinstance(record.get(name), list)), None
    )


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    return role.lower() if isinstance(role, str) else ""


def _arguments(value: Any) -> str:
    """One JSON document: JSON text as it is, other text as a JSON string, anything else as its JSON."""
    if value is None or value == "":
        return "{}"
    if not isinstance(value, str):
        return as_json(value)
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return as_json(value)
    return clean(value)
