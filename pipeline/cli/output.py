"""How commands speak: tables in colour on a terminal, plain aligned text elsewhere, JSON for machines.

Everything that comes from records, topics or other people is passed through `clean`, so that no byte of it can steer the terminal.
Rich is imported only when something is drawn, which keeps `pipeline --help` fast.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

_BIDI_AND_BREAKS = frozenset(
    "\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)
_HIDDEN = frozenset({"Cc", "Cs"})


def clean(value: object) -> str:
    """The value as one line of text with every control, bidirectional and surrogate character shown as an escape (`\\x1b`)."""
    text = value if isinstance(value, str) else str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(c) for c in text)


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _HIDDEN and char not in _BIDI_AND_BREAKS:
        return char
    code = ord(char)
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def text_of(raw: bytes | None, limit: int = 200) -> str:
    """Bytes of a record as readable text: UTF-8 where it is, else hex; clipped to `limit` characters."""
    if raw is None:
        return "null"
    if not raw:
        return "(empty)"
    try:
        text = clean(raw.decode())
    except UnicodeDecodeError:
        text = "0x" + raw[:limit].hex()
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, whether numbers are set to the right, and a Rich style for its cells."""

    title: str
    right: bool = False
    style: str = ""


def emit_json(value: object) -> None:
    """One JSON value on one line. Non-ASCII is escaped, which takes care of control characters too."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def line(text: str, style: str = "") -> None:
    """One line on standard output, in a Rich style on a terminal. The text must be `clean`ed by the caller where it holds data."""
    _styled(sys.stdout, text, style)


def note(text: str, style: str = "yellow") -> None:
    """One line on standard error: a warning or a hint that must not mix with the output."""
    _styled(sys.stderr, text, style)


def error(text: str) -> None:
    """The one red sentence of a command that failed."""
    _styled(sys.stderr, f"Error: {clean(text)}", "bold red")


def _styled(stream: TextIO, text: str, style: str) -> None:
    if style and stream.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(file=stream, highlight=False, soft_wrap=True).print(Text(text, style=style))
    else:
        stream.write(text + "\n")
        stream.flush()


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]], empty: str = "nothing to show") -> None:
    """Rows under headings; cells are cleaned here. Not on a terminal: aligned text with two spaces between, never cut."""
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    cells = [["" if cell is None else clean(cell) for cell in row] for row in rows]
    if not cells:
        line(empty, "dim")
    elif sys.stdout.isatty():
        _rich_table(heads, cells)
    else:
        sys.stdout.write(_plain_table(heads, cells))
        sys.stdout.flush()


def _rich_table(heads: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        grid.add_column(head.title, justify="right" if head.right else "left", style=head.style, overflow="fold")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(grid)


def _plain_table(heads: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    everything = [[head.title.upper() for head in heads], *cells]
    widths = [max(len(row[i]) for row in everything) for i in range(len(heads))]
    lines = []
    for row in everything:
        parts = [
            cell.rjust(w) if head.right else cell.ljust(w) for cell, w, head in zip(row, widths, heads, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines) + "\n"
