"""Runs of the real OpenAI Agents SDK with its scripted model, recorded by its own hooks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agents import Agent, ModelSettings, RunConfig, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.usage import Usage

from pipeline import ModelCall, RunCompleted, RunFailed, RunStarted, ToolCall, ToolResult
from pipeline.emit.hooks.openai_agents import OpenAIAgentsHooks
from pipeline.model.events import RunCancelled
from tests.unit.hooks.harness import Recording, story

QUIET = RunConfig(tracing_disabled=True)


@function_tool
def search(q: str) -> str:
    """Search."""
    return f"{q}: sent on Monday"


def asks(*calls: tuple[str, dict[str, Any], str]) -> list[Any]:
    return [function_call(name, arguments, call_id=call_id) for name, arguments, call_id in calls]


def script(*steps: Any) -> ScriptedModel:
    model = ScriptedModel(list(steps))
    model.set_default_usage(Usage(requests=1, input_tokens=12, output_tokens=3, total_tokens=15))
    return model


def support(*steps: Any, name: str = "support", tools: Any = (search,), **more: Any) -> Agent[Any]:
    return Agent(name, model=script(*steps), tools=list(tools), **more)


async def test_a_run_with_a_tool(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    agent = support(asks(("search", {"q": "r"}, "c1")), [assistant_message("Monday.")], instructions="Be nice.")
    async with hooks.run() as block:
        result = await Runner.run(agent, "Where is my refund?", hooks=hooks, run_config=QUIET)
    assert result.final_output == "Monday."
    events = rec.run()
    assert story(events) == [
        "RunStarted",
        "Step:support-started",
        "Message:SYSTEM < Step:support-started",
        "Message:USER < Step:support-started",
        "ModelCall:ScriptedModel < Step:support-started",
        "ToolCall:search < Step:support-started",
        "ToolResult:search-ok < ToolCall:search",
        "ModelCall:ScriptedModel < Step:support-started",
        "Step:support-completed < Step:support-started",
        "RunCompleted",
    ]
    started, call, tool_result, ended = events[0], events[5], events[6], events[-1]
    assert isinstance(started, RunStarted)
    assert (started.agent, started.input, started.run_id) == ("support", "Where is my refund?", block.run_id)
    assert isinstance(call, ToolCall)
    assert (call.call_id, json.loads(call.arguments), call.step) == ("c1", {"q": "r"}, 0)
    assert isinstance(tool_result, ToolResult)
    assert (tool_result.call_id, tool_result.content) == ("c1", "r: sent on Monday")
    assert isinstance(events[7], ModelCall)
    assert (events[7].input_tokens, events[7].output_tokens, events[7].content) == (12, 3, "Monday.")
    assert isinstance(ended, RunCompleted)
    assert (ended.output, ended.input_tokens, ended.model_calls, ended.tool_calls) == ("Monday.", 24, 2, 1)
    assert [run.output for run in rec.finished] == ["Monday."]
    assert (hooks.stats().errors, hooks.stats().stray, hooks.stats().open) == (0, 0, 0)


async def test_a_handoff_is_the_next_step_caused_by_the_one_before(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    billing = support([assistant_message("Paid.")], name="billing")
    triage = support(asks(("transfer_to_billing", {}, "h1")), name="triage", handoffs=[billing])
    async with hooks.run():
        await Runner.run(triage, "Where?", hooks=hooks, run_config=QUIET)
    assert story(rec.run()) == [
        "RunStarted",
        "Step:triage-started",
        "Message:USER < Step:triage-started",
        "ModelCall:ScriptedModel < Step:triage-started",
        "Step:triage-completed < Step:triage-started",
        "Step:billing-started < Step:triage-started",
        "ModelCall:ScriptedModel < Step:billing-started",
        "Step:billing-completed < Step:billing-started",
        "RunCompleted",
    ]


async def test_agents_used_as_tools_at_the_same_time_are_steps_inside_their_tool_calls(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    both = asyncio.Barrier(2)

    @function_tool
    async def meet(who: str) -> str:
        """Both experts are inside it at once."""
        await both.wait()
        return who

    experts = [
        support(asks(("meet", {"who": name}, f"in-{name}")), [assistant_message(name)], name=name, tools=[meet])
        for name in ("law", "tax")
    ]
    boss = support(
        asks(("law", {"input": "l"}, "c1"), ("tax", {"input": "t"}, "c2")), [assistant_message("Done.")], name="boss",
        tools=[expert.as_tool(expert.name, "x", hooks=hooks) for expert in experts],
    )  # fmt: skip
    async with hooks.run():
        await Runner.run(boss, "Both?", hooks=hooks, run_config=QUIET)
    told = story(rec.run())
    for name in ("law", "tax"):
        assert f"Step:{name}-started < ToolCall:{name}" in told
        assert f"ToolCall:meet < Step:{name}-started" in told
        assert told.count(f"ModelCall:ScriptedModel < Step:{name}-started") == 2
        assert told.index(f"Step:{name}-completed < Step:{name}-started") < told.index(
            f"ToolResult:{name}-ok < ToolCall:{name}"
        )
    assert told.count("ModelCall:ScriptedModel < Step:boss-started") == 2


async def test_a_stream_is_recorded_as_it_is_read(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    agent = support(asks(("search", {"q": "r"}, "c1")), [assistant_message("Monday.")])
    async with hooks.run():
        stream = Runner.run_streamed(agent, "Where?", hooks=hooks, run_config=QUIET)
        async for _ in stream.stream_events():
            pass
    events = rec.run()
    assert story(events)[4:8] == [
        "ToolCall:search < Step:support-started",
        "ToolResult:search-ok < ToolCall:search",
        "ModelCall:ScriptedModel < Step:support-started",
        "Step:support-completed < Step:support-started",
    ]
    assert isinstance(events[-1], RunCompleted)


async def test_a_stream_that_is_left_is_a_cancelled_run(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    agent = support(asks(("search", {"q": "r"}, "c1")), [assistant_message("Monday.")])
    async with hooks.run():
        stream = Runner.run_streamed(agent, "Where?", hooks=hooks, run_config=QUIET)
        async for event in stream.stream_events():
            if event.type == "run_item_stream_event":
                stream.cancel()
                break
    last = rec.run()[-1]
    assert isinstance(last, RunCancelled)
    assert "its stream was left" in (last.reason or "")
    assert (rec.finished, rec.failed) == ([], [])


async def test_a_cancelled_task_is_a_cancelled_run(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    inside = asyncio.Event()

    @function_tool
    async def wait() -> str:
        """Never ends."""
        inside.set()
        await asyncio.Event().wait()
        return ""

    async def work() -> None:
        async with hooks.run():
            await Runner.run(support(asks(("wait", {}, "c1")), tools=[wait]), "x", hooks=hooks, run_config=QUIET)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    events = rec.run()
    assert isinstance(events[-1], RunCancelled)
    assert "ToolResult:wait-cancelled < ToolCall:wait" in story(events)
    assert (rec.finished, rec.failed) == ([], [])


async def test_a_failure_of_the_model_is_a_failed_run_and_reaches_the_caller(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    with pytest.raises(RuntimeError, match="503"):
        async with hooks.run():
            await Runner.run(support(RuntimeError("503")), "x", hooks=hooks, run_config=QUIET)
    events = rec.run()
    assert isinstance(events[-1], RunFailed)
    assert (events[-1].error_class, events[-1].error_message) == ("RuntimeError", "503")
    call = next(event for event in events if isinstance(event, ModelCall))
    assert call.error == "RuntimeError: 503"
    assert [run.error for run in rec.failed] == ["RuntimeError: 503"]


async def test_many_runs_at_once_are_told_apart(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    all_in = asyncio.Barrier(10)

    @function_tool
    async def meet(n: int) -> str:
        """All runs are inside it at once."""
        await all_in.wait()
        return str(n)

    async def one(n: int) -> str:
        agent = support(asks(("meet", {"n": n}, "c1")), [assistant_message(f"answer {n}")], tools=[meet])
        async with hooks.run():
            return str((await Runner.run(agent, f"question {n}", hooks=hooks, run_config=QUIET)).final_output)

    await asyncio.gather(*(one(n) for n in range(10)))
    runs = rec.runs()
    assert len(runs) == 10
    for events in runs.values():
        started, ended = events[0], events[-1]
        assert isinstance(started, RunStarted)
        assert isinstance(ended, RunCompleted)
        n = (started.input or "").removeprefix("question ")
        assert ended.output == f"answer {n}"
        assert [event.content for event in events if isinstance(event, ToolResult)] == [n]


def test_a_run_without_asyncio(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    with hooks.run(agent="named", input="given"):
        Runner.run_sync(support([assistant_message("Yes.")]), "x", hooks=hooks, run_config=QUIET)
    events = rec.run()
    assert isinstance(events[0], RunStarted)
    assert (events[0].agent, events[0].input) == ("named", "given")
    assert isinstance(events[-1], RunCompleted)


async def test_hooks_outside_their_block_record_nothing_and_say_so_once(
    rec: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)
    result = await Runner.run(support([assistant_message("Yes.")]), "x", hooks=hooks, run_config=QUIET)
    assert result.final_output == "Yes."
    assert rec.events() == []
    assert hooks.stats().stray >= 2
    assert len([record for record in caplog.records if "with hooks.run()" in record.message]) == 1


async def test_the_models_name_is_the_agents(rec: Recording) -> None:
    hooks = OpenAIAgentsHooks(rec.recorder, rec.options)

    class Named(ScriptedModel):
        model = "gpt-large"

    agent = Agent("a", model=Named([[assistant_message("Yes.")]]), model_settings=ModelSettings(temperature=0.0))
    async with hooks.run():
        await Runner.run(agent, "x", hooks=hooks, run_config=QUIET)
    assert [event.model for event in rec.run() if isinstance(event, ModelCall)] == ["gpt-large"]
