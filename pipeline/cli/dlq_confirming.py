"""Before and after an action on dead letters: who and why, what it is about, yes or no; and what it did."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pipeline.cli.access import required_reason, whoami
from pipeline.cli.dlq_selection import Asked, chosen
from pipeline.cli.output import clean, emit_json, line, note
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.dead_letters.acting import Actor, Done
    from pipeline.dead_letters.desk import Desk

SHOWN = 5
AllOption = Annotated[bool, typer.Option("--all", help="Everything that is open, when nothing else says which.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


class Given(NamedTuple):
    """What is given with every action: the options above, and who and why."""

    everything: bool
    yes: bool
    reason: str
    who: str | None


def actor(who: str | None, reason: str, command: str, asked: Asked) -> Actor:
    """Who acts, for the audit, and on what."""
    from pipeline.dead_letters.acting import Actor

    return Actor(who or whoami(), reason, f"pipeline {command} {asked.said}".rstrip())


def asked_for(asked: Asked, desk: Desk, given: Given, command: str) -> tuple[list[int], Actor]:
    """The dead letters that an action is about, and who acts: a reason is needed where there are any."""
    numbers = chosen(asked, desk, given.everything)
    return numbers, actor(given.who, required_reason(given.reason) if numbers else given.reason, command, asked)


def agreed(asked: Asked, desk: Desk, given: Given, command: str, what: str) -> tuple[list[int], Actor]:
    """The same once it is confirmed."""
    numbers, by = asked_for(asked, desk, given, command)
    confirm(desk, numbers, what, given.yes, asked.as_json)
    return numbers, by


def confirm(desk: Desk, numbers: list[int], what: str, yes: bool, as_json: bool = False) -> None:
    """Say what it is about and ask. Raises `ConfigurationError` where nobody can answer; exits with 1 when the answer is no.

    None at all: says so, and exits with 1; with `as_json` whoever reports says it.
    """
    if not numbers and not as_json:
        line("No dead letters match.", "yellow")
        raise typer.Exit(1)
    if yes or not numbers:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"{len(numbers)} dead letters match: add --yes to {what}, since nobody can be asked here"
        )
    for letter in desk.letters(numbers[:SHOWN]).values():
        error = ": ".join(part for part in (letter.error_type, letter.message) if part)
        note(f"  {letter.position} {clean(letter.key or 'null')} {clean(letter.type)} {clean(error)[:100]}", "")
    if len(numbers) > SHOWN:
        note(f"  ... and {len(numbers) - SHOWN:,} more", "dim")
    if not typer.confirm(f"{what.capitalize()} {len(numbers):,} dead letters of {clean(desk.topics.dead_letters)}?"):
        raise typer.Exit(1)


@contextlib.contextmanager
def interruptible(said: str) -> Iterator[None]:
    """`said`: what Ctrl-C leaves behind, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"Interrupted: {said}.")
        raise


def report(done: Done, text: str, as_json: bool) -> None:
    """What was done and what was left out; exit code 1 when nothing was."""
    if as_json:
        emit_json(dataclasses.asdict(done))
    else:
        line(text, "green" if sum(done.counts.values()) else "yellow")
        for why, count in done.left_out.items():
            line(f"{count:,} left out: {clean(why)}.", "yellow")
        if done.action_id:
            line(f"On record as {done.action_id}.", "dim")
    if done.details.get("problem"):
        note(clean(str(done.details["problem"])))
    raise typer.Exit(0 if sum(done.counts.values()) else 1)
