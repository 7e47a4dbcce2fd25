"""A run recorded with `with`, from any thread: the shell over `run_core` for code without asyncio."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from pipeline.emit.blocks import Block, ModelCallBlock, StepBlock, ToolCallBlock
from pipeline.emit.journal import Scope, Stamp
from pipeline.emit.run_core import ActiveScope, RunCore, RunShell, enter_scope, leave_scope, not_recorded
from pipeline.emit.sections import busy, inside, put_off, then_catch_up
from pipeline.model.errors import PipelineError
from pipeline.model.events import RunEvent

B = TypeVar("B", bound=Block)


class SyncBlock(Generic[B]):
    """A block of a run as a context manager."""

    def __init__(self, run: Run, block: B) -> None:
        self._run = run
        self._block = block
        self._active: ActiveScope

    def __enter__(self) -> B:
        scope = self._run._begin(self._block)
        self._active = enter_scope(self._run._core.journal, scope)
        return self._block

    def __exit__(
        self, _kind: type[BaseException] | None, failure: BaseException | None, _trace: TracebackType | None
    ) -> None:
        leave_scope(self._active)
        try:
            self._run._emit(lambda stamp: self._block.end(stamp, failure))
        except (PipelineError, ValueError) as trouble:
            if failure is None:
                raise
            not_recorded(trouble, failure)


class Run(RunShell):
    """A run being recorded; any thread may use it. Every call may raise ValidationError (nothing sent) and
    BufferFull."""

    def __init__(self, core: RunCore) -> None:
        super().__init__(core)
        self._turn = threading.RLock()
        self._own = SyncBlock(self, core.block)

    def __enter__(self) -> Run:
        self._core.base_scope = Scope()
        self._own.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.__exit__(kind, failure, trace)

    def model_call(self, model: str, *, provider: str | None = None) -> SyncBlock[ModelCallBlock]:
        """A model call: one ModelCall when it ends."""
        return SyncBlock(self, ModelCallBlock(self._core.journal, model, provider))

    def tool_call(self, tool: str, arguments: Any = None, *, call_id: str | None = None) -> SyncBlock[ToolCallBlock]:
        """A tool call: ToolCall when it begins, ToolResult when it ends."""
        return SyncBlock(self, ToolCallBlock(self._core.journal, tool, arguments, call_id or self._core.new_id()))

    def step(self, name: str, *, detail: str | None = None) -> SyncBlock[StepBlock]:
        """A step: what is recorded inside carries its number."""
        return SyncBlock(self, StepBlock(self._core.journal, name, detail))

    def message(self, role: str, content: str, *, name: str | None = None) -> None:
        """A message: `role` is system, developer, user, assistant or tool."""
        self._emit(lambda stamp: self._core.journal.message(stamp, role, content, name))

    def memory(self, operation: str, store: str, **fields: Any) -> None:
        """Use of memory: `operation` is read, search, write or delete; fields memory_key, content, items."""
        self._emit(lambda stamp: self._core.journal.memory(stamp, operation, {"store": store, **fields}))

    def approval(self, decision: str, approval_id: str, subject: str, **fields: Any) -> None:
        """A human approval: `decision` is requested, approved, rejected or expired; fields approver, comment."""
        self._emit(
            lambda stamp: self._core.journal.approval(
                stamp, decision, {"approval_id": approval_id, "subject": subject, **fields}
            )
        )

    def _begin(self, block: Block) -> Scope:
        with then_catch_up, busy(), self._turn:
            event, scope = self._core.begin(block)
            if event is not None:
                self._core.publisher.publish(event, traceparent=self._core.traceparent())
        return scope

    def _emit(self, make: Callable[[Stamp], RunEvent]) -> None:
        if inside():
            put_off(self._emit, make)
            return
        # Numbered and published in one go, so that the order in Kafka is the order of numbers.
        with then_catch_up, busy(), self._turn:
            event = make(self._core.stamp())
            self._core.publisher.publish(event, traceparent=self._core.traceparent())
