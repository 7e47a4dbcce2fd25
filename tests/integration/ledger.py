"""The ledger: a file that every handler of a test appends to, one `write` per line, and `verdict`, which judges it.

What was started and finished is known even of a process that was SIGKILLed, in one order for all processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """One line: a handler's `start`, or how it ended (`done`, `fail`, `reject`)."""

    at: float
    pid: int
    what: str
    partition: int
    offset: int
    key: str
    attempt: int


class Ledger:
    """Appended to by every process of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)

    def mark(self, what: str, ctx: Any) -> None:
        line = [time.time(), os.getpid(), what, ctx.partition, ctx.offset, ctx.run_id, ctx.attempt]
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def marks(self, *kinds: str) -> list[Mark]:
        # In one read: line by line, one that is being written comes in two halves.
        found = [Mark(*json.loads(line)) for line in self.path.read_text().split("\n")[:-1]]
        return [mark for mark in found if not kinds or mark.what in kinds]

    def done(self) -> list[tuple[int, int]]:
        """Origins of what was done, in order; one that was done twice is there twice."""
        return [(mark.partition, mark.offset) for mark in self.marks("done")]

    def __str__(self) -> str:
        marks = self.marks()
        kinds = {kind: sum(m.what == kind for m in marks) for kind in sorted({m.what for m in marks})}
        return f"ledger: {kinds}; last: " + "; ".join(
            f"{m.at:.3f} pid {m.pid} {m.what} {m.partition}/{m.offset} {m.key} #{m.attempt}" for m in marks[-12:]
        )


@dataclass
class Verdict:
    """What is wrong with a history, in words; empty lists are what a test wants."""

    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)

    def check(self, *allowed: str) -> None:
        for name in ("lost", "duplicates", "disorder", "early"):
            found = getattr(self, name)
            assert name in allowed or not found, f"{len(found)} {name}: {found[:8]}"


def verdict(
    marks: Sequence[Mark],
    published: Iterable[tuple[int, int]],
    dead: Iterable[tuple[int, int]] = (),
    tier_s: float = 0.0,
) -> Verdict:
    """Judge a history: I1 (nothing lost), I2 (done once), I3 (a key's records start only when all lower ones have ended,
    in first effects), I8 (no retry earlier than `tier_s` after the failure before it)."""
    found, ended, dead_set = Verdict(), dict[tuple[int, int], int](), set(dead)
    by_key: dict[tuple[int, str], set[int]] = {}
    for mark in marks:
        by_key.setdefault((mark.partition, mark.key), set()).add(mark.offset)
    failed_at: dict[tuple[int, int], Mark] = {}
    final: dict[tuple[int, int], int] = {}
    for mark in marks:
        if mark.what != "start":
            origin = (mark.partition, mark.offset)
            final[origin] = max(final.get(origin, 0), mark.attempt)
    for mark in marks:
        origin = (mark.partition, mark.offset)
        if mark.what == "start":
            if origin not in ended:  # a first effect: records that are run again by a crash do not count
                below = [o for o in by_key[mark.partition, mark.key] if o < mark.offset]
                waiting = [o for o in below if (mark.partition, o) not in ended]
                if waiting:
                    found.disorder.append(
                        f"{mark.key}: {origin} started at attempt {mark.attempt} before {waiting[:5]}"
                    )
            before = failed_at.get(origin)
            # Due times are whole milliseconds, rounded down.
            if before is not None and mark.attempt > before.attempt and mark.at - before.at < tier_s - 0.001:
                found.early.append(f"{origin} #{mark.attempt} after {mark.at - before.at:.3f} s")
        elif mark.what == "fail":
            failed_at[origin] = mark
            if origin in dead_set and mark.attempt == final[origin]:
                ended[origin] = 1
        elif mark.what == "reject":
            ended[origin] = 1
        else:
            ended[origin] = ended.get(origin, 0) + 1
            if ended[origin] > 1:
                found.duplicates.append(f"{origin} {mark.key} done {ended[origin]} times")
    done = {(m.partition, m.offset) for m in marks if m.what == "done"}
    found.lost.extend(str(origin) for origin in published if origin not in done and origin not in dead_set)
    return found
