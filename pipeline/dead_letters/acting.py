"""What every action on dead letters does alike: an audit entry that is acknowledged first, and a result for each record after."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.states import position_of
from pipeline.inspect.appending import append, require_topic
from pipeline.model.errors import ConfigurationError
from pipeline.replay.audit import AuditEntry, write_audit
from pipeline.replay.results import Result, ResultBatch, entries

SAMPLE_POSITIONS = 100
"""So many positions are named in an audit entry; the results name them all."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts and why, and the command (or function) that was called."""

    who: str
    why: str
    command: str = ""

    def check(self) -> None:
        """Raises `ConfigurationError`: nothing is changed without a reason."""
        if not self.why.strip():
            raise ConfigurationError("a reason is needed to change dead letters: give one with --reason")
        if not self.who.strip():
            raise ConfigurationError("who does this is needed: give it with --who")


@dataclass(frozen=True, slots=True)
class Done:
    """What an action did. `counts` is by outcome; `left_out` says why some were not touched, with how many."""

    action_id: str
    action: str
    counts: Mapping[str, int]
    left_out: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def new_action_id() -> str:
    return f"dl-{secrets.token_hex(6)}"


def refuse_another_topic(desk: Desk) -> None:
    """Bring the index up to date. Raises `ConfigurationError` when the positions that were chosen are no longer those letters'."""
    changed = desk.refresh(verify=True).rebuilt
    if changed:
        raise ConfigurationError(f"{changed} since these dead letters were looked at, so nothing was done: look again")


def begin(desk: Desk, actor: Actor, action: str, numbers: Sequence[int], now_ms: int, **more: Any) -> str:
    """The audit entry of an action; its id. Nothing may be done before this returns.

    Raises `ConfigurationError` when the topic is another one by now, `TopologyError` when the audit or the results topic is
    missing, `ClusterUnavailable` when nothing answered.
    """
    actor.check()
    refuse_another_topic(desk)
    require_topic(desk.cluster, desk.topics.results)
    action_id = new_action_id()
    sample = ["{}:{}".format(*position_of(number)) for number in numbers[:SAMPLE_POSITIONS]]
    counts = {"dead_letters": len(numbers), "positions": sample, **more}
    entry = AuditEntry(
        at_ms=now_ms, who=actor.who, why=actor.why, action=action, plan=action_id, target=desk.topics.dead_letters,
        counts=counts, command=actor.command,
    )  # fmt: skip
    write_audit(desk.cluster, desk.topics.audit, entry)
    return action_id


def record(
    desk: Desk, actor: Actor, action_id: str, action: str, results: Mapping[int, tuple[str, int, int]], now_ms: int
) -> None:
    """Results by position number: (outcome, partition and offset of what was written, -1 where nothing was)."""
    by_partition: dict[int, list[Result]] = defaultdict(list)
    for number in sorted(results):
        partition, offset = position_of(number)
        by_partition[partition].append(Result(offset, *results[number]))
    made = [
        entry
        for partition, found in sorted(by_partition.items())
        for entry in entries(
            ResultBatch(action_id, action, desk.topics.dead_letters, partition, actor.who, now_ms, found)
        )
    ]
    append(desk.cluster, desk.topics.results, made, timeout_s=60.0)


def still(desk: Desk, numbers: Sequence[int], states: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """The same as `only`, as of now: who chose them may have thought about it for long, and others act meanwhile."""
    refuse_another_topic(desk)
    return only(desk, numbers, states)


def only(desk: Desk, numbers: Sequence[int], states: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """(those in one of these states, how many were left out and why)."""
    kept: list[int] = []
    left: dict[str, int] = defaultdict(int)
    for at in range(0, len(numbers), 10_000):
        part = list(numbers[at : at + 10_000])
        known = desk.states(part)
        for number in part:
            state = known.get(number, "not there")
            if state in states:
                kept.append(number)
            else:
                left[f"{state} already" if state != "not there" else "not there any more"] += 1
    return kept, dict(left)
