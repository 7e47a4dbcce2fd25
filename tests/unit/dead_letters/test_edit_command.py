"""`pipeline dlq edit` on a cluster in memory: what it prints can be done as it is printed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import Pipeline, Settings
from pipeline.cli.main import app as command
from pipeline.inspect.appending import Entry, append
from pipeline.memory.cluster import forget
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers
from pipeline.topology import Defaults, apply

ADDRESS = "memory://edit-command"


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """Groups "g" and "h", and a dead letter of "g"."""
    app = Pipeline("t", settings=Settings(broker=ADDRESS))
    for group in ("g", "h"):

        @app.subscribe("events", group=group, value="json", tiers=("1s",))
        async def handle(value: dict[str, Any], ctx: Any) -> None:
            """Never runs."""

    apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
    headers = DeliveryHeaders(1, 1, 1, "events", 0, 0, 1, "g", error=ErrorInfo("terminal", "ValueError", "no"))
    append(app.cluster, "events.g.dlq", [Entry(b"k", b'{"n":1}', dead_letter_headers([], headers), 0)])
    monkeypatch.setenv("PIPELINE_PREFIX", "")
    monkeypatch.delenv("PIPELINE_BROKER", raising=False)
    yield app
    forget(ADDRESS)


@pytest.mark.parametrize("where", [("--group", "g"), ("--topic", "events.g.dlq", "--who", "ana o'ps")])
def test_the_command_that_an_edit_prints_sends_what_was_edited(
    dead: Pipeline, tmp_path: Path, where: tuple[str, ...]
) -> None:
    (tmp_path / "fixed.json").write_text('{"n": 2}')
    edit = ["dlq", "edit", "0:0", *where, "--broker", ADDRESS, "--value", str(tmp_path / "fixed.json")]
    done = CliRunner().invoke(command, [*edit, "--yes", "--reason", "it's 2, $not 1"])
    assert done.exit_code == 0, done.output
    printed = re.search(r"pipeline dlq redrive [^`\n]+", done.output)
    assert printed is not None, done.output
    words = shlex.split(printed[0])
    sent = CliRunner().invoke(command, [*words[1:], "--canary-wait", "1s"])  # no worker tells its outcome
    assert "1 written" in sent.output, sent.output


def test_nothing_that_was_changed_is_json_too(dead: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "same.json").write_text('{"n": 1}')
    edit = ["dlq", "edit", "0:0", "--group", "g", "--broker", ADDRESS, "--value", str(tmp_path / "same.json"), "--yes"]
    done = CliRunner().invoke(command, [*edit, "--reason", "x", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["counts"]) == (1, {"edited": 0})
    assert "Nothing was changed." in CliRunner().invoke(command, [*edit, "--reason", "x"]).output
