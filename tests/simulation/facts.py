"""What happened in a simulated history, in order: what landed in topics, what was committed, what handlers did, what was done to the fleet.

Recorded at the cluster and in the handlers, never in the product's own state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.log import PartitionLog
from pipeline.memory.transactions import Coordinator
from pipeline.model.cluster import Headers, Position, TopicPartition

Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A record is in a log. `transaction`: the number of the one that decides about it; 0: none does."""

    at_ms: int
    place: Place
    key: bytes | None
    value: bytes | None
    headers: Headers
    transaction: int = 0


@dataclass(frozen=True, slots=True)
class Decided:
    """A transaction has ended; what it stores of positions follows, at the same moment."""

    at_ms: int
    transaction: int
    committed: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """A reader of committed records was given this one."""

    at_ms: int
    place: Place


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed position was stored."""

    at_ms: int
    partition: tuple[str, int]
    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class Began:
    """A handler was given a record: `number` of the execution, where the record was fetched, and as whose."""

    at_ms: int
    number: int
    worker: str
    epoch: int
    place: Place
    origin: int
    replay_id: str
    attempt: int
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """`outcome`: "ok", "failed", "rejected" or "cancelled"; `wait_ms`: how long the next attempt must wait; `outputs`: how many."""

    at_ms: int
    number: int
    outcome: str
    wait_ms: int = 0
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class Happened:
    """Something was done to the fleet or to the group: `kind`, and what or who it was about."""

    at_ms: int
    kind: str
    about: str = ""
    partition: int = -1
    key: bytes | None = None
    origin: int = -1


@dataclass(frozen=True, slots=True)
class JobBegan:
    """A job's handler was called: `number` of the execution, as whose, and what the handler was told."""

    at_ms: int
    number: int
    worker: str
    partition: int
    epoch: int
    job_id: str
    attempt: int
    stalls: int


@dataclass(frozen=True, slots=True)
class JobEnded:
    """`outcome`: "ok", "warned", "failed", "rejected" or "cancelled"; `wait_ms`: how long the next attempt must wait."""

    at_ms: int
    number: int
    outcome: str
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class JobAsked:
    """The caller's side of the request `number`: its id, if it was accepted, or what its result was in the end."""

    at_ms: int
    number: int
    job_id: str
    told: str


Fact = Landed | Decided | Seen | Stored | Began | Ended | JobBegan | JobEnded | JobAsked | Happened


class Facts(list[Fact]):
    """In the order in which they came about."""

    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__()
        self.clock = clock

    def happened(self, kind: str, about: object = "", **more: Any) -> None:
        self.append(Happened(self.clock(), kind, str(about), **more))

    def visible(self) -> list[Landed]:
        """The records that readers of committed ones see by now."""
        committed = {0, *(fact.transaction for fact in self if isinstance(fact, Decided) and fact.committed)}
        return [fact for fact in self if isinstance(fact, Landed) and fact.transaction in committed]


class _Positions(dict[TopicPartition, Position]):
    """A group's committed positions, each store of one noted."""

    facts: Facts

    def __setitem__(self, partition: TopicPartition, position: Position) -> None:
        super().__setitem__(partition, position)
        self.facts.append(Stored(self.facts.clock(), tuple(partition), position.offset, position.metadata))

    def update(self, others: Any) -> None:  # type: ignore[override]
        """What a transaction stores."""
        for partition, position in others.items():
            self[partition] = position


@contextmanager
def recorded(cluster: MemoryCluster, group: str, facts: Facts) -> Iterator[None]:
    """Note what lands in this cluster's logs and what this group commits."""
    positions = _Positions()
    positions.facts = facts
    cluster.group(group).positions = positions
    append, end = PartitionLog.append, Coordinator.end
    numbers: dict[object, int] = {None: 0}

    def noted(
        log: PartitionLog, key: bytes | None, value: bytes | None, headers: Any, at_ms: int, transaction: object = None
    ) -> int:
        offset = append(log, key, value, headers, at_ms, transaction)
        number = numbers.setdefault(transaction, len(numbers))
        facts.append(Landed(facts.clock(), (log.topic, log.partition, offset), key, value, list(headers or ()), number))
        return offset

    def decided(coordinator: Coordinator, transactional_id: str, committed: bool) -> None:
        made = coordinator._open.get(transactional_id)
        if made is not None:
            facts.append(Decided(facts.clock(), numbers.setdefault(made, len(numbers)), committed))
        end(coordinator, transactional_id, committed)

    with patch.object(PartitionLog, "append", noted), patch.object(Coordinator, "end", decided):
        yield


def told(fact: Fact, start_ms: int) -> str:
    """One line for people."""
    at = f"{(fact.at_ms - start_ms) / 1000:8.3f}  "
    match fact:
        case Landed(place=place, key=key, value=value, headers=headers, transaction=transaction):
            named = dict(headers)
            ours = {
                name: (named[name] or b"").decode()
                for name in ("pl.d", "pl.replay.id", "pl.attempt", "pl.origin.offset", "pl.event_id")
                if name in named
            }
            under = f" in transaction {transaction}" if transaction else ""
            return f"{at}landed   {place[0]}[{place[1]}]@{place[2]}{under} {key!r} = {value!r} {ours or ''}"
        case Decided(transaction=transaction, committed=committed):
            return f"{at}decided  transaction {transaction}: {'committed' if committed else 'aborted'}"
        case Seen(place=place):
            return f"{at}seen     {place[0]}[{place[1]}]@{place[2]}"
        case Stored(partition=partition, offset=offset, metadata=metadata):
            from tests.simulation.checker import read_progress

            return f"{at}stored   {partition[0]}[{partition[1]}] {read_progress(offset, metadata)}"
        case Began():
            replay = f" replay {fact.replay_id}" if fact.replay_id else ""
            return (
                f"{at}began    #{fact.number} {fact.worker} epoch {fact.epoch}: {fact.place[0]}[{fact.place[1]}]@{fact.place[2]} "
                f"{fact.key!r} origin {fact.origin}{replay} attempt {fact.attempt}"
            )
        case Ended():
            return f"{at}ended    #{fact.number} {fact.outcome}" + (f", wait {fact.wait_ms} ms" if fact.wait_ms else "")
        case JobBegan():
            return (
                f"{at}began    #{fact.number} {fact.worker} epoch {fact.epoch} of {fact.partition}: job {fact.job_id} "
                f"attempt {fact.attempt} stalls {fact.stalls}"
            )
        case JobEnded():
            return f"{at}ended    #{fact.number} {fact.outcome}" + (f", wait {fact.wait_ms} ms" if fact.wait_ms else "")
        case JobAsked():
            return f"{at}asked    r{fact.number} {fact.job_id}: {fact.told}"
        case Happened():
            return f"{at}HAPPENED {fact.kind} {fact.about}"
