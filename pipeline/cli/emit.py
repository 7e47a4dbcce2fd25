"""`pipeline emit`: events given as JSON lines on standard input, each one checked, published in order."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import quiet_clients
from pipeline.cli.output import clean, emit_json, line, note

if TYPE_CHECKING:
    from pipeline.emit.publisher import Publisher
    from pipeline.model.events import RunEvent

app = typer.Typer(rich_markup_mode=None, add_completion=False)

LINE_BYTES_MAX = 16 * 1024 * 1024
SHOWN_MAX = 1_000

TopicOption = Annotated[
    str | None, typer.Option("--topic", help="Publish there; agent.run.events when not given.", metavar="TOPIC")
]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was not published: its number from 1, the field ("" = the whole line), and why."""

    line: int
    field: str
    reason: str


@dataclass(slots=True)
class LineParser:
    """JSON lines -> events. What a line leaves out: event_id, occurred_at (now), sequence (its run's next
    number in this input)."""

    default_type: str | None = None
    sequences: dict[str, int] = field(default_factory=dict)

    def parse(self, number: int, text: str, now_ms: int) -> RunEvent | BadLine:
        """The event of a line, or what is wrong with it."""
        from pydantic import ValidationError

        from pipeline.model.errors import ConfigurationError
        from pipeline.model.events import event_type
        from pipeline.model.validation import first_fault

        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            return BadLine(number, "", f"not JSON: {error}")
        if not isinstance(fields, dict):
            return BadLine(number, "", f"not a JSON object but {type(fields).__name__}")
        name = fields.pop("type", None) or self.default_type
        if not isinstance(name, str):
            return BadLine(number, "type", 'missing: add "type" to the line or give --type')
        run = str(fields.get("run_id", ""))
        fields.setdefault("event_id", str(uuid.uuid4()))
        fields.setdefault("occurred_at", now_ms)
        fields.setdefault("sequence", self.sequences.get(run, 0))
        try:
            event = event_type(name)(**fields)
        except ConfigurationError as error:
            return BadLine(number, "type", str(error))
        except ValidationError as error:
            return BadLine(number, *first_fault(error))
        self.sequences[run] = event.sequence + 1
        return event


@contextlib.contextmanager
def open_publisher(topic: str | None) -> Iterator[Publisher]:
    """The publisher that the settings describe, for that topic; closed at the end."""
    from pipeline.app import Pipeline
    from pipeline.emit.policy import BufferPolicy

    quiet_clients()
    publisher: Publisher = Pipeline.from_settings().publisher(BufferPolicy(mode="block"), topic)
    try:
        yield publisher
    finally:
        publisher.close(5.0)


def input_lines() -> Iterator[str]:
    """Lines of standard input. Bytes that are not UTF-8 become marks, which no event accepts silently: they
    show up in the text."""
    for raw in iter(lambda: sys.stdin.buffer.readline(LINE_BYTES_MAX), b""):
        yield raw.decode("utf-8", "replace")


def publish_lines(
    lines: Iterable[str], publisher: Publisher, default_type: str | None
) -> tuple[int, list[BadLine], int]:
    """(published, the first bad lines, how many were bad). The rest goes on after a bad line."""
    from pipeline.emit.feed import Feeder
    from pipeline.model.errors import EncodeError

    parser, feeder, published, bad, bad_count = LineParser(default_type), Feeder(publisher), 0, list[BadLine](), 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        found = parser.parse(number, text, time.time_ns() // 1_000_000)
        if not isinstance(found, BadLine):
            try:
                feeder.feed([found])
                published += 1
                continue
            except EncodeError as error:
                found = BadLine(number, "", str(error))
        bad_count += 1
        if len(bad) < SHOWN_MAX:
            bad.append(found)
        note(describe(found))
    feeder.finish()
    return published, bad, bad_count


def describe(bad: BadLine) -> str:
    """One line for people."""
    return f"line {bad.line}: {clean(bad.field) + ': ' if bad.field else ''}{clean(bad.reason)}"


@app.command()
def emit(
    topic: TopicOption = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Event type of lines that name none, for example ToolCall.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Publish events given as JSON lines on standard input: {"type": "ToolCall", "run_id": ..., ...}.

    Each line is checked; a bad one is reported with its number and field, the rest goes on. Exit code 1 when
    some were bad.

    Example: pipeline emit --type Message < messages.jsonl
    """
    if kind is not None:
        from pipeline.model.events import event_type

        event_type(kind)
    with open_publisher(topic) as publisher:
        published, bad, bad_count = publish_lines(input_lines(), publisher, kind)
        failed = publisher.stats().failed
    finish(as_json, {"published": published, "bad_lines": bad_count, "failed": failed, "errors": _rows(bad)})


def finish(as_json: bool, outcome: dict[str, Any]) -> None:
    """Print the result; exit 1 when something was bad or refused."""
    if as_json:
        emit_json(outcome)
    else:
        line(
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in outcome.items() if isinstance(value, int))
        )
    if outcome["bad_lines"] or outcome["failed"]:
        raise typer.Exit(1)


def _rows(bad: list[BadLine]) -> list[dict[str, object]]:
    return [{"line": item.line, "field": item.field, "reason": item.reason} for item in bad]


emit_command = emit
