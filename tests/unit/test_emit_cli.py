"""`pipeline emit` and `pipeline import`: what they publish, what they say of bad lines, and their exit codes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import emit as emit_module
from pipeline.cli import import_ as import_module
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.publisher import Publisher, PublishOptions
from pipeline.model.events import RunEvent
from tests.fake_producer import FakeProducer


class Taken(FakeProducer):
    """A Kafka that acknowledges everything, and the codec that hands it the events as they are."""

    def encode(self, value: RunEvent, *, topic: str) -> bytes:
        return json.dumps({"kind": type(value).__name__, **value.model_dump()}).encode()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.log]

    @property
    def topics(self) -> set[str]:
        return {record.topic for record in self.log}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    kept = Taken()

    @contextlib.contextmanager
    def open_publisher(topic: str | None) -> Iterator[Publisher]:
        options = PublishOptions(topic=topic or "agent.run.events")
        publisher = Publisher(kept, kept, BufferPolicy(), options)  # type: ignore[arg-type]
        try:
            yield publisher
        finally:
            publisher.close(5)

    monkeypatch.setattr(emit_module, "open_publisher", open_publisher)
    monkeypatch.setattr(import_module, "open_publisher", open_publisher)
    return kept


def call_emit(text: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(emit_module.app, [*arguments, "--json"], input=text)
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]), result.stderr


LINE = {"run_id": "r", "agent": "a", "tenant": "t", "tool": "search", "call_id": "c", "arguments": "{}"}


def test_lines_are_published_in_order_and_completed(taken: Taken) -> None:
    code, said, _ = call_emit("\n".join([json.dumps(LINE)] * 3), "--type", "ToolCall", "--topic", "other")
    assert (code, said["published"], taken.topics) == (0, 3, {"other"})
    assert [event["sequence"] for event in taken.events] == [0, 1, 2]
    assert len({event["event_id"] for event in taken.events}) == 3


def test_bad_lines_are_said_with_number_and_field_and_the_rest_goes_on(taken: Taken) -> None:
    good = {"type": "ToolCall", **LINE}
    lines = [good, {**good, "tool": 5}, "{oops", [1], {**good, "type": "Nonsense"}, LINE, {**good, "extra": 1}, good]
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    code, said, stderr = call_emit(text)
    assert code == 1
    assert (said["published"], said["bad_lines"]) == (2, 6)
    assert [(item["line"], item["field"]) for item in said["errors"]] == [
        (2, "tool"),
        (3, ""),
        (4, ""),
        (5, "type"),
        (6, "type"),
        (7, "extra"),
    ]
    assert "line 2: tool" in stderr
    assert [event["sequence"] for event in taken.events] == [0, 1]


def test_empty_input_is_fine(taken: Taken) -> None:
    assert call_emit("")[:2] == (0, {"published": 0, "bad_lines": 0, "failed": 0, "errors": []})


def call_import(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(import_module.app, ["openai-chat", *arguments, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_import_publishes_the_runs_and_its_exit_code_tells_of_bad_lines(taken: Taken, tmp_path: Path) -> None:
    runs = [{"task_id": n, "messages": [{"role": "user", "content": "x"}]} for n in range(3)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, runs)))
    code, said = call_import(str(path))
    assert (code, said["runs"], said["events"]) == (0, 3, 9)
    assert [event["kind"] for event in taken.events] == ["RunStarted", "Message", "RunCompleted"] * 3
    path.write_text(json.dumps(runs[0]) + "\nbroken\n" + json.dumps(runs[1]))
    code, said = call_import(str(path))
    assert (code, said["runs"], said["bad_lines"], said["skipped"][0]["line"]) == (1, 2, 1, 2)


def test_dry_run_and_runs(taken: Taken, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"task_id": n, "messages": []}) for n in range(5)))
    code, said = call_import(str(path), "--runs", "2", "--dry-run")
    assert (code, said["runs"], said["published"], taken.events) == (0, 2, False, [])
