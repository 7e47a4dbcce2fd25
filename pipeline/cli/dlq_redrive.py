"""`pipeline dlq redrive`: dead letters back to their group, in order, a canary first; Ctrl-C ends it cleanly and says how to go on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import ReasonOption, WhoOption, now_ms
from pipeline.cli.bars import bar
from pipeline.cli.dlq_confirming import AllOption, Given, YesOption, asked_for, confirm, interruptible
from pipeline.cli.dlq_selection import Asked, with_selection
from pipeline.cli.output import clean, emit_json, line, note
from pipeline.cli.stopping import INTERRUPTED, stoppable
from pipeline.model.durations import parse_duration_ms

if TYPE_CHECKING:
    from pipeline.dead_letters.canary import Outcomes
    from pipeline.dead_letters.redrive import Prepared, Redriven

_INTERRUPTED = "what was sent last may have no result yet; run the same command again, it says what can be taken up"
_STOPPING = "Stopping: what was sent gets its result; again to end at once."


def register(app: typer.Typer) -> None:
    app.command("redrive")(redrive)


@with_selection()
def redrive(
    asked: Asked,
    everything: AllOption = False,
    canary: Annotated[
        int,
        typer.Option("--canary", min=0, max=1_000, help="So many of distinct keys first: they must get done. 0: none."),
    ] = 10,
    canary_wait: Annotated[
        str, typer.Option("--canary-wait", help="Wait so long for their outcome.", metavar="AGE")
    ] = "2m",
    rate: Annotated[float, typer.Option("--rate", min=0, help="Records per second; 0: as fast as it goes.")] = 0,
    replays_max: Annotated[
        int, typer.Option("--replays-max", min=1, help="One that was replayed so often already stays where it is.")
    ] = 5,
    again: Annotated[bool, typer.Option("--again", help="Also those that were redriven already.")] = False,
    yes: YesOption = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
) -> None:
    """Send dead letters back to the group they died in, in the order of their keys; no other group sees them.

    First a canary: when one of it dies again, or its outcome is not known in time, the rest stays. Exit code 1: not all were sent.

    \b
    Example: pipeline dlq redrive --group billing --error-type RateLimitError \\
      --yes --reason "provider is back"
    """
    from pipeline.dead_letters import redrive as engine
    from pipeline.dead_letters.redrive_plan import RedrivePolicy

    if again and asked.state is None and not asked.at and not asked.event_id:
        asked = dataclasses.replace(asked, state=["open", "redriven"])
    policy = RedrivePolicy(rate, replays_max, again)
    deadline_s = parse_duration_ms(canary_wait, "--canary-wait") / 1_000
    with asked.desk() as desk, stoppable(_STOPPING) as stopping:
        numbers, by = asked_for(asked, desk, Given(everything, yes, reason, who), "dlq redrive")
        prepared = engine.prepare(desk, numbers, by.who, now_ms(), policy, canary)
        nothing = engine.Redriven("nothing to do", {}, left_out=prepared.left_out)
        if not asked.as_json:
            _say(prepared)
        if prepared.letters:
            confirm(desk, [letter.number for letter in prepared.letters], "redrive", yes)
        with bar("redriving", quiet=asked.as_json) as advance, interruptible(_INTERRUPTED):
            told = engine.Progress(
                tally=lambda tally: advance(tally.done, tally.total or tally.offsets),
                canary=_canary_teller(asked.as_json),
                alive=lambda: not stopping.asked,
            )
            done = engine.run(desk, prepared, by, now_ms(), policy, deadline_s, told) if prepared.letters else nothing
    if asked.as_json:
        emit_json(as_object(done))
    else:
        _report(done)
    sent = done.end == "finished" and set(done.counts) <= {"written"} and not done.left
    raise typer.Exit(0 if sent else INTERRUPTED if done.end == "stopped" and stopping.asked else 1)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _say(prepared: Prepared) -> None:
    for why, count in prepared.left_out.items():
        line(f"{count:,} left out: {clean(why)}.", "yellow")
    if not prepared.letters or prepared.plan is None:
        return
    preview: Any = prepared.plan.preview or {}
    line(
        f"To {clean(prepared.plan.target.text)}, which has {_many(prepared.workers, 'worker')}: "
        f"{_many(len(prepared.letters), 'dead letter')} of {_many(preview['distinct_keys'], 'key')}."
    )
    if preview["loop_capped"]:
        line(f"{preview['loop_capped']:,} of them were replayed too often already and stay (--replays-max).", "yellow")
    if prepared.canary:
        line(f"A canary of {len(prepared.canary)} goes first.")
    for found in prepared.unfinished:
        line(
            f"An earlier redrive ended with {_many(found.left, 'letter')} unsent or without a result: `pipeline replay run "
            f"{clean(str(found.file))}` goes on with it; begun anew, what it sent last may come twice, under two replay ids.",
            "yellow",
        )


def _canary_teller(quiet: bool) -> Any:
    last: list[str] = []

    def tell(found: Outcomes) -> None:
        text = f"Canary: {found.done} done, {len(found.waiting)} on their way, {len(found.failed)} dead again."
        if not quiet and last != [text]:
            last[:] = [text]
            note(text, "dim")

    return tell


def _report(done: Redriven) -> None:
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in done.counts.items()) or "nothing"
    plans = f" (plan {', '.join(done.plans)})" if done.plans else ""
    if done.end == "finished":
        line(f"Redriven: {counts}{plans}.", "yellow" if done.left else "green")
        if done.left:
            line(
                f"{_many(done.left, 'dead letter')} stay: deleted meanwhile, or not as the index knows them; "
                "`pipeline dlq list` shows what is left.",
                "yellow",
            )
        tell_held(done)
        return
    if done.end == "nothing to do":
        line("There is nothing to redrive.", "yellow")
        return
    line(f"Not finished, {done.end}: {counts}; {done.left:,} stay where they are{plans}.", "yellow")
    if done.held:
        line(
            f"{_many(len(done.held), 'key')} ({', '.join(map(clean, done.held[:5]))}) are being released still, their new records wait: "
            "run the same command again, or `pipeline dlq release` them.",
            "yellow",
        )
    canary = done.canary
    if canary is not None and canary.failed:
        for letter in canary.failed[:5]:
            error = ": ".join(part for part in (letter.error_type, letter.message) if part)
            line(f"  {letter.position} died again: {clean(error)[:200]}", "red")
        line("Fix the cause, then run the same command again; `pipeline dlq show` has every attempt.")
    elif canary is not None and canary.waiting:
        places = ", ".join(clean(place) for place in sorted(set(canary.waiting)))
        line(
            f"{len(canary.waiting)} of the canary are on their way still ({places}): run the same command again when they are done."
        )
    elif canary is not None and canary.not_sent:
        line(f"Of the canary were not sent: {', '.join(sorted(set(canary.not_sent)))}.")
    if done.plan_file and len(done.plans) == 1 and canary is None:
        line(f"To go on where it ended: pipeline replay run {clean(done.plan_file)}")
    elif done.end == "stopped":
        line("To go on, run the same command again: it takes what is still open.")


def tell_held(done: Redriven) -> None:
    """Of a command that came to its end: keys that wait behind a letter that could not be sent."""
    if done.held:
        line(
            f"{_many(len(done.held), 'key')} ({', '.join(map(clean, done.held[:5]))}) are held still, since a letter of theirs was not "
            "sent: edit it, cancel it or purge it, then `pipeline dlq release` them.",
            "yellow",
        )


def as_object(done: Redriven) -> dict[str, Any]:
    from pipeline.dead_letters.exporting import plain_letter

    found: dict[str, Any] = {
        "end": done.end, "counts": done.counts, "plans": list(done.plans), "left": done.left, "left_out": done.left_out,
        "plan_file": done.plan_file, "canary": None, "held": list(done.held),
    }  # fmt: skip
    if done.canary is not None:
        found["canary"] = {
            "done": done.canary.done,
            "failed": [plain_letter(letter) for letter in done.canary.failed],
            "waiting": list(done.canary.waiting),
            "not_sent": list(done.canary.not_sent),
        }
    return found
