"""The command `pipeline`: mounts the sub-commands lazily and turns what went wrong into one sentence and an exit code.

0 fine   1 the check or action says no   2 bad usage or configuration   3 broker or registry unreachable
70 a bug of ours (`pipeline --debug ...` shows its trace)   130 interrupted
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.model.errors import (
    BrokerStartError,
    ClusterUnavailable,
    ConfigurationError,
    PipelineError,
    SchemaUnavailable,
)

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("pipeline.cli.demo", "Run everything on a real Kafka and account for it."),
    "broker": ("pipeline.cli.broker", "Start, stop and show the embedded Kafka."),
    "topics": ("pipeline.cli.topics", "Plan, make and list the topics of an application."),
    "schemas": ("pipeline.cli.schemas", "Check, register and list the event schemas."),
    "import": ("pipeline.cli.import_", "Import transcripts of agent runs as run events."),
    "emit": ("pipeline.cli.emit", "Publish events given as JSON lines."),
    "run": ("pipeline.cli.run", "Run the workers of an application."),
    "views": ("pipeline.cli.views", "Run the stream views (run summaries and rates)."),
    "tail": ("pipeline.cli.tail", "Show the records of a topic, decoded, as they come."),
    "groups": ("pipeline.cli.groups", "List consumer groups and show their lag, lane by lane."),
    "pause": ("pipeline.cli.pause", "Pause a subscription: its workers take no new work."),
    "resume": ("pipeline.cli.resume", "Resume a paused subscription."),
    "replay": ("pipeline.cli.replay", "Plan what is sent again, see it before it happens, and run it."),
    "jobs": ("pipeline.cli.jobs", "Background jobs: enqueue, list, show, cancel, retry, tail."),
    "schedules": ("pipeline.cli.schedules", "Cron schedules of jobs: list, add, pause, remove, run now."),
    "keys": ("pipeline.cli.keys", "Skip what blocks a key, or release what waits for it."),
    "dlq": ("pipeline.cli.dlq", "Dead letters: list, search, show, redrive, edit, purge."),
    "why": ("pipeline.cli.why", "Say where a key or an event is and what it waits for."),
}
"""Command -> (module whose `app` is a Typer, one-line help). A group with one command needs an `@app.callback()`."""


def _load(name: str) -> Any:
    module_name, text = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name == module_name:
            raise ConfigurationError(f"the command `pipeline {name}` is not part of this installation") from None
        raise ConfigurationError(
            f"`pipeline {name}` needs the Python package {missing.name}, which is not installed: install agent-run-pipeline with its extras"
        ) from None
    module.app.rich_markup_mode = None  # one look for every help text, whoever wrote the sub-command
    command = typer.main.get_command(module.app)
    command.name = name
    command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    command.help = command.help or text
    return command


class LazyGroup(TyperGroup):
    """Lists sub-commands from `COMMANDS` and imports only the one that is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, text) in COMMANDS.items():
            self.commands[name] = TyperCommand(name, help=text)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = _load(args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PipelineError as problem:
            raise typer.Exit(_report(problem)) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _mute_stdout()
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as bug:
            if ctx.params.get("debug"):
                raise
            _report_bug(bug)
            raise typer.Exit(70) from None


def exit_code(problem: PipelineError) -> int:
    """The exit code that an error of the product stands for."""
    if isinstance(problem, ConfigurationError):
        return 2
    if isinstance(problem, (ClusterUnavailable, SchemaUnavailable, BrokerStartError)):
        return 3
    return 1


def _report(problem: PipelineError) -> int:
    from pipeline.cli.output import error, note

    excerpt = getattr(problem, "excerpt", "")  # of a FilterError: the line and a caret, cleaned there
    error(str(problem).removesuffix(f"\n{excerpt}") if excerpt else str(problem))
    if excerpt:
        note(excerpt)
    return exit_code(problem)


def _report_bug(bug: BaseException) -> None:
    from pipeline.cli.output import error

    error(f"{type(bug).__name__}: {bug} (not expected: `pipeline --debug ...` shows where it comes from)")


def _mute_stdout() -> None:
    """The reader of our output went away: keep the interpreter from complaining when it flushes at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    name="pipeline",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"pipeline {version('agent-run-pipeline')}")
        except PackageNotFoundError:
            typer.echo("pipeline (not installed)")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an unexpected error.")] = False,
) -> None:
    """The Kafka-native pipeline for AI-agent runs and their background work.

    Settings come from the environment: PIPELINE_BROKER is the bootstrap address.

    Example: pipeline demo
    """


def run() -> None:
    """Entry point of the console script."""
    app(prog_name="pipeline")


if __name__ == "__main__":
    run()
