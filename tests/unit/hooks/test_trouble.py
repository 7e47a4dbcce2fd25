"""What goes wrong in recording or in a hook never reaches the agent: it is counted, and logged once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from agents import Agent as SdkAgent
from agents import RunConfig, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from pipeline import Pipeline, RunCompleted, RunFailed, RunStarted, Settings, ToolCall, ToolResult
from pipeline.emit.hooks import FinishedRun, HookOptions, HookStats
from pipeline.emit.hooks.langchain import LangChainHooks
from pipeline.emit.hooks.openai_agents import OpenAIAgentsHooks
from pipeline.emit.hooks.pydantic_ai import PydanticAIHooks
from pipeline.emit.hooks.watch import TEXT_MAX, RunSource
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.run_detached import DetachedRun
from pipeline.memory import connect
from pipeline.memory.cluster import forget
from pipeline.model.errors import PublishError
from pipeline.model.events import Message, ModelCall
from tests.unit.hooks.harness import TOPIC, Recording, story

SECRET = "the order is a zebra"


def look(q: str) -> str:
    """Look."""
    return SECRET


def run_langchain(source: RunSource, options: HookOptions) -> tuple[Any, HookStats]:
    hooks = LangChainHooks(source, options)
    chain = RunnableLambda(lambda given, config: tool(look).invoke({"q": given}, config), name="a")
    return chain.invoke(SECRET, {"callbacks": [hooks]}), hooks.stats()


def run_pydantic_ai(source: RunSource, options: HookOptions) -> tuple[Any, HookStats]:
    hooks = PydanticAIHooks(source, options)
    model = TestModel(custom_output_text=SECRET)
    return Agent(model, name="a", tools=[look], capabilities=[hooks]).run_sync(SECRET).output, hooks.stats()


def run_openai_agents(source: RunSource, options: HookOptions) -> tuple[Any, HookStats]:
    hooks = OpenAIAgentsHooks(source, options)
    model = ScriptedModel([[function_call("look", {"q": SECRET}, call_id="c1")], [assistant_message(SECRET)]])
    agent = SdkAgent("a", model=model, tools=[function_tool(look)])
    with hooks.run():
        result = Runner.run_sync(agent, SECRET, hooks=hooks, run_config=RunConfig(tracing_disabled=True))
    return result.final_output, hooks.stats()


FRAMEWORKS = pytest.mark.parametrize("run", [run_langchain, run_pydantic_ai, run_openai_agents])


class Broken:
    """Opens no run, or runs in which nothing but beginnings and ends works."""

    def __init__(self, source: RunSource | None) -> None:
        self._source = source

    def detached(self, *args: Any, **kwargs: Any) -> DetachedRun:
        if self._source is None:
            raise OSError("recording is broken")
        run = self._source.detached(*args, **kwargs)

        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise OSError("recording is broken")

        for name in ("model_call", "tool_call", "step", "message", "end"):
            setattr(run, name, refuse)
        return run


@FRAMEWORKS
@pytest.mark.parametrize("wholly", [True, False])
def test_an_agent_whose_recording_is_broken_answers_all_the_same(
    rec: Recording, run: Any, wholly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    output, stats = run(Broken(None if wholly else rec.recorder), rec.options)
    assert output == SECRET
    assert stats.errors >= 1
    logged = [record for record in caplog.records if record.name == "pipeline.hooks"]
    assert len(logged) == 1
    assert "was not recorded" in logged[0].message
    if not wholly:
        assert [type(event) for event in rec.run()] == [RunStarted, RunCompleted]
        assert stats.open == 0


@FRAMEWORKS
def test_a_hook_that_fails_is_counted_and_the_next_one_is_called(rec: Recording, run: Any) -> None:
    def broken(_run: FinishedRun) -> None:
        raise OSError("no")

    output, stats = run(rec.recorder, replace(rec.options, after_run=[broken, rec.finished.append]))
    assert (output, stats.errors, len(rec.finished)) == (SECRET, 1, 1)
    finished = rec.finished[0]
    assert (finished.status, finished.agent, finished.tenant, finished.error) == ("COMPLETED", "a", "acme", None)
    assert (finished.output, finished.input) == (SECRET, SECRET)
    assert finished.run_id == rec.run()[0].run_id


@FRAMEWORKS
def test_without_content_no_text_is_recorded(rec: Recording, run: Any) -> None:
    output, stats = run(rec.recorder, replace(rec.options, content=False))
    assert (output, stats.errors) == (SECRET, 0)
    events = rec.run()
    assert any(isinstance(event, ToolCall) for event in events)
    assert not any(isinstance(event, Message) for event in events)
    assert "zebra" not in "".join(event.model_dump_json() for event in events)


@FRAMEWORKS
def test_a_full_buffer_never_holds_the_agent_up(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    cluster = connect("memory://hooks-full")  # without the topic nothing is delivered: the buffer stays full
    app = Pipeline("support", settings=Settings(broker="memory://hooks-full"))
    recorder = app.recorder(BufferPolicy(mode="block", max_records=2, block_timeout="30s"))
    try:
        began = time.monotonic()
        output, stats = run(recorder.__enter__(), HookOptions())
        assert time.monotonic() - began < 15  # one wait would be 30 s
        assert (output, stats.errors) == (SECRET, 0)
        assert stats.lost >= 1
        assert sum("found no room" in record.message for record in caplog.records) == 1
        cluster.create(TOPIC, partitions=1)
    finally:
        recorder.__exit__(None, None, None)
        forget("memory://hooks-full")


async def test_what_was_recorded_is_published_while_the_run_goes_on(rec: Recording) -> None:
    """So a process that dies leaves it."""
    hooks = PydanticAIHooks(rec.recorder, rec.options)
    seen = list[str]()

    async def peek() -> str:
        seen.extend(story(await asyncio.to_thread(rec.events)))
        return ""

    await Agent(TestModel(), name="a", tools=[peek], capabilities=[hooks]).run("x")
    assert seen == ["RunStarted", "Message:USER", "ModelCall:test", "ToolCall:peek"]


def test_long_texts_are_cut(rec: Recording) -> None:
    hooks = LangChainHooks(rec.recorder, rec.options)
    chain = RunnableLambda(lambda given, config: tool(look).invoke({"q": given}, config), name="a")
    chain.invoke("x" * (3 * TEXT_MAX), {"callbacks": [hooks]})
    started = rec.run()[0]
    assert isinstance(started, RunStarted)
    assert (started.input or "").endswith(f"x... ({3 * TEXT_MAX} characters)")
    assert len(started.input or "") < TEXT_MAX + 100


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("openai_agents", "agents", "openai-agents"),
        ("langchain", "langchain_core", "langchain"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
    ],
)
def test_a_missing_package_is_one_sentence_that_says_what_to_install(module: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pipeline.model.errors import ConfigurationError\n"
        f"try:\n    import pipeline.emit.hooks.{module}\n"
        "except ConfigurationError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert f"pip install 'agent-run-pipeline[{extra}]'" in out.stdout
    assert out.stdout.count("\n") == 1


def test_no_framework_is_imported_before_its_adapter() -> None:
    code = (
        "import sys, pipeline.emit.hooks.queueing, pipeline.emit.hooks.watch, pipeline.emit.recorder\n"
        "print(sorted({'agents', 'langchain_core', 'pydantic_ai'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


# -- the run that is told by calls


def test_what_is_open_when_the_run_ends_ends_before_it_with_its_error(rec: Recording) -> None:
    run = rec.recorder.detached("a", "acme")
    run.step("s", "plan")
    run.tool_call("t", "search", under="s")
    run.finish(TimeoutError("too slow"))
    events = rec.run()
    assert story(events) == [
        "RunStarted",
        "Step:plan-started",
        "ToolCall:search < Step:plan-started",
        "ToolResult:search-timeout < ToolCall:search",
        "Step:plan-failed < Step:plan-started",
        "RunFailed:TimeoutError",
    ]
    assert isinstance(events[-1], RunFailed)


def test_a_block_that_ends_ends_what_is_open_inside_it(rec: Recording) -> None:
    run = rec.recorder.detached("a", "acme")
    run.step("s", "plan")
    run.model_call("m", "gpt", under="s")
    assert run.end("s")
    assert not run.end("s")
    assert run.opened == 0
    run.finish()
    assert run.finish() is None
    events = rec.run()
    (call,) = (event for event in events if isinstance(event, ModelCall))
    assert call.error == "Unfinished: its end was not told"
    with pytest.raises(PublishError, match="has ended"):
        run.message("user", "late")


def test_a_key_that_begins_again_ends_the_first(rec: Recording) -> None:
    run = rec.recorder.detached("a", "acme")
    run.tool_call("k", "one")
    run.tool_call("k", "two").result("ok")
    run.end("k")
    run.finish()
    assert [event.status for event in rec.run() if isinstance(event, ToolResult)] == ["ERROR", "OK"]
