"""What a handler says of its job, on its way to the board: at most every 500 ms, and the last of it before the ending."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.model.jobs import JobProgress
from pipeline.worker.jobs.values import plain_text
from pipeline.worker.log_tail import LogTail, TailLogger

TELL_EVERY_S = 0.5
NOTE_CHARS = 500
COUNT_MAX = 1 << 62

Hear = Callable[[JobProgress, bool], None]
"""Gets what was said, and whether it is to be written now."""


class JobLog(TailLogger):
    """A structlog logger whose last lines are kept with the job. `job.log("text", name=value)` is `job.log.info(...)`."""

    __slots__ = ()

    def __call__(self, event: Any = None, *args: Any, **fields: Any) -> Any:
        return self.info(event, *args, **fields)


class _TellingTail(LogTail):
    __slots__ = ("_teller",)

    def __init__(self, teller: Said) -> None:
        super().__init__()
        self._teller = teller

    def add(self, level: str, event: Any, fields: dict[str, Any]) -> None:
        super().add(level, event, fields)
        self._teller.said()


class Said:
    """What a handler said so far; `said` is called with each word of it."""

    __slots__ = ("_progress", "tail")

    def __init__(self) -> None:
        self._progress: JobProgress | None = None
        self.tail: LogTail | None = None

    def said(self) -> None:
        """There is something new. From any thread."""
        raise NotImplementedError

    def logged(self) -> LogTail:
        """Lines that are added to it are told."""
        if self.tail is None:
            self.tail = _TellingTail(self)
        return self.tail

    def progress(self, processed: int, total: int, note: str) -> None:
        """Raises ValueError for numbers that are none."""
        for name, number in (("processed", processed), ("total", total)):
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= COUNT_MAX:
                raise ValueError(f"job.progress: {name}={number!r:.80} must be a whole number of at least 0")
        self._progress = JobProgress(processed, total, str(note)[:NOTE_CHARS])
        self.said()

    def now(self, at_ms: int) -> JobProgress:
        """All of it, without what looks like a secret."""
        found = self._progress or JobProgress()
        log = self.tail.text() if self.tail is not None else found.log
        return replace(found, note=plain_text(found.note, NOTE_CHARS), log=plain_text(log, len(log)), at_ms=at_ms)


class Teller(Said):
    """Of one execution. Handlers may call from any thread; `hear` is called in the loop's."""

    __slots__ = ("_called", "_closed", "_hear", "_last_s", "_loop", "_now_ms", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, hear: Hear, now_ms: Callable[[], int]) -> None:
        super().__init__()
        self._loop = loop
        self._hear = hear
        self._now_ms = now_ms
        self._last_s = -TELL_EVERY_S
        self._timer: asyncio.TimerHandle | None = None
        self._called = self._closed = False

    def relay(self, progress: JobProgress) -> None:
        """What it said in a child process."""
        self._progress = progress
        self.said()

    def said(self) -> None:
        if not self._called and not self._closed:
            self._called = True
            with contextlib.suppress(RuntimeError):  # a thread that was left behind when the worker ended
                self._loop.call_soon_threadsafe(self._soon)

    def _soon(self) -> None:
        if self._closed or self._timer is not None:
            return
        wait_s = self._last_s + TELL_EVERY_S - self._loop.time()
        if wait_s > 0:
            self._timer = self._loop.call_later(wait_s, self._tell)
        else:
            self._tell()

    def _tell(self) -> None:
        self._timer = None
        self._called = False  # before it is read: what is said from here on is told another time
        self._last_s = self._loop.time()
        self._hear(self.now(self._now_ms()), True)

    def close(self) -> None:
        """The execution has ended: what was not told goes with the ending, and nothing after it."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._called:
            self._hear(self.now(self._now_ms()), False)

    def abandon(self) -> None:
        """Nobody hears of anything any more."""
        self._called = False
        self.close()
