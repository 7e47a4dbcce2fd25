"""Simulated histories of whole workers: of events, and every fourth one of jobs.

python -m tests.simulation --histories 1000            seeds 0 to 999, on every core; exit 1 when one does not hold
python -m tests.simulation --seed 1234                 one history again; when it does not hold it is shrunk and printed
python -m tests.simulation --seed 1234 --keep "e3 r7"  only these parts of it, printed in full
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.histories import lines, scenario_of, simulated
from tests.simulation.scenario import Scenario
from tests.simulation.shrink import promise, shrunk
from tests.simulation.world import World

CHUNK = 20
SHOWN_MAX = 5
"""Failing seeds that are told in full; the first of them is shrunk, of the others the number is printed."""


def work_alone() -> None:
    """In a process that simulates and does nothing else: a collection looks at a whole world that is still in use, for 8 % of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def run_chunk(first: int, count: int) -> tuple[int, int, Counter[str], int, list[tuple[int, list[str]]]]:
    """(records, executions, situations, repeats, failing seeds with their problems) of some histories."""
    seen: Counter[str] = Counter()
    failing = []
    repeats = 0
    for seed in range(first, first + count):
        world = simulated(scenario_of(seed))
        seen += world.seen
        repeats += world.repeats
        if world.problems:
            failing.append((seed, world.problems))
    return seen["published"], seen["execution"], seen, repeats, failing


def again(seed: int, kept: str = "") -> str:
    return f'make sim SEED={seed} KEEP="{kept}"' if kept else f"make sim SEED={seed}"


def smallest(seed: int, problems: list[str]) -> tuple[Scenario, World]:
    broken = promise(problems[0])

    def breaks(scenario: Scenario) -> bool:
        return any(promise(problem) == broken for problem in simulated(scenario).problems)

    scenario = shrunk(scenario_of(seed), breaks)
    return scenario, simulated(scenario)


def show(world: World, kept: str) -> None:
    """A history, readable."""
    print("\n".join(lines(world)))
    print("\n".join(f"PROBLEM {problem}" for problem in world.problems) or "everything held")
    print("again:", again(world.scenario.seed, kept))


def many(first: int, count: int, jobs: int) -> int:
    began = time.monotonic()
    seen: Counter[str] = Counter()
    failing: list[tuple[int, list[str]]] = []
    repeats = done = 0
    starts = range(first, first + count, CHUNK)
    with ProcessPoolExecutor(jobs, initializer=work_alone) as pool:
        for _, _, met, again_ran, found in pool.map(run_chunk, starts, [min(CHUNK, first + count - s) for s in starts]):
            seen += met
            repeats += again_ran
            failing += found
            for seed, problems in found[:SHOWN_MAX]:
                print(f"seed {seed} does not hold: {problems[0][:160]}", flush=True)
            done += CHUNK
            if done % 2_000 == 0:
                passed = time.monotonic() - began
                left = passed / done * max(0, count - done) / 60
                print(
                    f"{done} histories, {len(failing)} failing, {passed:.0f} s, about {left:.0f} min left", flush=True
                )
    for name, times in sorted(seen.items()):
        print(f"{times:10}  {name}")
    print(
        f"{count} histories, {seen['published']} records, {seen['execution']} executions, {repeats} of them repeated; "
        f"{len(failing)} histories do not hold; {time.monotonic() - began:.0f} s on {jobs} cores"
    )
    for seed, problems in failing[:SHOWN_MAX]:
        print(f"\nseed {seed}: {problems[0]}   again: {again(seed)}")
    for seed, problems in failing[SHOWN_MAX:50]:
        print(f"seed {seed}: {problems[0][:160]}")
    return one(min(failing)[0], "") if failing else 0


def one(seed: int, keep: str) -> int:
    if keep:
        world = simulated(scenario_of(seed).only(keep.split()))
    else:
        world = simulated(scenario_of(seed))
        if world.problems:
            print(f"seed {seed}: {world.problems[0]}; shrinking", flush=True)
            scenario, world = smallest(seed, world.problems)
            keep = " ".join(scenario.parts())
    show(world, keep)
    return 1 if world.problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, help="one history; with --histories: the first of them")
    parser.add_argument("--histories", type=int, default=0)
    parser.add_argument("--keep", default="", help="names of the parts to keep, as a shrunk failure prints them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.histories:
        return many(arguments.seed or 0, arguments.histories, arguments.jobs)
    return one(arguments.seed or 0, arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
