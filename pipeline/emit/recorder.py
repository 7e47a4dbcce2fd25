"""The recorder an agent service uses: `async with app.recorder() as recorder`, or `with` and no asyncio.

    with app.recorder() as recorder, recorder.run(agent="support", tenant="acme") as run:
        with run.model_call("gpt-large") as call:
            call.usage(input_tokens=1200, output_tokens=340)
        with run.tool_call("search", arguments={"q": "refund"}) as tool:
            tool.result("...")

Two thin shells, one core: what is recorded is decided in `blocks` and `journal`; here it gets an id and a
time, and is published in
its turn. An exception of the body is recorded and goes on; trouble with recording never takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from pipeline.emit.blocks import Block, ModelCallBlock, RunBlock, StepBlock, ToolCallBlock
from pipeline.emit.envelope import current_traceparent, is_traceparent
from pipeline.emit.journal import RunIdentity, RunJournal, Scope, Stamp
from pipeline.emit.stats import Leftover
from pipeline.model.errors import ConfigurationError, PipelineError
from pipeline.model.events import RunEvent

log = logging.getLogger("pipeline.emit")

B = TypeVar("B", bound=Block)
_scope: ContextVar[tuple[str, Scope] | None] = ContextVar("pipeline_run_scope", default=None)


class EventPublisher(Protocol):
    """What the recorder publishes with: `pipeline.emit.publisher.Publisher`."""

    def publish(self, event: RunEvent, *, traceparent: str | None = None) -> None: ...

    async def publish_async(self, event: RunEvent, *, traceparent: str | None = None) -> None: ...

    def close(self, timeout_s: float = ...) -> Leftover: ...


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class RecorderOptions:
    """`tenant`: of runs that name none. `owns_publisher`: leaving the recorder closes it, within
    `close_timeout_s`."""

    tenant: str = "default"
    owns_publisher: bool = True
    close_timeout_s: float = 10.0
    clock_ms: Callable[[], int] = _wall_clock_ms
    new_id: Callable[[], str] = _new_id


class Recorder:
    """Opens either shell: `with` gives a SyncRecorder, `async with` an AsyncRecorder. `left` says what was
    not delivered at the end."""

    def __init__(self, publisher: EventPublisher, options: RecorderOptions | None = None) -> None:
        self.left = Leftover()
        self._publisher = publisher
        self._options = options or RecorderOptions()

    def __enter__(self) -> SyncRecorder:
        return SyncRecorder(self._publisher, self._options)

    def __exit__(self, *_exc: object) -> None:
        if self._options.owns_publisher:
            self.left = self._publisher.close(self._options.close_timeout_s)

    async def __aenter__(self) -> AsyncRecorder:
        return AsyncRecorder(self._publisher, self._options)

    async def __aexit__(self, *_exc: object) -> None:
        if self._options.owns_publisher:
            self.left = await asyncio.to_thread(self._publisher.close, self._options.close_timeout_s)


class _RunCore:
    """What both shells of a run share: its journal, its ids and clock, and where in the run we are."""

    def __init__(self, publisher: EventPublisher, options: RecorderOptions, start: _RunStart) -> None:
        if start.traceparent is not None and not is_traceparent(start.traceparent):
            raise ConfigurationError(
                f"traceparent={start.traceparent!r} is not W3C Trace Context: use 00-<32 hex>-<16 hex>-<2 hex>."
            )
        self.publisher = publisher
        self.run_id = start.run_id or options.new_id()
        self.journal = RunJournal(RunIdentity(self.run_id, start.agent, start.tenant or options.tenant))
        fields = {"input": start.input, "labels": start.labels or {}, "parent_run_id": start.parent_run_id}
        self.block = RunBlock(self.journal, fields)
        self.base_scope = Scope()
        self.new_id = options.new_id
        self._options = options
        self._traceparent = start.traceparent

    def stamp(self) -> Stamp:
        here = _scope.get()
        scope = here[1] if here is not None and here[0] == self.run_id else self.base_scope
        return Stamp(self._options.new_id(), self._options.clock_ms(), scope)

    def traceparent(self) -> str | None:
        return self._traceparent or current_traceparent()


@dataclass(frozen=True, slots=True)
class _RunStart:
    agent: str
    tenant: str | None
    run_id: str | None
    input: str | None
    labels: Mapping[str, str] | None
    parent_run_id: str | None
    traceparent: str | None


def _not_recorded(trouble: BaseException, failure: BaseException) -> None:
    """Recording the end went wrong while the body's own exception is on its way: that one is what the agent
    must see."""
    log.error("the end of a run or call was not recorded: %s", trouble)
    failure.add_note(f"pipeline could not record this: {trouble}")


class SyncBlock(Generic[B]):
    """A block of a run as a context manager."""

    def __init__(self, run: Run, block: B) -> None:
        self._run = run
        self._block = block
        self._outer: tuple[str, Scope] | None = None

    def __enter__(self) -> B:
        self._outer = _scope.get()
        scope = self._run._begin(self._block)
        _scope.set((self._run.run_id, scope))
        return self._block

    def __exit__(
        self, _kind: type[BaseException] | None, failure: BaseException | None, _trace: TracebackType | None
    ) -> None:
        _scope.set(self._outer)
        try:
            self._run._emit(lambda stamp: self._block.end(stamp, failure))
        except (PipelineError, ValueError) as trouble:
            if failure is None:
                raise
            _not_recorded(trouble, failure)


class Run:
    """A run being recorded; any thread may use it. Every call may raise ValidationError (nothing sent) and
    BufferFull."""

    def __init__(self, core: _RunCore) -> None:
        self.run_id = core.run_id
        self._core = core
        self._turn = threading.Lock()
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

    def output(self, content: Any) -> None:
        """What the run comes to; kept in RunCompleted."""
        self._core.block.output(content)

    def fail(self, error_class: str, message: str = "") -> None:
        """End as RunFailed though nothing is raised."""
        self._core.block.fail(error_class, message)

    def cancel(self, reason: str | None = None, cancelled_by: str | None = None) -> None:
        """End as RunCancelled though nothing is raised."""
        self._core.block.cancel(reason, cancelled_by)

    def _begin(self, block: Block) -> Scope:
        with self._turn:
            event, scope = block.begin(self._core.stamp())
            if block is self._core.block:
                self._core.base_scope = scope
            if event is not None:
                self._core.publisher.publish(event, traceparent=self._core.traceparent())
        return scope

    def _emit(self, make: Callable[[Stamp], RunEvent]) -> None:
        with self._turn:  # numbered and published in one go, so that the order in Kafka is the order of numbers
            event = make(self._core.stamp())
            self._core.publisher.publish(event, traceparent=self._core.traceparent())


class AsyncBlock(Generic[B]):
    """A block of a run as an asynchronous context manager."""

    def __init__(self, run: AsyncRun, block: B) -> None:
        self._run = run
        self._block = block
        self._outer: tuple[str, Scope] | None = None

    async def __aenter__(self) -> B:
        self._outer = _scope.get()
        scope = await self._run._begin(self._block)
        _scope.set((self._run.run_id, scope))
        return self._block

    async def __aexit__(
        self, _kind: type[BaseException] | None, failure: BaseException | None, _trace: TracebackType | None
    ) -> None:
        _scope.set(self._outer)
        try:
            await self._run._emit(lambda stamp: self._block.end(stamp, failure))
        except (PipelineError, ValueError) as trouble:
            if failure is None:
                raise
            _not_recorded(trouble, failure)


class AsyncRun:
    """A run being recorded in one event loop; several tasks may use it. Raises as `Run` does."""

    def __init__(self, core: _RunCore) -> None:
        self.run_id = core.run_id
        self._core = core
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

    def output(self, content: Any) -> None:
        """What the run comes to; kept in RunCompleted."""
        self._core.block.output(content)

    def fail(self, error_class: str, message: str = "") -> None:
        """End as RunFailed though nothing is raised."""
        self._core.block.fail(error_class, message)

    def cancel(self, reason: str | None = None, cancelled_by: str | None = None) -> None:
        """End as RunCancelled though nothing is raised."""
        self._core.block.cancel(reason, cancelled_by)

    async def _begin(self, block: Block) -> Scope:
        async with self._turn:
            event, scope = block.begin(self._core.stamp())
            if block is self._core.block:
                self._core.base_scope = scope
            if event is not None:
                await self._core.publisher.publish_async(event, traceparent=self._core.traceparent())
        return scope

    async def _emit(self, make: Callable[[Stamp], RunEvent]) -> None:
        async with self._turn:  # numbered and published in one go, so that the order in Kafka is the order of numbers
            event = make(self._core.stamp())
            await self._core.publisher.publish_async(event, traceparent=self._core.traceparent())


class SyncRecorder:
    """Opens runs for code without asyncio."""

    def __init__(self, publisher: EventPublisher, options: RecorderOptions) -> None:
        self._publisher = publisher
        self._options = options

    def run(
        self,
        agent: str,
        tenant: str | None = None,
        *,
        run_id: str | None = None,
        input: str | None = None,  # noqa: A002 - the field's own name
        labels: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        traceparent: str | None = None,
    ) -> Run:
        """A run, recorded from `with` to its end. `traceparent`: W3C; by default OpenTelemetry's current
        one, if there is one."""
        start = _RunStart(agent, tenant, run_id, input, labels, parent_run_id, traceparent)
        return Run(_RunCore(self._publisher, self._options, start))


class AsyncRecorder:
    """Opens runs in an event loop."""

    def __init__(self, publisher: EventPublisher, options: RecorderOptions) -> None:
        self._publisher = publisher
        self._options = options

    def run(
        self,
        agent: str,
        tenant: str | None = None,
        *,
        run_id: str | None = None,
        input: str | None = None,  # noqa: A002 - the field's own name
        labels: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        traceparent: str | None = None,
    ) -> AsyncRun:
        """A run, recorded from `async with` to its end. Arguments as for SyncRecorder.run."""
        start = _RunStart(agent, tenant, run_id, input, labels, parent_run_id, traceparent)
        return AsyncRun(_RunCore(self._publisher, self._options, start))
