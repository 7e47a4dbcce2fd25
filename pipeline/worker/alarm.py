"""Timers of an engine: the earliest of the times that it has to wake up for, and what a defect in one is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, Protocol

P = ParamSpec("P")


class CanFail(Protocol):
    def fail(self, error: BaseException) -> None:
        """See `Engine.fail`."""


def guarded(engine: CanFail, action: Callable[P, None]) -> Callable[P, None]:
    """For timers: of a defect the loop would write a line, and the engine stand still with nobody to tell."""

    def act(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            action(*args, **kwargs)
        except Exception as error:
            engine.fail(error)

    return act


class Alarm:
    """One timer of the loop, set to the earliest time that was asked for since it last rang."""

    __slots__ = ("_at_ms", "_handle", "_loop", "_ring")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._at_ms = 0
        self._handle: asyncio.TimerHandle | None = None

    def at(self, at_ms: int, now_ms: int) -> None:
        if self._handle is not None:
            if now_ms < self._at_ms <= at_ms:
                return
            self._handle.cancel()
        self._at_ms = at_ms
        self._handle = self._loop.call_later(max(1, at_ms - now_ms) / 1000, self._rings)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _rings(self) -> None:
        self._handle = None
        self._ring()
