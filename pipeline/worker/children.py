"""Child processes that run records, seen from the worker: a handle on one, and a bounded pool that replaces those that end.

Job -> pool -> child (ready?) -> running -> answer | death | deadline (SIGKILL) -> Job.ended
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any

from pipeline.model.errors import ConfigurationError, PipelineError
from pipeline.model.restarts import RestartPolicy, ending
from pipeline.worker.child import DUMP_SIGNAL
from pipeline.worker.child_frames import Blobs, FrameBuffer, Head, pack
from pipeline.worker.child_jobs import Answer, ChildSpec, Death, Job

RESTARTS = RestartPolicy(first_s=0.05, max_s=10.0, limit=3, jitter=0.2, ready_s=60.0)
"""`limit`: so many that end in a row before they are ready, and the pool says so (`Children.hopeless`); it goes on trying."""
DUMP_S = 0.1
"""How long a child past its deadline has for writing down where it is."""
REAP_S, REAP_CHECK_S = 2.0, 0.005
LATE_S = 2.0
"""A coroutine is cancelled in the child first; only when that has not helped the child is killed."""
_STACK_BYTES = 6_000


class Child:
    """One process. All in the event loop's thread."""

    def __init__(self, spec: ChildSpec, loop: asyncio.AbstractEventLoop, pool: Children) -> None:
        self.job: Job | None = None
        self.ready = False
        self.late = self.unread = False
        self.started_s = loop.time()
        self._loop = loop
        self._pool = pool
        self._frames = FrameBuffer()
        self._unsent = bytearray()
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._dump = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        with theirs:
            given = (theirs.fileno(), self._dump.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.worker.child", *map(str, given)],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        loop.add_reader(self._channel.fileno(), self._readable)
        first = {
            "target": spec.target,
            "group": spec.group,
            "job": spec.job,
            "sys_path": sys.path,
            "memory_bytes": spec.memory_bytes,
            "processors": spec.processors,
        }
        self._send(pack(first))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: Job) -> None:
        self.job = job
        self._send(job.frame)

    def _send(self, data: bytes) -> None:
        self._unsent += data
        self._writable()

    def _writable(self) -> None:
        try:
            sent = self._channel.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it has ended: reading says so
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._channel.fileno(), self._writable)
        else:
            self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            data = self._channel.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:  # a reset, not an end: it has left something unread
            data, self.unread = b"", True
        if not data:
            self._pool.hung_up(self)
            return
        try:
            for head, blobs in self._frames.feed(data):
                self._pool.heard(self, head, blobs)
        except (ValueError, KeyError):  # the handler wrote into our channel: nothing it says can be believed now
            self.kill()

    def write_stack(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(DUMP_SIGNAL)

    def kill(self) -> None:
        self._process.kill()

    def deafen(self) -> None:
        """Nothing that it still says is heard."""
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())

    def death(self) -> Death:
        """How it ended; it has."""
        text = os.pread(self._dump.fileno(), _STACK_BYTES, 0).decode("utf-8", "replace")
        return Death(ending(self._process.wait()), text, self.late, self.unread or bool(self._unsent))

    def close(self) -> None:
        self._channel.close()
        self._dump.close()


class Children:
    """At most `size` children, started when there is work for them and kept. `freed` is called when another job may be given."""

    def __init__(
        self, spec: ChildSpec, size: int, loop: asyncio.AbstractEventLoop, log: Any, freed: Callable[[], None]
    ) -> None:
        self.spec = spec
        self.size = size
        self.deaths = 0
        self.unloadable: str | None = None
        self._loop = loop
        self._log = log
        self._freed = freed
        self._children: set[Child] = set()
        self._waiting: deque[Job] = deque()
        self._crashes = 0
        self._unready = 0
        self._next_start_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._warm: asyncio.Future[None] | None = None
        self._last_end = ""
        self._stopped = False

    # -- work

    @property
    def room(self) -> int:
        return self.size - len(self.jobs())

    @property
    def hopeless(self) -> bool:
        """Children can't be started, as it seems: nothing that waits here will run."""
        return self.unloadable is not None or self._unready >= RESTARTS.limit

    def jobs(self) -> list[Job]:
        return [*self._waiting, *(child.job for child in self._children if child.job is not None)]

    def waits(self, job: Job) -> bool:
        """No child has it yet."""
        return job in self._waiting

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        self._assign()

    def withdraw(self, job: Job) -> None:
        """It is of no interest any more; a child that runs it is killed."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)
        for child in self._children:
            if child.job is job:
                child.job = None
                child.late = True
                child.kill()

    async def warm(self) -> None:
        """Wait until one is ready; those that end before are followed by others. Raises ConfigurationError when the application can't be
        loaded in it, PipelineError when none is ready in time: no fault of the configuration, so who starts the worker tries again."""
        if any(child.ready for child in self._children):
            return
        self._warm = self._loop.create_future()
        self._assign()
        try:
            await asyncio.wait_for(self._warm, RESTARTS.ready_s)
        except TimeoutError:
            why = f"the last one {self._last_end}" if self._last_end else "the first is still loading the application"
            raise PipelineError(
                f"no child process for executor='process' was ready within {RESTARTS.ready_s:g} s ({why}): see the log, "
                f"or import {self.spec.target!r} by hand; then start the worker again"
            ) from None
        finally:
            self._warm = None

    @property
    def _wanted(self) -> int:
        """Children that there is work for, or that `warm` waits for."""
        warming = self._warm is not None and not self._warm.done()
        return max(len(self._waiting), int(warming))

    def _assign(self) -> None:
        for child in self._children:
            if not self._waiting:
                break
            if child.ready and child.job is None and not child.late:
                job = self._waiting.popleft()
                timeout_ms = job.timeout_ms or self.spec.timeout_ms
                job.deadline_s = self._loop.time() + timeout_ms / 1000 + (LATE_S if self.spec.cancels else 0)
                child.run(job)
        coming = sum(not child.ready for child in self._children)
        if self._wanted > coming and len(self._children) < self.size and not self._stopped:
            self._start_in_time()
        self._look()

    def _start_in_time(self) -> None:
        if self._loop.time() >= self._next_start_s:
            self._start()

    def _start(self) -> None:
        try:
            self._children.add(Child(self.spec, self._loop, self))
        except OSError as error:  # no memory, no descriptors, no more processes
            self._crashed()
            self._last_end = f"could not be started: {error}"
            self._log.error("a child process can't be started", error=str(error))

    # -- what children say

    def heard(self, child: Child, head: Head, blobs: Blobs) -> None:
        kind = head["kind"]
        if kind == "ready":
            child.ready, self._unready, self.unloadable = True, 0, None
            if self._warm is not None and not self._warm.done():
                self._warm.set_result(None)
        elif kind == "unloadable":
            self.unloadable = str(head["why"])
            if self._warm is not None and not self._warm.done():
                self._warm.set_exception(ConfigurationError(self.unloadable))
        elif kind == "handled":
            if child.job is not None:
                child.job.deadline_s = float("inf")
            return
        elif kind == "told":
            if child.job is not None and child.job.told is not None:
                child.job.told(head)
            return
        elif (job := child.job) is not None and not child.late:
            child.job, self._crashes = None, 0
            job.ended(Answer(head, blobs))
        self._assign()
        self._freed()

    def hung_up(self, child: Child, began_s: float | None = None) -> None:
        """Its end of the channel is closed: it has ended, or is about to."""
        if child not in self._children:
            return
        child.deafen()
        began_s = self._loop.time() if began_s is None else began_s
        if child.alive:
            if self._loop.time() - began_s > REAP_S:
                child.kill()
            self._loop.call_later(REAP_CHECK_S, self.hung_up, child, began_s)
            return
        self._ended(child)

    def _ended(self, child: Child) -> None:
        self._children.discard(child)
        death, job = child.death(), child.job
        child.close()
        if self._stopped:
            return
        if not child.ready:
            self._unready += 1
            self._last_end = death.how
        if not child.ready or (job is not None and not death.late):
            self._crashed()
            self._log.error(
                "a child process ended", pid=child.pid, how=death.how, ready=child.ready, running=job is not None
            )
        if job is not None and death.unread and not death.late and not job.spared:
            job.spared = True
            self._waiting.appendleft(job)
        elif job is not None:
            self.deaths += not death.late
            job.ended(death)
        self._assign()
        self._freed()

    def _crashed(self) -> None:
        self._crashes += 1
        self._next_start_s = self._loop.time() + RESTARTS.wait_s(self._crashes, random.random())

    # -- time

    def _look(self) -> None:
        """Deadlines, and starts that wait: a timer only while there is something to wait for."""
        if self._timer is None and not self._stopped and (self._wanted or any(c.job for c in self._children)):
            tick_s = min(0.5, max(0.02, self.spec.timeout_ms / 10_000))
            if self._wanted and self._next_start_s > (now := self._loop.time()):
                tick_s = min(tick_s, self._next_start_s - now)
            self._timer = self._loop.call_later(tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        for child in tuple(self._children):
            if child.job is not None and now >= child.job.deadline_s and not child.late:
                child.late = True
                child.write_stack()
                self._loop.call_later(DUMP_S, child.kill)
            elif not child.ready and now - child.started_s > RESTARTS.ready_s:
                child.kill()
            elif not child.alive:
                self.hung_up(child)
        self._assign()

    # -- the end

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def rest(self) -> None:
        """No work for a while: idle children end, later work starts new ones."""
        for child in tuple(self._children):
            if child.job is None:
                self._children.discard(child)
                self._close(child)

    def abandon(self) -> None:
        """All of them end now."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
        for child in tuple(self._children):
            self._close(child)
        self._children.clear()

    def _close(self, child: Child) -> None:
        child.deafen()
        child.kill()
        child.death()  # reaped: it was killed, so this does not wait
        child.close()
