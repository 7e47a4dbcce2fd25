"""Running measurements: each in a fresh interpreter, ours and the other side by turns, so that noise meets both."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.events import PARTITIONS, application, create

Result = dict[str, Any]
TIMEOUT_S = 200


class MeasureError(RuntimeError):
    """A measurement did not end well; the text is the last line it printed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ratio` is ours / the other side, more is better, unless `note` says otherwise.

    `ours` and `against` are in `unit`; `cpu_ratio` compares CPU time per record (other / ours), None where it means nothing.
    `figures` are what else belongs to the row, for the drawings; `section` is filled in by the run.
    """

    name: str
    workload: str
    ratio: float | None
    reach: float | str
    reached: bool
    ours: float | None = None
    against: float | None = None
    unit: str = "records/s"
    cpu_ratio: float | None = None
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    section: str = ""

    def as_json(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


@dataclass(slots=True)
class Lab:
    """Where measurements run. `records` is the size of the throughput topic; `quick` asks for small ones."""

    bootstrap: str
    topic: str
    records: int
    quick: bool
    rounds: int
    quix_python: str = ""
    say: Callable[[str], None] = lambda _text: None
    _topics: int = 0
    _run: str = field(default_factory=lambda: secrets.token_hex(3))

    def new_topic(self, purpose: str, partitions: int = PARTITIONS) -> str:
        self._topics += 1
        name = f"bench.{purpose}.{self._run}.{self._topics}"  # a broker that is given may have those of earlier runs
        create(application(self.bootstrap), name, partitions=partitions)
        return name

    def sized(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def run(self, function: str, **arguments: Any) -> Result:
        """`function` as "module:name" under bench; the broker's address is added where it takes one."""
        shown = ", ".join(
            str(value) for key, value in arguments.items() if key in ("kind", "records", "fails", "batch")
        )
        self.say(f"{function} {shown}")
        return _spawn([sys.executable, "-m", "bench.child", f"bench.{function}", json.dumps(arguments)])

    def on_kafka(self, function: str, **arguments: Any) -> Result:
        return self.run(function, bootstrap=self.bootstrap, **arguments)

    def run_quix(self, arguments: dict[str, Any]) -> Result:
        self.say("quix")
        return _spawn([self.quix_python, "-m", "bench.quix", json.dumps(arguments)])

    def by_turns(self, sides: Sequence[Callable[[], Result]], rounds_max: int = 100) -> list[list[Result]]:
        """Every side once per round, in this order, and the first once more at the end."""
        found: list[list[Result]] = [[] for _ in sides]
        for _ in range(min(self.rounds, rounds_max)):
            for index, side in enumerate(sides):
                found[index].append(side())
        found[0].append(sides[0]())
        return found


def _spawn(command: list[str]) -> Result:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"no result within {TIMEOUT_S} s") from error
    if done.returncode != 0 or not done.stdout.strip():
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise MeasureError(last)
    result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def middle(results: Sequence[Result], what: str = "rate") -> float:
    return float(median(result[what] for result in results))


def ratio_by_turns(against: Sequence[Result], ours: Sequence[Result], what: str = "rate") -> float:
    """Median over the rounds of ours / the mean of the other side's runs just before and just after it."""
    pairs = zip(ours, against, against[1:], strict=False)
    return float(median(mine[what] / ((before[what] + after[what]) / 2) for mine, before, after in pairs))
