"""Several worker processes of one application: starts them, starts a dead one again, stops them together."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from pipeline.model.restarts import RestartPolicy, ending
from pipeline.worker.logs import logger
from pipeline.worker.process import ProcessSpec
from pipeline.worker.process import run as run_one

RESTARTS = RestartPolicy(first_s=0.5, max_s=30.0, limit=0, jitter=0.2)
"""Never gives up: what makes workers die may be mended while they wait, and a dead record gets out of the way by itself."""
CONFIGURATION, GAVE_UP = 2, 1
CHECK_S = 0.1
GRACE_S, MARGIN_S = 40.0, 20.0
"""A stopping process has the longest drain of its subscriptions and so much more before it is killed, and `GRACE_S` at least: one that is
killed while it drains leaves records to run again, and counts as an owner that died."""
READY_BYTES = 64

Command = Callable[[int, int], Sequence[str]]
"""(index, file descriptor that hears when it is ready) -> what to start."""


@dataclass(slots=True)
class _Child:
    """One place for a process. `crashes` in a row; `due_s`: when it is started again; `ready`: it has joined its groups."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    started_s: float = 0.0
    ready: bool = False
    crashes: int = 0
    due_s: float = 0.0


class Supervisor:
    """`grace_s` is how long stopping processes have at least before they are killed. `command` is for tests."""

    def __init__(
        self,
        spec: ProcessSpec,
        processes: int,
        grace_s: float = GRACE_S,
        restarts: RestartPolicy = RESTARTS,
        command: Command | None = None,
    ) -> None:
        self._spec = spec
        self._children = [_Child(index) for index in range(processes)]
        self._grace_s = grace_s
        self._restarts = restarts
        self._command = command or self._worker
        self._stopping = False
        self._log = logger(supervisor=spec.target)

    @property
    def pids(self) -> dict[int, int]:
        """Index -> pid of the processes that live."""
        return {c.index: c.process.pid for c in self._children if c.process is not None and c.process.poll() is None}

    def run(self) -> int:
        """Until SIGTERM or SIGINT: 0. 2 when a process says that the configuration is wrong, 1 when one crashed too often."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        code = 0
        while not self._stopping and not code:
            for child in self._children:
                code = self._look_after(child, time.monotonic()) or code
            if not code:
                time.sleep(CHECK_S)
        self.stop_all()
        return code

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _look_after(self, child: _Child, now_s: float) -> int:
        """One round; an exit code when it makes no sense to go on."""
        if child.process is None:
            if now_s >= child.due_s and not self._stopping:
                return self._start(child, now_s)
            return 0
        code = child.process.poll()
        if code is not None:
            return self._ended(child, code, now_s)
        if not child.ready:
            self._listen(child)
            if not child.ready and now_s - child.started_s > self._restarts.ready_s:
                self._log.error(
                    "worker process is not ready in time: killed", index=child.index, after_s=self._restarts.ready_s
                )
                child.process.kill()
        return 0

    def _listen(self, child: _Child) -> None:
        """Whether it is ready, and how long its drain may take (`process.READY`)."""
        try:
            said = os.read(child.pipe, READY_BYTES).split()
        except BlockingIOError:
            return
        child.ready = bool(said)
        if said and said[-1].isdigit():
            self._grace_s = max(self._grace_s, int(said[-1]) / 1000 + MARGIN_S)

    def _ended(self, child: _Child, code: int, now_s: float) -> int:
        os.close(child.pipe)
        if code == CONFIGURATION:
            return code
        steady = child.ready and now_s - child.started_s > self._restarts.steady_s
        child.crashes = 1 if steady else child.crashes + 1
        return self._again(child, now_s, "worker process ended: starting it again", ending(code))

    def _can_not_start(self, child: _Child, now_s: float, error: OSError) -> int:
        """No memory, no more processes or descriptors: the others go on. Counts as a crash."""
        child.crashes += 1
        return self._again(child, now_s, "a worker process can't be started: trying again", str(error))

    def _again(self, child: _Child, now_s: float, event: str, how: str) -> int:
        """After a crash: it is started later, or that was the last one."""
        if 0 < self._restarts.limit < child.crashes:
            child.process = None
            self._log.error("worker process crashed too often: giving up", index=child.index, crashes=child.crashes)
            return GAVE_UP
        wait_s = self._restarts.wait_s(child.crashes, random.random())
        self._log.error(
            event,
            index=child.index,
            how=how,
            crashes=child.crashes,
            was_ready=child.ready,
            in_s=round(wait_s, 2),
        )
        child.process, child.due_s = None, now_s + wait_s
        return 0

    def _worker(self, index: int, ready: int) -> Sequence[str]:
        spec = self._spec
        port = "-" if spec.metrics_port is None else str(spec.metrics_port)
        own = [str(os.getpid()), spec.target, str(index), port, spec.metrics_host, *spec.groups, f"--ready={ready}"]
        return [sys.executable, "-m", "pipeline.worker.process", *own]

    def _start(self, child: _Child, now_s: float) -> int:
        """An exit code when it makes no sense to go on."""
        child.started_s, child.ready = now_s, False
        try:
            child.pipe, theirs = os.pipe()
        except OSError as error:
            return self._can_not_start(child, now_s, error)
        os.set_blocking(child.pipe, False)
        try:
            # A session of their own: Ctrl-C in the terminal reaches the supervisor alone, which stops them in order.
            child.process = subprocess.Popen(
                self._command(child.index, theirs), start_new_session=True, pass_fds=(theirs,)
            )
        except OSError as error:
            os.close(child.pipe)
            return self._can_not_start(child, now_s, error)
        finally:
            os.close(theirs)
        return 0

    def stop_all(self) -> None:
        """SIGTERM to all, SIGKILL to those that do not end in time."""
        alive = [c.process for c in self._children if c.process is not None and c.process.poll() is None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + self._grace_s
        for process in alive:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._log.error("worker process did not stop in time: killed", pid=process.pid)
                process.kill()
                process.wait()


def run(
    target: str,
    *,
    processes: int = 1,
    groups: Sequence[str] = (),
    metrics_port: int | None = None,
    host: str = "127.0.0.1",
) -> int:
    """`pipeline run`: in this process when one is enough. Returns the exit code."""
    spec = ProcessSpec(target, tuple(groups), 0, metrics_port, host)
    return run_one(spec) if processes == 1 else Supervisor(spec, processes).run()
