"""`python -m tests.mutants.child NAME MOST CAUGHT_BY`: one break, in this process; exit 10 when it is noticed, saying after how much."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence

from tests.mutants.breaks import BREAKS, HISTORIES, SIMULATION
from tests.mutants.loading import install

NOTICED = 10
UNBROKEN = "unbroken"
CORE = "core: "
"""Before the name of a break of tests/property/history_mutants.py: two lists may have the same name."""
ENDLESS_S = 60.0
"""Of CPU; an ordinary history takes a fraction of a second, and a busy machine makes none endless."""


def noticed(what: str) -> None:
    print(what, flush=True)
    os._exit(NOTICED)


def until_one_finds(problems: Callable[[int], Sequence[object]], seeds: Iterable[int]) -> str:
    """History by history; one that does not end is a finding too."""
    for seed in seeds:

        def endless(_number: int, _frame: object, seed: int = seed) -> None:
            noticed(f"history {seed}: it does not end")

        signal.signal(signal.SIGPROF, endless)
        signal.setitimer(signal.ITIMER_PROF, ENDLESS_S)
        if found := problems(seed):
            return f"history {seed}: {found[0]}"
    return ""


def by_simulation(seeds: Iterable[int]) -> str:
    from tests.simulation.histories import scenario_of, simulated

    return until_one_finds(lambda seed: simulated(scenario_of(seed)).problems, seeds)


def by_histories(name: str, most: int) -> str:
    from tests.property.histories import Rules, check
    from tests.property.history_mutants import MUTANTS, mutant, seeds

    def problems(seed: int, rules: Rules | None = None) -> Sequence[object]:
        return [wrong for _, wrong in check(range(seed, seed + 1), rules)]

    if name not in MUTANTS:
        return until_one_finds(problems, range(most))
    with mutant(name) as rules:
        return until_one_finds(lambda seed: problems(seed, rules), seeds(name, most))


def by_tests(arguments: str) -> str:
    import pytest

    class First:
        """Which of them fails."""

        failed = ""

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and not self.failed:
                self.failed = report.nodeid.rpartition("/")[2]

    first = First()
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *arguments.split()], [first])
    if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return first.failed
    sys.exit(f"pytest ends with {code!r}")


def main() -> int:
    name, most, caught_by = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    chosen = next((each for each in BREAKS if each.name == name), None)
    if chosen is not None:
        install(chosen)
    if caught_by == SIMULATION:
        found = by_simulation((chosen.found_by, *range(most)) if chosen is not None else range(most))
    elif caught_by == HISTORIES:
        found = by_histories(name.removeprefix(CORE), most)
    else:
        found = by_tests(caught_by)
    if found:
        noticed(found.replace("\n", " "))
    return 0


if __name__ == "__main__":
    sys.exit(main())
