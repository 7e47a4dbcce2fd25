"""`pipeline groups reset`: move a group that is stopped; every mode of Kafka's own tool, a dry run unless told to execute."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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
from pipeline.cli.bars import bar
from pipeline.cli.output import Column, clean, emit_json, line, note, table
from pipeline.cli.stopping import stoppable, telling_when_interrupted
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.model.cluster import Cluster, ClusterAdmin, Position, TopicPartition
    from pipeline.replay.claiming import GroupAt
    from pipeline.replay.reset import Mode, Move

    Claims = Mapping[int, Mapping[TopicPartition, Position]]

SourceOption = Annotated[str, typer.Option("--topic", help="The group's source topic.", metavar="TOPIC")]
PartitionsOption = Annotated[
    list[int] | None, typer.Option("--partition", min=0, help="Only this partition; repeatable.", metavar="P")
]
_Earliest = Annotated[bool, typer.Option("--to-earliest", help="To the first record that is kept.")]
_Latest = Annotated[bool, typer.Option("--to-latest", help="To the end: what is there is skipped.")]
_Current = Annotated[bool, typer.Option("--to-current", help="Where it stands: with --export, a copy.")]
_Offset = Annotated[
    list[str] | None,
    typer.Option("--to-offset", help="O everywhere, P:O for one partition; repeatable.", metavar="[P:]O"),
]
_Datetime = Annotated[
    str | None,
    typer.Option("--to-datetime", help="To the first record from then on; UTC without a zone.", metavar="ISO"),
]
_Age = Annotated[str | None, typer.Option("--by-duration", help="To so long ago: 2h, or PT2H.", metavar="AGE")]
_Shift = Annotated[int | None, typer.Option("--shift-by", help="So many offsets on, or back (-N).", metavar="N")]
_File = Annotated[
    Path | None, typer.Option("--from-file", help="To what --export, or Kafka's own tool, wrote.", metavar="FILE")
]
_Lanes = Annotated[
    str, typer.Option("--lanes", help="What waits in the lanes: keep, or to-latest to drop it.", metavar="WHAT")
]
_Export = Annotated[
    Path | None, typer.Option("--export", help="Write the new positions as CSV; - for standard output.", metavar="FILE")
]
_STORING = (
    "the positions are being stored, which takes a moment (Ctrl-C again leaves at once, with some of them stored)"
)
_COLUMNS = ("current", "new", "again", "skipped", "note")
_Execute = Annotated[bool, typer.Option("--execute", help="Do it: without this it is a dry run.")]


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options that say where to; one of them is set."""

    to_earliest: bool
    to_latest: bool
    to_current: bool
    to_offset: tuple[str, ...]
    to_datetime: str | None
    by_duration: str | None
    shift_by: int | None
    from_file: Path | None

    @property
    def said(self) -> str:
        """The one that is set, as it was written. Raises `ConfigurationError` for none or several."""
        names = {"--" + name.replace("_", "-"): value for name, value in asdict(self).items()}
        chosen = [name for name, value in names.items() if value is not None and value is not False and value != ()]
        if len(chosen) != 1:
            said = f"not {' and '.join(chosen)}" if chosen else "none is given"
            raise ConfigurationError(f"say with one option where to, {said}: {', '.join(names)}")
        value = names[chosen[0]]
        if value is True:
            return chosen[0]
        return " ".join(f"{chosen[0]} {each}" for each in (value if isinstance(value, tuple) else (value,)))


def reset(
    group: GroupArgument,
    topic: SourceOption,
    to_earliest: _Earliest = False,
    to_latest: _Latest = False,
    to_current: _Current = False,
    to_offset: _Offset = None,
    to_datetime: _Datetime = None,
    by_duration: _Age = None,
    shift_by: _Shift = None,
    from_file: _File = None,
    partitions: PartitionsOption = None,
    lanes: _Lanes = "keep",
    export: _Export = None,
    execute: _Execute = False,
    reason: ReasonOption = "",
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a stopped group on its source topic. A dry run unless --execute is given: what would run again, what be skipped.

    Records that wait in the group's lanes stay there and run when they are due, unless --lanes to-latest drops them.
    Refuses a group with members, and says who they are.

    \b
    Example: pipeline groups reset billing --topic agent.run.events \\
      --by-duration 2h
    """
    asked = _Asked(
        to_earliest, to_latest, to_current, tuple(to_offset or ()), to_datetime, by_duration, shift_by, from_file
    )
    said = asked.said  # refuses none and several before anything is asked of the brokers
    if lanes not in ("keep", "to-latest"):
        raise ConfigurationError(f"--lanes {lanes!r:.40} must be keep or to-latest")
    drop = lanes == "to-latest"
    if execute:
        reason = required_reason(reason)
    with open_cluster(broker) as cluster, open_admin(cluster) as admin:
        with telling_when_interrupted("Interrupted: the group was not changed; run the command again."):
            at, moves = _plan(cluster, admin, real(group), known_topic(admin, topic), partitions or (), asked)
            if export is not None:
                _write_csv(export, moves)
            claims = _claim(cluster, at, moves, drop, as_json) if execute and moves else None
        if claims is not None:
            _execute((cluster, admin), at, moves, claims, drop, (who, reason, f"{said} --lanes {lanes}"))
    if export is None or str(export) != "-":
        _report(at, moves, execute, drop, as_json)


def _plan(
    cluster: Cluster, admin: ClusterAdmin, group: str, topic: str, partitions: Collection[int], asked: _Asked
) -> tuple[GroupAt, list[Move]]:
    from pipeline.replay.claiming import look, refuse_live
    from pipeline.replay.reset import plan_moves

    at = look(cluster, admin, group, topic, partitions)
    if not any(place.topic == topic for place in at.positions):
        raise ConfigurationError(
            f"group {group!r} has committed nothing on {topic}: check the names with `pipeline groups list`, or give a new group "
            f"its start with `pipeline groups attach {group} --topic {topic}`"
        )
    refuse_live(admin, group)
    return at, plan_moves(_mode(asked, cluster, at), at.standings())


def _mode(asked: _Asked, cluster: Cluster, at: GroupAt) -> Mode:
    from pipeline.replay import reset as modes
    from pipeline.replay.moments import parse_age_ms, parse_moment_ms

    if asked.to_offset:
        everywhere, named = modes.parse_offsets(asked.to_offset, "--to-offset")
        modes.check_partitions(at.topic, at.partitions, named)
        return modes.to_offset(everywhere, named)
    if asked.to_datetime is not None:
        moment = parse_moment_ms(asked.to_datetime, "--to-datetime", now_ms())
        return modes.to_found("--to-datetime", offsets_at(cluster, at, moment))
    if asked.by_duration is not None:
        moment = now_ms() - parse_age_ms(asked.by_duration, "--by-duration")
        return modes.to_found("--by-duration", offsets_at(cluster, at, moment))
    if asked.shift_by is not None:
        return modes.shift_by(asked.shift_by)
    if asked.from_file is not None:
        return modes.to_found("--from-file", _read_csv(asked.from_file, at))
    if asked.to_current:
        return modes.to_current()
    return modes.to_earliest() if asked.to_earliest else modes.to_latest()


def offsets_at(cluster: Cluster, at: GroupAt, moment_ms: int) -> Mapping[TopicPartition, int]:
    """The first offset from a moment on, of each partition looked at; its end when there is none."""
    from pipeline.model.cluster import ConsumerPolicy

    consumer = cluster.consumer(ConsumerPolicy(group=at.group, client_id="pipeline-inspect"))
    try:
        return consumer.offsets_at(list(at.standings()), moment_ms, 10.0)
    finally:
        consumer.close()


def _read_csv(path: Path, at: GroupAt) -> Mapping[TopicPartition, int]:
    from pipeline.replay.reset import check_partitions, parse_csv

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--from-file {path} can't be read: {error}") from None
    found = parse_csv(text, at.group, str(path))
    here = {place: offset for place, offset in found.items() if place.topic == at.topic}
    if not here:
        raise ConfigurationError(f"--from-file {path} says nothing of topic {at.topic}")
    check_partitions(at.topic, at.partitions, (place.partition for place in here))
    if len(here) < len(found):
        note(f"{len(found) - len(here)} lines of {path} are about other topics and were left out")
    return here


def _write_csv(path: Path, moves: Sequence[Move]) -> None:
    from pipeline.replay.reset import format_csv

    text = format_csv((move.place, move.new) for move in moves)
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--export {path} can't be written, so nothing was done: {error}") from None


def _claim(cluster: Cluster, at: GroupAt, moves: Sequence[Move], drop: bool, quiet: bool) -> Claims:
    from pipeline.core.progress import Progress
    from pipeline.replay.claiming import claim
    from pipeline.replay.reset import moved

    standings = at.standings()
    wanted = {m.place: moved(standings[m.place].progress or Progress(m.new, m.new), m.new) for m in moves}
    with bar("reading the lanes", quiet=quiet) as scanned:
        return claim(cluster, at, wanted, drop, scanned)


def _execute(
    to: tuple[Cluster, ClusterAdmin],
    at: GroupAt,
    moves: Sequence[Move],
    claims: Claims,
    drop: bool,
    told: tuple[str | None, str, str],
) -> None:
    """A Ctrl-C does not break it off: it is a matter of moments, and half of it would be hard to tell from nothing."""
    from pipeline.replay.audit import AuditEntry, write_audit
    from pipeline.replay.claiming import commit
    from pipeline.replay.reset import totals

    cluster, admin = to
    again, skipped = totals(moves)
    counts = {"partitions": len(moves), "again": again, "skipped": skipped}
    if drop:
        counts["dropped"] = sum(at.waiting().values())
    target = f"{at.group} on {at.topic}: " + ", ".join(f"{m.place.partition}:{m.current}->{m.new}" for m in moves)
    who, why, options = told
    command = f"pipeline groups reset {at.group} --topic {at.topic} {options} --execute"
    entry = AuditEntry(now_ms(), who or whoami(), why, "reset", target=target, counts=counts, command=command)
    cut = f"Interrupted while positions were stored, so some may be: `pipeline groups lag {clean(at.group)}` shows where it stands."
    with stoppable(_STORING), telling_when_interrupted(cut):
        write_audit(cluster, audit_topic(), entry)
        commit(cluster, admin, at, claims)


def _report(at: GroupAt, moves: Sequence[Move], executed: bool, drop: bool, as_json: bool) -> None:
    from pipeline.replay.reset import totals

    waiting = at.waiting()
    again, skipped = totals(moves)
    if as_json:
        rows = [{"partition": m.place.partition} | {n: getattr(m, n) for n in _COLUMNS} for m in moves]
        emit_json(
            {
                "group": at.group,
                "topic": at.topic,
                "executed": executed and bool(moves),
                "again": again,
                "skipped": skipped,
                "waiting": sum(waiting.values()),
                "lanes": "to-latest" if drop else "keep",
                "rows": rows,
            }
        )
        return
    heads: list[Column | str] = [
        *(Column(name, right=True) for name in ("partition", "current", "new", "again", "skipped")),
        "note",
    ]
    table(
        heads,
        [
            (m.place.partition, "none" if m.current is None else m.current, m.new, m.again, m.skipped, m.note)
            for m in moves
        ],
        "nothing to move",
    )
    done = "moved" if executed else "dry run"
    line(f"{clean(at.group)} on {clean(at.topic)}, {done}: {again} records run again, {skipped} are skipped.", "bold")
    _tell_lanes(at, waiting, executed, drop)
    if not executed and moves:
        note("Nothing was changed: add --execute --reason '...' to do it.")


def _tell_lanes(at: GroupAt, waiting: Mapping[TopicPartition, int], executed: bool, drop: bool) -> None:
    count = sum(waiting.values())
    if at.ours is None:
        note(f"{clean(at.group)} has no lanes here: it is a group of others' making, and gets plain offsets.", "dim")
    elif count and drop:
        verb = "were dropped" if executed else "would be DROPPED"
        note(
            f"warning: {count} records that wait in the lanes {verb}: they run no more and are no dead letters.", "red"
        )
    elif count:
        note(
            f"{count} records wait in the lanes and stay: each runs when it is due, and is not run from the source again. "
            "--lanes to-latest drops them."
        )
