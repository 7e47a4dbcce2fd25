"""Threads for plain handlers: as many as are of use, and what happens where the machine has none to give."""

from __future__ import annotations

import threading

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
