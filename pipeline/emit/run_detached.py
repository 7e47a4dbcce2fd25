"""A run told by calls instead of `with`: the shell over `run_core` for code that is called back, as frameworks' hooks are.

Its blocks are open under keys of the caller's choice, since beginning and end come in different calls, tasks or
threads, and where in the run something happens is said by the key of what is around it. Nothing waits: an event that
finds no room in the buffer is lost and counted, and the gap in the numbers shows it.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.emit.blocks import Block, ModelCallBlock, StepBlock, ToolCallBlock
from pipeline.emit.journal import RunJournal, Scope
from pipeline.emit.run_core import EventPublisher, RecorderOptions, RunCore, RunShell, RunStart, current_scope
from pipeline.emit.sections import busy, inside, put_off, then_catch_up
from pipeline.model.errors import PipelineError
from pipeline.model.events import RunEvent, RunTotals

B = TypeVar("B", bound=Block)


class Unfinished(PipelineError):
    """The end of a call was never told."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """`outer`: where the block's own events are; `inner`: where what happens in it is."""

    block: Block
    outer: Scope
    inner: Scope
    under: Hashable | None


class DetachedRun(RunShell):
    """Any thread may use it. Calls raise ValidationError (nothing sent, nothing open) and, after the end, PublishError."""

    def __init__(self, publisher: EventPublisher, options: RecorderOptions, start: RunStart) -> None:
        here = current_scope()
        cause = Scope()
        if here is not None and start.parent_run_id is None:
            start, cause = start.inside(here.run_id), Scope(None, here.scope.parent_id)
        super().__init__(RunCore(publisher, options, start))
        self.input = start.input
        self.labels = dict(start.labels or {})
        self.parent_run_id = start.parent_run_id
        self.lost = 0
        self._turn = threading.RLock()
        self._open: dict[Hashable, _Opened] = {}
        self._core.base_scope = cause
        with then_catch_up, busy(), self._turn:
            event, scope = self._core.block.begin(self._core.stamp(cause))
            self._core.base_scope = scope
            self._offer(event)

    @property
    def ended(self) -> bool:
        """Whether its last event is recorded."""
        return self._core.journal.ended

    @property
    def opened(self) -> int:
        """How many blocks are open."""
        return len(self._open)

    def scope_of(self, key: Hashable | None) -> tuple[RunJournal, Scope]:
        """For `enter_scope`: inside the block of this key, or of the run where there is none."""
        with then_catch_up, busy(), self._turn:
            return self._core.journal, self._inner(key)

    def is_open(self, key: Hashable) -> bool:
        """Whether a block has begun under this key and not ended."""
        return key in self._open

    def model_call(
        self, key: Hashable, model: str, *, provider: str | None = None, under: Hashable | None = None
    ) -> ModelCallBlock:
        """A model call begins."""
        return self._begin(key, ModelCallBlock(self._core.journal, model, provider), under)

    def tool_call(
        self,
        key: Hashable,
        tool: str,
        arguments: Any = None,
        *,
        call_id: str | None = None,
        under: Hashable | None = None,
    ) -> ToolCallBlock:
        """A tool call begins."""
        return self._begin(
            key, ToolCallBlock(self._core.journal, tool, arguments, call_id or self._core.new_id()), under
        )

    def step(
        self,
        key: Hashable,
        name: str,
        *,
        detail: str | None = None,
        under: Hashable | None = None,
        caused_by: str | None = None,
    ) -> StepBlock:
        """A step begins; what is recorded under its key carries its number. `caused_by`: an event's id, where it is
        not what is around the step."""
        return self._begin(key, StepBlock(self._core.journal, name, detail), under, caused_by)

    def message(self, role: str, content: str, *, name: str | None = None, under: Hashable | None = None) -> None:
        """Someone spoke."""
        with then_catch_up, busy(), self._turn:
            stamp = self._core.stamp(self._inner(under))
            self._offer(self._core.journal.message(stamp, role, content, name))

    def memory(self, operation: str, store: str, *, under: Hashable | None = None, **fields: Any) -> None:
        """Use of memory."""
        with then_catch_up, busy(), self._turn:
            stamp = self._core.stamp(self._inner(under))
            self._offer(self._core.journal.memory(stamp, operation, {"store": store, **fields}))

    def approval(
        self, decision: str, approval_id: str, subject: str, *, under: Hashable | None = None, **fields: Any
    ) -> None:
        """A human was asked, or has decided."""
        fields |= {"approval_id": approval_id, "subject": subject}
        with then_catch_up, busy(), self._turn:
            stamp = self._core.stamp(self._inner(under))
            self._offer(self._core.journal.approval(stamp, decision, fields))

    def end(self, key: Hashable, failure: BaseException | None = None) -> bool:
        """The block of this key ends, and before it what is still open inside; False when there is none."""
        if inside():
            put_off(self.end, key, failure)
            return key in self._open
        with then_catch_up, busy(), self._turn:
            if key not in self._open:
                return False
            for inner in [*self._inside(key), key]:
                self._close(inner, failure if inner == key else failure or _unfinished())
            return True

    def finish(self, failure: BaseException | None = None) -> RunTotals | None:
        """The run ends, and before it what is still open; its last event, or None when it had ended already."""
        with then_catch_up, busy(), self._turn:
            if self.ended:
                return None
            for key in list(reversed(self._open)):
                self._close(key, failure or _unfinished())
            last = self._core.block.end(self._core.stamp(self._core.base_scope), failure)
            self._offer(last)
            assert isinstance(last, RunTotals)
            return last

    def _begin(self, key: Hashable, block: B, under: Hashable | None, caused_by: str | None = None) -> B:
        with then_catch_up, busy(), self._turn:
            if key in self._open:  # the framework has begun the same again: the first one is over
                self._close(key, _unfinished())
            outer = self._inner(under)
            if caused_by is not None:
                outer = Scope(outer.step, caused_by)
            event, inner = block.begin(self._core.stamp(outer))
            self._open[key] = _Opened(block, outer, inner, under)
            self._offer(event)
        return block

    def _close(self, key: Hashable, failure: BaseException | None) -> None:
        opened = self._open.pop(key)
        self._offer(opened.block.end(self._core.stamp(opened.outer), failure))

    def _inside(self, key: Hashable) -> list[Hashable]:
        """Keys of what is open inside, the innermost first."""
        found = list[Hashable]()
        for inner, opened in self._open.items():
            if opened.under == key and inner != key:
                found += [*self._inside(inner), inner]
        return found

    def _inner(self, under: Hashable | None) -> Scope:
        opened = None if under is None else self._open.get(under)
        return self._core.base_scope if opened is None else opened.inner

    def _offer(self, event: RunEvent | None) -> None:
        if event is not None and not self._core.publisher.offer(event, traceparent=self._core.traceparent()):
            self.lost += 1


def _unfinished() -> Unfinished:
    return Unfinished("its end was not told")
