"""`pipeline jobs`: background jobs as people operate them: ask for them, find them, see why they wait, retry and cancel them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import jobs_asking, jobs_watching
from pipeline.cli.access import BrokerOption, JsonOption, now_ms
from pipeline.cli.jobs_access import JobIds, QueueOption, open_queue
from pipeline.cli.jobs_showing import (
    explanation_json,
    explanation_lines,
    job_json,
    letter_note,
    print_details,
    print_page,
)
from pipeline.cli.output import clean, emit_json, error, line
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError, JobMissing, JobStateError

if TYPE_CHECKING:
    from pipeline.jobs.desk import QueueDesk

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Background jobs: enqueue, list, show, result, cancel, retry, run-now, stats, health, tail, why.",
)

Repeatable = list[str] | None
UNFINISHED = "unfinished"


def _states(given: Iterable[str]) -> tuple[str, ...]:
    """Those that were named, and those that `unfinished` stands for. Raises ConfigurationError."""
    from pipeline.jobs import finding

    for each in given:
        if each not in (UNFINISHED, *finding.STATES):
            raise ConfigurationError(f"--state {each!r:.40} must be one of {', '.join((*finding.STATES, UNFINISHED))}")
    return tuple(state for each in given for state in (finding.UNFINISHED if each == UNFINISHED else (each,)))


@app.command("list")
def list_command(
    queue: QueueOption = "default",
    state: Annotated[
        Repeatable, typer.Option("--state", help="Such as queued or dead_letter, or unfinished; repeatable.")
    ] = None,
    kind: Annotated[Repeatable, typer.Option("--type", help="Type of job; repeatable.")] = None,
    tenant: Annotated[Repeatable, typer.Option("--tenant", help="Repeatable.")] = None,
    key: Annotated[Repeatable, typer.Option("--key", help="Repeatable.")] = None,
    tag: Annotated[Repeatable, typer.Option("--tag", help="All of these; repeatable.")] = None,
    workflow: Annotated[Repeatable, typer.Option("--workflow", help="Workflow id; repeatable.")] = None,
    schedule: Annotated[Repeatable, typer.Option("--schedule", help="Ticks of this schedule; repeatable.")] = None,
    error_class: Annotated[Repeatable, typer.Option("--error-class", help="Of the last error; repeatable.")] = None,
    last: Annotated[str | None, typer.Option("--last", help="Asked for within this time, such as 2h.")] = None,
    text: Annotated[str, typer.Option("--text", help="Looked for in id, key, error and reason.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="So many on a page.")] = 50,
    after: Annotated[str, typer.Option("--after", help="The next page: the cursor that the last one ended with.")] = "",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Throw the index away and read the whole store again.")
    ] = False,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs of a queue, newest first. Short jobs that have not ended, and those nobody has come to, are not listed yet.

    Example: pipeline jobs list --state dead_letter --type classify_ticket --last 1d
    """
    from pipeline.jobs.finding import WantedJobs

    now = now_ms()
    wanted = WantedJobs(
        states=_states(state or ()),
        types=tuple(kind or ()),
        tenants=tuple(tenant or ()),
        keys=tuple(key or ()),
        tags=tuple(tag or ()),
        workflows=tuple(workflow or ()),
        schedules=tuple(schedule or ()),
        error_classes=tuple(error_class or ()),
        from_ms=None if last is None else now - parse_duration_ms(last, "--last"),
        text=text,
    )
    wanted.conditions()  # what is wrong with them is told before anything is read
    with open_queue(queue, broker, rebuild) as opened:
        page = opened.reader.page(wanted, limit, after)
        total = opened.reader.count(wanted)
    if as_json:
        emit_json(
            {"queue": queue, "total": total, "jobs": [job_json(row) for row in page.jobs], "after": page.cursor or None}
        )
    else:
        print_page(page, total, now)


@app.command()
def show(
    job_id: Annotated[str, typer.Argument(help="Id of the job.", metavar="ID")],
    queue: QueueOption = "default",
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Input and result too, which may hold what is private.")
    ] = False,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a job: state, times, every attempt's error, progress. Exit code 1: it is not there.

    Example: pipeline jobs show 0192f3a1-5d7c-7e2b-8c44-0a1b2c3d4e5f
    """
    from pipeline.cli.jobs_showing import record_json

    with open_queue(queue, broker) as opened:
        record = opened.reader.record(job_id)
        if record is None:
            raise opened.missing(job_id)
    if as_json:
        emit_json(record_json(record, reveal))
    else:
        print_details(record, reveal, now_ms())


@app.command()
def why(
    job_id: Annotated[str, typer.Argument(help="Id of the job.", metavar="ID")],
    queue: QueueOption = "default",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a job is, what it waits for, and which worker would run it. Exit code 1: it is not in the store.

    Example: pipeline jobs why 0192f3a1-5d7c-7e2b-8c44-0a1b2c3d4e5f
    """
    from pipeline.cli.access import control_topic
    from pipeline.jobs.explaining import explain

    now = now_ms()
    with open_queue(queue, broker) as opened:
        found = explain(opened.reader, job_id, control_topic(), now)
    if as_json:
        emit_json(explanation_json(found))
    else:
        head, *rest = explanation_lines(found, now)
        line(head, "green" if found.ended else "bold")
        for each in rest:
            line(f"  {each}")
    raise typer.Exit(0 if found.job is not None else 1)


def _each(queue: str, broker: str | None, ids: list[str], what: str, as_json: bool, ask: Any) -> None:
    """`ask(desk, id)` for each; those that can't be are told, the others go on. Exit code 1 when there was one. A text that it gives is
    said too."""
    results: list[dict[str, Any]] = []

    async def all_of_them() -> None:
        with open_queue(queue, broker) as opened:
            for job_id in ids:
                try:
                    more = await ask(opened.desk, job_id)
                except (JobMissing, JobStateError) as problem:
                    results.append({"id": job_id, "asked": False, "why": str(problem)})
                else:
                    results.append({"id": job_id, "asked": True, "why": None} | ({"note": more} if more else {}))

    asyncio.run(all_of_them())
    if as_json:
        emit_json(results)
    else:
        for each in results:
            if each["asked"]:
                line(
                    f"{what} of job {clean(each['id'])}: a worker of queue {clean(queue)} does it in its turn.", "green"
                )
                if "note" in each:
                    line(clean(each["note"]), "yellow")
            else:
                error(each["why"])
    raise typer.Exit(0 if all(each["asked"] for each in results) else 1)


@app.command()
def cancel(
    job_ids: JobIds,
    queue: QueueOption = "default",
    key: Annotated[
        str | None,
        typer.Option("--key", help="Its key, else its dedup id: for one that has no entry in the store yet."),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", "--why", help="Why; kept with the job.")
    ] = "cancelled by an operator",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel jobs that wait or run: a running handler is stopped, a `def` one when it returns. Exit code 1: one is not there, or has had
    its ending.

    Example: pipeline jobs cancel 0192f3a1-5d7c-7e2b-8c44-0a1b2c3d4e5f --reason "sent twice"
    """
    _each(queue, broker, job_ids, "Cancel", as_json, lambda desk, job_id: desk.cancel(job_id, reason, key))


@app.command()
def retry(
    job_ids: JobIds,
    queue: QueueOption = "default",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give jobs that were given up or cancelled one more round. Exit code 1: one is not there, or in another state.

    A dead letter of the job stays open; `pipeline dlq redrive` runs the job again and takes care of it.

    Example: pipeline jobs retry 0192f3a1-5d7c-7e2b-8c44-0a1b2c3d4e5f
    """

    async def retried(desk: QueueDesk, job_id: str) -> str | None:
        return letter_note(await desk.retry(job_id), queue)

    _each(queue, broker, job_ids, "Retry", as_json, retried)


@app.command("run-now")
def run_now(
    job_ids: JobIds,
    queue: QueueOption = "default",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let jobs that wait for their time, or for their retry, start now. Exit code 1: one is not there, or in another state.

    Example: pipeline jobs run-now 0192f3a1-5d7c-7e2b-8c44-0a1b2c3d4e5f
    """
    _each(queue, broker, job_ids, "Run", as_json, lambda desk, job_id: desk.run_now(job_id))


@app.command()
def health(queue: QueueOption = "default", broker: BrokerOption = None, as_json: JsonOption = False) -> None:
    """Say whether a queue is well: connection, topics, workers, whether its work is taken up. Exit code 1: it is not;
    3: the brokers do not answer.

    Example: pipeline jobs health --queue default
    """
    from pipeline.cli.jobs_access import bare_queue
    from pipeline.jobs.health import health_of

    with bare_queue(queue, broker) as opened:
        found = health_of(opened.reader.cluster, opened.reader.topics, now_ms(), 10.0)
    if as_json:
        emit_json(asdict(found))
    elif found.healthy:
        line(f"Queue {clean(queue)} is well: {found.workers} workers have its {found.partitions} partitions.", "green")
    else:
        line(f"Queue {clean(queue)} is not well: {clean(found.why)}.", "red")
    raise typer.Exit(0 if found.healthy else 1 if found.connected else 3)


jobs_asking.register(app)
jobs_watching.register(app)
