"""What a pool of child processes is given to run, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.core.unit import Unit
from pipeline.worker.child_frames import Blobs, Head


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What every child of a pool runs: a subscription (`group` as declared) of the application `target`.

    `job`: a type of job of that queue instead; `processors`: so many it may run on.
    `cancels`: its handler is a coroutine, which the child cancels itself at the deadline.
    """

    target: str
    group: str
    timeout_ms: int
    cancels: bool = False
    memory_bytes: int | None = None
    job: str = ""
    processors: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The child's own words for one record; `head["kind"]` is "done", "failed" or "schema"."""

    head: Head
    blobs: Blobs


@dataclass(frozen=True, slots=True)
class Death:
    """The child ended instead. `how`: "killed by SIGSEGV"; `stack` is what it could still write down; `late`: killed by us; `unread`:
    before it had read all of its record, which can't be what ended it then, but for one too large to be read."""

    how: str
    stack: str = ""
    late: bool = False
    unread: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """One record for a child. `ended` hears once what became of it, unless the job is cancelled; `told` what it says while it runs.

    `timeout_ms`: where it has a deadline of its own.
    """

    unit: Unit
    frame: bytes
    ended: Callable[[Answer | Death], None]
    deadline_s: float = 0.0
    timeout_ms: int = 0
    told: Callable[[Head], None] | None = None
    spared: bool = False
