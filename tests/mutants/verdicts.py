"""Verdicts on breaks, kept in a file while they come, so that a run that was interrupted can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.mutants.breaks import BREAKS, HISTORIES, SIMULATION

ROOT = Path(__file__).resolve().parents[2]
USUAL_S = 15.0
"""Of one that was never tried."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`caught_by` is what had to notice; `fingerprint` of the product, the break and that part of the suite."""

    name: str
    caught_by: str
    noticed: bool
    what: str
    seconds: float
    fingerprint: str


class Verdicts:
    """The last one of each break."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        self._verdicts = {entry["name"]: Verdict(**entry) for entry in found}

    def of(self, name: str) -> Verdict:
        return self._verdicts[name]

    def stands(self, name: str, caught_by: str) -> bool:
        """It was noticed, and neither the product, nor the break, nor what noticed it has changed since."""
        known = self._verdicts.get(name)
        return known is not None and known.noticed and known.fingerprint == fingerprint(name, caught_by)

    def seconds(self, name: str) -> float:
        known = self._verdicts.get(name)
        return known.seconds if known is not None else USUAL_S

    def add(self, verdict: Verdict) -> None:
        self._verdicts[verdict.name] = verdict
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._path.with_suffix(".new")
        whole.write_text(json.dumps([asdict(each) for each in self._verdicts.values()], indent=1), encoding="utf-8")
        whole.replace(self._path)


def fingerprint(name: str, caught_by: str) -> str:
    change = next((repr(each) for each in BREAKS if each.name == name), name)
    return hashlib.sha256("".join((change, *map(digest, ("pipeline", *parts(caught_by))))).encode()).hexdigest()[:16]


def parts(caught_by: str) -> Iterator[str]:
    """The paths of that part of the suite."""
    if caught_by in (SIMULATION, HISTORIES):
        yield "tests/simulation" if caught_by == SIMULATION else "tests/property"
        return
    for word in caught_by.split():
        if word.startswith("tests/"):
            yield word.partition("::")[0]


@cache
def digest(path: str) -> str:
    """Of a file, or of all Python files in a directory."""
    whole = ROOT / path
    files = sorted(whole.rglob("*.py")) if whole.is_dir() else [whole]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
