"""`make mutants`: the product broken on purpose, break by break, each in its own process; exit 1 when one is not noticed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.mutants.breaks import BREAKS, HISTORIES, SIMULATION
from tests.mutants.child import CORE, NOTICED, UNBROKEN
from tests.mutants.verdicts import Verdict, Verdicts, fingerprint
from tests.property.history_mutants import MUTANTS

MOST = 1_000
"""Histories without a finding: it survives."""
UNBROKEN_MOST = 25
TIMEOUT_S = 900.0
RESULTS = Path("build/mutants.json")


def every() -> list[tuple[str, str]]:
    """(name, what has to notice it)."""
    return [*((each.name, each.caught_by) for each in BREAKS), *((f"{CORE}{name}", HISTORIES) for name in MUTANTS)]


def tried(name: str, caught_by: str, most: int = MOST, timeout_s: float = TIMEOUT_S) -> Verdict:
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.mutants.child", name, str(most), caught_by]
    noticed, what = False, f"COULD NOT BE TRIED: no verdict within {timeout_s:.0f} s"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        pass
    else:
        noticed = done.returncode == NOTICED
        said = (done.stdout if done.returncode in (0, NOTICED) else done.stderr).strip().splitlines() or [""]
        what = said[-1] if noticed else f"COULD NOT BE TRIED: {said[-1]}" if done.returncode else "NOT NOTICED"
    return Verdict(name, caught_by, noticed, what, round(time.monotonic() - began, 1), fingerprint(name, caught_by))


def unbroken(parts: Sequence[str]) -> str:
    """What fails although nothing is broken: then nothing below would prove anything."""
    files = " ".join(part for part in parts if part not in (SIMULATION, HISTORIES))
    for part in (SIMULATION, HISTORIES, files):
        if part and (part == files or part in parts):
            verdict = tried(UNBROKEN, part, UNBROKEN_MOST)
            if verdict.what != "NOT NOTICED":
                return f"{part}: {verdict.what}"
    return ""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only those whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="so many at a time")
    parser.add_argument("--resume", action="store_true", help="only what has no verdict yet in the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where the verdicts are kept ({RESULTS})")
    chosen = parser.parse_args(arguments)
    wanted = [each for each in every() if not chosen.names or any(part in each[0] for part in chosen.names)]
    kept = Verdicts(chosen.results)
    left = [each for each in wanted if not (chosen.resume and kept.stands(*each))]
    if len(left) < len(wanted):
        print(f"{len(wanted) - len(left)} of {len(wanted)} have their verdict in {chosen.results}")
    if left and (wrong := unbroken(sorted({caught_by for _, caught_by in left}))):
        print(f"fails although nothing is broken, so no verdict would count: {wrong}")
        return 1
    try_all(left, kept, chosen.jobs)
    verdicts = [kept.of(name) for name, _ in wanted]
    survivors = [verdict for verdict in verdicts if not verdict.noticed]
    for verdict in survivors:
        print(f"{verdict.name}: {verdict.what} by {verdict.caught_by}")
    print(f"{len(wanted)} breaks, {len(survivors)} not noticed, {sum(v.seconds for v in verdicts):.0f} s of processes")
    return 1 if survivors else 0


def try_all(left: Sequence[tuple[str, str]], kept: Verdicts, jobs: int) -> None:
    """Some at a time, those that took longest the last time first; each verdict is kept and told as it comes."""
    expected_s = {name: kept.seconds(name) for name, _ in left}
    ordered = sorted(left, key=lambda each: -expected_s[each[0]])
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for count, future in enumerate(as_completed([pool.submit(tried, *each) for each in ordered]), start=1):
                verdict = future.result()
                kept.add(verdict)
                del expected_s[verdict.name]
                part = verdict.caught_by.split(" ")[0].rpartition("/")[2]
                print(
                    f"{count:3}/{len(left)}  {verdict.name:36} {part:42.42} {verdict.seconds:6.1f} s  "
                    f"{verdict.what[:90]}  (about {sum(expected_s.values()) / jobs / 60:.0f} min left)",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
