"""Handlers that do not end at their deadline, and an event loop that does not turn: noticed, told once with a stack, counted.

A thread can't be stopped, and its record may still have its effect: so the record gets no outcome, and its key stays busy, before the
thread returns. What can be done is to say so.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.delivery import Delivery

BEAT_S, BLOCKED_S = 0.25, 1.0
STACK_CHARS = 4_000


def stack_of(thread_id: int) -> str:
    """Where a thread is now; empty when it has ended."""
    frame = sys._current_frames().get(thread_id)
    return "".join(traceback.format_stack(frame))[-STACK_CHARS:] if frame is not None else ""


@dataclass(frozen=True, slots=True)
class Stall:
    """A handler that has not ended at its deadline. `what` it was called for, and which that is for people (`place`)."""

    what: object
    since_s: float
    place: Mapping[str, Any]


class Stalls:
    """Of one executor. `current`: those that have not ended yet; `count`: all so far. Replaced, not changed: any thread may read it."""

    def __init__(self, log: Any) -> None:
        self.count = 0
        self.current: tuple[Stall, ...] = ()
        self._log = log

    def begin(self, delivery: Delivery, since_s: float, stack: str) -> None:
        """A record's is past its deadline. Told once for each execution."""
        place = {"partition": delivery.unit.partition, "offset": delivery.identity.origin}
        key = (delivery.key or b"").decode("utf-8", "replace")
        self.begin_other(delivery, since_s, stack, place, key=key, attempt=delivery.attempt + 1)

    def begin_other(self, what: object, since_s: float, stack: str, place: Mapping[str, Any], **more: Any) -> None:
        """The same of anything else that handlers are called for."""
        if any(stall.what is what for stall in self.current):
            return
        self.count += 1
        self.current = (*self.current, Stall(what, since_s, place))
        self._log.error(
            "a handler is past its deadline and can't be stopped: its key waits until it returns",
            **place, **more, stack=stack,
        )  # fmt: skip

    def keep(self, running: set[Delivery]) -> None:
        """Only these run still."""
        if self.current:
            self.current = tuple(stall for stall in self.current if stall.what in running)

    def end(self, what: object) -> None:
        """It has returned."""
        if self.current:
            self.current = tuple(stall for stall in self.current if stall.what is not what)

    def seen(self) -> list[dict[str, Any]]:
        """For people."""
        now_s = time.monotonic()
        return [{**stall.place, "for_s": round(now_s - stall.since_s, 1)} for stall in self.current]


class LoopWatch:
    """A thread that notices when the event loop does not turn for `blocked_s`, and says once per block what it is doing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Any, blocked_s: float = BLOCKED_S) -> None:
        self.blocked = 0
        self._loop = loop
        self._log = log
        self._blocked_s = blocked_s
        self._beat_s = time.monotonic()
        self._thread_id = threading.get_ident()
        self._stop = threading.Event()
        self._handle: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)

    def start(self) -> None:
        """In the loop's own thread."""
        self._thread_id = threading.get_ident()
        self._beat()
        self._thread.start()

    def _beat(self) -> None:
        self._beat_s = time.monotonic()
        self._handle = self._loop.call_later(min(BEAT_S, self._blocked_s / 4), self._beat)

    def _watch(self) -> None:
        told_s, round_s = 0.0, self._blocked_s / 2
        woke_s = time.monotonic()
        while not self._stop.wait(round_s):
            now_s, before_s, woke_s = time.monotonic(), woke_s, time.monotonic()
            if now_s - before_s > 2 * round_s:
                continue  # this thread did not run either: the whole process was stopped, or starved
            beat_s = self._beat_s
            if now_s - beat_s >= self._blocked_s and beat_s != told_s:
                told_s = beat_s
                self.blocked += 1
                self._log.error(
                    "the event loop is blocked: an async handler computes or waits without await; nothing else runs meanwhile",
                    for_s=round(now_s - beat_s, 1),
                    stack=stack_of(self._thread_id),
                )

    def stop(self) -> None:
        self._stop.set()
        if self._handle is not None:
            self._handle.cancel()
