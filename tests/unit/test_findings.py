"""docs/findings.md names, for every finding, tests that exist, and breaks of the product that those very tests have to notice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutants.breaks import BREAKS, SIMULATION

ROOT = Path(__file__).parents[2]
FINDINGS = range(1, 11)
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "findings.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d", line)
]
NAMED = sorted({test for row in ROWS for test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[3])})
CAUGHT_BY = {each.name: each.caught_by for each in BREAKS}


def test_every_finding_is_in_the_table() -> None:
    assert {int(row[0]) for row in ROWS} == set(FINDINGS)
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_of_a_finding_exists(file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file} has no {name}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[2][:40]}")
def test_a_break_takes_the_remedy_away_and_the_named_test_has_to_notice(row: list[str]) -> None:
    """`make mutants` sees it fail; those that only whole histories find say so."""
    breaks = re.findall(r"`([\w-]+)`(?: \((by the simulation)\))?", row[4])
    assert breaks, "a remedy that nothing takes away is not proven"
    for name, simulated in breaks:
        caught_by = CAUGHT_BY.get(name)
        assert caught_by is not None, f"tests/mutants/breaks.py has no {name}"
        if simulated:
            assert caught_by == SIMULATION
            continue
        tests = [part.partition("[")[0] for part in caught_by.split()]
        named = [f"{file}::{test}" for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[3])]
        assert any(test in named or any(one.startswith(f"{test}::") for one in named) for test in tests), (
            f"{name} is to be noticed by {caught_by}"
        )
