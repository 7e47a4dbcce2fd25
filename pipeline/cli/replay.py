"""`pipeline replay`: plan what is sent again, see it before it happens, run it, and follow, hold or end it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import (
    BrokerOption,
    JsonOption,
    ReasonOption,
    WhoOption,
    now_ms,
    open_cluster,
    prefix,
    required_reason,
    whoami,
)
from pipeline.cli.output import clean, emit_json, line, note, table
from pipeline.cli.replay_planning import plan_command

if TYPE_CHECKING:
    from pipeline.model.cluster import Cluster
    from pipeline.replay.plan import ReplayPlan
    from pipeline.replay.running import Surroundings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Plan what is sent again, see it before it happens, run it, and follow, hold or end it.",
)

PlanArgument = Annotated[str, typer.Argument(help="A plan's file, or the id of one that ran.", metavar="PLAN")]


app.command("plan")(plan_command)


def load_plan(surroundings: Surroundings, text: str) -> ReplayPlan:
    """The plan in a file, or by its id from the audit. Raises `PlanError`."""
    from pipeline.replay.plan import PlanError, from_text
    from pipeline.replay.running import plan_by_id

    if os.path.isfile(text):  # also of a name that no file can have
        try:
            return from_text(Path(text).read_bytes(), text)
        except OSError as error:
            raise PlanError(f"the plan file {text} can't be read: {error.strerror}") from None
    if text.startswith("rp-") and "/" not in text and not text.endswith(".json"):
        return plan_by_id(surroundings, text)
    raise PlanError(f"there is no plan file {text!r:.200}: make a plan with `pipeline replay plan`")


def surroundings_of(cluster: Cluster) -> Surroundings:
    from pipeline.replay.running import Surroundings

    return Surroundings(cluster, prefix())


@app.command("run")
def run_command(
    plan: PlanArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="So many processes on this machine.")] = 1,
    join: Annotated[bool, typer.Option("--join", help="Help those who run the plan already.")] = False,
    helper: Annotated[int, typer.Option("--helper-of", hidden=True)] = 0,
    reason: ReasonOption = "",
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry a plan out, or go on with one that was interrupted. The audit entry is written before anything is sent.

    Ctrl-C is safe (exit code 130): what is under way is finished and committed, and running the plan again goes on from there.
    Exit code 1: it was cancelled, or some records could not be written.

    Example: pipeline replay run rp-0123456789ab.json --yes --reason "provider is back"
    """
    from pipeline.cli.replay_running import carry_out, confirm
    from pipeline.replay.joining import refuse_sharing

    with open_cluster(broker) as cluster:
        surroundings = surroundings_of(cluster)
        found = load_plan(surroundings, plan)
        if processes > 1 or join:
            refuse_sharing(found)
        if not helper:
            reason = confirm(found, yes, reason)
        code = carry_out(surroundings, found, plan, (who, reason, broker), (processes, join, helper), as_json)
    raise typer.Exit(code)


@app.command("status")
def status_command(plan: PlanArgument, broker: BrokerOption = None, as_json: JsonOption = False) -> None:
    """Show how far a plan is: per partition, what became of the records, and who is at it.

    Example: pipeline replay status rp-0123456789ab
    """
    from pipeline.cli.replay_showing import show_status
    from pipeline.replay.status import status_of

    with open_cluster(broker) as cluster:
        surroundings = surroundings_of(cluster)
        found = status_of(surroundings, load_plan(surroundings, plan))
    if as_json:
        emit_json(found.as_json())
    else:
        show_status(found)


@app.command("list")
def list_command(broker: BrokerOption = None, as_json: JsonOption = False) -> None:
    """List the plans that ran and what was done to dead letters, newest first, as the audit has them.

    Example: pipeline replay list
    """
    from pipeline.cli.why import clock
    from pipeline.replay.audit import read_audit

    with open_cluster(broker) as cluster:
        surroundings = surroundings_of(cluster)
        entries = [entry for _, entry in read_audit(cluster, surroundings.audit) if entry.plan]
    entries.reverse()
    if as_json:
        names = ("plan", "action", "at_ms", "who", "why", "target")
        emit_json([{name: getattr(e, name) for name in names} | {"records": e.counts.get("selected")} for e in entries])
        return
    shown = [(e.plan, e.action, clock(e.at_ms), e.who, e.counts.get("selected"), e.target, e.why) for e in entries]
    table(["plan", "action", "at", "who", "records", "target", "why"], shown, "no plan has run here")


def _switch(plan: str, state: str, on: bool, given: tuple[str | None, str, str | None], as_json: bool) -> None:
    from pipeline.inspect.control import write_switch
    from pipeline.model.control import Replay
    from pipeline.replay.audit import write_audit
    from pipeline.replay.running import Reason, audit_entry
    from pipeline.replay.status import status_of

    who, reason, broker = given
    reason = required_reason(reason)
    verb = {"cancelled": "cancel", "paused": "pause" if on else "resume"}[state]
    with open_cluster(broker) as cluster:
        surroundings = surroundings_of(cluster)
        found = load_plan(surroundings, plan)
        before = status_of(surroundings, found)
        if before.state in ("finished", "cancelled") or (verb == "resume" and before.state != "paused"):
            raise typer.Exit(_nothing_to_do(found.plan_id, before.state, verb, as_json))
        by = who or whoami()
        entry = audit_entry(found, Reason(by, reason, f"pipeline replay {verb}"), f"replay.{verb}")
        write_audit(cluster, surroundings.audit, entry)
        switch = Replay(found.plan_id, state, surroundings.group(found.plan_id), by, reason, now_ms())
        write_switch(cluster, surroundings.control, switch, on)
    if as_json:
        emit_json({"plan": found.plan_id, "done": verb, "was": before.state, "members": len(before.members)})
    else:
        again = " (it was paused before, too)" if verb == "pause" and before.state == "paused" else ""
        line(f"{found.plan_id}: {verb} is on record{again}; {_what_comes_of_it(verb, plan, bool(before.members))}.")


def _what_comes_of_it(verb: str, plan: str, running: bool) -> str:
    if running:
        then = {"pause": "holds it", "resume": "goes on", "cancel": "ends it"}[verb]
        return f"who runs it hears of it within a second and {then}"
    return "nobody runs it now, " + {
        "pause": f"and who does will wait for `pipeline replay resume {clean(plan)}`",
        "resume": f"so take it up: pipeline replay run {clean(plan)}",
        "cancel": "and nobody can any more; what was sent stays sent",
    }[verb]  # fmt: skip


def _nothing_to_do(plan_id: str, state: str, verb: str, as_json: bool) -> int:
    if as_json:
        emit_json({"plan": plan_id, "done": None, "was": state})
    else:
        said = f"{state} already" if state in ("finished", "cancelled") else f"not paused ({state})"
        note(f"{plan_id} is {said}: nothing to {verb}")
    return 1


@app.command("pause")
def pause_command(
    plan: PlanArgument,
    reason: ReasonOption = "",
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a plan: its processes finish what is under way and wait.

    Example: pipeline replay pause rp-0123456789ab --reason "billing is slow"
    """
    _switch(plan, "paused", True, (who, reason, broker), as_json)


@app.command("resume")
def resume_command(
    plan: PlanArgument,
    reason: ReasonOption = "",
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a plan that was paused go on. One whose processes ended is taken up with `pipeline replay run`.

    Example: pipeline replay resume rp-0123456789ab --reason "billing is well"
    """
    _switch(plan, "paused", False, (who, reason, broker), as_json)


@app.command("cancel")
def cancel_command(
    plan: PlanArgument,
    reason: ReasonOption = "",
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a plan for good: its processes finish what is under way and leave. What was sent stays sent.

    Example: pipeline replay cancel rp-0123456789ab --reason "wrong filter"
    """
    _switch(plan, "cancelled", True, (who, reason, broker), as_json)
