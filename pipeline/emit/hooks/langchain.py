"""LangChain's own callbacks: a handler that records runs of chains, agents, graphs, models and tools.

    hooks = LangChainHooks(recorder, HookOptions(tenant="acme"))
    chain.invoke("Where is my refund?", config={"callbacks": [hooks]})

What is invoked with the handler is the run; chains inside it are steps, but for those that only shape text (prompts,
parsers, hidden ones). One handler serves `invoke`, `ainvoke`, `stream` and `batch`: it is called in line, also in an
event loop, since nothing in it waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pipeline.emit.blocks import ModelCallBlock, ToolCallBlock
from pipeline.emit.coerce import content_text
from pipeline.emit.hooks.watch import HookOptions, HookStats, RunSource, RunWatch
from pipeline.emit.run_detached import DetachedRun
from pipeline.emit.sections import busy, inside, put_off, then_catch_up
from pipeline.model.errors import ConfigurationError

try:
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
except ImportError as missing:
    raise ConfigurationError(
        "langchain-core (1.8 or newer) can't be imported: pip install 'agent-run-pipeline[langchain]'."
    ) from missing

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_HIDDEN = "langsmith:hidden"
_SHAPING = frozenset({"prompt", "parser"})


@dataclass(slots=True)
class _Node:
    """One of LangChain's own runs, inside one of ours. `key`: the block to record things under; None is our run."""

    run: DetachedRun
    key: Hashable | None
    block: ModelCallBlock | ToolCallBlock | None = None
    root: bool = False
    name: str = ""


class LangChainHooks(BaseCallbackHandler):
    """One object for any number of runs at the same time, in threads and in event loops."""

    run_inline = True  # in an event loop too: nothing here waits, and a hop to a thread would lose the order
    raise_error = False

    def __init__(self, recorder: RunSource, options: HookOptions | None = None) -> None:
        super().__init__()
        self._watch = RunWatch("LangChain", recorder, options or HookOptions())
        self._nodes: dict[UUID, _Node] = {}
        self._said: set[str] = set()
        self._lock = threading.RLock()

    def stats(self) -> HookStats:
        """Counts as of now."""
        return self._watch.stats()

    # -- called by LangChain: chains

    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        with self._watch.guard:
            name = _name(serialized, kwargs)
            node, fresh = self._enter(run_id, parent_run_id, name, inputs)
            shaping = kwargs.get("run_type") in _SHAPING or _HIDDEN in (tags or ())
            if not fresh and not shaping:
                node.run.step(run_id, name, under=node.key)
                node.key = run_id

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            self._leave(run_id, outputs, streamed="inputs" in kwargs)  # known only now, of a stream

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            self._leave(run_id, None, error)

    # -- models

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        with self._watch.guard:
            said = [_said(message) for message in (messages[0] if messages else [])]
            self._model_start(serialized, said, run_id, parent_run_id, metadata or {}, kwargs)

    def on_llm_start(
        self,
        serialized: Any,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        with self._watch.guard:
            said = [("user", prompt) for prompt in prompts]
            self._model_start(serialized, said, run_id, parent_run_id, metadata or {}, kwargs)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            node = self._nodes.get(run_id)
            text = None
            if node is not None and isinstance(node.block, ModelCallBlock):
                with self._watch.guard:
                    text = self._answer(node.block, response)
            self._leave(run_id, text)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            self._leave(run_id, None, error)

    # -- tools

    def on_tool_start(
        self,
        serialized: Any,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        with self._watch.guard:
            name = _name(serialized, kwargs)
            given = input_str if inputs is None else inputs
            node, _ = self._enter(run_id, parent_run_id, name, given)
            arguments = self._watch.arguments(given)
            node.block = node.run.tool_call(run_id, name, arguments, call_id=kwargs.get("tool_call_id"), under=node.key)
            node.key = run_id

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            node = self._nodes.get(run_id)
            content = output.content if isinstance(output, BaseMessage) else output
            if node is not None and isinstance(node.block, ToolCallBlock):
                with self._watch.guard:
                    text = self._watch.text(content)
                    if getattr(output, "status", None) == "error":
                        node.block.error(text or "the tool says that it failed")
                    else:
                        node.block.result(text)
            self._leave(run_id, content)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            self._leave(run_id, None, error)

    # -- retrievers: memory that is searched

    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        with self._watch.guard:
            name = _name(serialized, kwargs)
            node, _ = self._enter(run_id, parent_run_id, name, query)
            node.name = name

    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            node = self._nodes.get(run_id)
            if node is not None:
                with self._watch.guard:
                    node.run.memory("search", node.name or "retriever", under=node.key, items=len(documents))
            self._leave(run_id, None)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        with self._watch.guard:
            self._leave(run_id, None, error)

    # -- of one run

    def _enter(self, run_id: UUID, parent: UUID | None, name: str, given: Any) -> tuple[_Node, bool]:
        """The place of something that begins, and whether our run begins with it: it does where nothing is around it."""
        above = None if parent is None else self._nodes.get(parent)
        fresh = above is None
        run = self._watch.open(name, _input_text(given)) if above is None else above.run
        node = _Node(run, None if above is None else above.key, root=fresh)
        with then_catch_up, busy(), self._lock:
            self._nodes[run_id] = node
        return node, fresh

    def _leave(
        self, run_id: UUID, output: Any, failure: BaseException | None = None, *, streamed: bool = False
    ) -> None:
        if inside():  # a stream that was left, ended by the garbage collector
            put_off(lambda: self._leave(run_id, output, failure, streamed=streamed))
            return
        with then_catch_up, busy(), self._lock:
            node = self._nodes.pop(run_id, None)
        if node is None:
            return
        with self._watch.guard:
            node.run.end(run_id, failure)
        if node.root:
            # How LangChain ends a stream that is left. What was invoked has returned: it left a stream of its own inside.
            if failure is None and streamed and node.run.opened:
                failure = asyncio.CancelledError("its stream was left before its end")
            if failure is None:
                with self._watch.guard:
                    node.run.output(self._watch.text(_input_text(output)))
            self._watch.close(node.run, failure)
            with then_catch_up, busy(), self._lock:
                self._said.discard(node.run.run_id)
                for key in [key for key, other in self._nodes.items() if other.run is node.run]:
                    del self._nodes[key]

    def _model_start(
        self,
        serialized: Any,
        said: Sequence[tuple[str, str]],
        run_id: UUID,
        parent: UUID | None,
        metadata: Mapping[str, Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        name = _name(serialized, kwargs)
        node, _ = self._enter(run_id, parent, name, said[-1][1] if said else None)
        with then_catch_up, busy(), self._lock:
            first = node.run.run_id not in self._said
            self._said.add(node.run.run_id)
        if first:
            with self._watch.guard:
                self._watch.say(node.run, said, node.key)
        params = kwargs.get("invocation_params") or {}
        model = metadata.get("ls_model_name") or params.get("model") or params.get("model_name") or name
        node.block = node.run.model_call(run_id, str(model), provider=metadata.get("ls_provider"), under=node.key)

    def _answer(self, block: ModelCallBlock, response: LLMResult) -> str | None:
        generation = response.generations[0][0] if response.generations and response.generations[0] else None
        message = getattr(generation, "message", None)
        meta = getattr(message, "response_metadata", None) or getattr(generation, "generation_info", None) or {}
        block.answered_by(meta.get("model_name") or meta.get("model"), meta.get("model_provider"))
        usage = getattr(message, "usage_metadata", None) or {}
        if not usage:
            told = (response.llm_output or {}).get("token_usage") or {}
            usage = {"input_tokens": told.get("prompt_tokens"), "output_tokens": told.get("completion_tokens")}
        block.usage(input_tokens=usage.get("input_tokens"), output_tokens=usage.get("output_tokens"))
        text = self._watch.text(
            content_text(message.content)[0] if message is not None else getattr(generation, "text", None)
        )
        block.answer(text or None, finish_reason=meta.get("finish_reason") or meta.get("stop_reason"))
        return text


def _name(serialized: Any, kwargs: Mapping[str, Any]) -> str:
    """As the caller named it, else the class's name."""
    name = kwargs.get("name")
    if not name and isinstance(serialized, Mapping):
        name = serialized.get("name") or (serialized.get("id") or [None])[-1]
    return str(name or "chain")


def _said(message: BaseMessage) -> tuple[str, str]:
    return _ROLES.get(message.type, "user"), content_text(message.content)[0] or ""


def _input_text(value: Any) -> Any:
    """What is said in a chain's input or output: its last message, its one text, or all of it."""
    if isinstance(value, BaseMessage):
        return content_text(value.content)[0]
    if isinstance(value, Mapping):
        messages = value.get("messages")
        if isinstance(messages, Sequence) and messages and not isinstance(messages, str):
            return _input_text(messages[-1])
        texts = list(value.values())
        if len(texts) == 1:
            return _input_text(texts[0])
    if isinstance(value, (list, tuple)) and value and isinstance(value[-1], BaseMessage):
        return _input_text(value[-1])
    return getattr(value, "text", value) if type(value).__name__.endswith("PromptValue") else value
