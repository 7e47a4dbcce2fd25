"""A worker process of a test: started, signalled, watched by its log and its status page."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
APP = "tests.integration.obedient:app"


def ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has waited for yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Process:
    """One worker process, its log and its status page; or whatever `command` starts with the same environment."""

    def __init__(self, spec: dict[str, Any], log: Path, command: Sequence[str] = ()) -> None:
        self.log = log
        target = spec.get("app", APP)
        worker = (sys.executable, "-m", "pipeline.worker.process", str(os.getpid()), target, "0", "0", "127.0.0.1")
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                command or worker,
                env={**os.environ, "HARNESS_SPEC": json.dumps(spec)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(10 * PATIENCE)

    def lines(self) -> list[dict[str, Any]]:
        """The structured part of its log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == event]

    def errors(self) -> list[str]:
        """What it logged as an error, whole lines: a failing assertion shows what they say."""
        return [json.dumps(line) for line in self.lines() if line.get("level") == "error"]

    def status(self, path: str = "health") -> tuple[int, str]:
        """(HTTP status, body); (0, why) while it does not serve."""
        for line in self.said("status"):
            url = line["metrics"].replace("/metrics", f"/{path}")
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)
        return 0, "no status line yet"

    def partitions(self) -> list[int]:
        status, body = self.status()
        health = json.loads(body) if status else {}
        return next((group["partitions"] for group in health.values()), [])

    def stop(self, deadline_s: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.popen.wait(deadline_s)
