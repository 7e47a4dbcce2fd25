"""The figures for people, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.lab import Row


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def print_table(console: Console, rows: Sequence[Row]) -> None:
    table = Table(title="the pipeline beside bare loops and other libraries", title_justify="left")
    for name in ("row", "workload"):
        table.add_column(name, overflow="fold")
    for name in ("ours", "against", "unit", "ratio", "reach", "CPU ratio"):
        table.add_column(name, justify="right")
    table.add_column("reached")
    for row in rows:
        verdict = "[green]yes[/]" if row.reached else "[red]no[/]"
        cells = (
            number(row.ours),
            number(row.against),
            row.unit,
            number(row.ratio),
            str(row.reach),
            number(row.cpu_ratio),
        )
        table.add_row(row.name, row.workload, *cells, verdict)
    console.print(table)
    for note in dict.fromkeys(f"{row.name}: {row.note}" for row in rows if row.note):
        console.print(note, style="dim", markup=False)
