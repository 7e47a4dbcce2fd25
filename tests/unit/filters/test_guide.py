"""The guide's table of fields is the language's own, and its filters compile."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.filters import compile_filter
from pipeline.filters.fields import FIELDS

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "guide" / "filters.md").read_text(encoding="utf-8")


def test_every_field_is_in_the_table_and_nothing_else_is() -> None:
    table = GUIDE.split("## Fields")[1].split("\n\n")[1]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted([*FIELDS, "header.<name>", "value.<path>"])


def test_every_filter_of_the_guide_compiles() -> None:
    commands = re.findall(r"--where '([^']+)'", GUIDE)
    inline = re.findall(r"`((?:not )?[a-z_.]+ (?:[=!<>]+|like|contains) [^`]+)`", GUIDE)
    refused = ['attempt == "3"']
    assert len(commands) >= 3
    assert len(inline) >= 6
    for text in {*commands, *inline} - set(refused):
        compile_filter(text.replace('"K"', '"k"'), 0)
