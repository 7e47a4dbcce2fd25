"""`python -m tests.fault`: the fault plan on real Kafka, with progress; docs/faults.md is written row by row."""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.fault.plan import ROWS, Row
from tests.fault.report import PAGE, Run, write
from tests.fault.running import estimate_s, run_rows, trials
from tests.fault.trial import Plan, Result

TITLE = "the fault plan on three real Kafka nodes and real worker processes"
EXAMPLE = 'example: make fault ARGS="--rows 4,6-8 --records 5000 --seed 7"'


def chosen(text: str) -> tuple[Row, ...]:
    """ "1,4-6" -> rows 1, 4, 5 and 6; empty means all."""
    wanted: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        wanted.update(range(int(first), int(last or first) + 1))
    if unknown := wanted - {row.number for row in ROWS}:
        raise SystemExit(f"--rows: there is no row {sorted(unknown)[0]}; rows are 1-{len(ROWS)}")
    return tuple(row for row in ROWS if not wanted or row.number in wanted)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fault", description=TITLE, epilog=EXAMPLE)
    parser.add_argument(
        "--records", type=int, default=28_000, help="records of a trial (28000: above a million in all)"
    )
    parser.add_argument("--rate", type=float, default=4_000, help="records published in a second (4000)")
    parser.add_argument("--rows", default="", help="which rows: 1,4-6; all by default")
    parser.add_argument("--only", default="", help="variants whose name says that: exactly_once, KIP-848")
    parser.add_argument("--seed", type=int, default=0, help="repeats what was drawn; drawn itself by default")
    parser.add_argument("--json", action="store_true", help="one line of JSON a trial on standard output")
    parser.add_argument(
        "--report", type=Path, help="where the report goes, written row by row; docs/faults.md when all rows are run"
    )
    parser.add_argument("--no-report", action="store_true", help="leave docs/faults.md as it is")
    return parser.parse_args()


def tell(result: Result) -> str:
    recovery = "" if result.recovery_s is None else f", recovered in {result.recovery_s:.1f} s"
    words = "holds" if result.good else f"BROKEN: {result.problems}"
    return (
        f"row {result.row}: {result.name}: {result.faults}: {result.records:,} records, {result.lost} lost, "
        f"{result.duplicates} duplicates (of {result.bound}), {result.order_breaks} order breaks{recovery}, "
        f"{result.seconds:.0f} s: {words}"
    )


def report_to(given: argparse.Namespace, rows: tuple[Row, ...]) -> Path | None:
    """A part of the plan is no report on all of it, unless it is asked for."""
    if given.no_report or given.report is not None:
        return given.report if not given.no_report else None
    return PAGE if rows == ROWS and not given.only else None


def stop_in_order() -> None:
    """SIGTERM ends a run as Ctrl-C does: no node and no worker is left."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def main() -> int:
    given = arguments()
    rows = chosen(given.rows)
    report = report_to(given, rows)
    seed = given.seed or random.SystemRandom().randrange(1, 1_000_000)
    plan = Plan(records=given.records, rate=given.rate, seed=seed)
    wanted = trials(rows, given.only)
    began = time.monotonic()
    stop_in_order()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr, flush=True)

    say(
        f"seed {seed}, {len(wanted)} trials of {given.records:,} records, about {estimate_s(wanted, plan) / 60:.0f} minutes; "
        "starting three nodes"
    )
    results: list[Result] = []
    try:
        for result in run_rows(wanted, plan, say):
            results.append(result)
            left_s = estimate_s(wanted[len(results) :], plan)
            say(f"{tell(result)}; about {left_s / 60:.0f} minutes left")
            if given.json:
                print(json.dumps(asdict(result)), flush=True)
            if not result.good:
                say(f'this row again: make fault ARGS="--rows {result.row} --records {given.records} --seed {seed}"')
            if report is not None:
                run = Run(results, seed, time.monotonic() - began, f' ARGS="--records {given.records}"', len(wanted))
                write(run, report)
    except KeyboardInterrupt:
        say("stopped")
    bad = [result for result in results if not result.good]
    say(f"{sum(r.records for r in results):,} records, {len(results) - len(bad)} of {len(wanted)} trials hold")
    if report is not None:
        say(f"written: {report}")
    return 1 if bad or len(results) < len(wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
