"""Agents of three frameworks, recorded through the frameworks' own hooks, and a job queued after each run.

`PIPELINE_BROKER=host:port python examples/agent_frameworks.py`, with the extras openai-agents, langchain and pydantic-ai.
The models are the frameworks' own stand-ins, so it needs no key: put yours in their place.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent as OpenAIAgent
from agents import RunConfig, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from pipeline import MemoryQueue, Pipeline, queue_hook
from pipeline.emit.hooks import HookOptions
from pipeline.emit.hooks.langchain import LangChainHooks
from pipeline.emit.hooks.openai_agents import OpenAIAgentsHooks
from pipeline.emit.hooks.pydantic_ai import PydanticAIHooks
from pipeline.emit.recorder import AsyncRecorder

QUESTION = "Where is my refund?"


async def evaluate(run: dict[str, Any]) -> None:
    """What follows each run."""
    print("evaluate", run)


def search(q: str) -> str:
    """Search the orders."""
    return f"{q}: sent on Monday"


async def with_openai_agents(recorder: AsyncRecorder, options: HookOptions) -> None:
    model = ScriptedModel(
        [[function_call("search", {"q": "refund"}, call_id="c1")], [assistant_message("It was sent on Monday.")]]
    )
    agent = OpenAIAgent("support", model=model, tools=[function_tool(search)])
    hooks = OpenAIAgentsHooks(recorder, options)
    async with hooks.run():
        await Runner.run(agent, QUESTION, hooks=hooks, run_config=RunConfig(tracing_disabled=True))


async def with_langchain(recorder: AsyncRecorder, options: HookOptions) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    chain = (prompt | FakeListChatModel(responses=["It was sent on Monday."])).with_config(run_name="support")
    await chain.ainvoke({"question": QUESTION}, config={"callbacks": [LangChainHooks(recorder, options)]})


async def with_pydantic_ai(recorder: AsyncRecorder, options: HookOptions) -> None:
    hooks = PydanticAIHooks(recorder, options)
    agent = Agent(
        TestModel(custom_output_text="It was sent on Monday."), name="support", tools=[search], capabilities=[hooks]
    )
    await agent.run(QUESTION)


async def main(app: Pipeline) -> None:
    queue = MemoryQueue()  # or KafkaQueue(app): then the jobs outlive this process
    await queue.consume("evaluate", evaluate)
    after = queue_hook(queue, "evaluate", lambda run: {"run_id": run.run_id, "output": run.output}, priority=10)
    options = HookOptions(tenant="acme", after_run=[after])
    async with app.recorder() as recorder:
        await with_openai_agents(recorder, options)
        await with_langchain(recorder, options)
        await with_pydantic_ai(recorder, options)
        await after.drain_async()
    await queue.close()


if __name__ == "__main__":
    asyncio.run(main(Pipeline("support")))
