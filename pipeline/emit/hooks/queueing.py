"""`queue_hook`: work that follows an agent's run goes to a queue, and the agent has returned before it is even enqueued.

Any object with `enqueue(topic, payload, options)` is a queue here; where `enqueue` is no coroutine function it may take its time.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import logging
import os
import queue as queues
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pipeline.model.background import job_options
from pipeline.model.job_policies import JobOptions
from pipeline.model.outbox import UNDER_WAY

log = logging.getLogger("pipeline.hooks")

R = TypeVar("R", contravariant=True)

PENDING_MAX = 1_000
EXIT_WAIT_S = 5.0


class Enqueues(Protocol):
    """All that a hook needs of a `BackgroundQueue`."""

    def enqueue(self, topic: str, payload: Any, options: JobOptions, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class QueueHookStats:
    """`called` = `enqueued` + `failed` (logged) + `dropped` (over the bound) + `waiting`."""

    called: int
    enqueued: int
    failed: int
    dropped: int
    waiting: int


def queue_hook(queue: Enqueues, topic: str, payload_fn: Callable[[R], Any], **options: Any) -> QueueHook[R]:
    """A hook for `after_run` or `on_error`: calls `payload_fn(run)`, and enqueues what it gives to a `BackgroundQueue`.

    `options` are those of `JobOptions`: a wrong one is a `ConfigurationError` here and now. The hook returns at once.
    Where `payload_fn` is `async`, or the queue belongs to an event loop (see `BackgroundQueue`), and the caller has one, they run
    there, as a task; otherwise in a thread of the hook's own, in order. Whatever goes wrong is counted and logged, never raised.
    """
    return QueueHook(queue, topic, payload_fn, job_options(options))


class _Loop(asyncio.SelectorEventLoop):
    """What may wait does so in this thread, the hook's own, where no other is to be had: while the process ends."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        try:
            return super().run_in_executor(executor, func, *args)
        except RuntimeError:
            future = self.create_future()
            try:
                future.set_result(func(*args))
            except Exception as trouble:
                future.set_exception(trouble)
            return future


def _run_here(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(work)


class QueueHook(Generic[R]):
    """Call it with a finished run. `drain` waits for what it has been given, as the process does when it ends (5 s)."""

    def __init__(self, queue: Enqueues, topic: str, payload_fn: Callable[[R], Any], options: JobOptions) -> None:
        self.topic = topic
        self._queue = queue
        self._payload_fn = payload_fn
        self._options = options
        bound = inspect.iscoroutinefunction(queue.enqueue) and not getattr(queue, "from_any_loop", False)
        self._asynchronous = bound or inspect.iscoroutinefunction(payload_fn)
        self._thread: threading.Thread | None = None
        self._begin()
        _hooks.add(self)

    def _begin(self) -> None:
        """As new: also in a process that was forked, since what waits is its parent's, which still enqueues it."""
        self._changed = threading.Condition()
        self._called = self._enqueued = self._failed = self._dropped = 0
        self._work: queues.SimpleQueue[tuple[Context, Any]] = queues.SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, run: R) -> None:
        with self._changed:
            self._called += 1
            if self._waiting > PENDING_MAX:
                self._dropped += 1
                if self._dropped == 1:
                    log.error("%s: %d jobs wait to be enqueued, later ones are dropped", self.topic, PENDING_MAX)
                return
        try:
            self._start(run)
        except Exception as trouble:  # the agent must not hear of it
            self._went_wrong(trouble)

    def stats(self) -> QueueHookStats:
        """Counts as of now."""
        with self._changed:
            return QueueHookStats(self._called, self._enqueued, self._failed, self._dropped, self._waiting)

    def drain(self, timeout_s: float = 10.0) -> bool:
        """Wait until nothing waits; False when the time is over first. In an event loop: `await drain_async()`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, max(0.0, deadline - time.monotonic()))

    async def drain_async(self, timeout_s: float = 10.0) -> bool:
        """The same without blocking the event loop."""
        deadline = time.monotonic() + timeout_s
        while tasks := [task for task in self._tasks if task.get_loop() is asyncio.get_running_loop()]:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            await asyncio.wait(tasks, timeout=remaining)
        return await asyncio.to_thread(self.drain, max(0.0, deadline - time.monotonic()))

    @property
    def _waiting(self) -> int:
        return self._called - self._enqueued - self._failed - self._dropped

    def _start(self, run: R) -> None:
        loop = None
        if self._asynchronous:
            with contextlib.suppress(RuntimeError):
                loop = asyncio.get_running_loop()
        if loop is not None:
            task = loop.create_task(self._deliver(run))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        with self._changed:
            if self._thread is None or not self._thread.is_alive():  # also after a fork, which takes no threads along
                if self._thread is None:
                    atexit.register(self.drain, EXIT_WAIT_S)
                self._thread = threading.Thread(target=self._serve, name="pipeline-queue-hook", daemon=True)
                self._thread.start()
        self._work.put((copy_context(), run))

    def _serve(self) -> None:
        while True:
            context, run = self._work.get()
            try:
                context.run(_run_here, self._deliver(run))
            except Exception as trouble:  # the thread must live
                self._went_wrong(trouble)
            del context, run

    async def _deliver(self, run: R) -> None:
        """Also where the agent runs inside a handler: that may end at any moment, and what it asks for has been taken by then."""
        UNDER_WAY.set(None)
        try:
            payload = await self._call(self._payload_fn, run)
            await self._call(self._queue.enqueue, self.topic, payload, self._options)
        except asyncio.CancelledError as stopped:  # the loop ends before the job was enqueued
            self._went_wrong(stopped)
            raise
        except Exception as trouble:
            self._went_wrong(trouble)
        else:
            with self._changed:
                self._enqueued += 1
                self._changed.notify_all()

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """A plain function runs aside where the loop is the agent's: it may take its time."""
        aside = threading.current_thread() is not self._thread and not inspect.iscoroutinefunction(function)
        answer = await asyncio.to_thread(function, *args) if aside else function(*args)
        return await answer if inspect.isawaitable(answer) else answer

    def _went_wrong(self, trouble: BaseException) -> None:
        with self._changed:
            self._failed += 1
            first = self._failed == 1
            self._changed.notify_all()
        if first:
            log.error("no job was enqueued to %s; later failures are counted", self.topic, exc_info=trouble)


_hooks: weakref.WeakSet[QueueHook[Any]] = weakref.WeakSet()


def _begin_in_child() -> None:
    for hook in list(_hooks):
        hook._begin()


if hasattr(os, "register_at_fork"):  # where there is no fork there is nothing to do
    os.register_at_fork(after_in_child=_begin_in_child)
