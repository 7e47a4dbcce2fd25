"""Virtual time: jumps instead of sleeping, repeats exactly, and says so when nothing can ever happen."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pipeline.memory.loop import START_MS, Deadlock, Livelock, VirtualClockLoop, run
from tests.patience import PATIENCE


def test_an_hour_takes_no_time() -> None:
    async def main(loop: VirtualClockLoop) -> int:
        await asyncio.sleep(3_600)
        return loop.clock()

    began = time.monotonic()
    assert run(main) == START_MS + 3_600_000
    assert time.monotonic() - began < 2.0 * PATIENCE


def test_timers_fire_in_order_at_their_very_millisecond() -> None:
    async def main(loop: VirtualClockLoop) -> list[int]:
        seen: list[int] = []
        for delay in (7, 3, 1_003, 11, 3):
            loop.call_later_ms(delay, lambda: seen.append(loop.clock() - START_MS))
        await asyncio.sleep(2)
        return seen

    assert run(main) == [3, 3, 7, 11, 1_003]


def test_the_clock_never_falls_behind_a_timer() -> None:
    """Milliseconds are whole, the loop's seconds are not: a timer that fires early by rounding would find nothing due."""

    async def main(loop: VirtualClockLoop) -> None:
        for delay in range(1, 2_000):
            due = loop.clock() + delay
            fired = loop.create_future()
            loop.call_later_ms(delay, lambda fired=fired: fired.set_result(None))  # type: ignore[misc]
            await fired
            assert loop.clock() == due

    run(main)


def test_waiting_for_nothing_is_an_error_and_not_a_hang() -> None:
    async def main(loop: VirtualClockLoop) -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        run(main)


def test_going_round_without_end_is_an_error_and_not_a_hang() -> None:
    """A test's time limit does not help: what it raises inside a callback is logged by the loop, and it goes round on."""

    async def main(loop: VirtualClockLoop) -> None:
        def again() -> None:
            loop.call_soon(again)

        again()
        await asyncio.sleep(1)

    with pytest.raises(Livelock):
        run(main)


def test_timeouts_and_executors_work_without_threads() -> None:
    async def main(loop: VirtualClockLoop) -> tuple[str, str]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        return await asyncio.to_thread(lambda: threading.current_thread().name), threading.current_thread().name

    inside, outside = run(main)
    assert inside == outside


def test_the_seed_decides() -> None:
    async def main(loop: VirtualClockLoop) -> list[int]:
        return [loop.random.randrange(1_000) for _ in range(5)]

    assert run(main, 1) == run(main, 1) != run(main, 2)
