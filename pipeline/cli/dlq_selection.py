"""Which dead letters a command is about: the options that all `pipeline dlq` commands share, and how they become a question."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pipeline.cli.access import BrokerOption, JsonOption, now_ms, quiet_clients, settings
from pipeline.cli.bars import bar
from pipeline.cli.output import clean, note
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.dead_letters.desk import Desk
    from pipeline.dead_letters.query import Wanted

_OPTIONS = {
    "group": "--group", "topic": "--topic", "where": "--where", "state": "--state", "key": "--key", "event_id": "--event-id",
    "run_id": "--run-id", "kind": "--type", "tenant": "--tenant", "error_class": "--error-class", "error_type": "--error-type",
    "error": "--error", "from_time": "--from-time", "to_time": "--to-time", "last": "--last",
}  # fmt: skip
"""Field -> the option that sets it."""
_POSITION = re.compile(r"(\d{1,5}):(\d{1,15})")


@dataclass(frozen=True, slots=True)
class Asked:
    """The shared options as they were given."""

    at: Annotated[
        list[str] | None,
        typer.Argument(help="Positions as `list` shows them; all that match when none.", metavar="P:O"),
    ] = None
    group: Annotated[str | None, typer.Option("--group", help="The group whose dead letters they are.")] = None
    topic: Annotated[
        str | None, typer.Option("--topic", help="Their topic, where it has a name of its own or groups share it.")
    ] = None
    where: Annotated[
        str | None, typer.Option("--where", help="A filter, such as 'attempt >= 3 and tenant == \"acme\"'.")
    ] = None
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help="open, redriven, edited, purged, cancelled, converted or all; open when neither this nor a position is given.",
        ),
    ] = None
    key: Annotated[list[str] | None, typer.Option("--key", help="Record key; repeatable.")] = None
    event_id: Annotated[list[str] | None, typer.Option("--event-id", help="Repeatable.")] = None
    run_id: Annotated[list[str] | None, typer.Option("--run-id", help="Repeatable.")] = None
    kind: Annotated[list[str] | None, typer.Option("--type", help="Event type, for example ToolCall; repeatable.")] = (
        None
    )
    tenant: Annotated[list[str] | None, typer.Option("--tenant", help="Repeatable.")] = None
    error_class: Annotated[list[str] | None, typer.Option("--error-class", help="Repeatable.")] = None
    error_type: Annotated[list[str] | None, typer.Option("--error-type", help="Such as TimeoutError; repeatable.")] = (
        None
    )
    error: Annotated[str | None, typer.Option("--error", help="A normalised error, as `stats` shows it.")] = None
    from_time: Annotated[str | None, typer.Option("--from-time", help="Died at or after.", metavar="ISO")] = None
    to_time: Annotated[str | None, typer.Option("--to-time", help="Died before.", metavar="ISO")] = None
    last: Annotated[
        str | None, typer.Option("--last", help="Died within this time, for example 2h.", metavar="AGE")
    ] = None
    broker: BrokerOption = None
    as_json: JsonOption = False

    @property
    def said(self) -> str:
        """What was asked for, as words of a command line: for the audit."""
        words = list(self.at or ())
        for name, option in _OPTIONS.items():
            given = getattr(self, name)
            for each in given if isinstance(given, list) else [given]:
                words += [] if each is None else [option, each]
        return shlex.join(words)

    def command(self, name: str, position: str, *more: str) -> str:
        """A command line about one letter of the same dead letters, that works as it is printed."""
        where = [("--group", self.group), ("--topic", self.topic), ("--broker", self.broker)]
        words = [word for option, given in where if given is not None for word in (option, given)]
        return shlex.join(["pipeline", "dlq", name, position, *words, *more])

    def wanted(self, now: int, text: str = "") -> Wanted:
        """Raises `ConfigurationError` or `FilterError` naming the option."""
        from pipeline.dead_letters.query import Wanted
        from pipeline.filters import compile_filter
        from pipeline.replay.moments import parse_age_ms, parse_moment_ms

        if self.last is not None and (self.from_time or self.to_time):
            raise ConfigurationError("--last excludes --from-time and --to-time: give one or the other")
        from_ms = parse_moment_ms(self.from_time, "--from-time", now) if self.from_time else None
        to_ms = parse_moment_ms(self.to_time, "--to-time", now) if self.to_time else None
        if from_ms is not None and to_ms is not None and to_ms <= from_ms:
            raise ConfigurationError("--to-time must be later than --from-time: nothing died between them")
        if self.last is not None:
            from_ms = now - parse_age_ms(self.last, "--last")
        return Wanted(
            states=_states(self.state or ["all" if self.at or self.event_id else "open"]),
            positions=tuple(_position(text) for text in self.at or ()),
            event_ids=tuple(self.event_id or ()),
            keys=tuple(self.key or ()),
            types=tuple(self.kind or ()),
            tenants=tuple(self.tenant or ()),
            run_ids=tuple(self.run_id or ()),
            error_classes=tuple(self.error_class or ()),
            error_types=tuple(self.error_type or ()),
            error=self.error or "",
            from_ms=from_ms,
            to_ms=to_ms,
            text=text,
            where=compile_filter(self.where, now) if self.where else None,
        )

    @contextlib.contextmanager
    def desk(self, rebuild: bool = False) -> Iterator[Desk]:
        """The dead letters at hand, their index brought up to date."""
        from pipeline.app import Pipeline
        from pipeline.dead_letters.desk import Desk

        quiet_clients()
        app = Pipeline("pipeline-cli", settings=settings(), broker=self.broker)
        with Desk.of(app, self.group, self.topic) as desk:
            desk.store.waiting = lambda: note("Another command is reading these dead letters just now: waiting for it.")
            with bar("reading dead letters") as advance:
                done = desk.rebuild(advance) if rebuild else desk.refresh(advance)
            if done.rebuilt:
                note(f"The index was built anew: {clean(done.rebuilt)}.")
            if done.unknown:
                note(
                    f"{done.unknown} values could not be decoded: no schema of theirs is known, and no registry answered."
                )
            forgetful = desk.forgetful()
            if forgetful:
                note(f"Warning: {clean(forgetful)}.")
            yield desk


def _states(given: list[str]) -> tuple[Any, ...]:
    from pipeline.dead_letters.states import STATES

    if "all" in given:
        return ()
    for state in given:
        if state not in STATES:
            raise ConfigurationError(f"--state {state!r:.40} must be one of {', '.join(STATES)} or all")
    return tuple(given)


def _position(text: str) -> tuple[int, int]:
    from pipeline.dead_letters.states import is_position

    found = _POSITION.fullmatch(text)
    if found is None or not is_position(int(found[1]), int(found[2])):
        raise ConfigurationError(f"{text!r:.40} is not a position: write partition:offset, such as 3:1500")
    return int(found[1]), int(found[2])


def with_selection(positions: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command the shared options; it gets them as its first argument `asked`. `positions`: as arguments too."""
    hints = get_type_hints(Asked, include_extras=True)
    shared = [f for f in fields(Asked) if positions or f.name != "at"]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(command).parameters.values())[1:]
        own_hints = get_type_hints(command, include_extras=True)

        @functools.wraps(command)
        def run(**given: Any) -> Any:
            asked = Asked(**{f.name: given.pop(f.name) for f in shared})
            return command(asked, **given)

        parameters = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in shared
        ]
        mine = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own_hints[p.name]) for p in own]
        run.__signature__ = inspect.Signature([*parameters[:1], *mine, *parameters[1:]])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*parameters, *mine)}
        del run.__wrapped__
        return run

    return decorate


def chosen(asked: Asked, desk: Desk, everything: bool) -> list[int]:
    """The positions that an action is about. Raises `ConfigurationError` when nothing narrows them and not `everything`."""
    wanted = asked.wanted(now_ms())
    if wanted.everything and not everything:
        raise ConfigurationError(
            "say which: positions, options such as --error-type, --where, or --all for all that are open"
        )
    with bar("looking for them") as advance:
        return desk.matching(wanted, advance)
