"""What the demo shows while it runs: a live panel on a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from pipeline.demo.report import Report

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINE_EVERY_S = 2.0
BAR_CELLS = 28


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group as it stands: counts read from the topics, and its workers with a word each."""

    group: str
    processed: int
    dead: int
    copies: Sequence[tuple[str, int]]
    workers: Sequence[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class View:
    """The whole run as it stands."""

    total: int
    published: int
    groups: Sequence[GroupView]
    since_s: float


class Screen(Protocol):
    def say(self, text: str) -> None:
        """Something happened."""

    def show(self, view: View) -> None: ...

    def finish(self, report: Report) -> None: ...

    def close(self) -> None: ...


def open_screen(stream: TextIO, quiet_end: bool) -> Screen:
    """`quiet_end`: no table at the end, since a machine reads the result."""
    return LiveScreen(stream, quiet_end) if stream.isatty() else PlainScreen(stream, quiet_end)


class PlainScreen:
    """One line for what happens, and one every two seconds for how far it is."""

    def __init__(self, stream: TextIO, quiet_end: bool = False) -> None:
        self._stream = stream
        self._quiet_end = quiet_end
        self._shown_at = 0.0
        self._last: tuple[object, ...] = ()

    def say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def show(self, view: View) -> None:
        state = (view.published, *((g.processed, g.dead) for g in view.groups))
        now = time.monotonic()
        if now - self._shown_at < LINE_EVERY_S or state == self._last:
            return
        self._shown_at, self._last = now, state
        groups = "; ".join(
            f"{g.group} {g.processed} processed, {sum(n for _, n in g.copies)} in tiers so far, {g.dead} dead"
            for g in view.groups
        )
        self.say(f"  {view.since_s:5.1f} s  published {view.published}/{view.total}; {groups}")

    def finish(self, report: Report) -> None:
        if not self._quiet_end:
            for text in summary_lines(report):
                self.say(text)

    def close(self) -> None:
        return


class LiveScreen:
    """A panel that is drawn anew a few times a second; what happens scrolls by above it."""

    def __init__(self, stream: TextIO, quiet_end: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console: Console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._started = False
        self._quiet_end = quiet_end

    def say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))

    def show(self, view: View) -> None:
        if not self._started:
            self._started = True
            self._live.start()
        self._live.update(_panel(view))

    def finish(self, report: Report) -> None:
        from rich.text import Text

        self.close()
        if not self._quiet_end:
            self._console.print(_summary_table(report))
            *facts, verdict = verdict_lines(report)
            for text in facts:
                self.say(text)
            self._console.print(Text(verdict, style="bold green" if report.ok else "bold red"))

    def close(self) -> None:
        if self._started:
            self._started = False
            self._live.stop()


def _bar(done: int, total: int) -> str:
    filled = BAR_CELLS * min(done, total) // max(1, total)
    return "█" * filled + "░" * (BAR_CELLS - filled)


def _panel(view: View) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_row("published", Text(_bar(view.published, view.total), "cyan"), f"{view.published}/{view.total}", "", "")
    for g in view.groups:
        tiers = "  ".join(f"{tier}:{count}" for tier, count in g.copies)
        done = g.processed + g.dead
        workers = Text(" ").join(
            Text(name.rpartition("-")[2] + ("●" if alive else "✗"), "green" if alive else "bold red")
            for name, alive in g.workers
        )
        bar = Text(_bar(done, view.total), "green" if done >= view.total else "yellow")
        grid.add_row(g.group, bar, f"{g.processed} + {g.dead} dead", f"tiers {tiers}", Text("workers ") + workers)
    grid.add_row("", "", f"{view.since_s:.1f} s", "", "")
    return grid


def _rows(report: Report) -> tuple[list[str], list[list[str]]]:
    heads = [
        "",
        "processed",
        "dead letters",
        "lost",
        "duplicates",
        "redelivered",
        "out of order",
        "retried",
        "waited behind",
    ]
    rows = []
    for g in report.groups:
        retried = " ".join(f"{tier}:{count}" for tier, count in g.retried.items())
        waited = " ".join(f"{tier}:{count}" for tier, count in g.waited.items())
        counts = (g.processed, g.dead_lettered, g.lost, g.duplicates, g.redelivered, g.out_of_order)
        rows.append([g.group, *map(str, counts), retried, waited])
    return heads, rows


def _summary_table(report: Report) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heads, rows = _rows(report)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number in (0, len(heads) - 1, len(heads) - 2) else "right")
    for row in rows:
        table.add_row(*row)
    return table


def summary_lines(report: Report) -> list[str]:
    """The table and the verdict as plain text."""
    heads, rows = _rows(report)
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]]
    return ["", *lines, "", *verdict_lines(report)]


def verdict_lines(report: Report) -> list[str]:
    """Rates, the kill, and whether all is well."""
    rates, kill = report.rates, report.kill
    lines = [
        f"published {report.source.published} records of {report.runs} runs at {rates.published:.0f}/s "
        f"(busiest second {rates.published_peak}); processed {rates.processed:.0f}/s over both groups "
        f"(busiest second {rates.processed_peak})"
    ]
    if kill is not None:
        went_on = "never went on" if kill.takeover_s in (None, -1) else f"went on after {kill.takeover_s:.1f} s"
        lines.append(
            f"killed {kill.worker} (pid {kill.pid}) with {kill.in_flight} records under way "
            f"in its {kill.partitions} partitions: its work {went_on}"
        )
    if report.skipped:
        lines.append(f"{report.skipped} things of the input were skipped")
    problems = report.problems()
    if problems:
        lines += [f"  {text}" for text in report.examples()]
        lines.append(f"NOT GOOD: {'; '.join(problems)}.")
    else:
        lines.append(f"Every record is accounted for, by reading the topics back. {report.seconds:.1f} s in all.")
    return lines
