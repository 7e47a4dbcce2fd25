"""A run recorded with `async with`, by the tasks of one event loop: the shell over `run_core` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from pipeline.emit.blocks import Block, ModelCallBlock, StepBlock, ToolCallBlock
from pipeline.emit.journal import Scope, Stamp
from pipeline.emit.run_core import ActiveScope, RunCore, RunShell, enter_scope, leave_scope, not_recorded
from pipeline.model.errors import PipelineError
from pipeline.model.events import RunEvent

B = TypeVar("B", bound=Block)


class AsyncBlock(Generic[B]):
    """A block of a run as an asynchronous context manager."""

    def __init__(self, run: AsyncRun, block: B) -> None:
        self._run = run
        self._block = block
        self._active: ActiveScope

    async def __aenter__(self) -> B:
        scope = await self._run._begin(self._block)
        self._active = enter_scope(self._run._core.journal, scope)
        return self._block

    async def __aexit__(
        self, _kind: type[BaseException] | None, failure: BaseException | None, _trace: TracebackType | None
    ) -> None:
        leave_scope(self._active)
        try:
            await self._run._emit(lambda stamp: self._block.end(stamp, failure))
        except (PipelineError, ValueError) as trouble:
            if failure is None:
                raise
            not_recorded(trouble, failure)


class AsyncRun(RunShell):
    """A run being recorded in one event loop; several tasks may use it. Raises as `Run` does."""

    def __init__(self, core: RunCore) -> None:
        super().__init__(core)
        self._turn = asyncio.Lock()
        self._own = AsyncBlock(self, core.block)

    async def __aenter__(self) -> AsyncRun:
        self._core.base_scope = Scope()
        await self._own.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._own.__aexit__(kind, failure, trace)

    def model_call(self, model: str, *, provider: str | None = None) -> AsyncBlock[ModelCallBlock]:
        """A model call: one ModelCall when it ends."""
        return AsyncBlock(self, ModelCallBlock(self._core.journal, model, provider))

    def tool_call(self, tool: str, arguments: Any = None, *, call_id: str | None = None) -> AsyncBlock[ToolCallBlock]:
        """A tool call: ToolCall when it begins, ToolResult when it ends."""
        return AsyncBlock(self, ToolCallBlock(self._core.journal, tool, arguments, call_id or self._core.new_id()))

    def step(self, name: str, *, detail: str | None = None) -> AsyncBlock[StepBlock]:
        """A step: what is recorded inside carries its number."""
        return AsyncBlock(self, StepBlock(self._core.journal, name, detail))

    async def message(self, role: str, content: str, *, name: str | None = None) -> None:
        """A message: `role` is system, developer, user, assistant or tool."""
        await self._emit(lambda stamp: self._core.journal.message(stamp, role, content, name))

    async def memory(self, operation: str, store: str, **fields: Any) -> None:
        """Use of memory: `operation` is read, search, write or delete; fields memory_key, content, items."""
        await self._emit(lambda stamp: self._core.journal.memory(stamp, operation, {"store": store, **fields}))

    async def approval(self, decision: str, approval_id: str, subject: str, **fields: Any) -> None:
        """A human approval: `decision` is requested, approved, rejected or expired; fields approver, comment."""
        fields |= {"approval_id": approval_id, "subject": subject}
        await self._emit(lambda stamp: self._core.journal.approval(stamp, decision, fields))

    async def _begin(self, block: Block) -> Scope:
        async with self._turn:
            event, scope = self._core.begin(block)
            if event is not None:
                await self._core.publisher.publish_async(event, traceparent=self._core.traceparent())
        return scope

    async def _emit(self, make: Callable[[Stamp], RunEvent]) -> None:
        async with self._turn:  # numbered and published in one go, so that the order in Kafka is the order of numbers
            event = make(self._core.stamp())
            await self._core.publisher.publish_async(event, traceparent=self._core.traceparent())
