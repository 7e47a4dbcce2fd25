"""How `pipeline jobs` shows jobs: nothing in a record can steer the terminal, and nothing private is shown that was not asked for."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.cli.output import Column, clean, line, table
from pipeline.cli.why import clock, until
from pipeline.model.secret_shapes import mask_secrets

if TYPE_CHECKING:
    from pipeline.jobs.events import JobEvent
    from pipeline.jobs.explaining import JobExplanation
    from pipeline.jobs.finding import JobPage
    from pipeline.jobs.rows import JobRow
    from pipeline.model.jobs import JobDuplicate, JobRecord

ERROR_CHARACTERS = 80


def job_json(row: JobRow) -> dict[str, Any]:
    """As the index has it; times that are none are null."""
    found = asdict(row)
    for name in ("due_ms", "ready_ms", "next_ms", "started_ms", "finished_ms", "expires_ms"):
        found[name] = found[name] or None
    found["tags"] = list(row.tag_list)
    del found["applied"], found["number"]
    return found


def print_page(page: JobPage, total: int, now: int) -> None:
    columns: list[Column | str] = [
        "id", "asked for", "state", "type", "tenant", Column("attempt", right=True), "next, or ended", "error"
    ]  # fmt: skip
    table(columns, [_row(row, now) for row in page.jobs], "no jobs")
    if page.cursor:
        line(f"{len(page.jobs)} of {total:,} shown; the next: --after {clean(page.cursor)}", "dim")


def _row(row: JobRow, now: int) -> tuple[object, ...]:
    error = ": ".join(part for part in (row.error_type, row.message) if part) or row.reason or row.warning or ""
    if row.of:
        error = f"same as {row.of}"
    if len(error) > ERROR_CHARACTERS:
        error = error[: ERROR_CHARACTERS - 1] + "…"
    at_ms = row.finished_ms or row.next_ms
    when = until(at_ms, now) if at_ms else ""
    return row.id, until(row.created_ms, now), row.state, row.type, row.tenant, row.attempt, when, error


def letter_note(row: JobRow, queue: str) -> str | None:
    """Of a job that is retried: a dead letter of it is another record, which a retry does not touch."""
    if row.state != "dead_letter":
        return None
    found = shlex.join(["pipeline", "dlq", "list", "--group", queue, "--key", row.key or row.dedup_id or row.id])
    return (
        f"Its dead letter stays as it is: `{found}` shows it, cancel or purge it there. Another time `pipeline dlq redrive` in place of "
        "a retry does both."
    )


# -- one job


def record_json(record: JobRecord | JobDuplicate, reveal: bool) -> dict[str, Any]:
    """`reveal`: with input and result."""
    from pipeline.model.jobs import JobDuplicate

    if isinstance(record, JobDuplicate):
        return {"id": record.id, "state": "duplicate", "type": record.type, "of": record.of, "at_ms": record.at_ms}
    request, outcome = record.request, record.outcome
    return {
        "id": request.id,
        "state": record.state.value,
        "type": request.type,
        "queue_number": record.number,
        "version": record.version,
        "attempt": record.attempt,
        "attempts": request.attempts or None,
        "stalls": record.stalls,
        "rounds": record.rounds,
        "key": request.key,
        "dedup_id": request.dedup_id,
        "tenant": request.tenant,
        "workflow_id": request.workflow_id,
        "schedule": request.schedule,
        "priority": request.priority,
        "tags": list(request.tags),
        "traceparent": request.traceparent,
        "created_ms": request.created_ms,
        "due_ms": request.due_ms or None,
        "expires_ms": request.expires_ms or None,
        "timeout_ms": request.timeout_ms or None,
        "ready_ms": record.ready_ms or None,
        "next_ms": record.next_ms or None,
        "started_ms": record.started_ms or None,
        "finished_ms": record.finished_ms or None,
        "cancelling": record.cancelling,
        "progress": None if outcome.progress is None else asdict(outcome.progress),
        "warning": _masked(outcome.warning),
        "reason": _masked(outcome.reason),
        "error": _error_json(record),
        "history": [_attempt_json(each) for each in _history(record)],
        "input_bytes": len(request.payload),
        "input_ref": request.payload_ref,
        "input": plain(request.payload) if reveal else None,
        "result_bytes": None if outcome.result is None else len(outcome.result),
        "result_ref": outcome.result_ref,
        "result": plain(outcome.result) if reveal and outcome.result is not None else None,
    }


def plain(encoded: bytes) -> Any:
    """JSON as a value; what is none as text."""
    try:
        return json.loads(encoded)
    except ValueError:
        return encoded.decode("utf-8", "replace")


def _masked(text: str | None) -> str | None:
    return None if text is None else mask_secrets(text)


def _error_json(record: JobRecord) -> dict[str, Any] | None:
    error = record.outcome.error
    if error is None:
        return None
    return {
        "kind": error.kind.value,
        "error_class": error.error_class,
        "error_type": error.error_type,
        "message": mask_secrets(error.message),
        "stack": mask_secrets(error.stack) or None,
        "log": mask_secrets(error.log) or None,
    }


def _history(record: JobRecord) -> list[Any]:
    from pipeline.model.history import parse

    return list(parse(record.outcome.history).attempts)


def _attempt_json(attempt: Any) -> dict[str, Any]:
    found = asdict(attempt)
    return {name: mask_secrets(value) if isinstance(value, str) else value for name, value in found.items()}


def print_details(record: JobRecord | JobDuplicate, reveal: bool, now: int) -> None:
    found = record_json(record, reveal)
    state = found["state"]
    line(f"Job {clean(found['id'])}: {clean(state)}, type {clean(found['type'])}", "bold")
    if state == "duplicate":
        line(f"  it is the same as job {clean(found['of'])}, which came first")
        return
    for name, text in _facts(found, now):
        line(f"  {name:<12} {text}")
    if found["error"] is not None:
        error = found["error"]
        kind = f"{clean(error['kind'])}, {clean(error['error_class'])}"
        line(f"  last error   {clean(error['error_type'])}: {clean(error['message'])} ({kind})", "red")
        for title in ("stack", "log"):
            for text in (error[title] or "").splitlines():
                line(f"    {clean(text)}", "dim")
    if len(found["history"]) > 1:
        line(f"  {len(found['history'])} attempts that failed:")
        for each in found["history"]:
            words = ", ".join(f"{name} {clean(value)}" for name, value in each.items() if value not in (None, "", 0))
            line(f"    {words}", "dim")
    for what in ("input", "result"):
        size = found[f"{what}_bytes"]
        if reveal and size:
            line(f"  {what:<12} {clean(json.dumps(found[what], ensure_ascii=False))}")
        elif size:
            line(f"  {what:<12} {size} bytes: --reveal shows it")


def _facts(found: dict[str, Any], now: int) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for name, field in (
        ("asked for", "created_ms"), ("for", "due_ms"), ("came due", "ready_ms"), ("next", "next_ms"), ("started", "started_ms"),
        ("ended", "finished_ms"), ("expires", "expires_ms"),
    ):  # fmt: skip
        if found[field]:
            facts.append((name, f"{clock(found[field])} ({until(found[field], now)})"))
    of = f" of {found['attempts']}" if found["attempts"] else ""
    facts.append(("attempt", f"{found['attempt']}{of}, stalled {found['stalls']} times"))
    if found["rounds"]:
        facts.append(("rounds", f"{found['rounds']} more, by a retry or a redrive"))
    if found["progress"]:
        done, total = found["progress"]["processed"], found["progress"]["total"]
        facts.append(("progress", f"{done} of {total} ({100 * done // total}%)" if total else str(done)))
    for name in (
        "key",
        "tenant",
        "dedup_id",
        "workflow_id",
        "schedule",
        "priority",
        "reason",
        "warning",
        "traceparent",
    ):
        if found[name]:
            facts.append((name.replace("_", " "), clean(found[name])))
    if found["tags"]:
        facts.append(("tags", clean(", ".join(found["tags"]))))
    return facts


# -- why


def explanation_lines(found: JobExplanation, now: int) -> list[str]:
    """The answer, headline first."""
    row = found.job
    if row is None:
        health = found.health
        lines = [f"Job {clean(found.job_id)} is not in the store."]
        if health is not None and health.inbox:
            lines.append(f"{health.inbox} requests wait in the inbox or are on their way: it may be one of them")
        if health is not None and not health.healthy:
            lines.append(clean(health.why))
        return [*lines, "else it is forgotten, or was never asked for here: check the id and --queue"]
    lines = [f"Job {clean(row.id)} ({clean(row.type)}): {_headline(found, row, now)}"]
    if found.behind is not None:
        other = found.behind
        lines.append(
            f"it waits for job {clean(other.id)} of the same key {clean(row.key)}, which is {clean(other.state)}"
        )
    elif row.state == "queued":
        lines.append(
            f"in lane {_lane(row.priority)}: {found.ahead} due jobs of its partition are more urgent, or as urgent and older; "
            f"{found.active} of its type run"
        )
    if row.message and row.state != "completed":
        lines.append(
            f"last error, of attempt {row.attempt}: {clean(row.error_type or row.error_class or '')}: {clean(row.message)}"
        )
    if row.stalls:
        lines.append(f"{row.stalls} executions of it ended with their worker")
    if not found.ended and not row.of:
        lines.append(_who(found, row))
    return lines


def _lane(priority: int) -> str:
    from pipeline.jobs.explaining import lane_name

    return lane_name(priority)


def _headline(found: JobExplanation, row: JobRow, now: int) -> str:
    if row.of:
        first = f", which is {clean(found.first.state)}" if found.first is not None else ", which is forgotten"
        return f"the same as job {clean(row.of)}{first}"
    if row.state in ("scheduled", "retrying"):
        what = "waits for its time" if row.state == "scheduled" else f"attempt {row.attempt} failed, the next one"
        return f"{what}: {clock(row.next_ms)} ({until(row.next_ms, now)})"
    if row.state == "queued":
        return f"due since {until(row.ready_ms, now)}, and not started"
    if row.state == "running":
        more = ", and is being cancelled" if row.cancelling else ""
        return f"runs, attempt {row.attempt}, since {until(row.started_ms, now)}{more}"
    why = f": {clean(row.reason)}" if row.reason else ""
    return f"{clean(row.state)} {until(row.finished_ms, now)}{why}"


def _who(found: JobExplanation, row: JobRow) -> str:
    if found.paused:
        return f"the queue is paused by {clean(found.paused)}"
    if found.owner is None:
        return f"no worker has partition {row.partition} now: start one with `pipeline run`"
    owner = found.owner
    return f"worker {clean(owner.client_id)} ({clean(owner.host)}) has partition {row.partition}"


def explanation_json(found: JobExplanation) -> dict[str, Any]:
    owner, health = found.owner, found.health
    return {
        "id": found.job_id,
        "found": found.job is not None,
        "job": None if found.job is None else job_json(found.job),
        "first": None if found.first is None else job_json(found.first),
        "behind": None if found.behind is None else job_json(found.behind),
        "ahead": found.ahead,
        "active": found.active,
        "owner": None
        if owner is None
        else {"member_id": owner.member_id, "client_id": owner.client_id, "host": owner.host},
        "paused": found.paused,
        "queue": None if health is None else asdict(health),
    }


# -- events


def event_json(event: JobEvent) -> dict[str, Any]:
    record = event.record
    return {
        "event": event.kind,
        "time_ms": event.time_ms,
        "partition": event.at[0],
        "offset": event.at[1],
        "id": event.job_id,
        "type": event.type,
        "state": record.state.value,
        "tenant": record.request.tenant,
        "key": record.request.key,
        "attempt": record.attempt,
        "stalls": record.stalls,
        "next_ms": record.next_ms or None,
        "progress": None if event.progress is None else asdict(event.progress),
        "error": mask_secrets(event.error) or None,
        "reason": _masked(record.outcome.reason),
        "warning": _masked(record.outcome.warning),
    }


def print_event(event: JobEvent) -> None:
    record = event.record
    more = ""
    if event.kind == "progress" and event.progress is not None:
        total = f" of {event.progress.total}" if event.progress.total else ""
        more = f" {event.progress.processed}{total}"
    elif event.kind in ("failed", "retrying"):
        more = f" attempt {record.attempt}: {clean(mask_secrets(event.error))}"
        if event.kind == "retrying":
            more += f"; again {clock(record.next_ms)}"
    elif event.kind == "stalled":
        more = f" {record.stalls} times"
    elif event.kind == "completed":
        took_ms = max(0, record.finished_ms - record.started_ms)
        warning = f", with a warning: {clean(mask_secrets(record.outcome.warning))}" if record.outcome.warning else ""
        more = f" in {took_ms / 1000:.3f} s{warning}"
    elif record.outcome.reason:
        more = f": {clean(mask_secrets(record.outcome.reason))}"
    style = {"completed": "green", "failed": "red", "stalled": "yellow", "retrying": "yellow"}.get(event.kind, "")
    line(f"{clock(event.time_ms)} {event.kind:<9} {clean(event.type)} {clean(event.job_id)}{more}", style)
