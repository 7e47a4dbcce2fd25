"""`pipeline replay run`: the question before it, its processes, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.access import codec, required_reason, settings, whoami
from pipeline.cli.output import clean, emit_json, line, note
from pipeline.cli.stopping import INTERRUPTED, stoppable
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.replay.executing import Executor
    from pipeline.replay.options import Tally
    from pipeline.replay.plan import ReplayPlan
    from pipeline.replay.running import Surroundings

HELPER_STOP_S = 60.0
_STOPPING = "finishing what is under way (Ctrl-C again leaves at once; nothing is lost either way)"


def confirm(plan: ReplayPlan, yes: bool, reason: str) -> str:
    """The reason. Raises `ConfigurationError` where nobody can be asked and `--yes` or `--reason` is missing."""
    selected = (plan.preview or {}).get("selected")
    if yes:
        return required_reason(reason)
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody can be asked here: add --yes and --reason")
    records = "records" if selected is None else f"{selected:,} records"
    line(f"{records} of {clean(plan.source.topic)} go to {clean(plan.target.text)}", "bold")
    typer.confirm("Send them?", abort=True)
    return required_reason(reason)


def carry_out(
    surroundings: Surroundings,
    plan: ReplayPlan,
    name: str,
    given: tuple[str | None, str, str | None],
    how: tuple[int, bool, int],
    as_json: bool,
) -> int:
    """Run it; the exit code. `given`: who, why, broker. `how`: processes, join, the process this one helps (0: none)."""
    from pipeline.cli.replay_showing import run_bar
    from pipeline.replay.running import Reason, run_options, run_plan

    (who, why, broker), (processes, join, helper) = given, how
    chosen = settings()
    by = who or whoami()
    _relax()
    with run_bar(as_json or bool(helper)) as shown:
        progress = shown if helper else _telling_of_a_pause(plan.plan_id, shown)
        options = run_options(
            surroundings,
            plan,
            by,
            join=join or bool(helper),
            session_timeout_ms=int(chosen.session_timeout_s * 1000),
            protocol=chosen.group_protocol,
            progress=progress,
            alive=lambda: not helper or os.getppid() == helper,
        )
        with _helpers(plan, processes - 1, by, broker) as start_helpers, stoppable(_STOPPING) as stopping:

            def started(executor: Executor) -> None:
                stopping.call(executor.stop)
                start_helpers()

            command = "" if helper else f"pipeline replay run {name}"
            tally = run_plan(surroundings, plan, Reason(by, why, command), options, codec(broker), started)
    code = _told(plan, name, tally, bool(helper), as_json)
    return INTERRUPTED if tally.state == "stopped" and stopping.asked else code


def _telling_of_a_pause(plan_id: str, shown: Callable[[Tally], None]) -> Callable[[Tally], None]:
    """Also where no bar is shown: nobody should wonder why nothing moves."""
    before = ""

    def progress(tally: Tally) -> None:
        nonlocal before
        if tally.state == "paused" != before:
            note(f"{plan_id} is paused: it waits here for `pipeline replay resume {plan_id}`; Ctrl-C leaves it")
        before = tally.state
        shown(tally)

    return progress


def _relax() -> None:
    """Records by the thousand are no garbage: they end by reference counting."""
    from pipeline.worker.collector import relax

    relax()


def _told(plan: ReplayPlan, name: str, tally: Tally, quiet: bool, as_json: bool) -> int:
    failed = sum(tally.counts.get(outcome, 0) for outcome in ("failed", "undecodable"))
    code = 1 if tally.state != "finished" or failed else 0
    if quiet:
        return code
    if as_json:
        found: dict[str, Any] = {"plan": plan.plan_id, "state": tally.state, "done": tally.done, "total": tally.total}
        emit_json(found | {"counts": dict(tally.counts), "rate": round(tally.rate, 1)})
        return code
    counts = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(tally.counts.items())) or "no records"
    line(f"{plan.plan_id} {tally.state}: {counts}", "green" if not code else "yellow")
    if tally.state == "stopped":
        note(f"it is safe to leave it so; to go on: pipeline replay run {clean(name)}")
    if failed:
        note(f"{failed:,} records could not be written: `pipeline replay status {plan.plan_id}` says which, and why")
    return code


@contextlib.contextmanager
def _helpers(plan: ReplayPlan, many: int, who: str, broker: str | None) -> Iterator[Callable[[], None]]:
    """Further processes of this machine. They end with the plan, and when this process is gone."""
    from pipeline.replay.plan import to_text

    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="pipeline-replay-") as folder:

        def start() -> None:
            path = Path(folder) / f"{plan.plan_id}.json"
            path.write_text(to_text(plan), encoding="utf-8")
            ours = ["--helper-of", str(os.getpid()), "--who", who, "--json"]
            command = [sys.executable, "-m", "pipeline.cli.main", "replay", "run", str(path), *ours]
            command += ["--broker", broker] if broker else []
            for _ in range(many):
                # Their own session: Ctrl-C goes to us, and we stop them.
                processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))

        try:
            yield start
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            for process in processes:
                try:
                    process.wait(HELPER_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
