"""Several views processes under one parent: start, watch, start again after a crash, stop together.

Faust scales by processes of one consumer group: each owns a share of the partitions and the tables that go with them.
A worker that meets an error of its surroundings ends on purpose, so something has to start it again: this does.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from pipeline.model.errors import ConfigurationError
from pipeline.model.restarts import RestartPolicy, ending
from pipeline.views.policy import ViewsPolicy

log = logging.getLogger(__name__)

__all__ = ["RestartPolicy", "Worker", "check_store", "policies", "run"]

COMMAND = (sys.executable, "-m", "pipeline.views.worker")
CONFIGURATION, UNREACHABLE = 2, 3


class Worker:
    """One process and its row of crashes."""

    def __init__(self, policy: ViewsPolicy, command: Sequence[str]) -> None:
        self._policy = policy
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self.crashes = 0
        self.due_s = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, now_s: float) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)
        self._started_s = now_s
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(self._policy.to_json().encode() + b"\n")
            self._process.stdin.flush()

    def ended(self, now_s: float, restart: RestartPolicy) -> int | None:
        """The exit code, once, when the process has ended; then it is due again at `due_s`."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process = None
        self.crashes = self.crashes + 1 if now_s - self._started_s < restart.steady_s else 1
        self.due_s = now_s + restart.wait_s(self.crashes)
        return code

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def wait(self, deadline_s: float) -> bool:
        """Wait for the end, killing it at the deadline; whether it ended by itself."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(0.1, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True


def check_store(policy: ViewsPolicy) -> None:
    """Raise ConfigurationError when the store's package is missing."""
    if policy.store == "rocksdb" and find_spec("rocksdict") is None:
        raise ConfigurationError("store='rocksdb' needs the package rocksdict: install agent-run-pipeline[rocksdb].")


def policies(policy: ViewsPolicy, workers: int) -> list[ViewsPolicy]:
    """One policy per process: neither ports nor data folders clash."""
    return [
        replace(
            policy,
            web_port=policy.web_port + index if policy.web_port else 0,
            data_dir=str(Path(policy.data_dir) / f"worker-{index}") if policy.data_dir else "",
        )
        for index in range(workers)
    ]


def run(policy: ViewsPolicy, workers: int, stop: threading.Event, restart: RestartPolicy | None = None) -> int:
    """Run until `stop` is set; gives the exit code.

    0 stopped cleanly; 2 a worker refused its configuration; 3 Kafka or the registry was never reached; 1 a worker
    crashed too often, or had to be killed at the stop.
    """
    restart = restart or RestartPolicy()
    crew = [Worker(each, COMMAND) for each in policies(policy, workers)]
    for each in policies(policy, workers):
        if each.data_dir:
            Path(each.data_dir).mkdir(parents=True, exist_ok=True)
    code = 0
    while not stop.is_set() and not code:
        code = _look_after(crew, restart, time.monotonic())
        stop.wait(0.1)
    for worker in crew:
        worker.terminate()
    deadline_s = time.monotonic() + restart.stop_s
    stopped = [worker.wait(deadline_s) for worker in crew]
    return code or (0 if all(stopped) else 1)


def _look_after(crew: list[Worker], restart: RestartPolicy, now_s: float) -> int:
    """One round; the exit code when it makes no sense to go on, else 0."""
    for worker in crew:
        if (ended := worker.ended(now_s, restart)) is not None:
            never_ran = worker.crashes == 1 and not any(other.pid for other in crew)
            if ended == CONFIGURATION or (ended == UNREACHABLE and never_ran):
                return ended
            if 0 < restart.limit < worker.crashes:
                log.error("A views worker crashed %d times in a row: giving up.", worker.crashes)
                return 1
            log.warning("A views worker was %s; starting it again in %.0f s.", ending(ended), worker.due_s - now_s)
        elif worker.pid is None and now_s >= worker.due_s:
            worker.start(now_s)
    return 0
