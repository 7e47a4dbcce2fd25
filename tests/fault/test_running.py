"""A run of the fault plan without a cluster: it goes on after whatever a row does, and its report is true at every moment."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.__main__ import chosen
from tests.fault.plan import CLASSIC, EOS, ROWS, Row
from tests.fault.report import PAGE, Run, write
from tests.fault.running import estimate_s, run_rows, trials
from tests.fault.trial import Plan, Result, Trial
from tests.unit.docs_reader import Page


class FakeGround:
    """Nobody is there. `broken`: it can't be mended after the first trial."""

    direct = proxied = "127.0.0.1:1"

    def __init__(self, broken: bool) -> None:
        self._broken = broken

    def restore(self) -> None:
        if self._broken:
            raise AssertionError("not within 90 s: every partition has three replicas in sync")


def breaks(trial: Trial) -> None:
    trial.faults.append("worker killed")
    raise AssertionError("one record is lost\nand here are the logs")


def test_a_run_goes_on_after_a_broken_row_and_a_lost_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    grounds: list[FakeGround] = []

    @contextlib.contextmanager
    def make() -> Iterator[Any]:
        grounds.append(FakeGround(broken=not grounds))
        yield grounds[-1]

    rows = [Row(1, "first", "I1", breaks), Row(2, "second", "I1", lambda _trial: None, (CLASSIC, EOS), judged=True)]
    said: list[str] = []
    results = list(run_rows(trials(rows), Plan(records=10), said.append, make))
    assert [(r.row, r.name, r.problems) for r in results] == [
        (1, "first", "AssertionError: one record is lost"),
        (2, "second", ""),
        (2, "second (exactly_once)", ""),
    ]
    assert results[0].faults == "worker killed"
    assert len(grounds) == 2
    assert any("made anew: not within 90 s" in text for text in said)


def test_the_report_says_what_is_missing_until_nothing_is(tmp_path: Path) -> None:
    where = tmp_path / "faults.md"
    results = [Result(1, "worker killed in a handler", 7, records=1_000, lost=2, problems="2 lost | a <b>")]
    write(Run(results, 7, 60.0, "", planned=2), where)
    text = where.read_text()
    assert "cut short: 1 of 2 trials are missing" in text
    assert "1 trials broke an invariant" in text
    assert "2 lost / a (b)" in text
    assert text.count("not in this run") == len(ROWS) - 1
    write(Run([*results, Result(2, "killed", 7)], 7, 60.0, "", planned=2), where)
    assert "cut short" not in where.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["faults.md"], "nothing beside it"


def test_the_page_in_the_docs_is_of_a_whole_run_and_linked_when_it_is_there() -> None:
    """A page of some rows is no report, and a link to a page that is not there leads nowhere."""
    guide = Page(PAGE.parent / "guide" / "testing.md")
    linked = {(guide.path.parent / link).resolve() for link in guide.links if not link.startswith("http")}
    assert (PAGE.resolve() in linked) == PAGE.exists(), (
        "docs/guide/testing.md links docs/faults.md exactly when it is there"
    )
    if PAGE.exists():
        text = PAGE.read_text(encoding="utf-8")
        assert {int(row) for row in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == {row.number for row in ROWS}
        assert "not in this run" not in text
        assert "The run was cut short" not in text
        assert "every invariant held" in text


def test_rows_are_chosen_by_number_and_estimated_by_their_load() -> None:
    assert [row.number for row in chosen("4,6-8")] == [4, 6, 7, 8]
    assert chosen("") == ROWS
    with pytest.raises(SystemExit, match="32"):
        chosen("20-32")
    small, large = (estimate_s(trials(ROWS), Plan(records=records)) for records in (1_000, 100_000))
    assert 600 < small < large - 5 * 60
    assert [row.name(variant) for row, variant in trials(ROWS, "KIP-848")] == [
        f"{row.fault} (KIP-848)" for row in ROWS if row.number in (1, 3, 10, 21)
    ]
