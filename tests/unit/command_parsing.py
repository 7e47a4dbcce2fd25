"""Does the command line take these words? Asked of the commands themselves, without running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from pipeline.cli.main import COMMANDS, _load


class NotACommand(Exception):
    """The words are no `pipeline` command line; the message says why."""


def leaf(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that the first words name (or the group, when no command of it is named), and the rest."""
    rest = [word for word in words if word != "--debug"]
    if not rest or rest[0] not in COMMANDS:
        raise NotACommand(f"{' '.join(words)}: there is no such command")
    command, rest = _load(rest[0]), rest[1:]
    while getattr(command, "commands", None) and rest and rest[0] != "--help":
        if rest[0] not in command.commands:
            raise NotACommand(f"{' '.join(words)}: {command.name} has no command {rest[0]}")
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def check(words: Sequence[str]) -> None:
    """A whole command line, arguments and all."""
    if list(words) in ([], ["--help"], ["--version"], ["--install-completion"]):
        return
    command, rest = leaf(words)
    if rest == ["--help"]:
        return
    if getattr(command, "commands", None):
        raise NotACommand(f"{' '.join(words)}: a command of the group {command.name} is missing")
    try:
        command.make_context(command.name, list(rest))
    except typer.TyperException as error:
        raise NotACommand(f"{' '.join(words)}: {error}") from error


def check_mention(words: Sequence[str]) -> None:
    """A command named in a sentence: it exists, and so do its options; arguments may be missing."""
    if not words or words[0].startswith(("-", ".")):
        return
    command, rest = leaf(words)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known | {"--help"}:
            raise NotACommand(f"{' '.join(words)}: {command.name} has no option {option}")
