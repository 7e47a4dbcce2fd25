"""What keeps a fetcher polling: a thread on Kafka, the event loop itself on the memory cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Protocol

from pipeline.worker.fetcher import Fetcher

POLL_S = 0.02
IDLE_S = 0.05
"""The loop driver steps at least so often, for retries of openings and for back-pressure that ends."""
RECENT_S = 30.0


class Driver(Protocol):
    def start(self) -> None: ...

    def request_stop(self) -> None: ...

    async def join(self, timeout_s: float) -> bool: ...

    def abandon(self) -> None:
        """Stop without closing anything, as a dying process does; only simulations can."""

    @property
    def done(self) -> bool: ...

    @property
    def recent(self) -> bool:
        """Has it polled lately?"""
        ...


class ThreadDriver:
    """Runs a fetcher in a thread of its own until `request_stop`; then closes it. `failed` hears of a defect, in that thread."""

    def __init__(self, fetcher: Fetcher, name: str, failed: Callable[[BaseException], None]) -> None:
        self._fetcher = fetcher
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"poll-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def request_stop(self) -> None:
        self._stop.set()

    def abandon(self) -> None:
        raise NotImplementedError("a thread can't be abandoned: kill the process")

    async def join(self, timeout_s: float) -> bool:
        if self._thread.ident is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, timeout_s)
        return not self._thread.is_alive()

    @property
    def done(self) -> bool:
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def recent(self) -> bool:
        return time.monotonic() - self._fetcher.polled_at < RECENT_S

    def _run(self) -> None:
        fetcher, stop = self._fetcher, self._stop
        try:
            fetcher.subscribe()
            while not stop.is_set():
                fetcher.step(POLL_S)
                if fetcher.waiting_for_room:
                    stop.wait(0.002)
        except Exception as error:
            self._failed(error)
        finally:
            fetcher.close()


class LoopDriver:
    """Steps a fetcher from the event loop: everything in one thread, in virtual time if the loop's is."""

    def __init__(
        self, fetcher: Fetcher, loop: asyncio.AbstractEventLoop, failed: Callable[[BaseException], None]
    ) -> None:
        self._fetcher = fetcher
        self._loop = loop
        self._failed = failed
        self._handle: asyncio.Handle | None = None
        self._planned = False
        self._done = False

    def start(self) -> None:
        self._fetcher.driven_by(self._soon)
        self._fetcher.subscribe()
        self._step()

    def _soon(self) -> None:
        """There may be something to do: step once the running callback has ended."""
        if not self._done and not self._planned:
            self._planned = True
            self._loop.call_soon_threadsafe(self._step)

    def _step(self) -> None:
        self._planned = False
        if self._done:
            return
        if self._handle is not None:
            self._handle.cancel()
        try:
            fetched = self._fetcher.step(0)
        except Exception as error:
            self._failed(error)
            return
        if fetched:
            self._soon()
        self._handle = self._loop.call_later(IDLE_S, self._step)

    def request_stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if not self._done:
            self._done = True
            self._fetcher.close()

    def abandon(self) -> None:
        self._done = True
        if self._handle is not None:
            self._handle.cancel()

    async def join(self, timeout_s: float) -> bool:
        return True

    @property
    def done(self) -> bool:
        return self._done

    @property
    def recent(self) -> bool:
        return True
