"""Threads for plain handlers: as many as are of use, and what happens where the machine has none to give."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.worker.daemon_threads import DaemonThreads


def test_threads_are_made_as_they_are_needed_and_kept() -> None:
    threads, gate = DaemonThreads(3, "t"), threading.Event()
    held = [threads.submit(gate.wait, 10) for _ in range(5)]
    assert len(threads._threads) == 3
    gate.set()
    assert all(each.result(10) for each in held)
    again = [threads.submit(threading.get_ident) for _ in range(20)]
    assert {each.result(10) for each in again} <= {thread.ident for thread in threads._threads}
    assert len(threads._threads) == 3
    threads.shutdown()


def test_calls_one_after_the_other_take_one_thread() -> None:
    threads = DaemonThreads(50, "t")
    assert [threads.submit(int).result(10) for _ in range(50)] == [0] * 50
    assert len(threads._threads) == 1
    threads.shutdown()


def test_a_machine_without_threads_fails_one_call_and_later_ones_are_taken_by_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, ran = DaemonThreads(3, "t"), list[int]()
    start = threading.Thread.start

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        threads.submit(ran.append, 1)
    monkeypatch.setattr(threading.Thread, "start", start)
    threads.submit(ran.append, 2).result(10)
    gate = threading.Event()
    held = threads.submit(gate.wait, 10)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    late = threads.submit(ran.append, 3)
    gate.set()
    late.result(10)
    assert held.result(10)
    assert ran == [2, 3], "what was refused does not run later"
    threads.shutdown()


class Work:
    """The queue of calls. `meanwhile` happens just when the first thread has found nothing in it, and is about to rest; whoever looks
    after that finds nothing before `taken`."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.taken, self.resting = threading.Event(), threading.Event()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._meanwhile = [meanwhile]
        self._first = 0

    def put(self, work: Any) -> None:
        self._queue.put(work)

    def get_nowait(self) -> Any:
        me = threading.get_ident()
        self._first = self._first or me
        if me != self._first:
            assert self.taken.wait(20)
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            self._finds_nothing()
            raise

    def qsize(self) -> int:
        return self._queue.qsize()

    def get(self) -> Any:
        if self._queue.empty():
            self._finds_nothing()
        if self.taken.is_set():
            self.resting.set()
        return self._queue.get()

    def _finds_nothing(self) -> None:
        if self._meanwhile:
            self._meanwhile.pop()()


def test_a_thread_that_gets_a_call_just_when_it_was_about_to_rest_does_not_count_as_free() -> None:
    """The next call but one waited for it, for as long as that call took, though there might have been one more thread."""
    threads, together, began = DaemonThreads(3, "t"), threading.Barrier(3), list[Any]()

    def held() -> int:
        work.taken.set()
        return together.wait(8)

    work: Any = Work(lambda: began.append(threads.submit(held)))
    threads._work = work
    threads.submit(int).result(10)
    assert work.taken.wait(10)
    assert len(threads._threads) == 1 or work.resting.wait(10), "a second one rests: nothing is left for it"
    calls = [*began, *(threads.submit(together.wait, 8) for _ in range(2))]
    assert sorted(call.result(10) for call in calls) == [0, 1, 2], "all three at once"
    threads.shutdown()
