"""`pipeline dlq release`: held keys go on without the dead letters that hold them; a release that was interrupted is finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import BrokerOption, JsonOption, ReasonOption, WhoOption, now_ms, real, required_reason
from pipeline.cli.bars import bar
from pipeline.cli.dlq_confirming import AllOption, YesOption, actor, interruptible
from pipeline.cli.dlq_redrive import as_object, tell_held
from pipeline.cli.dlq_selection import Asked
from pipeline.cli.output import clean, emit_json, line
from pipeline.cli.stopping import INTERRUPTED, stoppable
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.dead_letters.redrive import Redriven

SHOWN = 10
_INTERRUPTED = (
    "keys whose release had begun are being released still, and nothing is lost: run the same command again, it goes on"
)


def register(app: typer.Typer) -> None:
    app.command("release")(release)


def release(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys that are held.", metavar="KEY")] = None,
    group: Annotated[str | None, typer.Option("--group", help="The group whose keys they are.")] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", help="Its dead-letter topic, where that has another name.")
    ] = None,
    everything: AllOption = False,
    replays_max: Annotated[
        int, typer.Option("--replays-max", min=1, help="Refuse where one was replayed so often already.")
    ] = 5,
    yes: YesOption = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let held keys go: the dead letter that holds each is cancelled, what followed it is sent back to the group in order.

    To run that one too use redrive. Interrupted: run it again, it goes on. Exit code 1: none of them is held, or not all was sent.

    \b
    Example: pipeline dlq release run-7 --group billing \\
      --yes --reason "booked by hand"
    """
    from pipeline.dead_letters import redrive as engine
    from pipeline.dead_letters.desk import group_name
    from pipeline.dead_letters.redrive_plan import RedrivePolicy
    from pipeline.dead_letters.releasing import holds_of

    if not keys and not everything:
        raise ConfigurationError("say which keys to release, or --all for every key of the group that is held")
    asked = Asked(group=group, topic=topic, broker=broker, as_json=as_json)
    with asked.desk() as desk, stoppable("Stopping: what was sent gets its result; again to end at once.") as stopping:
        name = group_name(desk, real(group) if group else "")
        holds = holds_of(desk, name, keys or ())
        if holds and not yes:
            for hold in holds[:SHOWN]:
                state = "is being released" if hold.release else "is held"
                line(f"  {clean(str(hold.place[1]))} {state}, partition {hold.partition} offset {hold.origin}")
            if not typer.confirm(f"Let {len(holds):,} go without the records that hold them?"):
                raise typer.Exit(1)
        by = actor(
            who,
            required_reason(reason) if holds else reason or "nothing is held",
            f"dlq release {' '.join(keys or ())}",
            asked,
        )
        policy = RedrivePolicy(replays_max=replays_max)
        with bar("sending back", quiet=as_json) as advance, interruptible(_INTERRUPTED):
            told = engine.Progress(
                tally=lambda tally: advance(tally.done, tally.total or tally.offsets), alive=lambda: not stopping.asked
            )
            done = engine.release(desk, name, keys or (), by, now_ms(), policy, told)
    _report(done, len(holds), as_json)
    raise typer.Exit(0 if done.end == "finished" and not done.left else INTERRUPTED if stopping.asked else 1)


def _report(done: Redriven, holds: int, as_json: bool) -> None:
    if as_json:
        emit_json({**as_object(done), "holds": holds})
    elif done.end == "nothing to do":
        line("None of these keys is held.", "yellow")
    else:
        sent, cancelled = done.counts.get("written", 0), done.counts.get("cancelled", 0)
        line(
            f"{sent:,} sent back, {cancelled:,} cancelled.",
            "green" if done.end == "finished" and not done.left else "yellow",
        )
        if done.end == "finished":
            tell_held(done)
        else:
            line("Their keys are being released still: run the same command again, it goes on.", "yellow")
