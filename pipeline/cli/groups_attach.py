"""`pipeline groups attach`: a new group over past runs, with progress until it is live (also `groups lag --until-live`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import (
    BrokerOption,
    GroupArgument,
    JsonOption,
    ReasonOption,
    WhoOption,
    audit_topic,
    known_topic,
    now_ms,
    open_admin,
    open_cluster,
    real,
    required_reason,
    whoami,
)
from pipeline.cli.bars import gauge, span
from pipeline.cli.groups_reset import SourceOption, offsets_at
from pipeline.cli.output import Column, clean, emit_json, line, note, table
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.core.progress import Progress
    from pipeline.model.cluster import Cluster, ClusterAdmin, TopicPartition
    from pipeline.replay.catching_up import Way
    from pipeline.replay.claiming import GroupAt

_From = Annotated[str | None, typer.Option("--from", help="earliest (when nothing else is said) or latest.")]
_FromTime = Annotated[
    str | None,
    typer.Option("--from-time", help="The first record from then on; UTC without a zone.", metavar="ISO"),
]
_Last = Annotated[str | None, typer.Option("--last", help="From so long ago, for example 7d.", metavar="AGE")]
_FromOffset = Annotated[
    list[str] | None,
    typer.Option("--from-offset", help="P:O for one partition, O for all; repeatable.", metavar="[P:]O"),
]
_Watch = Annotated[bool, typer.Option("--watch", help="Show progress until the group is live.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the start positions only.")]
TimeoutOption = Annotated[
    str | None, typer.Option("--timeout", help="Give up after so long, with exit code 1.", metavar="AGE")
]


def attach(
    group: GroupArgument,
    topic: SourceOption,
    start: _From = None,
    from_time: _FromTime = None,
    last: _Last = None,
    from_offset: _FromOffset = None,
    watch: _Watch = False,
    timeout: TimeoutOption = None,
    dry_run: _DryRun = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a new group its start in the past: its workers process what was before, then go on with what comes, by themselves.

    Refuses a group that has committed on the topic already (`pipeline groups reset` moves one).

    \b
    Example: pipeline groups attach audit --topic agent.run.events \\
      --last 7d --watch
    """
    given = {"--from": start, "--from-time": from_time, "--last": last}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigurationError(f"say with one option where to start, not {' and '.join(chosen)}")
    if start not in (None, "earliest", "latest"):
        raise ConfigurationError(
            f"--from {start!r:.40} must be earliest or latest; see --from-time, --last, --from-offset"
        )
    if not dry_run:
        reason = required_reason(reason)
    with open_cluster(broker) as cluster, open_admin(cluster) as admin:
        at, starts = _plan(cluster, admin, real(group), known_topic(admin, topic), (given, from_offset or []))
        if not dry_run:
            said = [f"{name} {value}" for name, value in given.items() if value is not None]
            words = " ".join([*said, *(f"--from-offset {each}" for each in from_offset or ())])
            _commit(cluster, admin, at, starts, who, (reason, words))
        if not (watch and as_json):
            _report(at, starts, not dry_run, as_json)
        if watch and not dry_run:
            watch_until_live(cluster, at.group, at.topic, timeout, as_json)


def _plan(
    cluster: Cluster,
    admin: ClusterAdmin,
    group: str,
    topic: str,
    asked: tuple[Mapping[str, str | None], list[str]],
) -> tuple[GroupAt, Mapping[TopicPartition, Progress]]:
    from pipeline.replay.attach import refuse_known, start_positions
    from pipeline.replay.claiming import look, refuse_live
    from pipeline.replay.moments import parse_age_ms, parse_moment_ms
    from pipeline.replay.reset import parse_offsets

    given, offsets = asked
    at = look(cluster, admin, group, topic)
    refuse_known(at)
    refuse_live(admin, group)
    all_from, named = parse_offsets(offsets, "--from-offset")
    if all_from is not None:
        named = dict.fromkeys(at.partitions, all_from) | named
    if given["--from-time"] is not None:
        moment = parse_moment_ms(given["--from-time"], "--from-time", now_ms())
        return at, start_positions(at, offsets_at(cluster, at, moment), named)
    if given["--last"] is not None:
        moment = now_ms() - parse_age_ms(given["--last"], "--last")
        return at, start_positions(at, offsets_at(cluster, at, moment), named)
    end = given["--from"] or (None if offsets else "earliest")
    return at, start_positions(at, "latest" if end == "latest" else "earliest" if end else None, named)


def _commit(
    cluster: Cluster,
    admin: ClusterAdmin,
    at: GroupAt,
    starts: Mapping[TopicPartition, Progress],
    who: str | None,
    told: tuple[str, str],
) -> None:
    """`told`: why, and the options that say where."""
    from pipeline.replay.audit import AuditEntry, write_audit
    from pipeline.replay.claiming import claim, commit

    claims = claim(cluster, at, starts)
    counts = {"partitions": len(starts), "past": _past(at, starts)}
    target = f"{at.group} on {at.topic}: " + ", ".join(f"{tp.partition}:{p.offset}" for tp, p in starts.items())
    command = f"pipeline groups attach {at.group} --topic {at.topic} {told[1]}".rstrip()
    entry = AuditEntry(now_ms(), who or whoami(), told[0], "attach", target=target, counts=counts, command=command)
    write_audit(cluster, audit_topic(), entry)
    commit(cluster, admin, at, claims)


def _past(at: GroupAt, starts: Mapping[TopicPartition, Progress]) -> int:
    return sum(at.ends[place] - progress.offset for place, progress in starts.items())


def _report(at: GroupAt, starts: Mapping[TopicPartition, Progress], done: bool, as_json: bool) -> None:
    rows = [
        (tp.partition, progress.offset, at.ends[tp], at.ends[tp] - progress.offset) for tp, progress in starts.items()
    ]
    if as_json:
        names = ("partition", "start", "end", "past")
        emit_json(
            {
                "group": at.group,
                "topic": at.topic,
                "attached": done,
                "past": _past(at, starts),
                "rows": [dict(zip(names, row, strict=True)) for row in rows],
            }
        )
        return
    table([Column(name, right=True) for name in ("partition", "start", "end", "past records")], rows)
    verb = "starts" if done else "dry run: would start"
    line(f"{clean(at.group)} {verb} with {_past(at, starts)} past records of {clean(at.topic)}.", "bold")
    if at.ours is None:
        note(f"{clean(at.group)} has no lanes on this topic yet: run `pipeline topics apply` before its workers start.")


def watch_until_live(cluster: Cluster, group: str, topic: str, timeout: str | None, as_json: bool) -> None:
    """A bar on a terminal, a line now and then elsewhere; "live" at the end. Exit code 1 when the time is over first.

    Ctrl-C stops the watching only: the workers go on.
    """
    from pipeline.replay.attach import Watch

    limit_s = None if timeout is None else parse_duration_ms(timeout, "--timeout") / 1000
    way: Way | None = None
    try:
        with Watch(cluster, group, topic) as watch, gauge(group) as show:
            for way in watch.until_live(limit_s):
                show(way.done, way.total, partial(_words, way))
    except KeyboardInterrupt:
        note(f"The workers go on; `pipeline groups lag {clean(group)} --until-live` shows the progress again.")
        raise
    live = way is not None and way.live
    if as_json:
        emit_json({"group": group, "topic": topic, "live": live, **(asdict(way) if way else {})})
    else:
        line("live" if live else f"not live after {timeout}: {_words(way) if way else 'nothing is known'}")
    if not live:
        raise typer.Exit(1)


def _words(way: Way) -> str:
    if not way.members:
        return f"{way.lag} behind, and no worker has joined the group yet"
    left = "" if way.left_s is None else f", {span(way.left_s)} left"
    return f"{way.done} of {way.total} past records, {way.lag} behind, {way.rate:.0f}/s, {way.incoming:.1f}/s come in{left}"
