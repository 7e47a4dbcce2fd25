"""What the adapters of all frameworks share: runs opened and closed, trouble kept away from the agent, hooks called after a run."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from pydantic_core import to_jsonable_python

from pipeline.emit.coerce import as_json, clean
from pipeline.emit.run_detached import DetachedRun
from pipeline.emit.sections import busy, inside, put_off, then_catch_up
from pipeline.model.events import RunCancelled, RunCompleted, RunFailed, RunTotals

log = logging.getLogger("pipeline.hooks")

TEXT_MAX = 100_000
"""Longer texts are cut: a record of Kafka's default size must hold the event, and copying takes time."""


class RunSource(Protocol):
    """What opens runs: what `with app.recorder()` and `async with app.recorder()` give."""

    def detached(
        self,
        agent: str,
        tenant: str | None = None,
        *,
        run_id: str | None = None,
        input: str | None = None,  # noqa: A002 - the field's own name
        labels: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
    ) -> DetachedRun: ...


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that has ended, as hooks get it. `last` is its last event, with the totals; `failure` what was raised."""

    last: RunTotals
    input: str | None
    labels: Mapping[str, str]
    parent_run_id: str | None
    failure: BaseException | None

    @property
    def run_id(self) -> str:
        return self.last.run_id

    @property
    def agent(self) -> str:
        return self.last.agent

    @property
    def tenant(self) -> str:
        return self.last.tenant

    @property
    def status(self) -> str:
        """COMPLETED, FAILED or CANCELLED."""
        return type(self.last).__name__.removeprefix("Run").upper()

    @property
    def output(self) -> str | None:
        """What the run came to, where it was completed."""
        return self.last.output if isinstance(self.last, RunCompleted) else None

    @property
    def error(self) -> str | None:
        """Class and message of what went wrong, or why the run was stopped."""
        if isinstance(self.last, RunFailed):
            return f"{self.last.error_class}: {self.last.error_message}"
        return self.last.reason if isinstance(self.last, RunCancelled) else None


RunHook = Callable[[FinishedRun], object]
"""Called in the agent's own thread or loop, so it must return at once, as what `queue_hook` gives does."""


@dataclass(frozen=True, slots=True)
class HookOptions:
    """`agent`: the name of runs, where it is not the framework's; `tenant`: by default the recorder's.

    `content=False` records no text: no input, output, messages, arguments or results. `after_run` is called for each
    run that completed, `on_error` for each that failed; a cancelled run calls neither.
    """

    agent: str | None = None
    tenant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    content: bool = True
    after_run: Sequence[RunHook] = ()
    on_error: Sequence[RunHook] = ()


@dataclass(frozen=True, slots=True)
class HookStats:
    """`errors`: things that could not be recorded, of which the first is logged; `lost`: events that found no room in
    the buffer; `stray`: calls of a hook that belong to no run."""

    runs: int
    open: int
    errors: int
    lost: int
    stray: int


class Guard:
    """`with guard:` keeps whatever goes wrong in the block from the agent: counted, and logged once."""

    def __init__(self, framework: str) -> None:
        self.errors = 0
        self._framework = framework

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: type[BaseException] | None, trouble: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if not isinstance(trouble, Exception):
            return False
        self.errors += 1
        if self.errors == 1:
            log.error(
                "%s: something of a run was not recorded; later errors are counted", self._framework, exc_info=trouble
            )
        return True


class RunWatch:
    """The runs that one adapter records."""

    def __init__(self, framework: str, source: RunSource, options: HookOptions) -> None:
        self.guard = Guard(framework)
        self.options = options
        self._framework = framework
        self._source = source
        self._lock = threading.RLock()
        self._runs = self._open = self._lost = self._stray = 0

    def stats(self) -> HookStats:
        """Counts as of now."""
        with then_catch_up, busy(), self._lock:
            return HookStats(self._runs, self._open, self.guard.errors, self._lost, self._stray)

    def open(self, name: str, given: Any = None, *, run_id: str | None = None) -> DetachedRun:
        """A run begins. `name`: the framework's, `given`: the agent's input."""
        options = self.options
        run = self._source.detached(
            options.agent or name, options.tenant, run_id=run_id, input=self.text(given), labels=options.labels
        )
        with then_catch_up, busy(), self._lock:
            self._runs += 1
            self._open += 1
        return run

    def close(self, run: DetachedRun, failure: BaseException | None = None) -> None:
        """The run ends; twice is fine. Then its hooks are called."""
        if inside():
            put_off(self.close, run, failure)
            return
        last = run.finish(failure)
        if last is None:
            return
        with then_catch_up, busy(), self._lock:
            self._open -= 1
            self._lost += run.lost
            first = self._lost == run.lost > 0
        if first:
            log.error(
                "%s: %d events of run %s found no room in the buffer: is the broker away? Choose mode 'spool'.",
                self._framework, run.lost, run.run_id,
            )  # fmt: skip
        hooks = {RunCompleted: self.options.after_run, RunFailed: self.options.on_error}.get(type(last), ())
        finished = FinishedRun(last, run.input, run.labels, run.parent_run_id, failure)
        for hook in hooks:
            with self.guard:
                hook(finished)

    def stray(self, what: str) -> None:
        """A hook was called for no run that is known."""
        with then_catch_up, busy(), self._lock:
            self._stray += 1
            first = self._stray == 1
        if first:
            log.error("%s: %s", self._framework, what)

    def say(self, run: DetachedRun, messages: Sequence[tuple[str, str]], under: Hashable | None = None) -> None:
        """What people say with the first model call of a run, as (role, text) of its whole input: what follows the
        last answer is new, the rest is of earlier runs."""
        if not self.options.content:
            return
        answers = [index for index, (role, _) in enumerate(messages) if role in ("assistant", "tool")]
        for role, text in messages[answers[-1] + 1 if answers else 0 :]:
            if role in ("system", "developer", "user") and text:
                run.message(role, self.text(text) or "", under=under)

    def text(self, value: Any) -> str | None:
        """Any value as bounded text, where texts are recorded."""
        return bounded(plain_text(value)) if self.options.content else None

    def arguments(self, value: Any) -> str:
        """A tool's arguments as one JSON document."""
        if not self.options.content:
            return "{}"
        if isinstance(value, str):
            try:
                json.loads(value)
            except (ValueError, RecursionError):
                value = json.dumps(value)
        else:
            value = as_json({} if value is None else plain(value))
        return value if len(value) <= TEXT_MAX else json.dumps(bounded(value))


def plain(value: Any) -> Any:
    """Models, data classes and what else there is as what JSON can hold."""
    return value if isinstance(value, str) else to_jsonable_python(value, serialize_unknown=True)


def plain_text(value: Any) -> str | None:
    """Text as it is, None for None, anything else as JSON."""
    if value is None:
        return None
    return clean(value) if isinstance(value, str) else as_json(plain(value))


def bounded(text: str | None) -> str | None:
    """At most TEXT_MAX characters, and how many there were."""
    if text is None or len(text) <= TEXT_MAX:
        return text
    return f"{text[:TEXT_MAX]}... ({len(text)} characters)"
