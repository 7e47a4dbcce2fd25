"""What became of every record, from what the topics say. Pure: facts in, an account out.

At-least-once, with one worker killed on purpose, means for each group:

    lost          a published record without an ending; an ending is a ledger record (processed) or a dead letter
    redelivered   a second ending that the kill explains: the killed worker ended the record, and no commit of it had said so yet
    duplicates    every other second ending, and an event that stands twice in the source topic
    out of order  the first ending of a record comes before that of an earlier record of its key
    altered       a copy in a tier or the dead letters whose key or bytes are not those that were published
    strays        an ending or a copy of a record that nobody published
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.core.progress import Progress

EXPLAINED_SLACK_MS = 1_000
"""What the killed worker had handed to its socket may be appended so long after the kill."""

EXAMPLES_MAX = 10


@dataclass(frozen=True, slots=True)
class SourceFact:
    """A record of the source topic. `digest` stands for its value's bytes, `at_ms` is its timestamp."""

    partition: int
    offset: int
    key: bytes | None
    event_id: str
    digest: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class EndingFact:
    """A ledger record (`dead` False, `worker` set) or a dead letter (`dead` True).

    `place` is its offset in its own topic, `at_ms` the broker's append time. `key` and `digest` are None where the record does not
    carry the original's (the ledger's value is its own).
    """

    partition: int
    origin: int
    dead: bool
    place: int
    at_ms: int
    worker: str = ""
    key: bytes | None = None
    digest: int | None = None


@dataclass(frozen=True, slots=True)
class CopyFact:
    """A record of a retry tier: the origin's copy number `hop`, after `attempt` executions."""

    tier: str
    topic: str
    partition: int
    place: int
    origin: int
    hop: int
    attempt: int
    at_ms: int
    key: bytes | None
    digest: int


@dataclass(frozen=True, slots=True)
class Kill:
    """The killed worker: its name in the ledger, its source partitions, and when.

    `durable` is what its group had committed on the source and the tiers right after (topic, partition) -> progress; None when that
    could not be read before somebody else took over.
    """

    group: str
    worker: str
    partitions: frozenset[int]
    at_ms: int
    source_topic: str
    durable: Mapping[tuple[str, int], Progress] | None


@dataclass(slots=True)
class GroupFacts:
    """What was read back for one group. `tiers` in order of delay; `unsettled` counts offsets that no commit covers at the end."""

    group: str
    tiers: tuple[str, ...]
    endings: list[EndingFact] = field(default_factory=list)
    copies: list[CopyFact] = field(default_factory=list)
    unsettled: int = 0


@dataclass(slots=True)
class GroupAccount:
    """One group's account. `processed + dead_lettered + lost` is what was published."""

    group: str
    processed: int = 0
    dead_lettered: int = 0
    lost: int = 0
    duplicates: int = 0
    redelivered: int = 0
    out_of_order: int = 0
    altered: int = 0
    strays: int = 0
    unsettled: int = 0
    retried: dict[str, int] = field(default_factory=dict)
    waited: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    """The first few records with which something is wrong."""

    def note(self, text: str) -> None:
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(text)

    @property
    def clean(self) -> bool:
        wrong = (self.lost, self.duplicates, self.out_of_order, self.altered, self.strays, self.unsettled)
        return not any(wrong)


@dataclass(frozen=True, slots=True)
class SourceAccount:
    """The way into the topic. `missing`: given to the publisher and not there; `strays`: there and not given."""

    published: int
    missing: int
    duplicates: int
    out_of_order: int
    strays: int

    @property
    def clean(self) -> bool:
        return not any((self.missing, self.duplicates, self.out_of_order, self.strays))


def account_of_source(given: Sequence[tuple[bytes, str]], source: Sequence[SourceFact]) -> SourceAccount:
    """`given`: (key, event id) in the order in which they were published; `source` in offset order per partition."""
    wanted = {event_id: number for number, (_, event_id) in enumerate(given)}
    seen: set[str] = set()
    last: dict[bytes | None, int] = {}
    duplicates = disorder = strays = 0
    for record in source:
        number = wanted.get(record.event_id)
        if number is None:
            strays += 1
        elif record.event_id in seen:
            duplicates += 1
        else:
            seen.add(record.event_id)
            disorder += number < last.get(record.key, -1)
            last[record.key] = max(number, last.get(record.key, -1))
    return SourceAccount(len(seen), len(wanted) - len(seen), duplicates, disorder, strays)


def account_of_group(
    source: Sequence[SourceFact], facts: GroupFacts, kill: Kill | None = None, clock_tolerance_ms: int = 0
) -> GroupAccount:
    """`source` in offset order per partition. `clock_tolerance_ms`: how far the clocks of several brokers may be apart."""
    account = GroupAccount(facts.group, unsettled=facts.unsettled)
    records = {(record.partition, record.offset): record for record in source}
    endings: dict[tuple[int, int], list[EndingFact]] = {}
    for ending in facts.endings:
        endings.setdefault((ending.partition, ending.origin), []).append(ending)
    copies: dict[tuple[int, int], list[CopyFact]] = {}
    for copy in facts.copies:
        copies.setdefault((copy.partition, copy.origin), []).append(copy)
    account.strays = sum(len(found) for spot, found in endings.items() if spot not in records)
    account.strays += sum(len(found) for spot, found in copies.items() if spot not in records)
    first: dict[tuple[int, int], EndingFact] = {}
    for spot, record in records.items():
        found = sorted(endings.get(spot, ()), key=lambda ending: (ending.at_ms, ending.place))
        if not found:
            account.lost += 1
            account.note(f"{_name(record)} has no ending; {len(copies.get(spot, ()))} copies of it were in tiers")
            continue
        first[spot] = found[0]
        if found[0].dead:
            account.dead_lettered += 1
        else:
            account.processed += 1
        explained = int(len(found) > 1 and _explained(record, found[0], copies.get(spot, ()), facts.group, kill))
        account.redelivered += explained
        unexplained = len(found) - 1 - explained
        account.duplicates += unexplained
        if unexplained:
            account.note(f"{_name(record)} ended {len(found)} times: {', '.join(map(_how, found))}")
        account.altered += sum(_is_altered(record, e.key, e.digest) for e in found if e.digest is not None)
        account.altered += sum(_is_altered(record, c.key, c.digest) for c in copies.get(spot, ()))
    disorder = _out_of_order(source, first, clock_tolerance_ms)
    account.out_of_order = len(disorder)
    for record in disorder:
        ending = first[record.partition, record.offset]
        account.note(f"{_name(record)} ended before an earlier record of its key: {_how(ending)}")
    account.retried, account.waited = _hops(facts.tiers, copies)
    return account


def _name(record: SourceFact) -> str:
    return f"partition {record.partition} offset {record.offset} (key {record.key!r})"


def _how(ending: EndingFact) -> str:
    return f"{'dead letter' if ending.dead else 'done by ' + ending.worker} at {ending.at_ms}"


def _is_altered(record: SourceFact, key: bytes | None, digest: int) -> bool:
    return key != record.key or digest != record.digest


def _explained(
    record: SourceFact, earliest: EndingFact, copies: Iterable[CopyFact], group: str, kill: Kill | None
) -> bool:
    """Had the killed worker ended this record, with no commit saying so?"""
    if kill is None or group != kill.group or record.partition not in kill.partitions:
        return False
    by_killed = earliest.dead or earliest.worker == kill.worker
    if not by_killed or earliest.at_ms > kill.at_ms + EXPLAINED_SLACK_MS:
        return False
    if kill.durable is None:
        return True
    spots = [(kill.source_topic, record.offset), *((copy.topic, copy.place) for copy in copies)]
    return any(not _settled(kill.durable.get((topic, record.partition)), offset) for topic, offset in spots)


def _settled(progress: Progress | None, offset: int) -> bool:
    if progress is None:
        return False
    return offset < progress.offset or (offset < progress.end and offset not in progress.open)


def _out_of_order(
    source: Sequence[SourceFact], first: Mapping[tuple[int, int], EndingFact], tolerance_ms: int
) -> list[SourceFact]:
    """Within one topic offsets tell the order; between ledger and dead letters the append times do."""
    found: list[SourceFact] = []
    last: dict[tuple[bytes, bool], int] = {}
    last_ms: dict[bytes, int] = {}
    for record in source:
        ending = first.get((record.partition, record.offset))
        if ending is None or record.key is None:
            continue
        lane = (record.key, ending.dead)
        late = ending.at_ms < last_ms.get(record.key, 0) - tolerance_ms
        if late or ending.place < last.get(lane, -1):
            found.append(record)
        last[lane] = max(ending.place, last.get(lane, -1))
        last_ms[record.key] = max(ending.at_ms, last_ms.get(record.key, 0))
    return found


def _hops(
    tiers: Sequence[str], copies: Mapping[tuple[int, int], Sequence[CopyFact]]
) -> tuple[dict[str, int], dict[str, int]]:
    """By tier: copies that a failed execution caused, and copies of records that only wait behind one.

    A copy written twice by two owners (same hop) counts once.
    """
    retried, waited = Counter[str](), Counter[str]()
    for found in copies.values():
        attempt = 0
        seen: set[int] = set()
        for copy in sorted(found, key=lambda c: (c.hop, c.at_ms)):
            if copy.hop in seen:
                continue
            seen.add(copy.hop)
            (retried if copy.attempt > attempt else waited)[copy.tier] += 1
            attempt = max(attempt, copy.attempt)
    return {tier: retried[tier] for tier in tiers}, {tier: waited[tier] for tier in tiers}


def takeover_ms(source: Sequence[SourceFact], facts: GroupFacts, kill: Kill) -> int | None:
    """How long until the last of the killed worker's partitions went on, from the kill or from the arrival of something to do.

    A partition has gone on with the first ledger record of another worker, or the first tier copy or dead letter well after the kill.
    None: none of them had anything left to do. A partition with work left that never went on is -1.
    """
    finished = {(e.partition, e.origin) for e in facts.endings if e.at_ms <= kill.at_ms}
    waits: dict[int, int] = {}
    for record in source:
        if record.partition in kill.partitions and (record.partition, record.offset) not in finished:
            since = max(kill.at_ms, record.at_ms)
            waits[record.partition] = min(since, waits.get(record.partition, since))
    signs: dict[int, int] = {}
    after = kill.at_ms + EXPLAINED_SLACK_MS
    for ending in facts.endings:
        other = ending.at_ms > after if ending.dead else (ending.worker != kill.worker and ending.at_ms >= kill.at_ms)
        if other:
            signs[ending.partition] = min(ending.at_ms, signs.get(ending.partition, ending.at_ms))
    for copy in facts.copies:
        if copy.at_ms > after:
            signs[copy.partition] = min(copy.at_ms, signs.get(copy.partition, copy.at_ms))
    if not waits:
        return None
    if any(partition not in signs for partition in waits):
        return -1
    return max(max(0, signs[partition] - since) for partition, since in waits.items())


def in_flight(source: Sequence[SourceFact], facts: GroupFacts, kill: Kill) -> int:
    """Records of the killed worker's partitions that had no ending at the kill."""
    finished = {(e.partition, e.origin) for e in facts.endings if e.at_ms <= kill.at_ms}
    return sum(
        record.partition in kill.partitions
        and record.at_ms <= kill.at_ms
        and (record.partition, record.offset) not in finished
        for record in source
    )


def per_second(times_ms: Iterable[int]) -> tuple[float, int]:
    """(average, busiest second) of things that happened at these times."""
    times = sorted(times_ms)
    if not times:
        return 0.0, 0
    span_s = max(1, times[-1] - times[0]) / 1000
    return len(times) / max(1.0, span_s), max(Counter(at // 1000 for at in times).values())
