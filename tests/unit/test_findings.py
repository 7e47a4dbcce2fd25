"""docs/findings.md names tests that exist: a remedy whose test was renamed or removed is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "findings.md").read_text(encoding="utf-8"))


def test_there_are_findings() -> None:
    assert len(NAMED) >= 25


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_of_a_finding_exists(file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file} has no {name}"
