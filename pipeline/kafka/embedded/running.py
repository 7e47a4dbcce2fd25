"""Which embedded broker runs for a directory, so that another command can find and stop it.

The owner holds a lock on `broker.lock` for as long as it lives, so what a killed owner left in `broker.json` never
counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.model.errors import BrokerStartError, ConfigurationError

_POLL_S = 0.05
_CLAIM_TRIES = 20
_LOCK, _STATE = "broker.lock", "broker.json"


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that runs: `pid` owns it; `node_pids` are the JVMs by node.id; `registry` is its URL or None."""

    pid: int
    bootstrap: str
    node_pids: Mapping[str, int]
    data_dir: str
    registry: str | None
    started_at_ms: int


def default_state_dir() -> Path:
    """Where a broker without a data directory is remembered: one per user."""
    return Path.home() / ".local" / "state" / "agent-run-pipeline"


class Claim:
    """What the owner holds: it may publish its state, which is removed with the claim."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / _STATE

    def publish(self, running: Running) -> None:
        aside = self._file.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(running)) + "\n", encoding="utf-8")
        os.replace(aside, self._file)

    def withdraw(self) -> None:
        self._file.unlink(missing_ok=True)


@contextmanager
def claim(state_dir: Path) -> Iterator[Claim]:
    """Own the directory's broker. Raises `ConfigurationError` when another process does."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / _LOCK).open("w") as handle:
        for attempt in range(1, _CLAIM_TRIES + 1):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:  # another owner, or `find` that looks for an instant
                if attempt == _CLAIM_TRIES:
                    raise ConfigurationError(
                        f"A broker already runs for {state_dir}; use it (`pipeline broker status`), "
                        "stop it, or choose another --data-dir."
                    ) from error
                time.sleep(_POLL_S)
        held = Claim(state_dir)
        held.withdraw()
        try:
            yield held
        finally:
            held.withdraw()


def is_claimed(state_dir: Path) -> bool:
    """True while a living process owns the directory's broker, also while it still starts."""
    try:
        with (state_dir / _LOCK).open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def find(state_dir: Path) -> Running | None:
    """The broker that runs and answers for this directory, or None."""
    if not is_claimed(state_dir):
        return None
    try:
        return Running(**json.loads((state_dir / _STATE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def stop(state_dir: Path, running: Running, timeout_s: float) -> bool:
    """End the owner with SIGTERM, which stops its servers cleanly; SIGKILL after the time (its guardians then end the
    servers). True when it ended cleanly. Raises `BrokerStartError` when it may not be signalled."""
    for number, seconds in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, timeout_s)):
        try:
            os.kill(running.pid, number)
        except ProcessLookupError:
            return number is signal.SIGTERM
        except PermissionError as error:
            raise BrokerStartError(
                f"Process {running.pid} belongs to another user; stop the broker as that user."
            ) from error
        deadline = time.monotonic() + seconds
        while is_claimed(state_dir):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        else:
            return number is signal.SIGTERM
    return False
