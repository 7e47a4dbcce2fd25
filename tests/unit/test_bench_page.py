"""The page on performance: made of a run's figures, all of them and nothing else; the committed one is what its JSON makes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench_main
from bench import plot
from bench.cells import CELLS, aim_of
from bench.lab import Lab, Row
from bench.standing import longest_gaps

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "system": "Linux x86_64",
    "cores": 2,
    "memory_gb": 24,
    "python": "3.11.9",
    "kafka": "4.4.0, one embedded node",
    "librdkafka": "2.16.0",
    "load": 0.3,
}


def row(name: str, section: str, ours: float, **more: Any) -> dict[str, Any]:
    given = {"ratio": None, "reach": "stated", "reached": True, **more}
    return Row(name=name, workload=f"what {name} does", ours=ours, section=section, **given).as_json()


def cell(name: str, ours: float, alone: float, elsewhere: float) -> dict[str, Any]:
    aim = aim_of(elsewhere, alone)
    figures = {"aim": aim, "parallel_consumer": elsewhere}
    return row(
        name,
        "cells",
        ours,
        against=alone,
        ratio=ours / alone,
        reach=f"{aim:,.0f}/s",
        reached=ours >= aim,
        figures=figures,
    )


def a_run(*rows: dict[str, Any], command: str = "make bench") -> dict[str, Any]:
    return {"date": "2026-11-23", "command": command, "seconds": 61, "machine": MACHINE, "rows": list(rows)}


@pytest.fixture
def run() -> dict[str, Any]:
    return a_run(
        cell("cell-slow", 12_345.0, 17_000.0, 12_000.0),
        cell("cell-fast", 70_001.0, 90_000.0, 30_000.0),
        *(
            row(f"cost-keys-{n}", "keys", us, unit="CPU us", figures={"keys": n})
            for n, us in ((100, 7.5), (1_000, 15.0))
        ),
        row("pause-kill", "standing", 10.5, unit="s", reach="<= 13 s", note="the session timeout is 10 s"),
        row("gone", "typed", 0.0, reach="1.0", reached=False, note="not measured: no library | of that name"),
    )


def test_every_row_is_on_the_page_with_its_figures_its_machine_and_its_command(run: dict[str, Any]) -> None:
    text = plot.page([run], "performance")
    for each in run["rows"]:
        assert text.count(f"| `{each['name']}` |") == 1
    assert "| `cell-slow` | what cell-slow does | 12,345 | 17,000 | records/s | 0.73 | 14,450/s | **no** | - |" in text
    assert "| `cell-fast` | what cell-fast does | 70,001 | 90,000 | records/s | 0.78 | 45,000/s | yes | - |" in text
    assert "2 of 4 rows reach what they should; not: `gone`, `cell-slow`." in text
    assert "`make bench`, 61 s. Linux x86_64, 2 cores, 24 GB, Python 3.11.9, Kafka 4.4.0" in text
    assert "`gone`: not measured: no library / of that name." in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_a_page_says_only_what_its_run_measured(run: dict[str, Any]) -> None:
    """Other figures in, other figures out: nothing of the page is from anywhere else."""
    before = plot.page([run], "performance") + "".join(plot.drawings([run]).values())
    for each in run["rows"]:
        each["ours"] = 987_654.0
    after = plot.page([run], "performance") + "".join(plot.drawings([run]).values())
    assert "12,345" in before
    assert not re.search(r"12,345|70,001|7\.5\b|10\.50 s", after)
    assert after.count("987,654") >= len(run["rows"])


def test_drawings_are_to_scale_and_name_machine_and_command(run: dict[str, Any]) -> None:
    drawn = plot.drawings([run])
    assert set(drawn) == {"ratios", "cells", "keys", "pauses"}
    for text in drawn.values():
        drawing = ElementTree.fromstring(text)
        words = [element.text or "" for element in drawing.iter(f"{SVG}text")]
        assert any("2 cores, 24 GB" in each for each in words)
        assert any(each == "2026-11-23: make bench" for each in words)
        small = [len(each.text or "") for each in drawing.iter(f"{SVG}text") if each.attrib.get("font-size") == "10"]
        assert max(small) * 6 <= float(drawing.attrib["width"])
    rectangles = list(ElementTree.fromstring(drawn["cells"]).iter(f"{SVG}rect"))[1:]
    lengths = [float(each.attrib["width"]) for each in rectangles]
    assert lengths[0] / lengths[3] == pytest.approx(12_345 / 70_001, abs=0.01)
    assert lengths[2] / lengths[5] == pytest.approx(12_000 / 30_000, abs=0.01)
    assert [each.attrib["fill"] for each in rectangles[::3]] == [plot.BAD, plot.GOOD]
    heights = [float(each.attrib["cy"]) for each in ElementTree.fromstring(drawn["keys"]).iter(f"{SVG}circle")]
    assert heights[1] < heights[0]  # upwards: twice the cost stands higher


def test_a_later_run_of_some_rows_takes_the_place_of_theirs(run: dict[str, Any], tmp_path: Path) -> None:
    again = a_run(cell("cell-slow", 16_000.0, 17_000.0, 12_000.0), command='make bench ARGS="--only cells"')
    for name, each in (("first.json", run), ("again.json", again)):
        (tmp_path / name).write_text(json.dumps(each), encoding="utf-8")
    runs = plot.load_runs([tmp_path / "first.json", tmp_path / "again.json"])
    text = plot.page(runs, "performance")
    assert "12,345" not in text
    assert "| `cell-slow` | what cell-slow does | 16,000 | 17,000 | records/s | 0.94 | 14,450/s | yes | - | 2 |" in text
    assert "Run 1, 2026-11-23: `make bench`" in text
    assert 'Run 2, 2026-11-23: `make bench ARGS="--only cells"`' in text
    whole = plot.merged([run, a_run(*run["rows"], command="all again")])
    assert [each["command"] for each in whole] == ["all again"]


def test_the_command_writes_page_drawings_and_json_and_can_go_on_from_them(run: dict[str, Any], tmp_path: Path) -> None:
    source, page = tmp_path / "run.json", tmp_path / "performance.md"
    source.write_text(json.dumps(run), encoding="utf-8")
    (tmp_path / "performance-old.svg").write_text("of an earlier page", encoding="utf-8")
    command = [sys.executable, "-m", "bench.plot", str(source), "--page", str(page)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("performance*")}
    names = {f"performance-{name}.svg" for name in ("ratios", "cells", "keys", "pauses")}
    assert set(written) == {"performance.md", "performance.json", *names}
    assert names == set(re.findall(r"\]\((performance-\w+\.svg)\)", written["performance.md"]))
    assert plot.page(plot.load_runs([tmp_path / "performance.json"]), "performance") == written["performance.md"]


def test_the_committed_page_is_what_its_json_makes() -> None:
    """After a change of the generator: `python -m bench.plot docs/performance.json`."""
    runs = plot.load_runs([PAGE.with_suffix(".json")])
    assert PAGE.read_text(encoding="utf-8") == plot.page(runs, PAGE.stem)
    drawn = {f"{PAGE.stem}-{name}.svg": text for name, text in plot.drawings(runs).items()}
    assert {path.name: path.read_text(encoding="utf-8") for path in PAGE.parent.glob("performance-*.svg")} == drawn


def test_sections_of_the_page_are_those_of_the_benchmark() -> None:
    assert set(plot.SECTIONS) == set(bench_main.SECTIONS)


def test_the_aim_of_a_cell_is_the_smaller_of_both() -> None:
    assert aim_of(10_000, 100_000) == 15_000
    assert aim_of(100_000, 10_000) == 8_500
    assert {each.parallel_consumer for each in CELLS} == {60_000, 12_000, 22_000, 30_000}


def test_a_pause_is_the_longest_time_between_two_records_of_a_partition() -> None:
    second = 10**9
    notes = [(0, 1), (0, 2), (5 * second, 1), (1 * second, 2), (6 * second, 1), (9 * second, 2)]
    assert longest_gaps(notes, 2 * second) == {1: 5.0, 2: 8.0}
    assert longest_gaps(notes, 6 * second) == {1: 1.0, 2: 8.0}


def test_the_json_of_a_run_has_each_row_with_its_name_ratio_reach_and_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line of `--json`: what a program that watches the figures reads."""
    rows = [
        Row("def-dict", "one at a time", 0.98765, 0.7, True, ours=71.0, against=72.0, section="dict"),
        Row("retry-bytes", "bytes", None, "stated", True, ours=2_321.0, unit="bytes", section="tiers"),
        Row("gone", "gone", None, "-", False, note="not measured: no library", section="typed"),
    ]
    monkeypatch.setattr(bench_main, "measure", lambda *_: rows)
    monkeypatch.setattr(Lab, "new_topic", lambda _self, purpose: f"bench.{purpose}")
    monkeypatch.setattr(sys, "argv", ["bench", "--broker", "kafka.example:9092", "--json"])
    assert bench_main.main() == 0
    run = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(run) == {"date", "command", "seconds", "machine", "rows"}
    assert [(each["name"], each["ratio"], each["reach"], each["reached"]) for each in run["rows"]] == [
        ("def-dict", 0.9877, 0.7, True), ("retry-bytes", None, "stated", True), ("gone", None, "-", False),
    ]  # fmt: skip
    for each in run["rows"]:
        assert f"| `{each['name']}` |" in plot.page([run], "performance")


def test_the_command_of_a_run_names_no_address_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "bench",
        "--only",
        "keys",
        "--rounds",
        "2",
        "--broker",
        "kafka.example:9092",
        "--out",
        "/tmp/x.json",
        "--quick",
    ]
    monkeypatch.setattr(sys, "argv", words)
    said = bench_main.command(bench_main.arguments())
    assert said == 'make bench ARGS="--only keys --rounds 2 --quick --broker HOST:PORT"'
