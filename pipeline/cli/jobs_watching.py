"""`pipeline jobs stats` and `tail`: how a queue does, and what happens in it, once or as it goes on."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import BrokerOption, JsonOption, now_ms
from pipeline.cli.jobs_access import QueueOption, age, bare_queue, open_queue
from pipeline.cli.jobs_showing import event_json, print_event
from pipeline.cli.output import Column, clean, emit_json, line, table
from pipeline.model.durations import parse_duration_ms

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.jobs.monitor import QueueStats, TypeStats

CLEAR = "\x1b[H\x1b[2J"


def stats(
    queue: QueueOption = "default",
    last: Annotated[str, typer.Option("--last", help="What rates and latencies are about, 1m to 60m.")] = "5m",
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option("--every", help="So often, with --watch.")] = "2s",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the jobs of a queue by type and state, with throughput, error rate, latency and the age of the oldest that waits.

    With --json --watch one object per line.

    Example: pipeline jobs stats --last 15m --watch
    """
    from pipeline.jobs.monitor import check_span

    span_ms = check_span(parse_duration_ms(last, "--last"), "--last")
    pause_s = max(0.2, parse_duration_ms(every, "--every") / 1000)
    with open_queue(queue, broker) as opened:
        while True:
            found = opened.reader.stats(now_ms(), span_ms)
            if as_json:
                emit_json(asdict(found))
            else:
                if watch and sys.stdout.isatty():
                    sys.stdout.write(CLEAR)
                print_stats(found, last)
            if not watch:
                return
            time.sleep(pause_s)
            opened.reader.refresh()


def print_stats(found: QueueStats, last: str) -> None:
    oldest = (
        f", the oldest for {age(found.inbox_oldest_ms)}" if found.inbox and found.inbox_oldest_ms is not None else ""
    )
    line(f"Queue {clean(found.queue)}: {found.inbox:,} requests without an entry yet{oldest}.", "bold")
    columns: list[Column | str] = ["type"]
    columns += [
        Column(name, right=True)
        for name in ("waiting", "active", "delayed", "completed", "failed", "dead", "cancelled")
    ]
    columns += [
        Column(name, right=True)
        for name in (f"per min ({last})", "errors", "retried", "stalled", "p50", "p99", "oldest")
    ]
    rows = [_row(each, each.type) for each in found.types]
    if len(rows) != 1:
        rows.append(_row(found.total, "all"))
    table(columns, rows)


def _row(each: TypeStats, name: str) -> tuple[object, ...]:
    rate = "" if each.error_rate is None else f"{each.error_rate:.1%}"
    return (
        name, f"{each.waiting:,}", f"{each.active:,}", f"{each.delayed:,}", f"{each.completed:,}", f"{each.failed:,}",
        f"{each.dead_letter:,}", f"{each.cancelled:,}", f"{each.per_minute:,.1f}", rate, f"{each.retried:,}", f"{each.stalled:,}",
        _span(each.latency_p50_ms), _span(each.latency_p99_ms), age(each.oldest_ms),
    )  # fmt: skip


def _span(ms: int | None) -> str:
    return "" if ms is None else f"{ms} ms" if ms < 10_000 else age(ms)


def tail(
    queue: QueueOption = "default",
    event: Annotated[
        list[str] | None,
        typer.Option("--event", help="completed, failed, cancelled, retrying, stalled or progress; repeatable."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option("--type", help="Type of job; repeatable.")] = None,
    last: Annotated[str | None, typer.Option("--last", help="From so long ago, such as 10m; else from now.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many.")] = None,
    broker: BrokerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Show what happens to the jobs of a queue, as it happens. Ctrl-C stops.

    Example: pipeline jobs tail --event failed --event stalled --last 1h
    """
    from pipeline.jobs.events import check_kinds

    check_kinds(event or ())
    with bare_queue(queue, broker) as opened:
        asyncio.run(
            _tail(opened.app, queue, {"kinds": event or (), "types": kind or (), "since": last}, limit, as_json)
        )


async def _tail(app: Pipeline, queue: str, chosen: dict[str, Any], limit: int | None, as_json: bool) -> None:
    shown = 0
    async for event in app.job_events(queue, **chosen):
        if as_json:
            emit_json(event_json(event))
        else:
            print_event(event)
        shown += 1
        if shown == limit:
            return


def register(app: typer.Typer) -> None:
    app.command()(stats)
    app.command()(tail)
