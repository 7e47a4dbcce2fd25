"""`python -m tests.simulation SEED [COUNT]`: run simulations and print what happened in those that do not hold."""

from __future__ import annotations

import sys

from tests.simulation.world import Scenario, simulate


def main(arguments: list[str]) -> int:
    first, count = int(arguments[0]) if arguments else 0, int(arguments[1]) if len(arguments) > 1 else 1
    bad = 0
    for seed in range(first, first + count):
        world = simulate(Scenario(seed))
        problems = world.problems
        counts = f"{len(world.published)} records, {len(world.attempts)} executions, {world.disturbances} disturbances"
        print(f"seed {seed}: {counts}, {len(problems)} problems")
        if problems:
            bad += 1
            print("\n".join((*problems, *world.events)))
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
