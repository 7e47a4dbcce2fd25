"""The facts of a history of jobs, in order for whoever checks them: requests, commands, owners' lives, entries, who believes them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.checker import NEVER, read_progress
from tests.simulation.facts import Fact, JobAsked, JobBegan, JobEnded, Landed, Stored
from tests.simulation.jobs.fleet import codec
from tests.simulation.jobs.reading import Entry, read_entry
from tests.simulation.jobs.scenario import DEAD, INBOX, KINDS, REPLAY, STORE, Asked, JobScenario, Kind


@dataclass(slots=True)
class Request:
    """A job that was asked for. `index`: of the fact that it stands in the inbox; `offset` is -1 for a tick. `latest_ms`: the latest
    time of day so far, which the clock may have been put back from."""

    id: str
    partition: int
    offset: int
    at_ms: int
    index: int
    fields: dict[str, Any]
    asked: Asked
    latest_ms: int = 0

    @property
    def kind(self) -> Kind:
        return KINDS[self.fields["type"]]

    @property
    def key(self) -> str | None:
        key: str | None = self.fields["key"]
        return key

    @property
    def due_ms(self) -> int:
        return int(self.fields["due_ms"])

    @property
    def attempts(self) -> int:
        return int(self.fields["attempts"]) or self.kind.attempts


@dataclass(slots=True)
class Life:
    """One owner of a partition. `durable`: the entry of each job that its restore believes; `index`: of the fact of its claim."""

    partition: int
    epoch: int
    fence: int
    index: int
    durable: dict[str, Entry] = field(default_factory=dict)


@dataclass(slots=True)
class History:
    """`entries` of each partition's store, with the index of their fact; `believed` are their offsets."""

    requests: dict[str, Request] = field(default_factory=dict)
    cancelled: dict[str, int] = field(default_factory=dict)
    """Job -> index of the first cancel that landed."""
    cancelled_ms: dict[str, int] = field(default_factory=dict)
    hurried: dict[str, int] = field(default_factory=dict)
    again: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    lives: dict[tuple[int, int], Life] = field(default_factory=dict)
    entries: dict[int, list[tuple[int, Entry]]] = field(default_factory=lambda: defaultdict(list))
    believed: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    letters: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    settled: dict[int, tuple[int, int]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    put_back: set[int] = field(default_factory=set)
    overtaken: set[int] = field(default_factory=set)
    """Partitions of which a commit landed behind a later one of the same owner, so that the inbox is read again from there."""
    told: list[JobAsked] = field(default_factory=list)
    began: dict[int, JobBegan] = field(default_factory=dict)
    ended: dict[int, JobEnded] = field(default_factory=dict)

    def brought_back(self, job_id: str, index: int) -> bool:
        """It was forgotten by then, and a commit that landed late has it read from the inbox again."""
        request = self.requests[job_id]
        forgotten = any(at < index and not entry.what for at, entry in self.of(job_id))
        return forgotten and request.partition in self.overtaken

    def of(self, job_id: str) -> list[tuple[int, Entry]]:
        """Its entries that are believed, with the index of their fact."""
        request = self.requests[job_id]
        return [
            (index, entry)
            for index, entry in self.entries[request.partition]
            if entry.kind == "j" and entry.name == job_id and entry.offset in self.believed[request.partition]
        ]


def read(scenario: JobScenario, facts: list[Fact]) -> History:
    asked = {each.number: each for each in scenario.asked}
    found = History()
    latest_ms = 0
    for index, fact in enumerate(facts):
        latest_ms = max(latest_ms, fact.at_ms)
        if isinstance(fact, Landed):
            if fact.place[0] == INBOX:
                _inbox(found, asked, index, fact, latest_ms)
            elif fact.place[0] == STORE:
                found.entries[fact.place[1]].append((index, read_entry(fact)))
            elif fact.place[0] == DEAD:
                found.letters[codec().decode_dict(INBOX, fact.value)[1]["id"]] += 1
            elif fact.place[0] == REPLAY:
                found.again[codec().decode_dict(INBOX, fact.value)[1]["id"]].append(index)
        elif isinstance(fact, Stored) and fact.partition[0] == INBOX:
            _stored(found, index, fact)
        elif isinstance(fact, JobAsked):
            found.told.append(fact)
        elif isinstance(fact, JobBegan):
            found.began[fact.number] = fact
        elif isinstance(fact, JobEnded):
            found.ended[fact.number] = fact
    _believe(found)
    _ticks(found, asked)
    return found


def _inbox(found: History, asked: dict[int, Asked], index: int, fact: Landed, latest_ms: int) -> None:
    _, partition, offset = fact.place
    found.ends[partition] = offset + 1
    name, fields = codec().decode_dict(INBOX, fact.value)
    if name.endswith("JobRequest"):
        of = asked[int(fields["payload"])]
        request = Request(fields["id"], partition, offset, fact.at_ms, index, fields, of, latest_ms)
        found.requests.setdefault(request.id, request)
    elif fields["kind"] == "CANCEL":
        found.cancelled.setdefault(fields["name"], index)
        found.cancelled_ms.setdefault(fields["name"], fact.at_ms)
    elif fields["kind"] == "RETRY":
        found.again[fields["name"]].append(index)
    elif fields["kind"] == "RUN_NOW":
        found.hurried.setdefault(fields["name"], index)


def _stored(found: History, index: int, fact: Stored) -> None:
    partition = fact.partition[1]
    now = read_progress(fact.offset, fact.metadata)
    known = max((epoch for of, epoch in found.lives if of == partition), default=0)
    open_ = min(now.open, default=now.end)
    settled = (fact.offset if fact.offset == now.end else open_, now.epoch)
    before = found.settled.get(partition, settled)
    if now.epoch == before[1] and settled < before:
        found.overtaken.add(partition)
    found.settled[partition] = settled
    if now.epoch < known:
        found.put_back.add(partition)
    elif now.epoch > known:
        fence = dict(now.fences).get("state", NEVER)
        found.lives[partition, now.epoch] = Life(partition, now.epoch, fence, index)


def _believe(found: History) -> None:
    for partition, entries in found.entries.items():
        lives = [life for life in found.lives.values() if life.partition == partition]
        for _, entry in entries:
            if not any(life.epoch > entry.epoch and entry.offset >= life.fence for life in lives):
                found.believed[partition].add(entry.offset)
    for life in found.lives.values():
        for _, entry in found.entries[life.partition]:
            if entry.offset < life.fence and entry.offset in found.believed[life.partition] and entry.kind == "j":
                life.durable[entry.name] = entry


def _ticks(found: History, asked: dict[int, Asked]) -> None:
    """Jobs that nobody asked for: those of schedules."""
    for partition, entries in found.entries.items():
        for index, entry in entries:
            believed = entry.offset in found.believed[partition]
            if (
                entry.what == "JobRecord"
                and believed
                and entry.name not in found.requests
                and entry.fields["request"]["schedule"]
            ):
                fields = entry.fields["request"]
                number = int(fields["payload"])
                found.requests[entry.name] = Request(
                    entry.name, partition, -1, entry.at_ms, index, fields, asked[number]
                )
