"""How `pipeline jobs` and `pipeline schedules` reach a queue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import quiet_clients, settings
from pipeline.cli.bars import bar
from pipeline.cli.output import clean, note
from pipeline.model.errors import JobMissing

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.jobs.desk import QueueDesk
    from pipeline.jobs.reading import QueueReader

QueueOption = Annotated[str, typer.Option("--queue", "-q", help="The queue.", metavar="NAME")]
JobIds = Annotated[list[str], typer.Argument(help="Ids of jobs.", metavar="ID...")]
AppArgument = Annotated[str, typer.Argument(help="The application, for example mymodule:app.", metavar="MODULE:APP")]
InputArgument = Annotated[
    str | None, typer.Argument(help="The input as JSON; - reads it from standard input.", metavar="[JSON]")
]


@dataclass(frozen=True, slots=True)
class Opened:
    app: Pipeline
    desk: QueueDesk

    @property
    def reader(self) -> QueueReader:
        return self.desk.reader

    def missing(self, job_id: str) -> JobMissing:
        return self.desk.missing(job_id)


@contextlib.contextmanager
def bare_queue(queue: str, broker: str | None) -> Iterator[Opened]:
    """A queue, of which nothing has been read."""
    from pipeline.app import Pipeline

    quiet_clients()
    app = Pipeline("pipeline-cli", settings=settings(), broker=broker)
    try:
        yield Opened(app, app.desk(queue))
    finally:
        close(app)


def close(app: Pipeline) -> None:
    """What a command opened of its queues."""
    app.close_desks()
    app.jobs.close()


@contextlib.contextmanager
def open_queue(queue: str, broker: str | None, rebuild: bool = False) -> Iterator[Opened]:
    """A queue, its index brought up to date."""
    with bare_queue(queue, broker) as opened:
        refresh(opened.reader, rebuild)
        yield opened


def refresh(reader: QueueReader, rebuild: bool = False) -> None:
    reader.waiting(lambda: note("Another command is reading this queue just now: waiting for it."))
    with bar("reading jobs") as advance:
        done = reader.refresh(advance, rebuild)
    if done.rebuilt and not rebuild:
        note(f"The index was built anew: {clean(done.rebuilt)}.")
    if done.unreadable:
        note(f"{done.unreadable} entries could not be decoded: no queue wrote them.")


def age(ms: int | None) -> str:
    """A span in words, to the second: "3m 20s"."""
    from pipeline.cli.bars import span

    return "" if ms is None else span(ms / 1000)
