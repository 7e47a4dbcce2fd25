"""The recorder an agent service uses: `async with app.recorder() as recorder`, or `with` and no asyncio.

    with app.recorder() as recorder, recorder.run(agent="support", tenant="acme") as run:
        with run.model_call("gpt-large") as call:
            call.usage(input_tokens=1200, output_tokens=340)
        with run.tool_call("search", arguments={"q": "refund"}) as tool:
            tool.result("...")

Two thin shells, one core: what is recorded is decided in `blocks` and `journal`; in `run_core` it gets an
id and a time; `run_sync` and `run_async` publish it in its turn. An exception of the body is recorded and goes on;
trouble with recording never takes its place. A third shell, `run_detached`, is for code that is called back.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

from pipeline.emit.run_async import AsyncBlock, AsyncRun
from pipeline.emit.run_core import EventPublisher, RecorderOptions, RunCore, RunStart
from pipeline.emit.run_detached import DetachedRun
from pipeline.emit.run_sync import Run, SyncBlock
from pipeline.emit.stats import Leftover

__all__ = [
    "AsyncBlock",
    "AsyncRecorder",
    "AsyncRun",
    "DetachedRun",
    "EventPublisher",
    "Recorder",
    "RecorderOptions",
    "Run",
    "SyncBlock",
    "SyncRecorder",
]

R = TypeVar("R", Run, AsyncRun)


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


class _RunOpener(ABC, Generic[R]):
    """Opens runs in one of the shells."""

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
    ) -> R:
        """A run, recorded from `with` (`async with` in an event loop) to its end. `traceparent`: W3C; by default
        OpenTelemetry's current one, if there is one."""
        start = RunStart(agent, tenant, run_id, input, labels, parent_run_id, traceparent)
        return self._open(RunCore(self._publisher, self._options, start))

    def detached(
        self,
        agent: str,
        tenant: str | None = None,
        *,
        run_id: str | None = None,
        input: str | None = None,  # noqa: A002 - the field's own name
        labels: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        traceparent: str | None = None,
    ) -> DetachedRun:
        """A run for code that is called back: beginnings and ends are calls, from any thread or task, and none waits.

        Where the caller is inside another run, that one becomes its parent.
        """
        start = RunStart(agent, tenant, run_id, input, labels, parent_run_id, traceparent)
        return DetachedRun(self._publisher, self._options, start)

    @abstractmethod
    def _open(self, core: RunCore) -> R: ...


class SyncRecorder(_RunOpener[Run]):
    """Opens runs for code without asyncio."""

    def _open(self, core: RunCore) -> Run:
        return Run(core)


class AsyncRecorder(_RunOpener[AsyncRun]):
    """Opens runs in an event loop."""

    def _open(self, core: RunCore) -> AsyncRun:
        return AsyncRun(core)
