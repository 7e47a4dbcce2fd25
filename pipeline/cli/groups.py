"""`pipeline groups`: consumer groups, and their lag lane by lane. Moving and attaching them: `groups_reset`, `groups_attach`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import (
    BrokerOption,
    DeadLettersOption,
    GroupArgument,
    JsonOption,
    known_topic,
    now_ms,
    open_admin,
    open_cluster,
    real,
)
from pipeline.cli.groups_attach import TimeoutOption, attach, watch_until_live
from pipeline.cli.groups_reset import reset
from pipeline.cli.output import Column, clean, emit_json, line, note, table
from pipeline.cli.why import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.inspect.lag import GroupFacts, LagRow
    from pipeline.model.cluster import GroupState

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="List consumer groups, show their lag lane by lane, move them, and start new ones in the past.",
)
app.command("reset")(reset)
app.command("attach")(attach)


@app.command("list")
def list_command(broker: BrokerOption = None, as_json: JsonOption = False) -> None:
    """List consumer groups with their state, members and the topics they read.

    Example: pipeline groups list
    """
    with open_cluster(broker) as cluster, open_admin(cluster) as admin:
        states = [admin.describe_group(group) for group in sorted(admin.groups())]
        names = admin.topic_names()
        reads = {s.group: _sources(s, names) for s in states}
    if as_json:
        emit_json(
            [
                {
                    "group": s.group,
                    "state": s.state,
                    "protocol": s.protocol,
                    "members": [
                        {"member_id": m.member_id, "client_id": m.client_id, "host": m.host} for m in s.members
                    ],
                    "topics": reads[s.group],
                }
                for s in states
            ]
        )
        return
    rows = [(s.group, s.state, s.protocol, len(s.members), _few(reads[s.group])) for s in states]
    table(
        ["group", "state", "protocol", Column("members", right=True), "topics"],
        rows,
        "no consumer groups yet",
    )


def _sources(state: GroupState, names: list[str]) -> list[str]:
    """What a group reads: source topics of its lanes, and what its members have now."""
    from pipeline.topology import discover

    lanes = {entry.topics.source for entry in discover(state.group, names)}
    return sorted(lanes | {place.topic for member in state.members for place in member.partitions})


def _few(topics: list[str]) -> str:
    return ", ".join(topics[:2]) + (f" and {len(topics) - 2} more" if len(topics) > 2 else "")


@app.command("lag")
def lag_command(
    group: GroupArgument,
    everything: Annotated[bool, typer.Option("--all", help="Also partitions that are not behind.")] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Offsets only: read no records, so no keys and no ages.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--max", min=0, help="Exit with 1 when the lag of the source is larger.")
    ] = None,
    until_live: Annotated[
        bool, typer.Option("--until-live", help="Show progress until no more waits than comes in.")
    ] = False,
    timeout: TimeoutOption = None,
    dead_letters: DeadLettersOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a group has not settled: per lane and partition the committed offset, end, lag, parked keys and the oldest age.

    Warns when offsets or dead letters are about to expire. Exit code 1: the lag is larger than --max, records were lost to retention,
    or the topic was made anew.

    Example: pipeline groups lag billing
    """
    from pipeline.inspect.collect import find_layouts
    from pipeline.inspect.lag import rows, warnings
    from pipeline.inspect.measure import measure

    with open_cluster(broker) as cluster:
        with open_admin(cluster) as admin:
            entries = find_layouts(admin, real(group), dead_letters and known_topic(admin, dead_letters))
        if until_live:
            for entry in entries:
                watch_until_live(cluster, entry.group, entry.topics.source, timeout, as_json)
            return
        facts = [measure(cluster, entry, not fast) for entry in entries]
    now = now_ms()
    found = [(fact, rows(fact)) for fact in facts]
    alarms = [text for fact, lag in found for text in warnings(fact, lag, _oldest_dead(fact), now)]
    every = [row for _, lag in found for row in lag]
    lost = any(row.past_end or (row.committed is not None and row.committed < row.beginning) for row in every)
    behind = sum(row.lag for _, lag in found for row in lag if row.lane == "source")
    if as_json:
        emit_json(
            {
                "group": real(group),
                "state": facts[0].state,
                "lag": behind,
                "waiting": sum(row.lag for _, lag in found for row in lag if row.lane != "source"),
                "dead_letters": sum(_dead(fact) for fact in facts),
                "rows": [asdict(row) for _, lag in found for row in lag],
                "warnings": alarms,
            }
        )
    else:
        for fact, lag in found:
            _show(fact, lag, everything, now)
        for text in alarms:
            note(f"warning: {clean(text)}")
    raise typer.Exit(1 if lost or (limit is not None and behind > limit) else 0)


def _oldest_dead(facts: GroupFacts) -> int | None:
    times = [ms for place, ms in facts.oldest_ms.items() if place.topic == facts.entry.topics.dead_letters]
    return min(times, default=None)


def _dead(facts: GroupFacts) -> int:
    topic = facts.entry.topics.dead_letters
    return sum(facts.ends[p] - facts.beginnings[p] for p in facts.ends if p.topic == topic)


def _show(facts: GroupFacts, lag: Sequence[LagRow], everything: bool, now: int) -> None:
    entry = facts.entry
    line(f"Group {clean(entry.group)} on {clean(entry.topics.source)}: {clean(facts.state)}", "bold")
    shown = [row for row in lag if everything or row.lag]
    table(
        [
            "lane",
            *(Column(name, right=True) for name in ("partition", "committed", "end", "lag", "parked keys", "oldest")),
        ],
        [
            (
                row.lane,
                row.partition,
                "none" if row.committed is None else row.committed,
                row.end,
                row.lag,
                row.parked_keys,
                until(row.oldest_ms, now) if row.oldest_ms and row.lag else "",
            )
            for row in shown
        ],
        "nothing is behind",
    )
    dead = _dead(facts)
    line(
        f"{sum(row.lag for row in lag):,} records not settled, {dead:,} dead letters"
        + (" in any state" if dead else "")
    )
    if dead:
        line(f"How many of them are open: pipeline dlq stats --topic {clean(entry.topics.dead_letters)}", "dim")
