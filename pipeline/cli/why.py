"""`pipeline why`: where a key or an event is, its state, what blocks it and which worker owns it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import (
    BrokerOption,
    DeadLettersOption,
    JsonOption,
    control_topic,
    known_topic,
    now_ms,
    open_admin,
    open_cluster,
    prefix,
    real,
)
from pipeline.cli.output import clean, emit_json, line, note, text_of
from pipeline.model.durations import format_duration
from pipeline.model.errors import ConfigurationError, PipelineError
from pipeline.model.history import attempts
from pipeline.model.keys import key_text

if TYPE_CHECKING:
    from pipeline.inspect.explain import Explanation
    from pipeline.model.cluster import Cluster

app = typer.Typer(rich_markup_mode=None, add_completion=False)

DONE_SHOWN = 1
LAST_MS = 253_402_300_799_999
"""Of the year 9999, where Python's calendar ends; a job may be asked for later."""


def clock(ms: int) -> str:
    """A moment in words: UTC, to the second."""
    if ms > LAST_MS:
        return "after the year 9999"
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def until(ms: int, now: int) -> str:
    """How far a moment is from now: "in 25s", "12s ago"; to the second."""
    away = round(abs(ms - now) / 1000) * 1000
    text = format_duration(away) if away else "0s"
    return f"in {text}" if ms >= now else f"{text} ago"


def sentences(found: Explanation, now: int) -> list[str]:
    """The answer for one record, headline first."""
    place = f"{clean(found.topic)} partition {found.partition} offset {found.origin_offset}"
    event = f", event {clean(found.event_id)}" if found.event_id else ""
    lines = [f"{place} (key {text_of(found.key)}{event}), group {clean(found.group)}: {_headline(found, now)}"]
    if found.blocked_by:
        block = found.blocked_by
        due = f", due {until(block.due_ms, now)}" if block.due_ms else ""
        tail = f": {clean(block.error)}" if block.error else ""
        lines.append(
            f"  it waits for offset {block.origin_offset} of the same key, in {clean(block.lane)}{due}, attempt {block.attempt}{tail}"
        )
    if found.attempt:
        since = f", first failed {until(found.first_failed_ms, now)}" if found.first_failed_ms else ""
        lines.append(
            f"  {attempts(found.attempt)} so far{since}"
            + (f"; last error: {clean(found.error)}" if found.error else "")
        )
    elif found.error and found.state == "dead letter":
        lines.append(f"  error: {clean(found.error)}")
    if found.state in ("queued", "parked", "blocked", "due", "held", "releasing"):
        lines.append(f"  {_who(found)}")
    if found.owners_died:
        lines.append(
            f"  the last {found.owners_died} owners of partition {found.partition} died: what they were running runs alone, one by one"
        )
    return lines


def _headline(found: Explanation, now: int) -> str:
    copy = f"in {clean(found.lane)} at offset {found.lane_offset}"
    if found.state == "done":
        return f"done, {clean(found.since)}" if found.since else "done"
    if found.state == "queued":
        return "queued or running: the group has not finished it yet"
    if found.state == "dead letter":
        return f"dead letter, {copy}" + (f", {clean(found.since)}" if found.since else "")
    if found.state == "parked":
        return f"parked {copy}, due {clock(found.due_ms)} ({until(found.due_ms, now)})"
    if found.state == "held":
        return f"its key is held behind it: later records follow it into the dead letters until `pipeline dlq redrive` or `release`, {copy}"
    if found.state == "releasing":
        return f"its key is being released ({copy}): where no command does that now, `pipeline dlq release` finishes it"
    if found.state == "blocked":
        return f"waiting behind an earlier record, {copy}"
    return f"due since {clock(found.due_ms)}, {copy}" if found.due_ms else f"due, {copy}"


def _who(found: Explanation) -> str:
    if found.paused:
        return f"the group is paused by {clean(found.paused)}"
    if found.owner is None:
        return "no worker of the group has this partition now"
    return f"worker {clean(found.owner.client_id)} ({clean(found.owner.member_id)}, {clean(found.owner.host)}) has the partition"


def as_object(found: Explanation) -> dict[str, Any]:
    """One explanation for `--json`."""
    block = found.blocked_by
    return {
        "state": found.state,
        "group": found.group,
        "topic": found.topic,
        "partition": found.partition,
        "origin_offset": found.origin_offset,
        "key": key_text(found.key),
        "event_id": found.event_id,
        "replay_id": found.replay_id or None,
        "lane": found.lane or None,
        "lane_offset": found.lane_offset if found.lane else None,
        "due_ms": found.due_ms or None,
        "attempt": found.attempt,
        "hops": found.hops,
        "error": found.error or None,
        "first_failed_ms": found.first_failed_ms or None,
        "blocked_by": None
        if block is None
        else {
            "origin_offset": block.origin_offset,
            "lane": block.lane,
            "due_ms": block.due_ms or None,
            "attempt": block.attempt,
            "error": block.error or None,
        },
        "owner": None
        if found.owner is None
        else {"member_id": found.owner.member_id, "client_id": found.owner.client_id, "host": found.owner.host},
        "paused": found.paused,
        "owners_died": found.owners_died,
        "since": found.since or None,
    }


@app.command()
def why(
    what: Annotated[str, typer.Argument(help="A record key (run id) or an event id.", metavar="KEY|EVENT-ID")],
    group: Annotated[str | None, typer.Option("--group", help="Only this group; all groups when not given.")] = None,
    scan: Annotated[
        int, typer.Option("--scan", min=1, help="Newest records of the source and dead letters to look through.")
    ] = 200_000,
    dead_letters: DeadLettersOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a key or an event is, in which state, what it waits for and which worker owns it.

    Finished records of a key are counted, not listed. Exit code 1: found nowhere within --scan.

    Example: pipeline why run-7 --group billing
    """
    from pipeline.inspect.collect import Collector, Reach, find_layouts, look_up

    if dead_letters is not None and group is None:
        raise ConfigurationError("--dead-letters is the topic of one group: say which one with --group")
    found: list[Explanation] = []
    with open_cluster(broker) as cluster:
        with open_admin(cluster) as admin:
            named = dead_letters and known_topic(admin, dead_letters)
            entries = find_layouts(admin, None if group is None else real(group), named)
            names = set(admin.topic_names())
        blind = [entry.without_dead_letters() for entry in entries if entry.topics.dead_letters not in names]
        for entry in entries:
            collector = Collector(cluster, entry, control_topic())
            try:
                found += look_up(collector, what, Reach(records=scan))
            except PipelineError as error:
                if group is not None or not entry.missing(collector.admin.topic_names()):
                    raise
                blind.append(f"group {entry.group} was not looked at, a topic of it is gone: {error}")
            finally:
                collector.close()
        found = _with_results(cluster, found, blind)
    if as_json:
        objects = [as_object(e) for e in found]
        emit_json({"what": what, "found": objects, "scanned_records_max": scan, "warnings": blind})
    else:
        _print(found, what, scan)
        for text in blind:
            note(f"warning: {clean(text)}")
    raise typer.Exit(0 if found else 1)


def _with_results(cluster: Cluster, found: list[Explanation], blind: list[str]) -> list[Explanation]:
    if all(each.state != "dead letter" for each in found):
        return found
    from pipeline.dead_letters.since import since

    try:
        return since(cluster, prefix(), found)
    except PipelineError as error:
        blind.append(f"what was done about dead letters was not looked at: {error}")
        return found


def _print(found: Sequence[Explanation], what: str, scan: int) -> None:
    if not found:
        line(
            f"{clean(what)} is in no lane and not among the newest {scan} records of any group's source; --scan looks further.",
            "yellow",
        )
    now = now_ms()
    groups = dict.fromkeys((e.group, e.topic) for e in found)
    for group, topic in groups:
        mine = [e for e in found if (e.group, e.topic) == (group, topic)]
        done = [e for e in mine if e.state == "done"]
        if len(done) > DONE_SHOWN:
            line(f"{len(done) - DONE_SHOWN} earlier records of it are done in group {clean(group)}")
        for explanation in (*done[-DONE_SHOWN:], *(e for e in mine if e.state != "done")):
            head, *rest = sentences(explanation, now)
            line(head, "green" if explanation.state == "done" else "bold")
            for text in rest:
                line(text)
