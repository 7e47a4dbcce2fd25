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
from functools import partial

log = logging.getLogger("pipeline.emit")


class _Inside:
    """Of one thread: how many turns and sections it is in, how many of these are sections, and what it does when it is in none."""

    __slots__ = ("depth", "later", "sections")

    def __init__(self) -> None:
        self.depth = self.sections = 0
        self.later: deque[Callable[[], object]] = deque()

    def catch_up(self) -> None:
        while self.later and not self.depth:
            try:
                self.later.popleft()()
            except Exception as trouble:
                log.error("what was left while events were being published is not recorded: %s", trouble)


class _Threads(threading.local):
    def __init__(self) -> None:
        self.here = _Inside()


_threads = _Threads()


def inside() -> bool:
    """Whether the calling thread is in a critical section: ask before `put_off`, which costs more."""
    return _threads.here.depth > 0


def inside_section() -> bool:
    """Whether it is in one where events are published, in which no turn is taken."""
    return _threads.here.sections > 0


def put_off(work: Callable[..., object], *args: object) -> None:
    """To be done when the calling thread has left. Errors are logged, since nobody waits for them."""
    _threads.here.later.append(partial(work, *args))


class Turn:
    """One thread at a time; the thread that has it may take it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        here = _threads.here
        here.depth += 1
        try:
            self._lock.acquire()
        except BaseException:  # Ctrl-C while it waited
            here.depth -= 1
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        here = _threads.here
        here.depth -= 1
        if here.later:
            here.catch_up()


class Section(threading.Condition):
    """The same, to wait on; alone or inside a turn."""

    def __init__(self) -> None:
        super().__init__(threading.RLock())

    def __enter__(self) -> bool:
        here = _threads.here
        here.depth += 1
        here.sections += 1
        try:
            return self.acquire()
        except BaseException:
            here.depth -= 1
            here.sections -= 1
            raise

    def __exit__(self, *_: object) -> None:
        self.release()
        here = _threads.here
        here.sections -= 1
        here.depth -= 1
        if here.later:
            here.catch_up()


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
