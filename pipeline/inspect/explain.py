"""Where a record is and what it waits for, decided from what was read. Pure.

unread -> queued -> (handler) -> done
            |  \\-> parked in a tier <-> blocked by a lower origin of its key -> due -> (handler)
            \\-> dead letter
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.core.care import SUSPECTED, unclean_in_a_row
from pipeline.core.progress import Progress
from pipeline.inspect.records import LaneRecord, SourceRecord, is_settled, written_by_zombie
from pipeline.model.cluster import GroupMember
from pipeline.model.headers import HELD
from pipeline.model.topics import LaneTopics

State = Literal["done", "queued", "parked", "blocked", "due", "dead letter", "held", "releasing"]


@dataclass(frozen=True, slots=True)
class PartitionView:
    """All that was read about one source partition of one group. `progress` is by topic; a topic is missing where nothing was committed.

    `lanes` holds the records of tiers and replay lane from the committed offset on; `dead` those of the dead letters; `source` the
    records of interest. `owner` is the member that has the partition, `paused` says who paused the group and why.
    """

    group: str
    topics: LaneTopics
    partition: int
    progress: Mapping[str, Progress]
    lanes: Sequence[LaneRecord] = ()
    dead: Sequence[LaneRecord] = ()
    source: Sequence[SourceRecord] = ()
    owner: GroupMember | None = None
    paused: str | None = None


@dataclass(frozen=True, slots=True)
class Blocker:
    """The lowest unresolved record of the key: everything behind it waits."""

    origin_offset: int
    lane: str
    due_ms: int
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer for one record of one group. `lane` and `lane_offset` say where its copy is; times are milliseconds, 0 = none.

    `since`: what was done about its dead letter, where the results were looked at ("cancelled by dl-1").
    `owners_died`: so many owners of the partition in a row, two at least, did not let it go in order; what they ran runs alone now.
    """

    state: State
    group: str
    topic: str
    partition: int
    origin_offset: int
    key: bytes | None
    event_id: str | None
    replay_id: str = ""
    lane: str = ""
    lane_offset: int = -1
    due_ms: int = 0
    attempt: int = 0
    hops: int = 0
    error: str = ""
    first_failed_ms: int = 0
    blocked_by: Blocker | None = None
    owner: GroupMember | None = None
    paused: str | None = None
    owners_died: int = 0
    since: str = ""


def _error_text(record: LaneRecord) -> str:
    if record.delivery is None:
        return "its delivery headers are not readable"
    error = record.delivery.error
    return ": ".join(part for part in (error.error_type or error.error_class, error.message) if part)


def lane_fence(source: Progress | None, topics: LaneTopics, group_prefix: str, topic: str) -> int | None:
    """The end of this lane when the committed epoch began, under whichever of its names the commit has it."""
    if source is None:
        return None
    short = topic.removeprefix(group_prefix)
    for name in (topic, short, short.removeprefix("retry.")):
        if name in source.fences:
            return source.fences[name]
    return None


def unresolved(view: PartitionView) -> dict[tuple[int, str], LaneRecord]:
    """Identity -> the copy that counts (most hops) among those that are not settled and not a zombie's (rules c and g)."""
    source = view.progress.get(view.topics.source)
    prefix = view.topics.replay.removesuffix("replay")
    best: dict[tuple[int, str], LaneRecord] = {}
    for record in view.lanes:
        if is_settled(view.progress.get(record.topic), record.offset):
            continue
        if written_by_zombie(record, source, lane_fence(source, view.topics, prefix, record.topic)):
            continue
        known = best.get(record.identity)
        if known is None or _hops(record) > _hops(known):
            best[record.identity] = record
    return best


def _hops(record: LaneRecord) -> int:
    return -1 if record.delivery is None else record.delivery.hop


def parked_keys(view: PartitionView) -> dict[bytes | None, list[LaneRecord]]:
    """Key -> its unresolved copies, lowest origin first."""
    keys: dict[bytes | None, list[LaneRecord]] = {}
    for _, record in sorted(unresolved(view).items()):
        keys.setdefault(record.key, []).append(record)
    return keys


def explain(view: PartitionView, wanted: Iterable[tuple[int, str]], now_ms: int) -> list[Explanation]:
    """One explanation per wanted identity (origin offset, replay id) that was found anywhere, lowest origin first."""
    open_copies = unresolved(view)
    heads = {key: copies[0] for key, copies in parked_keys(view).items()}
    dead = {record.identity: record for record in view.dead}
    source = {(record.offset, ""): record for record in view.source}
    found = []
    for identity in sorted(set(wanted)):
        copy, letter, record = open_copies.get(identity), dead.get(identity), source.get(identity)
        held = copy is not None and copy.delivery is not None and copy.delivery.hold  # beside its dead letter
        if copy is not None and (held or letter is None or _hops(copy) > _hops(letter)):
            found.append(_waiting(view, copy, heads[copy.key], now_ms))
        elif letter is not None:
            found.append(_of_copy("dead letter", view, letter))
        elif record is not None:
            settled = is_settled(view.progress.get(view.topics.source), record.offset)
            found.append(_of_source("done" if settled else "queued", view, record))
    died = _owners_died(view)
    return [
        replace(one, owners_died=died) if died and one.state not in ("done", "dead letter") else one for one in found
    ]


def _owners_died(view: PartitionView) -> int:
    """In a row, before the present one; one alone is nothing to speak of."""
    known = view.progress.get(view.topics.source)
    count = unclean_in_a_row(known.marks) - 1 if known is not None else 0
    return count if count >= SUSPECTED - 1 else 0


def _of_source(state: State, view: PartitionView, record: SourceRecord) -> Explanation:
    place = (view.group, view.topics.source, view.partition, record.offset)
    if state == "done":
        return Explanation(state, *place, record.key, record.event_id)
    return Explanation(state, *place, record.key, record.event_id, owner=view.owner, paused=view.paused)


def _of_copy(state: State, view: PartitionView, copy: LaneRecord, blocker: Blocker | None = None) -> Explanation:
    delivery = copy.delivery
    live = state != "dead letter"
    return Explanation(
        state,
        view.group,
        view.topics.source,
        view.partition,
        copy.origin,
        copy.key,
        copy.event_id,
        replay_id=delivery.replay_id if delivery else "",
        lane=copy.topic,
        lane_offset=copy.offset,
        due_ms=delivery.due_ms if delivery and live else 0,
        attempt=delivery.attempt if delivery else 0,
        hops=delivery.hop if delivery else 0,
        error=_error_text(copy),
        first_failed_ms=delivery.first_failed_ms if delivery else 0,
        blocked_by=blocker,
        owner=view.owner if live else None,
        paused=view.paused if live else None,
    )


def _waiting(view: PartitionView, copy: LaneRecord, head: LaneRecord, now_ms: int) -> Explanation:
    if head.identity != copy.identity and head.identity < copy.identity:
        due_ms = head.delivery.due_ms if head.delivery else 0
        attempt = head.delivery.attempt if head.delivery else 0
        return _of_copy("blocked", view, copy, Blocker(head.origin, head.topic, due_ms, attempt, _error_text(head)))
    hold = copy.delivery.hold if copy.delivery else ""
    if hold:
        return _of_copy("held" if hold == HELD else "releasing", view, copy)
    due_ms = copy.delivery.due_ms if copy.delivery else 0
    return _of_copy("parked" if due_ms > now_ms else "due", view, copy)
