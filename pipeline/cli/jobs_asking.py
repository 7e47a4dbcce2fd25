"""`pipeline jobs enqueue` and `result`: ask for jobs with JSON, and read what came of them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import BrokerOption, JsonOption, load_app, quiet_clients
from pipeline.cli.jobs_access import AppArgument, InputArgument, QueueOption, open_queue
from pipeline.cli.output import clean, emit_json, error, line, note
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import (
    BlobError,
    ConfigurationError,
    JobMissing,
    JobUnsuccessful,
    ResultTimeout,
    UndecodableError,
)
from pipeline.model.job_policies import check_text

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.jobs.handle import JobHandle
    from pipeline.jobs.reading import QueueReader
    from pipeline.model.jobs import JobRecord

LOOK_S = 0.5
KeyOption = Annotated[str | None, typer.Option("--key", help="Jobs of one key run one at a time, in order.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="On whose behalf.")]
PriorityOption = Annotated[
    int | None, typer.Option("--priority", help="A higher number is more urgent; lanes from 10, from 0, and below.")
]
AttemptsOption = Annotated[int | None, typer.Option("--attempts", help="Executions in all; else as its type says.")]
TimeoutOption = Annotated[str | None, typer.Option("--timeout", help="The longest that one execution may take.")]
TagsOption = Annotated[list[str] | None, typer.Option("--tag", help="A word to find it by; repeatable.")]


def input_of(text: str | None, what: str = "input") -> Any:
    """The value of a JSON text, None without one. Raises ConfigurationError."""
    if text == "-":
        text = sys.stdin.read()
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"the {what} is not JSON ({error}): quote it, such as '{{\"id\": 7}}'") from None


def given_options(**options: Any) -> dict[str, Any]:
    """Those that were given; an empty text is one that was, and no option takes it."""
    if options.get("tenant") is not None:  # in Python "" is its default
        check_text("tenant", options["tenant"])
    return {name: value for name, value in options.items() if value not in (None, ())}


def enqueue(
    target: AppArgument,
    job: Annotated[str, typer.Argument(help="Type of job, as the application declares it.", metavar="TYPE")],
    given: InputArgument = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Standard input has one JSON value per line: a job for each.")
    ] = False,
    delay: Annotated[str | None, typer.Option("--delay", help="Not before this time has passed, such as 5m.")] = None,
    run_at: Annotated[
        str | None, typer.Option("--run-at", help="Not before this moment (ISO 8601).", metavar="ISO")
    ] = None,
    key: KeyOption = None,
    priority: PriorityOption = None,
    tenant: TenantOption = None,
    dedup_id: Annotated[str | None, typer.Option("--dedup-id", help="Requests of one id are one job.")] = None,
    dedup_window: Annotated[str | None, typer.Option("--dedup-window", help="For so long; needs --dedup-id.")] = None,
    attempts: AttemptsOption = None,
    timeout: TimeoutOption = None,
    expires: Annotated[str | None, typer.Option("--expires", help="Not started within this time, never.")] = None,
    workflow_id: Annotated[str | None, typer.Option("--workflow", help="Id of the workflow it belongs to.")] = None,
    tag: TagsOption = None,
    wait: Annotated[str | None, typer.Option("--wait", help="Wait so long for its result, and print it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for a job: checked against its type here, and acknowledged by the brokers when this ends.

    With --wait exit code 1: one of them ended without a result, or not in time; the others are told all the same.

    Example: pipeline jobs enqueue support:app classify_ticket '{"id": "7", "text": "It is broken"}' --key ticket-7
    """
    options = given_options(
        delay=delay, run_at=_moment(run_at), key=key, priority=priority, tenant=tenant, dedup_id=dedup_id,
        dedup_window=dedup_window, attempts=attempts, timeout=timeout, expires=expires, workflow_id=workflow_id,
        tags=tuple(tag or ()),
    )  # fmt: skip
    inputs = (
        [input_of(text, f"input in line {n}") for n, text in enumerate(sys.stdin, 1) if text.strip()]
        if lines
        else [input_of(given)]
    )
    if wait is not None:
        parse_duration_ms(wait, "--wait")  # before anything is asked for
    quiet_clients()
    app = load_app(target)
    found = asyncio.run(_enqueued(app, job, inputs, options, wait))
    if as_json:
        emit_json(found)
    else:
        for each in found:
            _tell(each)
    raise typer.Exit(1 if any("error" in each for each in found) else 0)


def _tell(each: dict[str, Any]) -> None:
    """One that has no result is told on standard error, as the failure of a command is."""
    if "error" in each:
        error(each["error"])
    elif "result" not in each:
        line(clean(each["id"]))
    else:
        line(f"{clean(each['id'])} {clean(json.dumps(each['result'], ensure_ascii=False))}")
        if each["warning"]:
            note(f"Job {clean(each['id'])} completed with a warning: {clean(each['warning'])}")


def _moment(text: str | None) -> int | None:
    """Milliseconds since the epoch of an ISO 8601 time; without a zone it is UTC."""
    if text is None:
        return None
    from datetime import datetime

    from pipeline.model.instants import epoch_ms_of

    try:
        return epoch_ms_of(datetime.fromisoformat(text.strip()))
    except ValueError:
        raise ConfigurationError(
            f"--run-at {text!r:.80} is not a time: write it as ISO 8601, such as 2026-11-22T17:00:00Z"
        ) from None


async def _enqueued(
    app: Pipeline, job: str, inputs: list[Any], options: dict[str, Any], wait: str | None
) -> list[dict[str, Any]]:
    try:
        handles = await app.enqueue_many(job, inputs, **options)
        if wait is None:
            return [{"id": handle.id} for handle in handles]
        return list(await asyncio.gather(*(_ending(handle, wait) for handle in handles)))
    finally:
        app.jobs.close()


async def _ending(handle: JobHandle, wait: str) -> dict[str, Any]:
    """Its state with its result, or with the sentence that says why it has none."""
    try:
        value = jsonable(await handle.result(wait))
    except JobUnsuccessful as problem:
        return {"id": handle.id, "state": problem.state, "error": str(problem)}
    except (ResultTimeout, JobMissing, BlobError, UndecodableError) as problem:
        return {"id": handle.id, "state": None, "error": str(problem)}
    async for status in handle.updates():
        if status.ended:  # at hand, since there is a result
            break
    return {"id": handle.id, "state": status.state.value, "result": value, "warning": _masked(status.warning)}


def _masked(text: str | None) -> str | None:
    from pipeline.model.secret_shapes import mask_secrets

    return mask_secrets(text) if text else None


def jsonable(value: Any) -> Any:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


def result(
    job_id: Annotated[str, typer.Argument(help="Id of the job.", metavar="ID")],
    queue: QueueOption = "default",
    timeout: Annotated[str, typer.Option("--timeout", help="Wait so long for its ending.")] = "0s",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the result of a job as JSON. Exit code 1: it ended without one, has not ended in time, or is not there.

    Example: pipeline jobs result 0192f3a1-5d7c-7e2b-8c44-0a1b2c3d4e5f --timeout 1m
    """
    from pipeline.cli.jobs_showing import plain
    from pipeline.jobs.endings import result_of

    until_s = time.monotonic() + parse_duration_ms(timeout, "--timeout") / 1000
    with open_queue(queue, broker) as opened:
        while True:
            record = _followed(opened.reader, job_id)
            if record is not None and _ended(record):
                break
            if time.monotonic() >= until_s:
                if record is None:
                    raise opened.missing(job_id)
                raise ResultTimeout(f"job {job_id} is {record.state.value}: it had no ending within {timeout}")
            time.sleep(LOOK_S)
            opened.reader.refresh()
        encoded = result_of(record, opened.app.blobs)
    value = None if encoded is None else plain(encoded)
    emit_json({"id": record.request.id, "state": record.state.value, "result": value} if as_json else value)


def _followed(reader: QueueReader, job_id: str) -> JobRecord | None:
    """The job, or the one that it is the same as."""
    from pipeline.model.jobs import JobDuplicate

    record = reader.record(job_id)
    if isinstance(record, JobDuplicate):
        record = reader.record(record.of)
    return None if isinstance(record, JobDuplicate) else record


def _ended(record: JobRecord) -> bool:
    from pipeline.model.job_states import TERMINAL

    return record.state in TERMINAL


def register(app: typer.Typer) -> None:
    app.command()(enqueue)
    app.command()(result)
