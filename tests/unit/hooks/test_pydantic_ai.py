"""Runs of real pydantic-ai agents with its test models, recorded by a capability."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.exceptions import ApprovalRequired
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RequestUsage

from pipeline import Approval, ModelCall, RunCompleted, RunFailed, RunStarted, ToolCall, ToolResult
from pipeline.emit.hooks.pydantic_ai import PydanticAIHooks
from pipeline.model.events import Message, RunCancelled
from tests.unit.hooks.harness import Recording, story


def script(*answers: list[Any]) -> FunctionModel:
    """A model that answers with these parts, one list for each request of a run."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        number = sum(isinstance(message, ModelResponse) for message in messages)
        usage = RequestUsage(input_tokens=12, output_tokens=3)
        return ModelResponse(parts=answers[number], usage=usage, finish_reason="stop")

    return FunctionModel(answer, model_name="gpt-large")


def search(q: str) -> str:
    return f"{q}: sent on Monday"


async def test_a_run_with_a_tool(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    model = script([ToolCallPart("search", {"q": "r"}, "c1")], [TextPart("Monday.")])
    agent = Agent(model, name="support", instructions="Be nice.", tools=[search], capabilities=[hooks])
    result = await agent.run("Where is my refund?")
    assert result.output == "Monday."
    events = rec.run()
    assert story(events) == [
        "RunStarted",
        "Message:SYSTEM",
        "Message:USER",
        "ModelCall:gpt-large",
        "ToolCall:search",
        "ToolResult:search-ok < ToolCall:search",
        "ModelCall:gpt-large",
        "RunCompleted",
    ]
    started, call, tool_result, model_call, ended = events[0], events[4], events[5], events[6], events[-1]
    assert isinstance(started, RunStarted)
    assert (started.agent, started.input) == ("support", "Where is my refund?")
    assert isinstance(call, ToolCall)
    assert (call.call_id, json.loads(call.arguments)) == ("c1", {"q": "r"})
    assert isinstance(tool_result, ToolResult)
    assert (tool_result.call_id, tool_result.content) == ("c1", "r: sent on Monday")
    assert isinstance(model_call, ModelCall)
    assert (model_call.content, model_call.finish_reason, model_call.input_tokens) == ("Monday.", "stop", 12)
    assert isinstance(ended, RunCompleted)
    assert (ended.output, ended.input_tokens, ended.output_tokens, ended.model_calls) == ("Monday.", 24, 6, 2)
    assert [run.output for run in rec.finished] == ["Monday."]


async def test_only_what_is_new_in_a_conversation_is_a_message(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    agent = Agent(TestModel(custom_output_text="yes"), name="a", system_prompt="Be nice.", capabilities=[hooks])
    first = await agent.run("one")
    await agent.run("two", message_history=first.all_messages())
    said = [[e.content for e in events if isinstance(e, Message)] for events in rec.runs().values()]
    assert said == [["Be nice.", "one"], ["two"]]


async def test_an_agent_inside_a_tool_is_a_run_whose_parent_is_the_tool_call(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    inner = Agent(script([TextPart("inner")]), name="inner", capabilities=[hooks])
    both = asyncio.Barrier(2)

    async def ask(q: str) -> str:
        await both.wait()
        return (await inner.run(q)).output

    model = script([ToolCallPart("ask", {"q": "1"}, "c1"), ToolCallPart("ask", {"q": "2"}, "c2")], [TextPart("ok")])
    await Agent(model, name="outer", tools=[ask], capabilities=[hooks]).run("x")
    runs = {events[0].agent + (events[0].input or ""): events for events in rec.runs().values()}  # type: ignore[attr-defined]
    calls = {event.call_id: event for event in runs["outerx"] if isinstance(event, ToolCall)}
    for number in ("1", "2"):
        started = runs[f"inner{number}"][0]
        assert isinstance(started, RunStarted)
        assert started.parent_run_id == runs["outerx"][0].run_id
        assert started.parent_id == calls[f"c{number}"].event_id


async def test_a_run_inside_one_that_is_recorded_by_hand_is_its_child(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    agent = Agent(TestModel(), name="inner", capabilities=[hooks])
    with rec.recorder.run(agent="outer", tenant="acme") as run, run.tool_call("delegate"):
        await agent.run("x")
    started = [event for event in rec.events() if isinstance(event, RunStarted)][1]
    call = next(event for event in rec.events() if isinstance(event, ToolCall))
    assert (started.parent_run_id, started.parent_id) == (run.run_id, call.event_id)


async def test_a_stream_is_recorded(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    agent = Agent(TestModel(custom_output_text="a b c"), name="a", tools=[search], capabilities=[hooks])
    async with agent.run_stream("x") as stream:
        assert [text async for text in stream.stream_text(delta=True)]
    events = rec.run()
    assert [type(event).__name__ for event in events] == [
        "RunStarted", "Message", "ModelCall", "ToolCall", "ToolResult", "ModelCall", "RunCompleted",
    ]  # fmt: skip
    assert isinstance(events[-1], RunCompleted)
    assert events[-1].output == "a b c"
    assert isinstance(events[-2], ModelCall)
    assert events[-2].output_tokens > 0


async def test_a_cancelled_task_is_a_cancelled_run(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    inside = asyncio.Event()

    async def wait() -> str:
        inside.set()
        await asyncio.Event().wait()
        return ""

    agent = Agent(TestModel(), name="a", tools=[wait], capabilities=[hooks])
    task = asyncio.create_task(agent.run("x"))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    events = rec.run()
    assert isinstance(events[-1], RunCancelled)
    assert "ToolResult:wait-cancelled < ToolCall:wait" in story(events)
    assert (rec.finished, rec.failed) == ([], [])


async def test_a_failing_tool_is_a_failed_run_and_reaches_the_caller(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)

    def broken() -> str:
        raise LookupError("no such order")

    agent = Agent(TestModel(), name="a", tools=[broken], capabilities=[hooks])
    with pytest.raises(LookupError, match="no such order"):
        await agent.run("x")
    events = rec.run()
    assert isinstance(events[-1], RunFailed)
    assert events[-1].error_class == "LookupError"
    assert "ToolResult:broken-error < ToolCall:broken" in story(events)
    assert [run.error for run in rec.failed] == ["LookupError: no such order"]


async def test_a_tool_that_asks_for_another_try_is_an_error_and_the_run_goes_on(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)

    def picky(q: str) -> str:
        if q == "bad":
            raise ModelRetry("say it better")
        return "fine"

    model = script(
        [ToolCallPart("picky", {"q": "bad"}, "c1")], [ToolCallPart("picky", {"q": "good"}, "c2")], [TextPart("ok")]
    )
    await Agent(model, name="a", tools=[picky], capabilities=[hooks]).run("x")
    events = rec.run()
    assert [event.status for event in events if isinstance(event, ToolResult)] == ["ERROR", "OK"]
    assert isinstance(events[-1], RunCompleted)


async def test_an_approval_that_is_asked_for_is_recorded(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)

    def refund(ctx: RunContext[None]) -> str:
        raise ApprovalRequired

    agent = Agent(
        script([ToolCallPart("refund", {}, "c1")]), name="a", tools=[refund], capabilities=[hooks],
        output_type=[str, DeferredToolRequests],
    )  # fmt: skip
    await agent.run("x")
    events = rec.run()
    approval = next(event for event in events if isinstance(event, Approval))
    assert (approval.decision, approval.approval_id, approval.subject) == ("REQUESTED", "c1", "refund")
    assert [event.status for event in events if isinstance(event, ToolResult)] == ["CANCELLED"]
    assert isinstance(events[-1], RunCompleted)


async def test_a_typed_output_is_recorded_as_json(rec: Recording) -> None:
    class Verdict(BaseModel):
        ok: bool

    hooks = PydanticAIHooks(rec.recorder, rec.options)
    await Agent(TestModel(), name="a", output_type=Verdict, capabilities=[hooks]).run("x")
    ended = rec.run()[-1]
    assert isinstance(ended, RunCompleted)
    assert json.loads(ended.output or "") == {"ok": False}


async def test_a_run_that_is_iterated_and_left_is_a_cancelled_one(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    agent = Agent(TestModel(), name="a", tools=[search], capabilities=[hooks])
    async with agent.iter("x") as run:
        async for _ in run:
            break
    assert isinstance(rec.run()[-1], RunCancelled)
    assert hooks.stats().errors == 0


def test_a_run_without_asyncio(rec: Recording) -> None:
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    Agent(TestModel(), name="a", capabilities=[hooks]).run_sync("x")
    assert isinstance(rec.run()[-1], RunCompleted)
