"""The deliberate breaks fit the product as it is now, and some of them are noticed; `make mutants` tries them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import every, tried, unbroken
from tests.mutants.breaks import BREAKS, HISTORIES, SIMULATION, Break
from tests.mutants.verdicts import Verdict, Verdicts, fingerprint

PRODUCT = Path(__file__).resolve().parents[2] / "pipeline"
QUICK = ("commit-before-settle", "no-wait", "timers-early")


@pytest.mark.parametrize("each", BREAKS, ids=lambda each: each.name)
def test_a_break_has_its_text_once(each: Break) -> None:
    text = (PRODUCT / f"{each.module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert text.count(each.old) == 1
    assert each.new != each.old


def test_there_are_enough_of_them_and_each_is_one() -> None:
    names = [name for name, _ in every()]
    assert len(names) == len(set(names)) >= 50


@pytest.mark.parametrize("name", QUICK)
def test_a_break_is_noticed(name: str) -> None:
    assert tried(name, SIMULATION, most=60, timeout_s=110).noticed


def test_what_is_not_broken_is_not_noticed() -> None:
    assert unbroken([SIMULATION]) == ""


def test_a_verdict_stands_until_the_product_or_the_break_changes(tmp_path: Path) -> None:
    kept = Verdicts(tmp_path / "verdicts.json")
    for noticed in (False, True):
        kept.add(Verdict("no-wait", SIMULATION, noticed, "", 1.0, fingerprint("no-wait", SIMULATION)))
        assert Verdicts(tmp_path / "verdicts.json").stands("no-wait", SIMULATION) == noticed
    assert not kept.stands("no-wait", HISTORIES), "something else has to notice it now"
    assert not kept.stands("timers-early", SIMULATION)
