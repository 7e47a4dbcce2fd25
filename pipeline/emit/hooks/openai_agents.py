"""The OpenAI Agents SDK's own hooks: `RunHooks` that record what happens inside `with hooks.run()`.

    hooks = OpenAIAgentsHooks(recorder, HookOptions(tenant="acme"))
    async with hooks.run():
        result = await Runner.run(agent, "Where is my refund?", hooks=hooks)

The SDK tells its hooks of no failure and no cancellation: the `with` sees them, and tells runs apart. Each agent of a
run is a step, so a hand-off is the next step, caused by the one before; an agent used as a tool (`as_tool(hooks=hooks)`)
is a step inside that tool call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from pipeline.emit.blocks import ModelCallBlock, ToolCallBlock
from pipeline.emit.coerce import content_text
from pipeline.emit.hooks.watch import HookOptions, HookStats, RunSource, RunWatch, plain
from pipeline.emit.run_detached import DetachedRun, Unfinished
from pipeline.model.errors import ConfigurationError

try:
    from agents import Agent, ModelResponse, RunContextWrapper, RunHooks, Tool
    from agents.models.default_models import get_default_model
    from agents.tool_context import ToolContext
except ImportError as missing:
    raise ConfigurationError(
        "The OpenAI Agents SDK (0.24 or newer) can't be imported: pip install 'agent-run-pipeline[openai-agents]'."
    ) from missing


@dataclass
class _AtWork:
    """One line of agents, one after the other: that of the run, or that inside a tool call."""

    agent: Any
    step: Hashable
    around: Hashable | None
    model_call: tuple[Hashable, ModelCallBlock] | None = None


@dataclass
class _Recorded:
    """A run inside `with hooks.run()`. `usage`: the SDK's object that all of it shares, by which other runs are told."""

    name: str | None
    given: Any
    run: DetachedRun | None = None
    usage: Any = None
    output: Any = None
    completed: bool = False
    lines: dict[Hashable, _AtWork] = field(default_factory=dict)
    tools: dict[Hashable, ToolCallBlock] = field(default_factory=dict)
    asked: dict[str, Hashable | None] = field(default_factory=dict)
    """The line whose model asked for a tool call, by call id."""


_recorded: ContextVar[_Recorded | None] = ContextVar("pipeline_openai_agents_run", default=None)


class _RunBlock:
    """`with` or `async with`, around `Runner.run`, `run_sync` or `run_streamed` with all that is read of its stream."""

    def __init__(self, hooks: OpenAIAgentsHooks, recorded: _Recorded) -> None:
        self._hooks = hooks
        self._recorded = recorded
        self._outer: _Recorded | None = None

    @property
    def run_id(self) -> str | None:
        """The run's id, once its first agent works."""
        return self._recorded.run.run_id if self._recorded.run is not None else None

    def __enter__(self) -> _RunBlock:
        self._outer = _recorded.get()
        _recorded.set(self._recorded)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, failure: BaseException | None, _trace: TracebackType | None
    ) -> None:
        _recorded.set(self._outer)
        self._hooks._close(self._recorded, failure)

    async def __aenter__(self) -> _RunBlock:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, failure, trace)


class OpenAIAgentsHooks(RunHooks[Any]):
    """One object for any number of runs at the same time."""

    def __init__(self, recorder: RunSource, options: HookOptions | None = None) -> None:
        self._watch = RunWatch("OpenAI Agents SDK", recorder, options or HookOptions())

    def run(self, *, agent: str | None = None, input: Any = None) -> _RunBlock:  # noqa: A002 - the field's own name
        """Around one run. Its name and input are those of its first agent, unless given."""
        return _RunBlock(self, _Recorded(agent, input))

    def stats(self) -> HookStats:
        """Counts as of now."""
        return self._watch.stats()

    # -- called by the SDK

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        with self._watch.guard:
            recorded = self._here()
            if recorded is not None and recorded.run is None:
                self._begin(recorded, context.usage, agent, recorded.given or _input_text(context.turn_input))

    async def on_llm_start(
        self, context: RunContextWrapper[Any], agent: Agent[Any], system_prompt: str | None, input_items: list[Any]
    ) -> None:
        with self._watch.guard:
            recorded = self._here()
            if recorded is None:
                return
            first = not recorded.lines
            run = recorded.run or self._begin(recorded, context.usage, agent, recorded.given)
            line = self._line(recorded, run, context, agent)
            if first:
                said = [("system", system_prompt)] if system_prompt else []
                with self._watch.guard:
                    self._watch.say(run, [*said, *map(_said, input_items)], line.step)
            key = object()
            line.model_call = key, run.model_call(key, _model_of(agent), under=line.step)

    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse) -> None:
        with self._watch.guard:
            recorded = self._here()
            if recorded is None or recorded.run is None:
                return
            line_key = self._line_key(recorded, context)
            line = recorded.lines.get(line_key)
            if line is None or line.model_call is None:
                return
            for item in response.output:
                recorded.asked[str(getattr(item, "call_id", None))] = line_key
            (key, block), line.model_call = line.model_call, None
            with self._watch.guard:
                block.usage(input_tokens=response.usage.input_tokens, output_tokens=response.usage.output_tokens)
                block.answer(self._watch.text(_answer_text(response.output)) or None)
            recorded.run.end(key)

    async def on_tool_start(self, context: Any, agent: Any, tool: Tool) -> None:
        with self._watch.guard:
            recorded = self._here()
            if recorded is None or recorded.run is None:
                return
            told = isinstance(context, ToolContext)
            key = _tool_key(context, tool)
            line = recorded.lines.get(recorded.asked.get(context.tool_call_id) if told else None)
            recorded.tools[key] = recorded.run.tool_call(
                key,
                context.tool_name if told else tool.name,
                self._watch.arguments(context.tool_arguments if told else None),
                call_id=context.tool_call_id if told else None,
                under=line.step if line is not None else None,
            )

    async def on_tool_end(self, context: Any, agent: Any, tool: Tool, result: object) -> None:
        with self._watch.guard:
            recorded = self._here()
            if recorded is None or recorded.run is None:
                return
            key = _tool_key(context, tool)
            block = recorded.tools.pop(key, None)
            inside = recorded.lines.pop(key, None)
            if inside is not None:
                unfinished = Unfinished("its end was not told") if inside.model_call is not None else None
                recorded.run.end(inside.step, unfinished)
            if block is not None:
                with self._watch.guard:
                    block.result(self._watch.text(result))
                recorded.run.end(key)

    async def on_handoff(self, context: RunContextWrapper[Any], from_agent: Any, to_agent: Any) -> None:
        """The next agent's step begins with its first model call."""

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        with self._watch.guard:
            recorded = self._here()
            if recorded is None or recorded.run is None:
                return
            line = recorded.lines.get(None)
            if context.usage is recorded.usage and (line is None or line.agent is agent):
                recorded.output, recorded.completed = output, True
                if line is not None:
                    recorded.run.end(line.step)

    # -- of one run

    def _here(self) -> _Recorded | None:
        recorded = _recorded.get()
        if recorded is None:
            self._watch.stray(
                "hooks were called outside `with hooks.run()`, and nothing was recorded: put the run in it"
            )
        return recorded

    def _begin(self, recorded: _Recorded, usage: Any, agent: Any, given: Any) -> DetachedRun:
        recorded.run = self._watch.open(recorded.name or agent.name, given)
        recorded.usage = usage
        return recorded.run

    def _line_key(self, recorded: _Recorded, context: Any) -> Hashable | None:
        """None for the run's own agents; else what the agent works in: the tool call, or a run of its own."""
        if isinstance(context, ToolContext) and context.tool_call_id in recorded.tools:
            return str(context.tool_call_id)
        if context.usage is not recorded.usage:
            return id(context.usage)
        return None

    def _line(self, recorded: _Recorded, run: DetachedRun, context: Any, agent: Any) -> _AtWork:
        """Where the agent is at work; its step begins when it was another's turn before."""
        key = self._line_key(recorded, context)
        line = recorded.lines.get(key)
        if line is not None and line.agent is agent and run.is_open(line.step):
            return line
        around, cause = key if key in recorded.tools else None, None
        if line is not None:  # a hand-off
            around, cause = line.around, run.scope_of(line.step)[1].parent_id
            run.end(line.step)
        elif key is not None and around is None and len(recorded.tools) == 1:
            around = next(iter(recorded.tools))
        step = object()
        run.step(step, agent.name, under=around, caused_by=cause)
        line = recorded.lines[key] = _AtWork(agent, step, around)
        return line

    def _close(self, recorded: _Recorded, failure: BaseException | None) -> None:
        with self._watch.guard:
            if recorded.run is None:
                if failure is None:
                    return
                recorded.run = self._watch.open(recorded.name or "agent", recorded.given)
            if failure is None and recorded.completed:
                with self._watch.guard:
                    recorded.run.output(self._watch.text(recorded.output))
            elif failure is None:
                reason = "it ended without a final output: its stream was left, or it waits for an approval"
                failure = asyncio.CancelledError(reason)
            self._watch.close(recorded.run, failure)


def _tool_key(context: Any, tool: Tool) -> Hashable:
    return str(context.tool_call_id) if isinstance(context, ToolContext) else (id(context), tool.name)


def _model_of(agent: Any) -> str:
    """As the agent says; what a `RunConfig` says instead is not told to hooks."""
    model = getattr(agent, "model", None)
    if model is None:
        return get_default_model()
    return model if isinstance(model, str) else str(getattr(model, "model", None) or type(model).__name__)


def _said(item: Any) -> tuple[str, str]:
    """(role, text) of an item of a model's input."""
    if not isinstance(item, dict):
        item = plain(item)
    role = item.get("role") or ("tool" if str(item.get("type", "")).endswith("_output") else "assistant")
    return str(role), content_text(item.get("content"))[0] or ""


def _input_text(items: Sequence[Any]) -> str | None:
    """What the user asks: the last thing that a user said."""
    return next((text for role, text in map(_said, reversed(items)) if role == "user"), None)


def _answer_text(output: Sequence[Any]) -> str:
    texts = [content_text(plain(item).get("content"))[0] for item in output if getattr(item, "type", "") == "message"]
    return "\n".join(text for text in texts if text)
