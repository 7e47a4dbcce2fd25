"""The demo's worker processes: started, watched, one of them killed, and all of them ended whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.groups import Place, worker_name
from pipeline.model.errors import PipelineError

GRACE_S = 25.0
TAIL_CHARS = 300


@dataclass(slots=True)
class WorkerProcess:
    """One worker: its group and number, and its log file. `killed`: by us, on purpose."""

    group: str
    index: int
    process: subprocess.Popen[bytes]
    log: Path
    killed: bool = False

    @property
    def name(self) -> str:
        return worker_name(self.group, self.index)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class Workers:
    """`module` is run as `python -m MODULE PARENT BROKER PREFIX GROUP INDEX`; logs go to `folder`."""

    def __init__(self, module: str, place: Place, folder: Path) -> None:
        self._module = module
        self._place = place
        self._folder = folder
        self.all: list[WorkerProcess] = []

    def start(self, group: str, index: int) -> None:
        log = self._folder / f"{worker_name(group, index)}.log"
        own = [str(os.getpid()), self._place.broker, self._place.prefix, group, str(index)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, *own],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which ends them in order
            )
        self.all.append(WorkerProcess(group, index, process, log))

    def check(self) -> None:
        """Raises when one ended that nobody killed."""
        for worker in self.all:
            if not worker.killed and not worker.alive:
                raise PipelineError(
                    f"worker {worker.name} ended by itself with code {worker.process.returncode}: {_last_line(worker.log)}"
                )

    def kill(self, worker: WorkerProcess) -> None:
        """SIGKILL: it gets to say nothing to anybody."""
        worker.killed = True
        worker.process.kill()
        worker.process.wait()

    def stop(self, grace_s: float = GRACE_S) -> Sequence[WorkerProcess]:
        """SIGTERM to all that live, SIGKILL to those that do not end in time, who are returned."""
        alive = [worker for worker in self.all if worker.alive]
        for worker in alive:
            worker.process.terminate()
        deadline, late = time.monotonic() + grace_s, []
        for worker in alive:
            try:
                worker.process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(worker)
                self.kill(worker)
        return late


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "".join(c if c.isprintable() else " " for c in lines[-1])[-TAIL_CHARS:] if lines else "its log is empty"
