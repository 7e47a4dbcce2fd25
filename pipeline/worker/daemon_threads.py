"""Threads for plain handlers of jobs and batches, as many as run at once at most; they are kept."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    """What `ThreadPoolExecutor` does, but that the end of a process waits for none of its threads: one handler that never returns would
    keep it from ending."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        """Calls that wait or run. Counted instead of threads that rest: one that is about to rest may find a call all the same."""
        self._counting = threading.Lock()
        self._ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            if self._ended:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                self._is_over()
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                self._is_over()
                future.set_exception(error)
            else:
                self._is_over()
                future.set_result(result)

        self._work.put(work)
        with self._counting:
            self._under_way += 1
            if len(self._threads) < min(self._under_way, self._most):
                self._grow(future)
        return future

    def _is_over(self) -> None:
        """Told before the call's end: who hears of that may submit the next one, for which this thread is free."""
        with self._counting:
            self._under_way -= 1

    def _grow(self, future: Future[T]) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}_{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the machine has none to give: those that there are take it
            if not self._threads:
                future.cancel()
                raise
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            work()
            del work  # it holds what the handler was given

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for nothing; what has not begun does not begin."""
        self._ended = True
        for _ in self._threads:
            self._work.put(None)
