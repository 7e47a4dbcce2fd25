"""An asyncio event loop with virtual time: when nothing is ready, time jumps to the next timer. No sleep, no threads.

Ready callbacks run in the order that asyncio promises; what differs between runs comes from seeds only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")
START_MS = 1_700_000_000_000
_NANOSECOND_MS = 1e-6


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: the program under test waits for what can never come."""


class Livelock(RuntimeError):
    """The program under test goes round without end, and no time passes: on real time it would only burn a processor."""


TURNS_MAX = 10_000
"""Turns of the loop within one instant of virtual time; simulated fleets need fewer than a hundred."""


class _Timers:
    """Stands in for the selector: asked to wait, it moves the clock."""

    def __init__(self, loop: VirtualClockLoop) -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock(f"nothing is ready and no timer is set at {self._loop.clock()} ms of virtual time")
        if timeout > 0:
            self._turns = 0
            self._loop.advance(timeout)
        elif self._turns >= TURNS_MAX:
            raise Livelock(f"{TURNS_MAX:,} turns of the loop at {self._loop.clock()} ms of virtual time, and no end")
        else:
            self._turns += 1
        return []


class VirtualClockLoop(asyncio.BaseEventLoop):
    """`clock()` gives milliseconds since the epoch, `random` is seeded. Work for an executor runs at once, inline."""

    def __init__(self, seed: int = 0, start_ms: int = START_MS) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self._start_ms = start_ms
        self._elapsed_s = 0.0
        self._clock_resolution = 1e-9
        self._selector = _Timers(self)

    def time(self) -> float:
        return self._elapsed_s

    def clock(self) -> int:
        """Milliseconds since the epoch, virtual."""
        return self._start_ms + int(self._elapsed_s * 1000 + _NANOSECOND_MS)

    def advance(self, seconds: float) -> None:
        if seconds > 0:
            self._elapsed_s += seconds

    def call_later_ms(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """The `Scheduler` of a `MemoryCluster` that lives in this loop."""
        return self.call_later(delay_ms / 1000, callback)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except BaseException as error:
            future.set_exception(error)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no files to watch."""

    def _write_to_self(self) -> None:
        """There is nobody else to wake: one thread."""


def run(main: Callable[[VirtualClockLoop], Coroutine[Any, Any, T]], seed: int = 0, *, start_ms: int = START_MS) -> T:
    """Run `main(loop)` to its end in virtual time."""
    loops: list[VirtualClockLoop] = []

    def make() -> VirtualClockLoop:
        loops.append(VirtualClockLoop(seed, start_ms))
        return loops[0]

    with asyncio.Runner(loop_factory=make) as runner:
        runner.get_loop()
        return runner.run(main(loops[0]))
