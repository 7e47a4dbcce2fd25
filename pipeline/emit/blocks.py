"""What happens inside a run for a while: a model call, a tool call, a step. What the agent says of it, and
the events that makes.

A block says what to record when it begins and when it ends; who publishes that, and how, is the recorder's business.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any, Protocol

from pipeline.emit.journal import RunJournal, Scope, Stamp, text_of
from pipeline.model.events import RunEvent, Step, ToolCall, ToolStatus

ERROR_TEXT_MAX = 8_192
_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


def is_cancellation(failure: BaseException) -> bool:
    """Whether the work was stopped from outside, and did not go wrong by itself."""
    return isinstance(failure, _CANCELLED)


def error_text(failure: BaseException) -> str:
    """The message of an exception as text that every event can hold: bounded, and valid UTF-8; its class
    where it has none."""
    try:
        text = str(failure)
    except Exception:  # an exception may fail even at this
        text = ""
    return safe_text(text or type(failure).__name__)


def safe_text(text: str) -> str:
    """At most ERROR_TEXT_MAX characters, lone surrogates replaced."""
    return text[:ERROR_TEXT_MAX].encode("utf-8", "replace").decode()


class Block(Protocol):
    """`begin` may give an event and the scope of what happens inside; `end` gives the closing event."""

    def begin(self, stamp: Stamp) -> tuple[RunEvent | None, Scope]: ...

    def end(self, stamp: Stamp, failure: BaseException | None) -> RunEvent: ...


class ModelCallBlock:
    """One call of a language model; recorded as ModelCall when it ends."""

    def __init__(self, journal: RunJournal, model: str, provider: str | None) -> None:
        self._journal = journal
        self._model = model
        self._answer: dict[str, Any] = {"provider": provider}
        self._cost_usd: float | None = None
        self._begun: Stamp | None = None

    def usage(
        self, *, input_tokens: int | None = None, output_tokens: int | None = None, cost_usd: float | None = None
    ) -> None:
        """Tokens sent and received, and the price in US dollars. Raises ValidationError naming a field that
        does not fit."""
        self._update(input_tokens=input_tokens, output_tokens=output_tokens)
        if cost_usd is not None:
            self._cost_usd = float(cost_usd)

    def answered_by(self, model: str | None, provider: str | None = None) -> None:
        """The model and its provider, where only the answer names them. Raises ValidationError."""
        self._update(provider=provider)
        self._model = model or self._model

    def answer(self, content: str | None = None, *, finish_reason: str | None = None) -> None:
        """The text of the answer, when it is to be recorded, and why the model stopped. Raises ValidationError."""
        self._update(content=content, finish_reason=finish_reason)

    def error(self, message: str) -> None:
        """The call failed, though nothing was raised."""
        self._update(error=message)

    def begin(self, stamp: Stamp) -> tuple[RunEvent | None, Scope]:
        self._begun = stamp
        self._journal.check_model_call(stamp, self._model, self._answer)
        return None, stamp.scope

    def end(self, stamp: Stamp, failure: BaseException | None) -> RunEvent:
        began = self._begun or stamp
        fields = {**self._answer, "duration_ms": max(0, stamp.now_ms - began.now_ms)}
        if failure is not None:
            fields["error"] = f"{type(failure).__name__}: {error_text(failure)}"
        return self._journal.model_call(stamp.at(began.scope), self._model, fields, self._cost_usd)

    def _update(self, **fields: Any) -> None:
        candidate = self._answer | {name: value for name, value in fields.items() if value is not None}
        if self._begun is not None:
            self._journal.check_model_call(self._begun, self._model, candidate)
        self._answer = candidate


class ToolCallBlock:
    """One call of a tool; recorded as ToolCall when it begins and as ToolResult when it ends."""

    def __init__(self, journal: RunJournal, tool: str, arguments: Any, call_id: str) -> None:
        self._journal = journal
        self._tool = tool
        self._arguments = arguments
        self._call: ToolCall | None = None
        self._content: str | None = None
        self._error: str | None = None
        self._status: ToolStatus = "OK"
        self.call_id = call_id

    def result(self, content: Any) -> None:
        """What the tool returned: text, or anything JSON can hold."""
        self._content = text_of(content)

    def error(self, message: str, *, timed_out: bool = False) -> None:
        """The tool failed, though nothing was raised."""
        self._error, self._status = safe_text(message), "TIMEOUT" if timed_out else "ERROR"

    def begin(self, stamp: Stamp) -> tuple[RunEvent | None, Scope]:
        self._call = self._journal.tool_call(stamp, self._tool, self.call_id, self._arguments)
        return self._call, Scope(stamp.scope.step, self._call.event_id)

    def end(self, stamp: Stamp, failure: BaseException | None) -> RunEvent:
        assert self._call is not None
        if failure is not None:
            self._error = f"{type(failure).__name__}: {error_text(failure)}"
            self._status = (
                "CANCELLED" if is_cancellation(failure) else "TIMEOUT" if isinstance(failure, TimeoutError) else "ERROR"
            )
        return self._journal.tool_result(
            stamp, self._call, self._status, self._content, self._error, self._call.occurred_at
        )


class StepBlock:
    """One step of the agent's loop or plan; recorded as Step when it begins and when it ends."""

    def __init__(self, journal: RunJournal, name: str, detail: str | None) -> None:
        self._journal = journal
        self._name = name
        self._detail = detail
        self._begun: Step | None = None
        self._skipped = False

    def skip(self) -> None:
        """There was nothing to do."""
        self._skipped = True

    def begin(self, stamp: Stamp) -> tuple[RunEvent | None, Scope]:
        self._begun = self._journal.step_started(stamp, self._name, self._detail)
        return self._begun, Scope(self._begun.step, self._begun.event_id)

    def end(self, stamp: Stamp, failure: BaseException | None) -> RunEvent:
        assert self._begun is not None
        error = None if failure is None else f"{type(failure).__name__}: {error_text(failure)}"
        return self._journal.step_ended(stamp, self._begun, error, self._skipped)


class RunBlock:
    """The run itself: RunStarted, and at the end what became of it."""

    def __init__(self, journal: RunJournal, started: dict[str, Any]) -> None:
        self._journal = journal
        self._started = started
        self._inside = Scope()
        self._output: str | None = None
        self._failure: tuple[str, str] | None = None
        self._cancelled: tuple[str | None, str | None] | None = None

    def output(self, content: Any) -> None:
        """What the run comes to: text, or anything JSON can hold."""
        self._output = text_of(content)

    def fail(self, error_class: str, message: str = "") -> None:
        """The run failed, though nothing will be raised."""
        self._failure = (safe_text(error_class), safe_text(message))

    def cancel(self, reason: str | None = None, cancelled_by: str | None = None) -> None:
        """The run was stopped, though nothing will be raised."""
        self._cancelled = (reason, cancelled_by)

    def begin(self, stamp: Stamp) -> tuple[RunEvent | None, Scope]:
        event = self._journal.started(stamp, **self._started)
        self._inside = Scope(None, event.event_id)
        return event, self._inside

    def end(self, stamp: Stamp, failure: BaseException | None) -> RunEvent:
        stamp = stamp.at(self._inside)
        if failure is not None and is_cancellation(failure):
            return self._journal.cancelled(stamp, f"{type(failure).__name__}: {error_text(failure)}")
        if failure is not None:
            return self._journal.failed(stamp, type(failure).__name__, error_text(failure))
        if self._cancelled is not None:
            return self._journal.cancelled(stamp, *self._cancelled)
        if self._failure is not None:
            return self._journal.failed(stamp, *self._failure)
        return self._journal.completed(stamp, self._output)
