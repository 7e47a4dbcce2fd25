"""A run being recorded, without its shell: its journal, ids and clock, and where in the run the caller is.

What is recorded is decided in `blocks` and `journal`; here it gets an id and a time; `run_sync` and `run_async`
publish it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pipeline.emit.blocks import Block, RunBlock
from pipeline.emit.envelope import current_traceparent, is_traceparent
from pipeline.emit.journal import RunIdentity, RunJournal, Scope, Stamp
from pipeline.emit.stats import Leftover
from pipeline.model.errors import ConfigurationError
from pipeline.model.events import RunEvent

log = logging.getLogger("pipeline.emit")


@dataclass(slots=True, eq=False)
class ActiveScope:
    """A block that somebody is in: the journal of its run, and where in the run that is. `left`: the block has ended,
    or one that it is in."""

    journal: RunJournal
    scope: Scope
    left: bool = False

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.journal.identity.run_id

    @property
    def ended(self) -> bool:
        """Nobody is in it any more: a run's end is the end of all that is open in it."""
        return self.left or self.journal.ended


_entered: ContextVar[tuple[ActiveScope, ...]] = ContextVar("pipeline_run_scopes", default=())
"""The blocks that the caller is in, the innermost last. Some may have ended: a generator that is left ends its block in another
context, which can't set this one, and generators that take turns end theirs in any order."""


def current_scope() -> ActiveScope | None:
    """The innermost block the caller is in."""
    return next((active for active in reversed(_entered.get()) if not active.ended), None)


def enter_scope(journal: RunJournal, scope: Scope) -> ActiveScope:
    """What the caller does from now on is inside; give the result to `leave_scope`, in whatever context."""
    active = ActiveScope(journal, scope)
    _entered.set((*_not_ended(), active))
    return active


def leave_scope(active: ActiveScope) -> None:
    """Its block has ended, for everyone who is in it.

    So has what the caller began in it, though a stream that was left may be open for long: the caller is not in that any more. What
    another task began in it stands in that task's context, and goes on."""
    active.left = True
    entered = _entered.get()
    if active in entered:
        for inner in entered[entered.index(active) :]:
            inner.left = inner.left or inner.journal is active.journal  # a run inside it has an end of its own
    _entered.set(_not_ended())


def _not_ended() -> tuple[ActiveScope, ...]:
    return tuple(active for active in _entered.get() if not active.ended)


class EventPublisher(Protocol):
    """What the recorder publishes with: `pipeline.emit.publisher.Publisher`."""

    def publish(self, event: RunEvent, *, traceparent: str | None = None) -> None: ...

    async def publish_async(self, event: RunEvent, *, traceparent: str | None = None) -> None: ...

    def offer(self, event: RunEvent, *, traceparent: str | None = None) -> bool: ...

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


@dataclass(frozen=True, slots=True)
class RunStart:
    """What an agent says about a run when it opens it."""

    agent: str
    tenant: str | None
    run_id: str | None
    input: str | None
    labels: Mapping[str, str] | None
    parent_run_id: str | None
    traceparent: str | None

    def inside(self, run_id: str) -> RunStart:
        """The same as a part of another run."""
        return replace(self, parent_run_id=run_id)


class RunCore:
    """What both shells of a run share: its journal, its ids and clock, and where in the run we are."""

    def __init__(self, publisher: EventPublisher, options: RecorderOptions, start: RunStart) -> None:
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

    def stamp(self, scope: Scope | None = None) -> Stamp:
        """A new event's id, its time, and where in the run it is: where the caller is, unless told."""
        if scope is None:
            here = current_scope()
            scope = here.scope if here is not None and here.journal is self.journal else self.base_scope
        return Stamp(self._options.new_id(), self._options.clock_ms(), scope)

    def traceparent(self) -> str | None:
        """The trace the run was given, else the caller's current one."""
        return self._traceparent or current_traceparent()

    def begin(self, block: Block) -> tuple[RunEvent | None, Scope]:
        """What is recorded when the block begins, and where in the run its body is."""
        event, scope = block.begin(self.stamp())
        if block is self.block:
            self.base_scope = scope
        return event, scope


class RunShell:
    """What both shells of a run have that publishes nothing: saying, while the run goes on, how it is to end."""

    def __init__(self, core: RunCore) -> None:
        self.run_id = core.run_id
        self._core = core

    def output(self, content: Any) -> None:
        """What the run comes to; kept in RunCompleted."""
        self._core.block.output(content)

    def fail(self, error_class: str, message: str = "") -> None:
        """End as RunFailed though nothing is raised."""
        self._core.block.fail(error_class, message)

    def cancel(self, reason: str | None = None, cancelled_by: str | None = None) -> None:
        """End as RunCancelled though nothing is raised."""
        self._core.block.cancel(reason, cancelled_by)


def not_recorded(trouble: BaseException, failure: BaseException) -> None:
    """Recording the end went wrong while the body's own exception is on its way: that one is what the agent
    must see."""
    log.error("the end of a run or call was not recorded: %s", trouble)
    failure.add_note(f"pipeline could not record this: {trouble}")
