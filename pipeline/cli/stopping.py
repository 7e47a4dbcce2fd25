"""Ctrl-C (or SIGTERM) that ends a long command well: what is under way is finished, and the exit code is 130. The second one interrupts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pipeline.cli.output import note

INTERRUPTED = 130
"""The exit code, also of a command that ended well after the first Ctrl-C."""


class Stopping:
    """Whether it was asked for, and what is to be called then."""

    def __init__(self, said: str) -> None:
        self.asked = False
        self._said = said
        self._end: Callable[[], None] = lambda: None

    def call(self, end: Callable[[], None]) -> None:
        """At the first Ctrl-C; at once when that was before."""
        self._end = end
        if self.asked:
            end()

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        note(self._said)
        self._end()


@contextlib.contextmanager
def telling_when_interrupted(said: str) -> Iterator[None]:
    """For what a Ctrl-C simply breaks off: what was done until then, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        note(said)
        raise


@contextlib.contextmanager
def stoppable(said: str) -> Iterator[Stopping]:
    """`said`: what the first Ctrl-C is answered with."""
    stopping = Stopping(said)
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, stopping.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
