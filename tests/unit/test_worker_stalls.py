"""Handlers that hang and loops that block: seen while it lasts, with the stack, and counted once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.worker.stalls import LoopWatch, Stalls, stack_of


class Log:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.said.append({"event": event, **fields})


def until(condition: Callable[[], Any], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def delivery(origin: int) -> Any:
    return SimpleNamespace(
        key=b"k", unit=SimpleNamespace(partition=3), identity=SimpleNamespace(origin=origin), attempt=0
    )


def test_a_stall_is_told_once_and_ends_when_the_record_does() -> None:
    log = Log()
    stalls = Stalls(log)
    one, other = SimpleDelivery(1), SimpleDelivery(2)
    for _ in range(3):
        stalls.begin(one, time.monotonic() - 5, "the stack")
    stalls.begin(other, time.monotonic(), "")
    assert (stalls.count, len(log.said), log.said[0]["stack"]) == (2, 2, "the stack")
    assert [found["offset"] for found in stalls.seen()] == [1, 2]
    assert stalls.seen()[0]["for_s"] >= 5
    stalls.keep({other})
    assert [found["offset"] for found in stalls.seen()] == [2]
    assert stalls.count == 2


class SimpleDelivery:
    def __init__(self, origin: int) -> None:
        self.__dict__.update(vars(delivery(origin)))


def hangs_in_a_function_of_this_name(gate: threading.Event) -> None:
    gate.wait(20)


def test_the_stack_of_another_thread_says_where_it_is() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=hangs_in_a_function_of_this_name, args=(gate,))
    thread.start()
    until(lambda: "hangs_in_a_function_of_this_name" in stack_of(thread.ident or 0))
    gate.set()
    thread.join()
    assert stack_of(thread.ident or 0) == ""


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_blocked_loop_is_told_once_per_block_with_what_it_does(blocks: int) -> None:
    log = Log()

    async def main() -> LoopWatch:
        watch = LoopWatch(asyncio.get_running_loop(), log, blocked_s=0.2)
        watch.start()
        await asyncio.sleep(0)
        for number in range(1, blocks + 1):
            blocks_the_loop(lambda number=number: watch.blocked == number)  # type: ignore[misc]
            await asyncio.sleep(0.15)  # it turns again: another block is another one
        watch.stop()
        return watch

    watch = asyncio.run(main())
    assert watch.blocked == len(log.said) == blocks
    assert all("blocks_the_loop" in line["stack"] for line in log.said)


def blocks_the_loop(condition: Callable[[], bool]) -> None:
    until(condition)
    time.sleep(0.3)  # and some more: it must not be told again
