"""docs/guide/dead-letters.md as a person follows it: its program and each of its commands in order, on real Kafka, with real runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import until
from tests.integration.test_examples import Shell
from tests.patience import PATIENCE
from tests.unit.docs_reader import ROOT, Page

PAGE = Page(ROOT / "docs" / "guide" / "dead-letters.md")
ONE, OTHER = "3:118", "3:119"
"""Positions that the page uses for examples: the test puts real ones there."""
pytestmark = [pytest.mark.first, pytest.mark.timeout(420)]


def lines() -> Iterator[str]:
    for block in PAGE.blocks:
        if block.language == "sh" and "other-group" not in block.marks:  # test_worker_hold.py does what that says
            yield from (line for line in block.body.splitlines() if line.strip())


class Reader:
    """Does what the page says, and looks at what came of it."""

    def __init__(self, shell: Shell, worker: ExitStack, transcripts: Path) -> None:
        self.shell = shell
        self.transcripts = transcripts
        self.worker = worker
        self.said: dict[str, str] = {}
        self.places: dict[str, str] = {}

    def dlq(self, words: str) -> Any:
        process = self.shell.start(shlex.split(f"pipeline dlq {words} --group credits --json"))
        out, err = process.communicate(timeout=60 * PATIENCE)
        assert process.returncode in (0, 1), err
        return json.loads(out)

    def count(self, words: str = "") -> int:
        return int(self.dlq(f"list --limit 1 {words}")["total"])

    def do(self, line: str) -> None:
        for place, position in self.places.items():
            line = line.replace(place, position)
        line = line.replace("transcripts.jsonl.gz", str(self.transcripts))
        if line.startswith("touch "):
            (self.shell.folder / line.split()[1]).touch()
        elif line.startswith("rm "):
            (self.shell.folder / line.split()[1]).unlink()
        elif line.startswith("pipeline run "):
            self._work(line)
        elif " edit " in line and "--value" not in line:
            self._edit_by_hand(line)
        elif line.startswith(("pipeline dlq convert", "pipeline dlq show")):
            self.said[line] = self.shell.run(line)
        else:
            self._command(line)

    def _command(self, line: str) -> None:
        failing = "provider says it is back" in line
        self.said[line] = self.shell.run(line, code=1 if failing else 0)
        if " tail _pipeline.audit" in line:
            return

    def _work(self, line: str) -> None:
        tell = self.worker.enter_context(self.shell.running(line))
        until("everything died", self.shell.settled("credits"), 180, tell)
        until("all retries are over", lambda: self.shell.json("pipeline groups lag credits")["waiting"] == 0, 60, tell)
        letters = self.dlq("list --type ToolCall --limit 2")["dead_letters"]
        self.places = {ONE: letters[0]["position"], OTHER: letters[1]["position"]}

    def _edit_by_hand(self, line: str) -> None:
        """In an editor that leaves everything as it is: nothing is changed, exit code 1."""
        shown = self.shell.run(line, code=1)
        assert "Nothing was changed" in shown
        known = json.loads(self.shell.run(f"pipeline dlq show {self.places[ONE]} --group credits --json"))[0]
        (self.shell.folder / "fixed.json").write_text(json.dumps({**known["value"], "agent": "airline-desk"}))


@pytest.fixture
def reader(kafka: str, topic_name: str, tmp_path: Path, real_runs: Path) -> Iterator[Reader]:
    for block in PAGE.blocks:
        if block.file:
            (tmp_path / block.file).write_text(block.body, encoding="utf-8")
    shell = Shell(
        kafka,
        f"{topic_name[-14:]}.",
        tmp_path,
        PIPELINE_STATE_DIR=str(tmp_path / "state"),
        EDITOR="true",
        PIPELINE_LOG_LEVEL="error",  # nobody reads the pipe of a worker that logs every failure
        VISUAL="true",
    )
    with ExitStack() as worker:
        yield Reader(shell, worker, real_runs)


def test_the_page(reader: Reader) -> None:
    counts: dict[str, int] = {}
    checks: dict[str, Callable[[], None]] = {
        "pipeline dlq stats --group credits": lambda: _one_error(reader, counts),
        'pipeline dlq redrive --group credits --all --canary 10 --yes --reason "provider says it is back"': lambda: (
            _stopped(reader, counts)
        ),
        "pipeline dlq list --group credits --limit 20": lambda: _listed(reader, counts),
        f"pipeline dlq show {ONE} --group credits": lambda: _shown(reader),
        'pipeline dlq purge --group credits --type RunCompleted --yes --reason "totals are computed anew"': lambda: (
            _given_up(reader, counts)
        ),
    }
    for line in lines():
        reader.do(line)
        checks.pop(line, lambda: None)()
    assert not checks, f"the page has no line {list(checks)} any more"
    until("all are done", reader.shell.settled("credits"), 120)
    states = reader.dlq("stats --state all")["states"]
    assert states.get("open", 0) == 0
    assert states["redriven"] >= counts["all"] - counts["cancelled"] - counts["purged"] - 2
    assert states["edited"] == 1
    assert states["converted"] == 1
    exported = (reader.shell.folder / "letters.jsonl").read_text().splitlines()
    assert len(exported) == counts["all"] - counts["cancelled"] - counts["purged"] - 1, "all that was open then"
    _audited(reader)


def _one_error(reader: Reader, counts: dict[str, int]) -> None:
    found = reader.dlq("stats")
    counts["all"] = found["total"]
    assert found["total"] >= 5_000
    assert len(found["errors"]) == 1, found["errors"]
    error = found["errors"][0]
    text = f"{error['error_type']}: {error['name']}"
    assert text in re.sub(r"\s+", " ", PAGE.text), f"the page says otherwise: {text}"
    assert {group["name"] for group in found["tenants"]} == {"acme"}


def _listed(reader: Reader, counts: dict[str, int]) -> None:
    """The page's three ways to look, against what `stats` counted."""
    rows = [
        line
        for line in reader.said["pipeline dlq list --group credits --limit 20"].splitlines()
        if "ProviderDown" in line
    ]
    assert len(rows) == 20
    types = {group["name"].rpartition(".")[2]: group["count"] for group in reader.dlq("stats")["types"]}
    assert sum(types.values()) == counts["all"] == reader.count()
    calls = """search "price service" --where 'attempt >= 2 and type == "ToolCall"' --limit 10000"""
    for words, kind in ((calls, "ToolCall"), ("list --type RunStarted --last 1h --limit 10000", "RunStarted")):
        found = reader.dlq(words)["dead_letters"]
        assert len(found) == types[kind] > 100, words
        assert {letter["type"].rpartition(".")[2] for letter in found} == {kind}


def _shown(reader: Reader) -> None:
    place = reader.places[ONE]
    (known,) = reader.dlq(f"show {place}")
    error = (
        "ProviderDown",
        f"price service 10.0.0.7:8443 refused request {known['event_id']} of run {known['run_id']}",
    )
    assert [(a["number"], a["error_type"], a["message"]) for a in known["attempts"]] == [(1, *error), (2, *error)]
    assert known["attempts_complete"]
    assert known["origin_topic"].endswith("agent.run.events")
    assert known["origin_partition"] == int(place.partition(":")[0])
    assert "credits.py" in known["stack"]
    assert known["value"]["event_id"] == known["event_id"]
    assert known["actions"] == []


def _given_up(reader: Reader, counts: dict[str, int]) -> None:
    counts["cancelled"], counts["purged"] = reader.count("--state cancelled"), reader.count("--state purged")
    deleted = [line for line in reader.said.values() if "offsets are deleted" in line]
    assert deleted
    assert counts["cancelled"] > 100
    assert counts["purged"] > 50


def _stopped(reader: Reader, counts: dict[str, int]) -> None:
    said = next(text for line, text in reader.said.items() if "provider says it is back" in line)
    assert "canary failed" in said
    assert "died again: ProviderDown" in said
    assert reader.count("--state redriven") == 10
    assert reader.count() == counts["all"] - counts["cancelled"] - counts["purged"] - 1, (
        "ten died again, the rest stayed"
    )


def _audited(reader: Reader) -> None:
    prefix = reader.shell.prefix
    shown = reader.shell.run(f"pipeline tail {prefix}_pipeline.audit --from earliest --no-follow --json")
    entries = [json.loads(line)["value"] for line in shown.splitlines()]
    actions = [entry["action"] for entry in entries]
    for action, why in (
        ("reveal", "customer complaint 4711"), ("edit", "agent name was misspelled"), ("cancel", "run starts cost nothing"),
        ("convert", "special contract"), ("purge", "totals are computed anew"), ("redrive", "provider is back, incident 812"),
    ):  # fmt: skip
        assert any(entry["action"] == action and entry["why"] == why for entry in entries), (action, actions)
