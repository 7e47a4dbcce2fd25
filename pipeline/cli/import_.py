"""`pipeline import openai-chat`: transcripts of agent runs become run events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.bars import bar
from pipeline.cli.emit import TopicOption, finish, open_publisher
from pipeline.cli.output import clean, note

if TYPE_CHECKING:
    from pipeline.emit.openai_chat import ImportedRun, ImportOptions, Skipped
    from pipeline.emit.publisher import Publisher

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Import transcripts of agent runs as run events.",
)

SHOWN_MAX = 1_000
Advance = Callable[[int], None]


@app.callback()
def formats() -> None:
    """Import transcripts of agent runs as run events."""


@dataclass(slots=True)
class ImportResult:
    """What an import did. `skipped` holds the first of them, `skipped_count` counts all; a bad line is one
    that gave no run."""

    runs: int = 0
    events: int = 0
    bad_lines: int = 0
    skipped_count: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    by_type: dict[str, int] = field(default_factory=dict)

    def add(self, run: ImportedRun) -> None:
        if run.events:
            self.runs += 1
        else:
            self.bad_lines += 1
        self.events += len(run.events)
        self.skipped_count += len(run.skipped)
        self.skipped += run.skipped[: max(0, SHOWN_MAX - len(self.skipped))]
        for event in run.events:
            name = type(event).__name__
            self.by_type[name] = self.by_type.get(name, 0) + 1


def source_name(path: Path) -> str:
    """The file's name without folders and endings: the same wherever the file lies."""
    name = path.name
    for ending in (".gz", ".jsonl", ".ndjson", ".json"):
        name = name.removesuffix(ending)
    return name or "transcripts"


def import_file(
    path: Path,
    options: ImportOptions,
    publisher: Publisher | None,
    limit: int | None,
    advance: Advance,
) -> ImportResult:
    """Read, convert and publish (not with `publisher=None`) up to `limit` runs; `advance` gets the bytes
    read so far."""
    from pipeline.emit.feed import Feeder
    from pipeline.emit.transcripts import read_runs

    result = ImportResult()
    feeder = Feeder(publisher) if publisher is not None else None
    for run, place in read_runs(path, options):
        if feeder is not None:
            feeder.feed(run.events)
        result.add(run)
        for item in run.skipped:
            note(f"line {item.line}: {clean(item.path) + ': ' if item.path else ''}{clean(item.reason)}")
        advance(place.read_bytes)
        if limit is not None and result.runs >= limit:
            break
    if feeder is not None:
        feeder.finish()
    return result


@app.command("openai-chat")
def openai_chat(
    file: Annotated[Path, typer.Argument(help="JSONL, or a JSON array; plain or .gz.", metavar="FILE")],
    topic: TopicOption = None,
    runs: Annotated[int | None, typer.Option("--runs", min=1, help="Import so many runs at most.")] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", help="Agent of runs that name none; the file's name when not given.")
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant of runs that name none.")] = "default",
    source: Annotated[
        str | None, typer.Option("--source", help="Part of every run id; the file's name when not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and convert only; publish nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Import runs in OpenAI chat format, one a line: {"task_id", "trial", "reward", "messages"}.

    What can't be used is reported with line and path, and the rest goes on. Exit code 1 when a line gave no
    run. Importing a
    file twice gives the same event ids.

    Example: pipeline import openai-chat transcripts.jsonl.gz --runs 10
    """
    from pipeline.emit.openai_chat import ImportOptions

    options = ImportOptions(source or source_name(file), agent, tenant)
    failed = 0
    size = file.stat().st_size if file.is_file() else None
    with bar(f"importing {file.name}", "bytes") as show:
        if dry_run:
            result = import_file(file, options, None, runs, lambda read: show(read, size))
        else:
            with open_publisher(topic) as publisher:
                result = import_file(file, options, publisher, runs, lambda read: show(read, size))
                failed = publisher.stats().failed
    finish(as_json, {**asdict(result), "failed": failed, "published": not dry_run})


import_app = app
