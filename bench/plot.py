"""`python -m bench.plot FILE.json [FILE.json ...] [--page docs/performance.md]`: the page and its drawings from finished runs.

A row of a later file takes the place of the same row of an earlier one. What was drawn is written beside the page as JSON, so that
the page can be made again, and a run of some sections be added to it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.drawing import BAD, GOOD, OTHER, PLAIN, Bar, bars, curves
from bench.machine import sentence
from bench.report import number

PAGE = Path("docs/performance.md")
RATIO_MAX = 2.0
SECTIONS = {
    "dict": "Avro to dict: beside the bare loop and other libraries",
    "typed": "Avro to typed events: beside the bare loop and other libraries",
    "suspend": "A handler that suspends",
    "wait": "A thousand handlers that wait",
    "cells": "The work table: order by key",
    "delivery": "Exactly once beside at least once",
    "produce": "Producing",
    "latency": "Latency",
    "lateness": "Retries on time",
    "tiers": "What waiting records cost",
    "parking": "Order through retries",
    "standing": "Pauses when workers come and go",
    "restore": "A start with much parked",
    "keys": "Cost as keys grow",
    "partitions": "Cost as partitions grow",
    "flight": "Memory with 100,000 in flight",
    "memory": "Memory over time",
    "replay": "Replays",
    "dead-letters": "Dead letters",
    "jobs": "Background jobs",
}

Run = dict[str, Any]
Line = dict[str, Any]
"""A row as the run wrote it, with `run`: the index of its run."""


def merged(runs: Sequence[Run]) -> list[Run]:
    """Each row once, from the last run that has it; runs of which nothing is left are dropped."""
    latest = {row["name"]: index for index, run in enumerate(runs) for row in run["rows"]}
    kept = [
        {**run, "rows": [row for row in run["rows"] if latest[row["name"]] == index]} for index, run in enumerate(runs)
    ]
    return [run for run in kept if run["rows"]]


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """All rows, by section in the page's order, each with the number of its run."""
    order = {name: index for index, name in enumerate(SECTIONS)}
    found = [{**row, "run": index} for index, run in enumerate(runs) for row in run["rows"]]
    return sorted(found, key=lambda row: order.get(row["section"], len(order)))


def _caption(runs: Sequence[Run], lines: Sequence[Line]) -> list[str]:
    used = sorted({line["run"] for line in lines})
    return [
        text
        for index in used
        for text in (sentence(runs[index]["machine"]), f"{runs[index]['date']}: {runs[index]['command']}")
    ]


# -- drawings


def _ratios(runs: Sequence[Run], lines: Sequence[Line]) -> str:
    drawn = [line for line in lines if line["ratio"] is not None]
    made = [
        Bar(
            line["name"],
            line["ratio"],
            GOOD if line["reached"] else BAD,
            ticks=(line["reach"],) if isinstance(line["reach"], float) else (),
        )
        for line in drawn
    ]
    return bars("Ratios: more is better; a tick is what should be reached", made, RATIO_MAX, _caption(runs, drawn))


def _cells(runs: Sequence[Run], lines: Sequence[Line]) -> str:
    drawn = [line for line in lines if line["section"] == "cells" and line["ours"]]
    made: list[Bar] = []
    for line in drawn:
        aim, elsewhere = line["figures"]["aim"], line["figures"]["parallel_consumer"]
        own = GOOD if line["reached"] else BAD
        made.append(Bar(line["name"], line["ours"], own, f"{line['ours']:,.0f}/s", (aim,)))
        made.append(Bar("asyncio alone", line["against"], OTHER, f"{line['against']:,.0f}/s"))
        made.append(Bar("Parallel Consumer, elsewhere", elsewhere, PLAIN, f"{elsewhere:,.0f}/s"))
    most = max(max(line["ours"], *line["figures"].values()) for line in drawn) * 1.25
    return bars("Records per second, order by key; the tick is the aim", made, most, _caption(runs, drawn))


def _grown(runs: Sequence[Run], lines: Sequence[Line], what: str, base: int) -> str:
    drawn = [line for line in lines if line["section"] == what and line["ours"]]
    points = [(line["figures"][what], line["ours"]) for line in drawn]
    return curves(f"CPU per record as {what} grow", {what: points}, "us", _caption(runs, drawn), base)


def _pauses(runs: Sequence[Run], lines: Sequence[Line]) -> str:
    drawn = [line for line in lines if line["section"] == "standing" and line["ours"]]
    made = [
        Bar(line["name"], line["ours"], GOOD if line["reached"] else BAD, f"{line['ours']:.2f} s") for line in drawn
    ]
    most = max(bar.value for bar in made) * 1.1
    return bars("Longest time without a record, of any partition", made, most, _caption(runs, drawn))


def drawings(runs: Sequence[Run]) -> dict[str, str]:
    """By name, those for which there are figures."""
    lines = lines_of(runs)
    present = {line["section"] for line in lines if line["ours"]}
    found = {"ratios": _ratios(runs, lines)} if any(line["ratio"] is not None for line in lines) else {}
    if "cells" in present:
        found["cells"] = _cells(runs, lines)
    if "standing" in present:
        found["pauses"] = _pauses(runs, lines)
    for what, base in (("keys", 10), ("partitions", 4)):
        if what in present:
            found[what] = _grown(runs, lines, what, base)
    return found


# -- the page

_HEAD = """# Performance

Written by `python -m bench.plot`, from runs of `make bench`: not edited by hand. How it is measured and what each row means is in
[benchmarks](guide/benchmarks.md). A ratio is ours / the other side, more is better; *reach* is what the row should come to, *CPU* the
ratio of CPU time per record. Everything here depends on the machine but the ratios, and those a little.

"""
_TABLE = "| row | what | ours | against | unit | ratio | reach | reached | CPU |{run}\n|---|---|---|---|---|---|---|---|---|{rule}\n"
_DRAWN_IN = {"cells": "cells", "standing": "pauses", "keys": "keys", "partitions": "partitions"}


def _cell(text: object) -> str:
    return str(text).replace("|", "/").replace("\n", " ").replace("<=", "at most").replace("<", "(").replace(">", ")")


def _line(line: Line, several: bool) -> str:
    cells = [
        f"`{line['name']}`", _cell(line["workload"]), number(line["ours"]), number(line["against"]), _cell(line["unit"]),
        number(line["ratio"]), _cell(line["reach"]), _verdict(line), number(line["cpu_ratio"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells + ([str(line["run"] + 1)] if several else [])) + " |\n"


def _verdict(line: Line) -> str:
    if line["reach"] == "stated":
        return "-"
    return "yes" if line["reached"] else "**no**"


def page(runs: Sequence[Run], stem: str) -> str:
    """Markdown; `stem` is the page's own name, which its drawings' names begin with."""
    lines, drawn, several = lines_of(runs), drawings(runs), len(runs) > 1
    judged = [line for line in lines if line["reach"] != "stated"]
    short = [f"`{line['name']}`" for line in judged if not line["reached"]]
    text = _HEAD
    for index, run in enumerate(runs, 1):
        which = f"Run {index}" if several else "The run"
        text += f"{which}, {run['date']}: `{run['command']}`, {run['seconds']} s. {sentence(run['machine'])}.\n\n"
    text += f"{len(judged) - len(short)} of {len(judged)} rows reach what they should"
    text += f"; not: {', '.join(short)}.\n" if short else ".\n"
    if "ratios" in drawn:
        text += f"\n![Ratios of all rows]({stem}-ratios.svg)\n"
    for section in dict.fromkeys(line["section"] for line in lines):
        text += f"\n## {SECTIONS.get(section, section)}\n\n"
        own = [line for line in lines if line["section"] == section]
        if (name := _DRAWN_IN.get(section, "")) in drawn:
            text += f"![{SECTIONS[section]}]({stem}-{name}.svg)\n\n"
        text += _TABLE.format(run=" run |" if several else "", rule="---|" if several else "")
        text += "".join(_line(line, several) for line in own)
        by_note: dict[str, list[str]] = {}
        for line in own:
            if line["note"]:
                by_note.setdefault(line["note"], []).append(f"`{line['name']}`")
        for note, names in by_note.items():
            text += f"\n{', '.join(names)}: {_cell(note)}.\n"
    return text


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Each file holds one run (`python -m bench --out FILE`) or, as {"runs": [...]}, those of a page."""
    found: list[Run] = []
    for path in paths:
        read = json.loads(path.read_text(encoding="utf-8"))
        found.extend(read.get("runs", [read]))
    return merged(found)


def write(runs: Sequence[Run], at: Path) -> list[Path]:
    """The page, its drawings and its JSON; drawings of earlier pages go."""
    for old in at.parent.glob(f"{at.stem}-*.svg"):
        old.unlink()
    files = {at: page(runs, at.stem), at.with_suffix(".json"): json.dumps({"runs": runs}, indent=1) + "\n"}
    files |= {at.with_name(f"{at.stem}-{name}.svg"): text for name, text in drawings(runs).items()}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return sorted(files)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plot", description="The page on performance, from finished runs."
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.json", help="of `python -m bench --out`, or of a page"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help=f"where to write it ({PAGE})")
    options = parser.parse_args()
    for path in write(load_runs(options.files), options.page):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
