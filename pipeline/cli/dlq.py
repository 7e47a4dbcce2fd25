"""`pipeline dlq`: dead letters, found in under a second by an index, and what people do with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import dlq_actions
from pipeline.cli.access import now_ms
from pipeline.cli.bars import bar
from pipeline.cli.dlq_selection import Asked, with_selection
from pipeline.cli.output import Column, clean, emit_json, line, note, table
from pipeline.cli.why import until
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.dead_letters.query import Letter, Page
    from pipeline.dead_letters.stats import Group, Stats

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Dead letters: list, search, show, stats, redrive, release, edit, purge, cancel, convert, export.",
)

MESSAGE_CHARACTERS = 90
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="So many on a page.")]
AfterOption = Annotated[str, typer.Option("--after", help="The next page: the cursor that the last one ended with.")]
RebuildOption = Annotated[bool, typer.Option("--rebuild", help="Throw the index away and read everything again.")]


@app.command("list")
@with_selection(positions=False)
def list_command(
    asked: Asked, limit: LimitOption = 50, after: AfterOption = "", rebuild: RebuildOption = False
) -> None:
    """List dead letters, newest first.

    Example: pipeline dlq list --group billing --last 1h
    """
    _pages(asked, "", limit, after, rebuild)


@app.command()
@with_selection(positions=False)
def search(
    asked: Asked,
    text: Annotated[str, typer.Argument(help="Looked for in error, key, run id and event id.", metavar="[TEXT]")] = "",
    limit: LimitOption = 50,
    after: AfterOption = "",
) -> None:
    """Search dead letters by text, time, type, tenant, run, error or a filter. Exit code 1: there are none.

    \b
    Example: pipeline dlq search "connection refused" --group billing \\
      --where 'attempt >= 3'
    """
    if not _pages(asked, text, limit, after, False):
        raise typer.Exit(1)


def _pages(asked: Asked, text: str, limit: int, after: str, rebuild: bool) -> int:
    now = now_ms()
    wanted = asked.wanted(now, text)
    with asked.desk(rebuild) as desk:
        with bar("reading candidates") as advance:
            page = desk.page(wanted, limit, after, advance)
        total = None if page.cursor or after else len(page.letters)
        if wanted.everything:  # anything else would be one more walk through all of them
            total = desk.query(wanted).count()
        alarm = desk.expiry(now)
    if asked.as_json:
        from pipeline.dead_letters.exporting import plain_letter

        emit_json(
            {
                "topic": desk.topics.dead_letters,
                "total": total,
                "dead_letters": [plain_letter(letter) for letter in page.letters],
                "after": page.cursor or None,
            }
        )
    else:
        _print_page(page, total, now)
    if alarm is not None:
        note(f"Warning: {clean(alarm.sentence)}.")
    return len(page.letters)


def _print_page(page: Page, total: int | None, now: int) -> None:
    columns: list[Column | str] = [
        Column("position", right=True),
        "died",
        "state",
        "type",
        "key",
        Column("attempts", right=True),
        "error",
    ]
    table(columns, [_row(letter, now) for letter in page.letters], "no dead letters")
    if page.cursor:
        of = f" of {total:,}" if total is not None else ""
        line(f"{len(page.letters)}{of} shown; the next: --after {page.cursor}", "dim")


def _row(letter: Letter, now: int) -> tuple[object, ...]:
    error = ": ".join(part for part in (letter.error_type or letter.error_class, letter.message) if part)
    if len(error) > MESSAGE_CHARACTERS:
        error = error[: MESSAGE_CHARACTERS - 1] + "…"
    died = until(letter.died_ms, now) if letter.died_ms >= 0 else ""
    kind = letter.type.rpartition(".")[2]
    key = (letter.key or "null")[:60]
    return letter.position, died, letter.state, kind, key, letter.attempt, error


@app.command()
@with_selection(positions=False)
def stats(
    asked: Asked, top: Annotated[int, typer.Option("--top", min=1, max=1_000, help="So many of each kind.")] = 10
) -> None:
    """Count dead letters by normalised error (numbers, ids, quoted text and paths folded), type, tenant and age.

    Warns when open ones come near the end of their retention; exit code 1 then.

    Example: pipeline dlq stats --group billing
    """
    from pipeline.dead_letters import stats as counting

    now = now_ms()
    wanted = asked.wanted(now)
    with asked.desk() as desk:
        query = desk.query(wanted)
        if not query.exact:
            import dataclasses

            with bar("reading candidates") as advance:
                numbers = desk.matching(wanted, advance)
            query = desk.chosen(numbers, dataclasses.replace(wanted, where=None))
        found = counting.stats(desk.store.db, query, now, top)
        alarm = desk.expiry(now)
    if asked.as_json:
        expiring = None if alarm is None else {**asdict(alarm), "sentence": alarm.sentence}
        emit_json({"topic": desk.topics.dead_letters, **asdict(found), "expiring": expiring})
    else:
        _print_stats(found, desk.topics.dead_letters, now)
        if alarm is not None:
            note(f"Warning: {clean(alarm.sentence)}.")
    raise typer.Exit(1 if alarm is not None else 0)


def _print_stats(found: Stats, topic: str, now: int) -> None:
    states = ", ".join(f"{count:,} {state}" for state, count in found.states.items()) or "none"
    line(f"{clean(topic)}: {found.total:,} dead letters; in all states: {states}", "bold")
    if found.oldest_ms is not None and found.newest_ms is not None and found.total:
        line(f"The oldest died {until(found.oldest_ms, now)}, the newest {until(found.newest_ms, now)}.")
    for title, groups in (("error", found.errors), ("type", found.types), ("tenant", found.tenants)):
        if groups:
            line("")
            _print_groups(title, groups, now)
    if found.ages:
        line("")
        table(["age", Column("count", right=True)], [(group.name, f"{group.count:,}") for group in found.ages])


def _print_groups(title: str, groups: tuple[Group, ...], now: int) -> None:
    rows = []
    for group in groups:
        kind = group.error_type or group.error_class
        name = f"{kind}: {group.name}" if kind else group.name
        rows.append((f"{group.count:,}", name, until(group.newest_ms, now), group.sample))
    table([Column("count", right=True), title, "newest", "sample"], rows)


@app.command()
@with_selection()
def show(
    asked: Asked,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Fields tagged pii or secret too; written to the audit.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", "--why", help="Why it must be revealed.")] = "",
    who: Annotated[str | None, typer.Option("--who", help="Who looks; you when not given.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="At most so many.")] = 1,
) -> None:
    """Show everything about a dead letter: value, every attempt's error, stack, log, origin, trace. Exit code 1: it is not there.

    Decodes without a registry too. In any state, when a position is given.

    Example: pipeline dlq show 3:1500 --group billing
    """

    from pipeline.cli.access import required_reason
    from pipeline.dead_letters.api import show_letters

    now = now_ms()
    wanted = asked.wanted(now)
    if wanted.everything:
        raise ConfigurationError("say which: a position such as 3:1500, --event-id, --key or --where")
    actor = dlq_actions.actor(who, required_reason(reason), "dlq show --reveal", asked) if reveal else None
    with asked.desk() as desk:
        found = show_letters(desk, wanted, limit, actor, now)
        more = 0
        if len(found) == limit and not wanted.positions and wanted.where is None:
            more = desk.query(wanted).count() - limit
    if asked.as_json:
        from pipeline.dead_letters.exporting import plain_of

        emit_json([plain_of(known) for known in found])
    else:
        from pipeline.cli.dlq_details import print_details

        for index, known in enumerate(found):
            if index:
                line("")
            print_details(known, now)
        if not found:
            line("There is no such dead letter.", "yellow")
    if more > 0:
        note(f"{more:,} older ones match too: --limit shows more, `pipeline dlq list` names them.", "dim")
    raise typer.Exit(0 if found else 1)


dlq_actions.register(app)
