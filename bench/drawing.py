"""Drawings as plain SVG text: bars of one scale with ticks, and lines over a logarithmic axis. Each says where its figures are from."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

BAR, LINE, LEFT, WIDTH, RIGHT = 14, 22, 210, 440, 90
TOP, CAPTION = 34, 18
PLOT_HEIGHT = 220
CAPTION_CHARACTERS = 120
"""So many of its small letters are narrower than a drawing."""
GOOD, BAD, PLAIN, OTHER = "#2f7d4f", "#b5443a", "#4a6fa5", "#9aa5b1"
SERIES = (PLAIN, GOOD, BAD, OTHER)


@dataclass(frozen=True, slots=True)
class Bar:
    """`ticks` are marks across the bar: a value it should reach, or somebody else's."""

    label: str
    value: float
    colour: str = PLAIN
    shown: str = ""
    ticks: tuple[float, ...] = field(default=())


def _frame(title: str, height: int, caption: Sequence[str]) -> list[str]:
    """The start of a drawing, with its caption below `height`."""
    lines = [line for text in caption for line in textwrap.wrap(text, CAPTION_CHARACTERS)]
    width, total = LEFT + WIDTH + RIGHT, TOP + height + CAPTION * len(lines) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" viewBox="0 0 {width} {total}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for index, line in enumerate(lines):
        at = TOP + height + CAPTION * (index + 1)
        parts.append(f'<text x="12" y="{at}" font-size="10" fill="#555">{escape(line)}</text>')
    return parts


def _end(parts: list[str]) -> str:
    return "\n".join([*parts, "</svg>"]) + "\n"


def bars(title: str, drawn: Sequence[Bar], scale_max: float, caption: Sequence[str]) -> str:
    """One bar a line; what is beyond `scale_max` is cut there, its number is not."""
    parts = _frame(title, LINE * len(drawn), caption)
    scale = scale_max or 1.0
    for index, bar in enumerate(drawn):
        top, length = TOP + index * LINE, min(bar.value, scale) / scale * WIDTH
        parts.append(f'<text x="{LEFT - 8}" y="{top + 11}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{bar.colour}"/>')
        parts.append(
            f'<text x="{LEFT + length + 6:.1f}" y="{top + 11}">{escape(bar.shown or f"{bar.value:.2f}")}</text>'
        )
        for tick in bar.ticks:
            at = LEFT + min(tick, scale) / scale * WIDTH
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3}" y2="{top + BAR + 3}" stroke="black"/>')
    return _end(parts)


def curves(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], unit: str, caption: Sequence[str], base: int = 10
) -> str:
    """Lines of (x, y) points; x on a logarithmic axis, y from zero. The points' own x values are the axis."""
    parts = _frame(title, PLOT_HEIGHT + 24, caption)
    points = [point for line in series.values() for point in line]
    low, high = (math.log(bound(x for x, _ in points), base) for bound in (min, max))
    top_value = max(y for _, y in points) * 1.15 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        along = (math.log(x, base) - low) / ((high - low) or 1.0)
        return LEFT / 2 + along * (WIDTH + LEFT / 2), TOP + PLOT_HEIGHT * (1 - y / top_value)

    parts.append(
        f'<line x1="{LEFT / 2}" x2="{LEFT + WIDTH}" y1="{TOP + PLOT_HEIGHT}" y2="{TOP + PLOT_HEIGHT}" stroke="#555"/>'
    )
    for x in sorted({x for x, _ in points}):
        at, _ = place(x, 0)
        parts.append(f'<text x="{at:.1f}" y="{TOP + PLOT_HEIGHT + 16}" text-anchor="middle">{x:,.0f}</text>')
    for index, (name, line) in enumerate(series.items()):
        colour, placed = SERIES[index % len(SERIES)], [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), (_, value) in zip(placed, line, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            parts.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value:,.1f}</text>')
        if len(series) > 1:
            parts.append(f'<text x="{LEFT + WIDTH + 6}" y="{placed[-1][1]:.1f}" fill="{colour}">{escape(name)}</text>')
    parts.append(f'<text x="12" y="{TOP + 4}">{escape(unit)}</text>')
    return _end(parts)
