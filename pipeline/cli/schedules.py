"""`pipeline schedules`: cron schedules of jobs: list, add, pause, resume, remove, run now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import BrokerOption, JsonOption, load_app, now_ms, quiet_clients
from pipeline.cli.jobs_access import AppArgument, InputArgument, QueueOption, close, open_queue
from pipeline.cli.jobs_asking import (
    AttemptsOption,
    KeyOption,
    PriorityOption,
    TagsOption,
    TenantOption,
    TimeoutOption,
    given_options,
    input_of,
)
from pipeline.cli.output import clean, emit_json, line, table
from pipeline.cli.why import clock, until

if TYPE_CHECKING:
    from pipeline.jobs.desk import QueueDesk
    from pipeline.jobs.rows import ScheduleRow

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Cron schedules of jobs: list, add, pause, resume, remove, run-now.",
)

NameArgument = Annotated[str, typer.Argument(help="The schedule.", metavar="NAME")]


@app.command("list")
def list_command(queue: QueueOption = "default", broker: BrokerOption = None, as_json: JsonOption = False) -> None:
    """List the schedules of a queue with the last and the next tick of each.

    Example: pipeline schedules list --queue default
    """
    now = now_ms()
    with open_queue(queue, broker) as opened:
        found = opened.reader.schedules()
    if as_json:
        emit_json([_json(row) for row in found])
        return
    table(
        ["name", "type", "cron", "zone", "misfire", "key", "last", "next"],
        [_row(row, now) for row in found],
        "no schedules",
    )


def _json(row: ScheduleRow) -> dict[str, object]:
    found = asdict(row)
    del found["applied"]
    return {**found, "next_ms": row.next_ms or None, "last_ms": row.last_ms or None}


def _row(row: ScheduleRow, now: int) -> tuple[object, ...]:
    following = (
        "paused" if row.paused else f"{clock(row.next_ms)} ({until(row.next_ms, now)})" if row.next_ms else "never"
    )
    last = until(row.last_ms, now) if row.last_ms else ""
    return row.name, row.type, row.cron, row.zone, row.misfire, row.key or "", last, following


@app.command()
def add(
    target: AppArgument,
    name: NameArgument,
    job: Annotated[str, typer.Argument(help="Type of job, as the application declares it.", metavar="TYPE")],
    given: InputArgument = None,
    cron: Annotated[
        str, typer.Option("--cron", help="Five fields of cron, or six with seconds first, such as '0 9 * * MON-FRI'.")
    ] = "",
    zone: Annotated[str, typer.Option("--zone", help="Time zone, such as Europe/Berlin.")] = "UTC",
    misfire: Annotated[
        str, typer.Option("--misfire", help="Ticks that nobody was there to fire in time: skip, once or all.")
    ] = "once",
    key: KeyOption = None,
    priority: PriorityOption = None,
    tenant: TenantOption = None,
    attempts: AttemptsOption = None,
    timeout: TimeoutOption = None,
    tag: TagsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a schedule, or change the one of that name. The same again changes nothing.

    Example: pipeline schedules add support:app morning send_report '{"to": "ops"}' --cron '0 9 * * *' --zone Europe/Berlin
    """
    options = given_options(
        key=key, priority=priority, tenant=tenant, attempts=attempts, timeout=timeout, tags=tuple(tag or ())
    )
    value = input_of(given)
    quiet_clients()
    application = load_app(target)

    async def put() -> None:
        try:
            await application.schedule(name, job, value, cron=cron, zone=zone, misfire=misfire, **options)
        finally:
            close(application)

    asyncio.run(put())
    if as_json:
        emit_json({"schedule": name, "asked": True})
    else:
        line(f"Schedule {clean(name)}: {clean(cron)} in {clean(zone)}; a worker of its queue takes it up.", "green")


def _ask(
    name: str, queue: str, broker: str | None, as_json: bool, ask: Callable[[QueueDesk], Awaitable[None]], said: str
) -> None:
    async def asked() -> None:
        with open_queue(queue, broker) as opened:
            await ask(opened.desk)

    asyncio.run(asked())
    if as_json:
        emit_json({"schedule": name, "asked": True})
    else:
        line(f"Schedule {clean(name)} {said}: a worker of queue {clean(queue)} does it in its turn.", "green")


@app.command()
def pause(
    name: NameArgument, queue: QueueOption = "default", broker: BrokerOption = None, as_json: JsonOption = False
) -> None:
    """Pause a schedule: it does not tick until it is resumed. Exit code 1: there is none of this name.

    Example: pipeline schedules pause morning
    """
    _ask(name, queue, broker, as_json, lambda desk: desk.pause_schedule(name), "pauses")


@app.command()
def resume(
    name: NameArgument, queue: QueueOption = "default", broker: BrokerOption = None, as_json: JsonOption = False
) -> None:
    """Resume a schedule: it goes on with its next tick, and what would have ticked meanwhile is not missed.

    Example: pipeline schedules resume morning
    """
    _ask(name, queue, broker, as_json, lambda desk: desk.resume_schedule(name), "goes on")


@app.command()
def remove(
    name: NameArgument, queue: QueueOption = "default", broker: BrokerOption = None, as_json: JsonOption = False
) -> None:
    """Remove a schedule. Jobs of its ticks stay. Exit code 1: there is none of this name.

    Example: pipeline schedules remove morning
    """
    _ask(name, queue, broker, as_json, lambda desk: desk.remove_schedule(name), "is removed")


@app.command("run-now")
def run_now(
    name: NameArgument, queue: QueueOption = "default", broker: BrokerOption = None, as_json: JsonOption = False
) -> None:
    """Run the job of a schedule once, now, beside its ticks; also while it is paused.

    Example: pipeline schedules run-now morning
    """
    _ask(name, queue, broker, as_json, lambda desk: desk.run_schedule_now(name), "runs once")
