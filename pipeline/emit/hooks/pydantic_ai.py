"""pydantic-ai's own hooks: a capability that records every run of the agents that have it.

    recording = PydanticAIHooks(recorder, HookOptions(tenant="acme"))
    agent = Agent("openai:gpt-large", name="support", capabilities=[recording])

A capability wraps runs, model requests and tool calls, so ends, errors and cancellations are seen where they happen;
an agent that another one's tool runs is a run of its own with the other as its parent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pipeline.emit.blocks import ModelCallBlock
from pipeline.emit.hooks.watch import HookOptions, HookStats, RunSource, RunWatch
from pipeline.emit.run_core import enter_scope, leave_scope
from pipeline.emit.run_detached import DetachedRun
from pipeline.model.errors import ConfigurationError

try:
    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
    from pydantic_ai.exceptions import ApprovalRequired, CallDeferred
    from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart
    from pydantic_ai.models import ModelRequestContext
    from pydantic_ai.run import AgentRunResult
    from pydantic_ai.tools import ToolDefinition
except ImportError as missing:
    raise ConfigurationError(
        "pydantic-ai (2.68 or newer) can't be imported: pip install 'agent-run-pipeline[pydantic-ai]'."
    ) from missing


@dataclass
class _Recorded:
    """The run that the code is in. `calls`: how many model requests there have been."""

    run: DetachedRun
    run_id: str | None
    calls: int = 0


_recorded: ContextVar[_Recorded | None] = ContextVar("pipeline_pydantic_ai_run", default=None)


class PydanticAIHooks(AbstractCapability[Any]):
    """One object for any number of agents and of runs at the same time."""

    def __init__(self, recorder: RunSource, options: HookOptions | None = None) -> None:
        self._watch = RunWatch("pydantic-ai", recorder, options or HookOptions())

    def stats(self) -> HookStats:
        """Counts as of now."""
        return self._watch.stats()

    def get_ordering(self) -> CapabilityOrdering | None:
        """Around all others: what they change and recover is recorded as it came out."""
        return CapabilityOrdering(position="outermost")

    async def wrap_run(self, ctx: RunContext[Any], *, handler: Any) -> AgentRunResult[Any]:
        run = None
        with self._watch.guard:
            name = (ctx.agent.name if ctx.agent is not None else None) or "agent"
            run = self._watch.open(name, _prompt_text(ctx.prompt), run_id=ctx.run_id)
        if run is None:
            return await handler()  # type: ignore[no-any-return]
        outer = _recorded.get()
        _recorded.set(_Recorded(run, ctx.run_id))
        active = enter_scope(*run.scope_of(None))
        try:
            result: AgentRunResult[Any] = await handler()
        except BaseException as failure:
            with self._watch.guard:
                self._watch.close(run, failure)
            raise
        else:
            with self._watch.guard:
                run.output(self._watch.text(result.output))
            with self._watch.guard:
                self._watch.close(run)
            return result
        finally:
            _recorded.set(outer)  # not by tokens: a run that is iterated may end in another context
            leave_scope(active)

    async def wrap_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, handler: Any
    ) -> ModelResponse:
        recorded = self._here(ctx)
        if recorded is None:
            return await handler(request_context)  # type: ignore[no-any-return]
        run, key, block = recorded.run, object(), None
        with self._watch.guard:
            recorded.calls += 1
            if recorded.calls == 1:
                with self._watch.guard:
                    self._watch.say(run, [said for message in request_context.messages for said in _said(message)])
            model = request_context.model
            block = run.model_call(key, model.model_name, provider=model.system)
        try:
            response: ModelResponse = await handler(request_context)
        except BaseException as failure:
            with self._watch.guard:
                run.end(key, failure)
            raise
        if block is not None:
            with self._watch.guard:
                self._answer(block, response)
            with self._watch.guard:
                run.end(key)
        return response

    async def wrap_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: Any, handler: Any
    ) -> Any:
        recorded = self._here(ctx)
        if recorded is None:
            return await handler(args)
        run, key, block, active = recorded.run, object(), None, None
        with self._watch.guard:
            block = run.tool_call(key, call.tool_name, self._watch.arguments(args), call_id=call.tool_call_id)
            active = enter_scope(*run.scope_of(key))
        try:
            result = await handler(args)
        except (ApprovalRequired, CallDeferred) as deferral:
            with self._watch.guard:
                if isinstance(deferral, ApprovalRequired):
                    run.approval("requested", call.tool_call_id, call.tool_name, under=key)
                run.end(key, asyncio.CancelledError("put off until it is decided elsewhere"))
            raise
        except BaseException as failure:
            with self._watch.guard:
                run.end(key, failure)
            raise
        finally:
            if active is not None:
                leave_scope(active)
        if block is not None:
            with self._watch.guard:
                block.result(self._watch.text(result))
            with self._watch.guard:
                run.end(key)
        return result

    def _here(self, ctx: RunContext[Any]) -> _Recorded | None:
        """The run that this hook call is about: none where its beginning was not recorded."""
        recorded = _recorded.get()
        if recorded is not None and recorded.run_id == ctx.run_id:
            return recorded
        return None

    def _answer(self, block: ModelCallBlock, response: ModelResponse) -> None:
        block.answered_by(response.model_name, response.provider_name)
        block.usage(input_tokens=response.usage.input_tokens, output_tokens=response.usage.output_tokens)
        texts = [part.content for part in response.parts if isinstance(part, TextPart)]
        block.answer(self._watch.text("".join(texts)) or None, finish_reason=response.finish_reason)


def _said(message: ModelMessage) -> list[tuple[str, str]]:
    """(role, text) of what a message holds that people say; an answer as ("assistant", "")."""
    if not isinstance(message, ModelRequest):
        return [("assistant", "")]
    found = [("system", message.instructions)] if message.instructions else []
    for part in message.parts:
        if part.part_kind == "system-prompt":
            found.append(("system", part.content))
        elif isinstance(part, UserPromptPart):
            found.append(("user", _prompt_text(part.content) or ""))
    return found


def _prompt_text(prompt: Any) -> str | None:
    """The text of a prompt that may hold pictures and files as well, which are named and left out."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    parts = prompt if isinstance(prompt, Sequence) else [prompt]
    return "\n".join(
        part if isinstance(part, str) else getattr(part, "content", None) or f"<{getattr(part, 'kind', 'part')}>"
        for part in parts
    )
