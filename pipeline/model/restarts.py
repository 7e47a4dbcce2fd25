"""Processes that end and are started again: how long to wait, when to give up, and what an exit status says in words."""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """After the n-th crash in a row wait `first_s * 2**(n-1)`, at most `max_s`; give up after `limit` (0: never).

    A process that lived `steady_s` starts a new row. A clean stop has `stop_s` before the process is killed; one that says
    when it is ready has `ready_s` for that. `jitter`: the part of a wait that is drawn at random and taken off, so that many
    that died together do not come back together.
    """

    first_s: float = 1.0
    max_s: float = 30.0
    limit: int = 10
    steady_s: float = 60.0
    stop_s: float = 30.0
    ready_s: float = 180.0
    jitter: float = 0.0

    def wait_s(self, crashes: int, draw: float = 0.0) -> float:
        """`crashes` counts from 1; `draw` is a random number in [0, 1)."""
        longest = min(self.max_s, self.first_s * 2.0 ** min(crashes - 1, 64))
        return longest * (1.0 - self.jitter * draw)


def ending(code: int) -> str:
    """An exit status as `subprocess` gives it: "killed by SIGSEGV", "ended by exit code 7"."""
    if code >= 0:
        return f"ended by exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
