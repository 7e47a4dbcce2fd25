"""Telling people of dead letters: hooks and a webhook, beside the processing and never in its way.

    dead letter acknowledged -> rate limit -> bounded queue -> hooks      each with a task of its own, tried again with
                                         `-> bounded queue -> webhook     growing pauses, given up after a while

A window lets a few of a group's dead letters through one by one. The rest of them become one summary when the window ends, and
so does every later window until one has passed without any. What does not get through is counted and logged.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.core.effects import DeadLetter
from pipeline.core.unit import SKIPPED
from pipeline.model.alerts import Alert, DeadLetterAlert, FloodAlert
from pipeline.model.headers import HELD_CLASS
from pipeline.worker.webhook import Refused, Webhook

Hook = Callable[[Alert], Any]
THREADS_MAX = 4
"""Plain hooks and posts that hang at once; beyond that a try fails at once."""
_STOPPED = "an alert was dropped: the worker stopped before it got through"


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """`per_window` dead letters of a group are told of one by one in `window_s`; a try may take `timeout_s`.

    `queue`: alerts that wait for the hooks, and as many for the webhook. A hook is tried `hook_tries` times, the webhook for
    `retry_for_s`; before try n + 1 it rests `pause_s * 2 ** n`, at most `pause_max_s`.
    `threads` off (for memory clusters): plain hooks are called in the loop's own thread.
    """

    queue: int = 1_000
    per_window: int = 10
    window_s: float = 60.0
    timeout_s: float = 10.0
    hook_tries: int = 3
    retry_for_s: float = 900.0
    pause_s: float = 1.0
    pause_max_s: float = 60.0
    threads: bool = True


@dataclass(slots=True)
class _Window:
    """One group's: what was let through, and what was not, since `since_ms`."""

    since_ms: int
    topic: str
    passed: int = 0
    held: Counter[str] = field(default_factory=Counter)
    flooded: bool = False


class Alerts:
    """Owned by the event loop. `hooks` by group, as the headers name it. `results`: counts by (group, result).

    Results: "delivered" (to a hook or the webhook), "failed" (given up), "dropped" (a queue was full, or the worker stopped),
    "summarised" (told of in a summary only).
    """

    def __init__(
        self,
        hooks: Mapping[str, Sequence[Hook]],
        webhook: Webhook | None,
        now_ms: Callable[[], int],
        log: Any,
        policy: AlertPolicy | None = None,
    ) -> None:
        self.results: Counter[tuple[str, str]] = Counter()
        self._policy = policy or AlertPolicy()
        self._hooks = hooks
        self._webhook = webhook
        self._now_ms = now_ms
        self._log = log
        self._windows: dict[str, _Window] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._queues: list[tuple[deque[tuple[str, Callable[[], Alert]]], asyncio.Event, asyncio.Task[None]]] = []
        self._busy = 0
        self._hung = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        if any(self._hooks.values()):
            self._serve(self._tell_hooks)
        if self._webhook is not None:
            self._serve(self._tell_webhook)

    def _serve(self, tell: Callable[[str, Alert], Awaitable[None]]) -> None:
        queue: deque[tuple[str, Callable[[], Alert]]] = deque()
        wake = asyncio.Event()
        self._queues.append((queue, wake, self._loop.create_task(self._run(queue, wake, tell))))

    # -- in, from the engine

    def of(
        self, group: str, topic: str, describe: Callable[[DeadLetter, str, int], DeadLetterAlert]
    ) -> Callable[[DeadLetter, int], None]:
        """What hears of each acknowledged dead letter (effect, offset). No news: those an operator asked for, those that follow."""

        def acknowledged(effect: DeadLetter, offset: int) -> None:
            if effect.failure is not SKIPPED and effect.failure.error_class != HELD_CLASS:
                self.dead_letter(group, topic, effect.failure.error_class, partial(describe, effect, topic, offset))

        return acknowledged

    def dead_letter(self, group: str, topic: str, error_class: str, build: Callable[[], DeadLetterAlert]) -> None:
        """A record was given up and its dead letter is acknowledged. Returns at once; `build` is called later, if at all."""
        if not self._queues:
            return
        window = self._windows.get(group)
        if window is None:
            window = self._windows[group] = _Window(self._now_ms(), topic)
            self._timers[group] = self._loop.call_later(self._policy.window_s, self._window_ends, group)
        if window.flooded or window.passed >= self._policy.per_window:
            window.held[error_class] += 1
            self.results[group, "summarised"] += 1
            return
        window.passed += 1
        self._put(group, build)

    def _window_ends(self, group: str) -> None:
        window, now_ms = self._windows.pop(group), self._now_ms()
        del self._timers[group]
        if not window.held:
            return
        self._put(group, partial(_summary, group, window, now_ms))
        self._windows[group] = _Window(now_ms, window.topic, flooded=True)
        self._timers[group] = self._loop.call_later(self._policy.window_s, self._window_ends, group)

    def _put(self, group: str, build: Callable[[], Alert]) -> None:
        for queue, wake, _ in self._queues:
            if len(queue) >= self._policy.queue:
                self._count(group, "dropped", "an alert was dropped: too many wait for those that don't get through")
            else:
                queue.append((group, build))
                wake.set()

    def _count(self, group: str, result: str, event: str, **more: Any) -> None:
        self.results[group, result] += 1
        self._log.error(event, group=group, **more)

    # -- out

    async def _run(
        self,
        queue: deque[tuple[str, Callable[[], Alert]]],
        wake: asyncio.Event,
        tell: Callable[[str, Alert], Awaitable[None]],
    ) -> None:
        while True:
            while not queue:
                wake.clear()
                await wake.wait()
            group, build = queue.popleft()
            self._busy += 1
            try:
                await tell(group, build())
            except asyncio.CancelledError:
                self._count(group, "dropped", _STOPPED)
                raise
            except Exception as error:  # an alert is never worth the worker
                self._count(group, "failed", "an alert failed", error=repr(error))
            finally:
                self._busy -= 1

    async def _tell_hooks(self, group: str, alert: Alert) -> None:
        for hook in self._hooks.get(group, ()):
            name = getattr(hook, "__qualname__", repr(hook))
            await self._try(group, alert, partial(self._call, hook, alert), f"hook {name}", self._policy.hook_tries)

    async def _tell_webhook(self, group: str, alert: Alert) -> None:
        assert self._webhook is not None
        post = partial(self._in_thread, self._webhook.post, alert, self._policy.timeout_s)
        await self._try(group, alert, post, f"webhook at {self._webhook.host}", None)

    async def _try(
        self, group: str, alert: Alert, act: Callable[[], Awaitable[Any]], target: str, tries: int | None
    ) -> None:
        """Until it succeeds, or `tries` are used up (None: `retry_for_s`)."""
        policy, tried, until = self._policy, 0, self._loop.time() + self._policy.retry_for_s
        while True:
            tried += 1
            try:
                await asyncio.wait_for(act(), policy.timeout_s + 1)
                self.results[group, "delivered"] += 1
                return
            except Exception as error:
                pause_s = min(policy.pause_max_s, policy.pause_s * 2 ** min(tried - 1, 20))
                last = tried >= tries if tries is not None else self._loop.time() + pause_s > until
                if last or isinstance(error, Refused):
                    self._count(group, "failed", f"alert given up: {target}", alert=alert.alert_id, error=repr(error))
                    return
                self._log.warning(f"alert waits: {target}", alert=alert.alert_id, error=repr(error), again_s=pause_s)
                await asyncio.sleep(pause_s)

    async def _call(self, hook: Hook, alert: Alert) -> None:
        """Whatever it raises is a try that failed: a cancellation of its own would end the task that serves all hooks."""
        try:
            if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None)):  # noqa: B004
                await hook(alert)
            else:
                await self._in_thread(hook, alert)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # its time is over, or the worker stops
            raise RuntimeError("the hook was cancelled from inside: something it awaited was cancelled") from None
        except SystemExit as error:
            raise RuntimeError(repr(error)) from error

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> None:
        """In a daemon thread of its own: one that hangs must hold up neither the loop nor the end of the process."""
        if not self._policy.threads:
            call(*arguments)
            return
        if self._hung >= THREADS_MAX:
            raise TimeoutError(f"{THREADS_MAX} earlier calls have not returned")
        done: asyncio.Future[None] = self._loop.create_future()

        def run() -> None:
            error: BaseException | None = None
            try:
                call(*arguments)
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(self._returned, done, error)
            except RuntimeError:  # the loop has ended meanwhile
                return

        threading.Thread(target=run, name="pipeline-alert", daemon=True).start()
        self._hung += 1  # not before: one that can't be started never returns
        await done

    def _returned(self, done: asyncio.Future[None], error: BaseException | None) -> None:
        self._hung -= 1
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            fits = isinstance(error, Exception) and not isinstance(error, StopIteration)  # which no future takes
            done.set_exception(error if fits else RuntimeError(repr(error)))

    # -- the end

    async def stop(self, timeout_s: float) -> None:
        """Send what is there, summaries included, for at most `timeout_s`; the rest is counted as dropped."""
        for group in list(self._timers):
            self._timers[group].cancel()
            self._window_ends(group)
        until = self._loop.time() + timeout_s if self._queues else 0
        while self._queues and self._loop.time() < until and (self._busy or any(queue for queue, _, _ in self._queues)):
            await asyncio.sleep(0.02)
        self.abandon()
        for queue, _, _ in self._queues:
            for group, _build in queue:
                self._count(group, "dropped", _STOPPED)
        await asyncio.gather(*(task for _, _, task in self._queues), return_exceptions=True)
        self._queues.clear()

    def abandon(self) -> None:
        """At once, as a dying process does."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for _, _, task in self._queues:
            task.cancel()


def _summary(group: str, window: _Window, now_ms: int) -> FloodAlert:
    by_class = dict(window.held.most_common(20))
    return FloodAlert(group, window.topic, window.held.total(), window.since_ms, now_ms, by_class)
