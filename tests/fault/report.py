"""What a run of the fault plan found, as docs/faults.md."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fault.plan import ROWS
from tests.fault.trial import Result

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

_HEAD = """# Faults

Written by `make fault`: what was done to three real Kafka nodes (replication 3, two in sync) and to worker processes under load,
and what came of it. Everything is judged by a checker that reads the topics, the stored commits and the handlers' ledger
(`tests/fault/checker.py`); it knows nothing of the product's own rules, and tests hold it to seeing each way of cheating.

{summary}

- *duplicates*: records handled, or dead letters written, more than once; with `exactly_once`, outputs that a read_committed reader
  sees more than once (and on graceful stops what ran more than once). *allowed*: (kills + partitions lost by a worker that lived) x the
  most work in flight, which is what ran and what was done in three commit intervals, longer only by what a fault kept commits
  from the brokers; nothing on graceful stops and for outputs in `exactly_once`.
- *order breaks*: a record began while a lower one of its key had no ending yet, or its output came behind a higher one's.
- Rows of jobs: their callers go on asking; a job is lost when nobody hears of its ending, and has run twice when its handler came to
  its end twice. No job begins early, has two endings, or runs twice for one dedup id.
- *recovery*: from the end of the fault until every partition with work did some, at most 45 s.
- Also looked at in every row: no retry before its time, no commit past what was not settled, none that takes another back, no record
  run again after a commit that settled it, every acknowledged record readable.

| # | fault | what was done | records | lost | duplicates (allowed) | order breaks | recovery | verdict |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What the page says of a run as a whole."""

    results: Sequence[Result]
    seed: int
    seconds: float
    arguments: str
    planned: int
    """Trials that were asked for; fewer results: the run is under way, or was cut short."""


def _line(result: Result) -> str:
    recovery = "" if result.recovery_s is None else f"{result.recovery_s:.1f} s"
    bad = _cell(result.problems[:300])
    return (
        f"| {result.row} | {_cell(result.name)} | {_cell(result.faults)} | {result.records:,} | {result.lost} "
        f"| {result.duplicates:,} ({result.bound:,}) | {result.order_breaks} | {recovery} "
        f"| {'holds' if result.good else bad}{'; ' + _cell(result.note) if result.note else ''} |\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").replace("<", "(").replace(">", ")")


def page(run: Run) -> str:
    """The whole page. Rows that were not run say so: a table without them would look complete."""
    results = run.results
    bad = [result for result in results if not result.good]
    missing = run.planned - len(results)
    short = f"**The run was cut short: {missing} of {run.planned} trials are missing.**\n\n" if missing else ""
    summary = (
        f"{short}{sum(r.records for r in results):,} records in {len(results)} trials, {run.seconds / 60:.0f} minutes: "
        f"{sum(r.lost for r in results)} lost, {sum(r.order_breaks for r in results)} order breaks, "
        f"{sum(r.duplicates for r in results):,} duplicates "
        f"({sum(r.duplicates for r in results if r.bound == 0)} where none is allowed); "
        f"{'every invariant held' if not bad else f'{len(bad)} trials broke an invariant'}.\n\n"
        f"`make fault{run.arguments}` with seed {run.seed}, Python {platform.python_version()}, {platform.system()}; "
        'one row again: `make fault ARGS="--rows N --seed S"`.'
    )
    lines = _HEAD.format(summary=summary)
    ran = {result.row for result in results}
    for row in ROWS:
        lines += "".join(_line(result) for result in results if result.row == row.number)
        if row.number not in ran:
            lines += f"| {row.number} | {row.fault} | not in this run | | | | | | |\n"
    return lines


def write(run: Run, where: Path) -> None:
    """After every trial: whenever a run ends, what it found is there. Never half a page."""
    made = where.with_name(f".{where.name}.new")
    made.write_text(page(run), encoding="utf-8")
    made.replace(where)
