"""The figures for people: a table, and bars as an SVG drawing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.lab import Row

BAR, LINE, LEFT, WIDTH, SHOWN_MAX = 14, 22, 190, 420, 2.0


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


def write_svg(path: Path, rows: Sequence[Row]) -> None:
    """One bar per row that has a ratio, with a tick where it should reach (where that is a number)."""
    drawn = [row for row in rows if row.ratio is not None]
    height = LINE * len(drawn) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 70}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, row in enumerate(drawn):
        top, ratio = 10 + index * LINE, row.ratio or 0.0
        length = min(ratio, SHOWN_MAX) / SHOWN_MAX * WIDTH
        colour = "#2f7d4f" if row.reached else "#b5443a"
        parts.append(f'<text x="{LEFT - 8}" y="{top + 11}" text-anchor="end">{escape(row.name)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{length:.0f}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + length + 6:.0f}" y="{top + 11}">{ratio:.2f}</text>')
        if isinstance(row.reach, float):
            at = LEFT + row.reach / SHOWN_MAX * WIDTH
            parts.append(f'<line x1="{at:.0f}" x2="{at:.0f}" y1="{top - 2}" y2="{top + BAR + 2}" stroke="black"/>')
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
