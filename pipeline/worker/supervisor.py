"""Several worker processes of one application: starts them, starts a dead one again, stops them together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

from pipeline.worker.logs import logger
from pipeline.worker.process import ProcessSpec
from pipeline.worker.process import run as run_one

RESTART_S = (0.5, 1.0, 2.0, 5.0, 15.0)
STABLE_S = 60.0
"""A process that lived this long starts again at once, and its count of restarts with it."""
CONFIGURATION = 2
CHECK_S = 0.1


@dataclass(slots=True)
class _Child:
    index: int
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    restarts: int = 0
    at_s: float = 0.0
    codes: list[int] = field(default_factory=list)


class Supervisor:
    """`grace_s` is how long stopping processes have before they are killed."""

    def __init__(self, spec: ProcessSpec, processes: int, grace_s: float = 40.0) -> None:
        self._spec = spec
        self._children = [_Child(index) for index in range(processes)]
        self._grace_s = grace_s
        self._stopping = False
        self._log = logger(supervisor=spec.target)

    @property
    def pids(self) -> dict[int, int]:
        """Index -> pid of the processes that live."""
        return {c.index: c.process.pid for c in self._children if c.process is not None and c.process.poll() is None}

    def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns 2 when a process says that the configuration is wrong, else 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        code = 0
        while not self._stopping:
            for child in self._children:
                code = self._look_after(child) or code
            if code:
                break
            time.sleep(CHECK_S)
        self.stop_all()
        return code

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _look_after(self, child: _Child) -> int:
        now = time.monotonic()
        if child.process is None:
            if now >= child.at_s:
                self._start(child, now)
            return 0
        code = child.process.poll()
        if code is None:
            return 0
        if code == CONFIGURATION:
            return code
        if now - child.started_s > STABLE_S:
            child.restarts = 0
        wait = RESTART_S[min(child.restarts, len(RESTART_S) - 1)]
        self._log.error("worker process ended: starting it again", index=child.index, code=code, in_s=wait)
        child.process, child.at_s = None, now + wait
        child.restarts += 1
        return 0

    def _start(self, child: _Child, now: float) -> None:
        spec = self._spec
        port = "-" if spec.metrics_port is None else str(spec.metrics_port)
        own = [str(os.getpid()), spec.target, str(child.index), port, spec.metrics_host, *spec.groups]
        # A session of their own: Ctrl-C in the terminal reaches the supervisor alone, which stops them in order.
        child.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker.process", *own], start_new_session=True
        )
        child.started_s = now

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
