"""What `pipeline dlq` does to dead letters: purge, cancel, convert, edit, export. Each is confirmed, and audited before it acts."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import dlq_redrive, dlq_release
from pipeline.cli.access import ReasonOption, WhoOption, now_ms, required_reason
from pipeline.cli.bars import bar
from pipeline.cli.dlq_confirming import AllOption, Given, YesOption, actor, agreed, confirm, interruptible, report
from pipeline.cli.dlq_selection import Asked, chosen, with_selection
from pipeline.cli.output import clean, emit_json, line, note
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.dead_letters.desk import Desk

__all__ = ["actor", "register"]
_GOES_ON = "the same command goes on with what is still open"


def register(app: typer.Typer) -> None:
    """Add these commands."""
    dlq_redrive.register(app)
    dlq_release.register(app)
    for name, command in (
        ("edit", edit),
        ("purge", purge),
        ("cancel", cancel),
        ("convert", convert),
        ("export", export),
    ):
        app.command(name)(command)


@with_selection()
def purge(
    asked: Asked,
    everything: AllOption = False,
    yes: YesOption = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
) -> None:
    """Give dead letters up for good: marked as purged, and deleted where they stand at the beginning of their partition.

    Exit code 1: there are none.

    \b
    Example: pipeline dlq purge --group billing --error-type ValueError \\
      --yes --reason "test data of 12 May"
    """
    from pipeline.dead_letters import marking

    with asked.desk() as desk:
        numbers, by = agreed(asked, desk, Given(everything, yes, reason, who), "dlq purge", "purge for good")
        with interruptible(f"some may be marked and not deleted yet, which the next purge does; {_GOES_ON}"):
            done = marking.purge(desk, numbers, by, now_ms())
    text = f"Purged {done.counts['purged']:,}; {done.details.get('deleted', 0):,} offsets are deleted from the topic."
    report(done, text, asked.as_json)


@with_selection()
def cancel(
    asked: Asked,
    everything: AllOption = False,
    yes: YesOption = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
) -> None:
    """Give dead letters up: they stay readable until they expire, and no redrive takes them unless it is told to.

    Exit code 1: there are none.

    \b
    Example: pipeline dlq cancel 3:1500 --group billing \\
      --yes --reason "paid by hand"
    """
    from pipeline.dead_letters import marking

    with asked.desk() as desk:
        numbers, by = agreed(asked, desk, Given(everything, yes, reason, who), "dlq cancel", "cancel")
        with interruptible(f"some may be cancelled; {_GOES_ON}"):
            done = marking.cancel(desk, numbers, by, now_ms())
    report(done, f"Cancelled {done.counts['cancelled']:,}.", asked.as_json)


@with_selection()
def convert(
    asked: Asked,
    assignee: Annotated[str, typer.Option("--to", help="Who should do it.", metavar="PERSON")],
    instruction: Annotated[str, typer.Option("--task", help="What is to be done.")],
    everything: AllOption = False,
    yes: YesOption = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
) -> None:
    """File a manual task for each dead letter, on the topic _pipeline.tasks, with everything that is known (scrubbed).

    Exit code 1: there are none.

    \b
    Example: pipeline dlq convert 3:1500 --group billing --to ana \\
      --task "book the refund by hand" --yes --reason "card closed"
    """
    from pipeline.dead_letters import converting

    with asked.desk() as desk:
        numbers, by = agreed(
            asked, desk, Given(everything, yes, reason, who), "dlq convert", f"convert to tasks for {assignee}"
        )
        with interruptible(f"some tasks may be filed; {_GOES_ON}, and a task that is filed again has the same id"):
            done = converting.convert(desk, numbers, by, assignee, instruction, now_ms())
    tasks = done.details.get("tasks", [])
    many = "1 task" if len(tasks) == 1 else f"{len(tasks):,} tasks"
    text = f"Filed {many} for {clean(assignee)}" + (f", such as {tasks[0]}." if tasks else ".")
    report(done, text, asked.as_json)


@with_selection()
def edit(
    asked: Asked,
    value_file: Annotated[
        str, typer.Option("--value", help="Take the new value from this JSON file (- is standard input); no editor.")
    ] = "",
    yes: YesOption = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
) -> None:
    """Edit one dead letter's value as JSON in your editor: checked against its schema, appended as a new one, both are kept.

    The value is shown whole, so that is written to the audit first. Exit code 1: nothing was changed.

    Example: pipeline dlq edit 3:1500 --group billing --reason "wrong tenant"
    """
    from pipeline.dead_letters import editing
    from pipeline.dead_letters.acting import Done, begin
    from pipeline.dead_letters.states import position_of
    from pipeline.model.errors import EncodeError
    from pipeline.settings import editor

    if not (value_file or editor() or sys.stdin.isatty()):
        raise ConfigurationError("no editor is set and there is no terminal: set EDITOR, or give --value FILE")
    with asked.desk() as desk:
        numbers = chosen(asked, desk, False)
        if len(numbers) != 1:
            raise ConfigurationError(
                f"one dead letter can be edited at a time, and {len(numbers)} match: give its position"
            )
        by = actor(who, required_reason(reason), "dlq edit", asked)
        editable = editing.open_for_edit(desk, numbers[0])
        begin(desk, by, "reveal", numbers, now_ms())
        text, edited = editable.text, None
        while edited is None:
            text = _new_text(text, value_file)
            try:
                edited = editing.check_edit(editable, text)
            except EncodeError as problem:
                if value_file or not sys.stdin.isatty():
                    raise
                note(clean(str(problem)), "red")
                if not typer.confirm("Edit it again?", default=True):
                    raise typer.Exit(1) from None
        if not edited.difference:
            report(Done("", "edit", {"edited": 0}), "Nothing was changed.", asked.as_json)
        if not asked.as_json:
            for each in edited.difference:
                line(clean(each), "green" if each.startswith("+") else "red" if each.startswith("-") else "")
        confirm(desk, numbers, "append this version of", yes)
        show = asked.command("show", "{}:{}".format(*position_of(numbers[0])))
        with interruptible(
            f"the new version may be appended, `{clean(show)}` says so (edited to); if not, the same command edits it"
        ):
            done = editing.apply_edit(desk, editable, edited, by, now_ms())
    place = str(done.details["position"])
    said = [*(["--who", who] if who is not None else []), *(["--yes"] if yes else []), "--reason", by.why]
    redrive = asked.command("redrive", place, *said)
    report(done, f"Appended as {place}; this sends it: {clean(redrive)}", asked.as_json)


def _new_text(text: str, value_file: str) -> str:
    """From the file, else from the editor."""
    from pathlib import Path

    if value_file == "-":
        return sys.stdin.read()
    if value_file:
        try:
            return Path(value_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--value {value_file}: {error}") from None
    import click

    try:
        edited = click.edit(text, extension=".json")
    except click.ClickException as error:
        raise ConfigurationError(
            f"the editor did not run ({error.message}): set EDITOR, or give --value FILE"
        ) from None
    return text if edited is None else edited


@with_selection()
def export(
    asked: Asked,
    to: Annotated[str, typer.Argument(help="A file; - for standard output.", metavar="FILE")],
    reveal: Annotated[bool, typer.Option("--reveal", help="Fields tagged pii or secret too; audited.")] = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
) -> None:
    """Write dead letters to a file, one JSON object per line, scrubbed of fields tagged pii or secret.

    A FILE that ends in .avro is a container of the records as they are, which `pipeline replay` takes back; that needs --reveal.

    Example: pipeline dlq export letters.jsonl --group billing --last 1d
    """
    from pathlib import Path

    from pipeline.dead_letters.acting import begin

    wanted = asked.wanted(now_ms())
    if to != "-" and (not os.path.basename(to) or os.path.isdir(to)):
        raise ConfigurationError(f"{to!r:.200} is not a file to write: name one, such as letters.jsonl")
    if to.endswith(".avro") and not reveal:
        raise ConfigurationError(
            f"{to} would hold the records as they are, personal data too: add --reveal, or export to .jsonl"
        )
    with asked.desk() as desk:
        numbers = desk.matching(wanted)
        if reveal and numbers:
            begin(desk, actor(who, required_reason(reason), "dlq export --reveal", asked), "reveal", numbers, now_ms())
        written = _write(desk, numbers, reveal, None if to == "-" else Path(to))
    if to != "-":
        if asked.as_json:
            emit_json({"file": to, "dead_letters": written, "revealed": reveal})
        else:
            line(f"Wrote {written:,} dead letters to {clean(to)}.", "green")
    raise typer.Exit(0 if written or not numbers else 1)


def _write(desk: Desk, numbers: list[int], reveal: bool, path: Path | None) -> int:
    """A file appears under its name when it is complete."""
    from pipeline.dead_letters.exporting import export as exported

    if path is None:
        count = 0
        for count, letter in enumerate(exported(desk, numbers, reveal), 1):  # noqa: B007 - counted
            emit_json(letter)
        return count
    part = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".avro":
            return _write_container(desk, numbers, path, part)
        return _write_lines(desk, numbers, reveal, path, part)
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from None
    except KeyboardInterrupt:
        note("Interrupted: no file was written; run the command again.")
        raise


def _write_lines(desk: Desk, numbers: list[int], reveal: bool, path: Path, part: Path) -> int:
    """What breaks off leaves nothing behind: it may hold what is personal."""
    from pipeline.dead_letters.exporting import export as exported

    count = 0
    try:
        with part.open("w", encoding="utf-8") as file, bar("exporting", "dead letters") as advance:
            part.chmod(0o600)
            for count, letter in enumerate(exported(desk, numbers, reveal, advance), 1):  # noqa: B007
                file.write(json.dumps(letter, default=str) + "\n")
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    return count


def _write_container(desk: Desk, numbers: list[int], path: Path, part: Path) -> int:
    from pipeline.codec.container import ContainerWriter

    part.touch(mode=0o600)
    count = 0
    with ContainerWriter(path) as writer, bar("exporting", "dead letters") as advance:
        for count, message in enumerate(desk.fetch(numbers, lambda read: advance(read, len(numbers))), 1):  # noqa: B007
            writer.add([message])
    return count
