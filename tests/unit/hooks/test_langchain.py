"""Runs of real langchain-core chains with its fake models, recorded by a callback handler."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import ToolException, tool

from pipeline import Memory, ModelCall, RunCompleted, RunFailed, RunStarted, ToolCall, ToolResult
from pipeline.emit.hooks.langchain import LangChainHooks
from pipeline.model.events import Message, RunCancelled
from tests.unit.hooks.harness import Recording, story


@tool
def search(q: str) -> str:
    """Search."""
    return f"{q}: sent on Monday"


def said(text: str) -> AIMessage:
    return AIMessage(
        text,
        usage_metadata={"input_tokens": 12, "output_tokens": 3, "total_tokens": 15},
        response_metadata={"model_name": "gpt-large", "finish_reason": "stop", "model_provider": "example"},
    )


def draft(*answers: str) -> Runnable[Any, str]:
    prompt = ChatPromptTemplate.from_messages([("system", "Be nice."), ("user", "{q}")])
    model = GenericFakeChatModel(messages=iter([said(answer) for answer in answers]))
    return (prompt | model | StrOutputParser()).with_config(run_name="draft")


def support(*answers: str) -> Runnable[Any, Any]:
    """An agent by hand: drafts, searches, drafts again."""
    drafting = draft(*answers)

    def work(given: dict[str, str], config: RunnableConfig) -> str:
        wanted = drafting.invoke(given, config)
        call = {"type": "tool_call", "name": "search", "id": "c1", "args": {"q": wanted}}
        found = search.invoke(call, config)
        return drafting.invoke({"q": found.content}, config)

    async def work_async(given: dict[str, str], config: RunnableConfig) -> str:
        wanted = await drafting.ainvoke(given, config)
        call = {"type": "tool_call", "name": "search", "id": "c1", "args": {"q": wanted}}
        found = await search.ainvoke(call, config)
        return await drafting.ainvoke({"q": found.content}, config)

    return RunnableLambda(work, work_async, name="support")


STORY = [
    "RunStarted",
    "Step:draft-started",
    "Message:SYSTEM < Step:draft-started",
    "Message:USER < Step:draft-started",
    "ModelCall:gpt-large < Step:draft-started",
    "Step:draft-completed < Step:draft-started",
    "ToolCall:search",
    "ToolResult:search-ok < ToolCall:search",
    "Step:draft-started",
    "ModelCall:gpt-large < Step:draft-started",
    "Step:draft-completed < Step:draft-started",
    "RunCompleted",
]


def the_support_run(rec: Recording) -> None:
    events = rec.run()
    assert story(events) == STORY
    started, model_call, call, result, ended = events[0], events[4], events[6], events[7], events[-1]
    assert isinstance(started, RunStarted)
    assert (started.agent, started.input) == ("support", "Where?")
    assert isinstance(model_call, ModelCall)
    assert (model_call.input_tokens, model_call.output_tokens, model_call.step) == (12, 3, 0)
    assert (model_call.content, model_call.finish_reason, model_call.provider) == ("refund", "stop", "example")
    assert isinstance(call, ToolCall)
    assert (call.call_id, json.loads(call.arguments)) == ("c1", {"q": "refund"})
    assert isinstance(result, ToolResult)
    assert (result.call_id, result.content) == ("c1", "refund: sent on Monday")
    assert isinstance(ended, RunCompleted)
    assert (ended.output, ended.input_tokens, ended.model_calls, ended.steps) == ("Monday.", 24, 2, 2)
    assert [run.output for run in rec.finished] == ["Monday."]


def test_a_run_without_asyncio(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    assert support("refund", "Monday.").invoke({"q": "Where?"}, {"callbacks": [hooks]}) == "Monday."
    the_support_run(rec)
    assert (hooks._nodes, hooks._said, hooks.stats().errors) == ({}, set(), 0)


async def test_a_run_with_asyncio(rec: Recording) -> None:
    threads = list[threading.Thread]()
    after = [rec.finished.append, lambda _run: threads.append(threading.current_thread())]
    hooks = LangChainHooks(rec.recorder, replace(rec.options, after_run=after))
    assert await support("refund", "Monday.").ainvoke({"q": "Where?"}, {"callbacks": [hooks]}) == "Monday."
    the_support_run(rec)
    assert threads == [threading.current_thread()], "in line, so that the order is kept"
    assert (hooks._nodes, hooks._said, hooks.stats().errors) == ({}, set(), 0)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_is_recorded(rec: Recording, asynchronous: bool) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    chain, config = draft("sent on Monday"), RunnableConfig(callbacks=[hooks])

    async def read() -> list[str]:
        return [part async for part in chain.astream({"q": "x"}, config)]

    parts = asyncio.run(read()) if asynchronous else list(chain.stream({"q": "x"}, config))
    assert len(parts) > 1
    events = rec.run()
    assert isinstance(events[-1], RunCompleted)
    assert events[-1].output == "sent on Monday"
    assert [event.content for event in events if isinstance(event, ModelCall)] == ["sent on Monday"]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_that_is_left_is_a_cancelled_run(rec: Recording, asynchronous: bool, parts: int) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    chain, config = draft("sent on Monday"), RunnableConfig(callbacks=[hooks])

    async def leave() -> None:
        stream = chain.astream({"q": "x"}, config)
        for _ in range(parts):
            await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    if asynchronous:
        asyncio.run(leave())
    else:
        stream = chain.stream({"q": "x"}, config)
        for _ in range(parts):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert isinstance(rec.run()[-1], RunCancelled)
    assert rec.finished == []


async def test_a_chain_that_leaves_a_models_stream_and_returns_is_a_completed_run(rec: Recording) -> None:
    """It has read enough; the event loop closes the model's stream later, when the run has ended."""
    model = GenericFakeChatModel(messages=iter([said("sent on Monday")]))

    async def first_word(given: str) -> str:
        stream = model.astream(given)
        return str((await anext(stream)).content)

    hooks = LangChainHooks(rec.recorder, rec.options)
    chain = RunnableLambda(first_word).with_config(run_name="support")
    assert await chain.ainvoke("x", RunnableConfig(callbacks=[hooks])) == "sent"
    await asyncio.sleep(0.01)  # the stream is closed by now
    _, _, call, last = rec.run()
    assert isinstance(call, ModelCall)
    assert call.error is not None
    assert isinstance(last, RunCompleted)
    assert [run.output for run in rec.finished] == ["sent"]
    assert (last.output, hooks.stats().open, hooks.stats().errors) == ("sent", 0, 0)


@pytest.mark.parametrize("where", ["tool", "model"])
def test_a_cancelled_task_is_a_cancelled_run(rec: Recording, where: str) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)

    async def main() -> None:
        inside = asyncio.Event()

        @tool
        async def wait(q: str) -> str:
            """Never ends."""
            inside.set()
            await asyncio.Event().wait()
            return q

        class Slow(GenericFakeChatModel):
            async def _agenerate(self, *_args: Any, **_kwargs: Any) -> Any:
                inside.set()
                await asyncio.Event().wait()

        async def work(given: str, config: RunnableConfig) -> Any:
            if where == "tool":
                return await wait.ainvoke({"q": given}, config)
            return await Slow(messages=iter([])).ainvoke(given, config)

        task = asyncio.create_task(RunnableLambda(work, name="a").ainvoke("x", {"callbacks": [hooks]}))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    events = rec.run()
    assert isinstance(events[-1], RunCancelled)
    if where == "tool":
        assert "ToolResult:wait-cancelled < ToolCall:wait" in story(events)
    assert (rec.finished, rec.failed) == ([], [])


def test_a_failure_is_a_failed_run_and_reaches_the_caller(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)

    @tool
    def broken(q: str) -> str:
        """Fails."""
        raise LookupError("no such order")

    chain = RunnableLambda(lambda given, config: broken.invoke({"q": given}, config), name="a")
    with pytest.raises(LookupError, match="no such order"):
        chain.invoke("x", {"callbacks": [hooks]})
    events = rec.run()
    assert isinstance(events[-1], RunFailed)
    assert events[-1].error_class == "LookupError"
    assert "ToolResult:broken-error < ToolCall:broken" in story(events)
    assert [run.error for run in rec.failed] == ["LookupError: no such order"]


def test_a_tool_that_answers_with_an_error_is_one_and_the_run_goes_on(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)

    @tool
    def picky(q: str) -> str:
        """Refuses."""
        raise ToolException("say it better")

    picky.handle_tool_error = True
    call = {"type": "tool_call", "name": "picky", "id": "c1", "args": {"q": "x"}}
    RunnableLambda(lambda given, config: picky.invoke(call, config).content, name="a").invoke(
        "x", {"callbacks": [hooks]}
    )
    events = rec.run()
    (result,) = (event for event in events if isinstance(event, ToolResult))
    assert (result.status, result.error) == ("ERROR", "say it better")
    assert isinstance(events[-1], RunCompleted)


def test_many_runs_in_threads_are_told_apart(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    all_in = threading.Barrier(8)

    @tool
    def meet(q: str) -> str:
        """All runs are inside it at once."""
        all_in.wait(30)
        return q

    chain = RunnableLambda(lambda given, config: meet.invoke({"q": given}, config), name="a")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: chain.invoke(f"q{n}", {"callbacks": [hooks]}), range(8)))
    runs = rec.runs()
    assert len(runs) == 8
    for events in runs.values():
        started, ended = events[0], events[-1]
        assert isinstance(started, RunStarted)
        assert isinstance(ended, RunCompleted)
        assert started.input == ended.output
        assert [event.content for event in events if isinstance(event, ToolResult)] == [started.input]


async def test_branches_at_the_same_time_keep_their_parents(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    both = asyncio.Barrier(2)

    def branch(name: str) -> Runnable[Any, Any]:
        async def work(given: str, config: RunnableConfig) -> Any:
            await both.wait()
            return await search.ainvoke({"q": name}, config)

        return RunnableLambda(work, name=name)

    async def fan(given: str, config: RunnableConfig) -> Any:
        return await asyncio.gather(*(branch(name).ainvoke(given, config) for name in ("law", "tax")))

    await RunnableLambda(fan, name="a").ainvoke("x", {"callbacks": [hooks]})
    events = rec.run()
    steps = {event.event_id: event.name for event in events if type(event).__name__ == "Step"}  # type: ignore[attr-defined]
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert {json.loads(call.arguments)["q"]: steps[call.parent_id or ""] for call in calls} == {
        "law": "law", "tax": "tax",
    }  # fmt: skip


def test_a_retriever_is_memory_that_is_searched(rec: Recording) -> None:
    class Shelf(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            return [Document("one"), Document("two")]

    hooks = LangChainHooks(rec.recorder, rec.options)
    RunnableLambda(lambda given, config: len(Shelf().invoke(given, config)), name="a").invoke(
        "x", {"callbacks": [hooks]}
    )
    (memory,) = (event for event in rec.run() if isinstance(event, Memory))
    assert (memory.operation, memory.store, memory.items) == ("SEARCH", "Shelf", 2)


def test_a_model_by_itself_is_a_run(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    model = GenericFakeChatModel(messages=iter([said("yes")]))
    history = [HumanMessage("one"), AIMessage("yes?"), HumanMessage("two")]
    model.invoke(history, {"callbacks": [hooks]})
    events = rec.run()
    assert [type(event).__name__ for event in events] == ["RunStarted", "Message", "ModelCall", "RunCompleted"]
    assert [event.content for event in events if isinstance(event, Message)] == ["two"]
    assert isinstance(events[-1], RunCompleted)
    assert events[-1].output == "yes"


def test_a_model_that_completes_text_is_recorded_too(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    FakeListLLM(responses=["done"]).invoke("x", {"callbacks": [hooks]})
    events = rec.run()
    assert [event.content for event in events if isinstance(event, ModelCall)] == ["done"]
