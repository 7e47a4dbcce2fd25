"""Critical sections in whose middle the same thread may be asked for more.

Python's garbage collector and signal handlers run between any two instructions, also where one of our locks is held. What they
end (a stream that an agent left, with a model call recorded in it) would wait for ever for a lock of its own thread, or for
one of another thread that waits for this one. So what is asked for inside a critical section is done by the same thread as
soon as it has left it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

log = logging.getLogger("pipeline.emit")


class _Here:
    """Of one thread. `busy`, `publishing`: held by it while it is in a critical section, and in one where events are published. (Locks, not
    counters: what a signal handler raises in the middle of `with` leaves no lock of CPython's own behind.)"""

    __slots__ = ("busy", "catching_up", "later", "publishing")

    def __init__(self) -> None:
        self.busy: Any = threading.RLock()
        self.publishing: Any = threading.RLock()
        self.later: deque[Callable[[], object]] = deque()
        self.catching_up = False


class _Threads(threading.local):
    def __init__(self) -> None:
        self.here = _Here()


_threads = _Threads()


def busy() -> AbstractContextManager[object]:
    """`with then_catch_up, busy(), lock:` is a critical section."""
    return cast("AbstractContextManager[object]", _threads.here.busy)


def publishing() -> AbstractContextManager[object]:
    """The same with a Section's `raw` lock, in threads that signal handlers interrupt; elsewhere the Section itself will do."""
    return cast("AbstractContextManager[object]", _threads.here.publishing)


def inside() -> bool:
    """Whether the calling thread is in a critical section: then `put_off`."""
    here = _threads.here
    return bool(here.busy._is_owned() or here.publishing._is_owned())


def inside_publishing() -> bool:
    """Whether it is in one where events are published, in which no run's turn is waited for."""
    return bool(_threads.here.publishing._is_owned())


def put_off(work: Callable[..., object], *args: object) -> None:
    """To be done when the calling thread has left. Errors are logged, since nobody waits for them."""
    _threads.here.later.append(partial(work, *args))


def _catch_up(here: _Here) -> None:
    """One after the other, unless the thread is still inside, or at it already."""
    if here.catching_up or inside():
        return
    try:
        here.catching_up = True
        while here.later:
            try:
                here.later.popleft()()
            except Exception as trouble:
                log.error("what was left while events were being published is not recorded: %s", trouble)
    finally:
        here.catching_up = False


class _ThenCatchUp:
    """Has no state, so nothing can interrupt it halfway."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        here = _threads.here
        if here.later:
            _catch_up(here)


then_catch_up = _ThenCatchUp()


class Section(threading.Condition):
    """Where events are published: a critical section to wait in, alone or inside a run's turn."""

    def __init__(self) -> None:
        self.raw = threading.RLock()
        super().__init__(self.raw)

    def __enter__(self) -> bool:
        _threads.here.publishing.acquire()
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
        here = _threads.here
        here.publishing.release()
        if here.later:
            _catch_up(here)


class Bell:
    """As an Event that one thread waits for, which its ring ends: `ring` takes no lock, so it may be called from anywhere."""

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        try:
            self._silent.release()
        except RuntimeError:  # it has rung, and nobody has heard it yet
            return

    def hush(self) -> None:
        """Forget a ring that nobody heard."""
        self._silent.acquire(blocking=False)

    def wait(self, timeout_s: float) -> bool:
        """Whether it rang within that time."""
        return self._silent.acquire(timeout=timeout_s)
