"""Redriving: dead letters back to the group they died in, in the order of their keys, by a replay plan made from the index.

    chosen -> plan -> canary (some, of distinct keys) -> their outcome -> the rest

A plan from the index needs no scan of the topic: the index knows positions, origins and how often each was replayed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.letter import POINTER
from pipeline.dead_letters.states import STATES, State, id_of, position_of
from pipeline.inspect.collect import find_layouts
from pipeline.model.cluster import ClusterAdmin
from pipeline.model.errors import ConfigurationError
from pipeline.replay.asking import Request, check_target, spans_of
from pipeline.replay.plan import REPLAYS_MAX, ReplayPlan, Selection, Span, Target, new_plan_id
from pipeline.topology.naming import Layout

REDRIVABLE = ("open", "cancelled", "converted")
CANARY_KEYS_MAX = 1_000
_NEEDED = ("grp", "origin_topic", "origin_partition", "origin_offset", "origin_ts", "attempt", "hop")


@dataclass(frozen=True, slots=True)
class RedrivePolicy:
    """`rate`: records per second, 0 = as fast as it goes. `replays_max`: a letter replayed so often already stays where it is."""

    rate: float = 0.0
    replays_max: int = REPLAYS_MAX
    again: bool = False
    """Also those that were redriven already."""

    def __post_init__(self) -> None:
        """Raises `ConfigurationError`."""
        if not 0 <= self.rate < math.inf:
            raise ConfigurationError(
                f"rate={self.rate:g} must be a number of records per second; 0: as fast as it goes"
            )


@dataclass(frozen=True, slots=True)
class Origin:
    """What the index knows of a letter that matters for order; `state`: what it was in then."""

    number: int
    key: str | None
    origin_topic: str | None
    origin_offset: int | None
    error: int
    replay_count: int
    group: str | None
    state: State = "open"
    replay_id: str | None = None
    """The replay that it died in."""
    edited: bool = False
    """It is the new version of another."""


def origins(desk: Desk, numbers: Sequence[int]) -> list[Origin]:
    """Of these positions, in order of partition and offset."""
    found: list[Origin] = []
    for at in range(0, len(numbers), 500):
        marks = ", ".join(map(str, numbers[at : at + 500]))
        rows = desk.store.db.execute(
            "SELECT id, key, origin_topic, origin_offset, error, ifnull(replay_count, 0), grp, state, replay_id, edited_from "
            f"FROM letters WHERE id IN ({marks}) ORDER BY id"
        )
        found += [Origin(*(*row[:7], STATES[row[7]], row[8], row[9] is not None)) for row in rows]
    return found


def strangers(desk: Desk, numbers: Sequence[int]) -> set[int]:
    """Those whose headers do not say where they come from and whose they are: no worker wrote them, or not all of them."""
    found: set[int] = set()
    for at in range(0, len(numbers), 500):
        marks = ", ".join(map(str, numbers[at : at + 500]))
        missing = " OR ".join(f"{name} IS NULL" for name in _NEEDED)
        rows = desk.store.db.execute(f"SELECT id FROM letters WHERE id IN ({marks}) AND ({missing})")
        found |= {int(row[0]) for row in rows}
    return found


def pointers(desk: Desk, numbers: Sequence[int]) -> set[int]:
    """Those that only point at what can't be read: there is nothing to send."""
    found: set[int] = set()
    for at in range(0, len(numbers), 500):
        marks = ", ".join(map(str, numbers[at : at + 500]))
        of_type = "SELECT id FROM types WHERE name = ?"
        query = f"SELECT id FROM letters WHERE id IN ({marks}) AND type IN ({of_type})"
        found |= {int(row[0]) for row in desk.store.db.execute(query, (POINTER,))}
    return found


def group_of(letters: Sequence[Origin]) -> str:
    """Whose they are. Raises `ConfigurationError` when they are of several groups, or nobody's."""
    groups = {letter.group for letter in letters}
    if len(groups) == 1 and (group := next(iter(groups))):
        return group
    if len(groups) > 1:
        names = ", ".join(sorted(str(group) for group in groups)[:5])
        raise ConfigurationError(f"these dead letters are of several groups ({names}): choose one with --group")
    raise ConfigurationError(
        "these dead letters do not say whose they are: `pipeline replay plan --to-topic` sends them to a topic"
    )


def plan_for(desk: Desk, letters: Sequence[Origin], who: str, now_ms: int, policy: RedrivePolicy) -> ReplayPlan:
    """The plan that sends these back to their group's replay lane, with its preview. Nothing is written.

    Raises `ConfigurationError` when the group or its lane is not there.
    """
    positions: dict[int, list[int]] = defaultdict(list)
    for letter in letters:
        partition, offset = position_of(letter.number)
        positions[partition].append(offset)
    group = group_of(letters)
    select = Selection(positions={p: tuple(sorted(offsets)) for p, offsets in sorted(positions.items())})
    topic = desk.topics.dead_letters
    request = Request(topic, who, group=group, kind="dead_letters", select=select)
    admin = desk.cluster.admin()
    try:
        target = _target(admin, group, letters)
        source, _ = spans_of(desk.cluster, admin, request, "dead_letters")
        check_target(admin, target, source)
    finally:
        admin.close()
    last = {p: id_of(p, offsets[-1]) for p, offsets in (select.positions or {}).items()}
    known = desk.letters(list(last.values()))
    died_ms = {p: known[number].died_ms if number in known else -1 for p, number in last.items()}
    spans = {
        p: Span(offsets[0], offsets[-1] + 1, source.spans[p].beginning, died_ms[p])
        for p, offsets in (select.positions or {}).items()
    }
    return ReplayPlan(
        plan_id=new_plan_id(),
        created_ms=now_ms,
        who=who,
        source=replace(source, spans=spans),
        select=select,
        target=target,
        replays_max=policy.replays_max,
        rate=float(policy.rate),  # an integer would not read back as it was written
        last=inverted(letters),
        preview=_preview(letters, spans, target, policy),
    )


def _target(admin: ClusterAdmin, group: str, letters: Sequence[Origin]) -> Target:
    """The lanes of the group as the cluster has them: what a header says only chooses among these."""
    layouts: dict[str, Layout] = {entry.topics.source: entry for entry in find_layouts(admin, group)}
    wanted = {letter.origin_topic for letter in letters}
    unknown = sorted(str(topic) for topic in wanted - layouts.keys())
    if unknown:
        raise ConfigurationError(
            f"group {group} has no lane on {', '.join(unknown[:3])}, where some of them come from: choose others, or run "
            "`pipeline topics apply`"
        )
    return Target("lane", group, {source: layouts[source].topics.replay for source in sorted(filter(None, wanted))})


def inverted(letters: Sequence[Origin]) -> dict[int, tuple[int, ...]]:
    """By partition: offsets of all letters of keys whose letters lie in another order than their origins, by origin."""
    newest: dict[tuple[int, str | None, str | None], int] = {}
    bad: set[tuple[int, str | None, str | None]] = set()
    for letter in letters:
        place = (position_of(letter.number)[0], letter.key, letter.origin_topic)
        origin = letter.origin_offset or 0
        if letter.key is not None and origin < newest.get(place, -1):
            bad.add(place)
        newest[place] = max(origin, newest.get(place, -1))
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for letter in letters:
        partition, offset = position_of(letter.number)
        if (partition, letter.key, letter.origin_topic) in bad:
            found[partition].append((letter.origin_offset or 0, offset))
    return {partition: tuple(offset for _, offset in sorted(places)) for partition, places in found.items()}


def _preview(
    letters: Sequence[Origin], spans: dict[int, Span], target: Target, policy: RedrivePolicy
) -> dict[str, Any]:
    return {
        "selected": len(letters),
        "offsets": sum(span.size for span in spans.values()),
        "loop_capped": sum(letter.replay_count >= policy.replays_max for letter in letters),
        "distinct_keys": len({letter.key for letter in letters}),
        "partitions": {str(p): sum(position_of(x.number)[0] == p for x in letters) for p in spans},
        "target": target.text,
    }


def choose_canary(letters: Sequence[Origin], many: int) -> list[Origin]:
    """The first letter of `many` distinct keys, of as many different errors as there are: in order, nothing overtakes."""
    heads: dict[tuple[int, str | None], Origin] = {}
    for letter in letters:
        place = (position_of(letter.number)[0], letter.key)
        known = heads.get(place)
        if known is None or (letter.origin_offset or 0) < (known.origin_offset or 0):
            heads[place] = letter
    by_error: dict[int, list[Origin]] = defaultdict(list)
    for head in heads.values():
        by_error[head.error].append(head)
    found: list[Origin] = []
    queues = sorted(by_error.values(), key=len, reverse=True)
    while len(found) < many and any(queues):
        for queue in queues:
            if queue and len(found) < many:
                found.append(queue.pop(0))
    return sorted(found, key=lambda letter: letter.number)
