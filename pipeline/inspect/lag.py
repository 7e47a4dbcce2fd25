"""How far a group is behind, lane by lane and partition by partition, and what is about to be lost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.core.progress import Progress
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.topology.naming import Layout

EXPIRY_SHARE = 0.8
"""Alarm when the oldest dead letter has used this part of its retention."""


@dataclass(frozen=True, slots=True)
class LagRow:
    """One partition of the source or a lane. `lag` counts offsets that are not settled; `committed` is None before the first commit.

    `parked_keys` (lanes only) and `oldest_ms` (timestamp of the oldest unsettled record) are None where they were not looked up.
    """

    lane: str
    topic: str
    partition: int
    committed: int | None
    beginning: int
    end: int
    lag: int
    parked_keys: int | None = None
    oldest_ms: int | None = None

    @property
    def past_end(self) -> bool:
        """The topic was made anew under the commit: workers refuse such a source."""
        return self.committed is not None and self.committed > self.end


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What was read of a group: by partition its progress, log start and end, parked keys and oldest timestamps; `readable`: where its
    last record ends, as far as that was looked at."""

    entry: Layout
    state: str
    specs: Mapping[str, TopicSpec]
    progress: Mapping[TopicPartition, Progress]
    beginnings: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]
    parked: Mapping[TopicPartition, int]
    oldest_ms: Mapping[TopicPartition, int]
    readable: Mapping[TopicPartition, int] = field(default_factory=dict)


def lane_name(entry: Layout, topic: str) -> str:
    """What a lane is called in tables: source, a tier by its delay, replay, dead letters."""
    topics = entry.topics
    if topic == topics.source:
        return "source"
    if topic == topics.replay:
        return "replay"
    return "dead letters" if topic == topics.dead_letters else topic.rpartition(".")[2]


def unsettled_count(progress: Progress | None, beginning: int, end: int) -> int:
    """Offsets in [beginning, end) that the commit does not call settled. One that lies past the end is about a topic that was there
    before this one."""
    if progress is None or progress.offset > end:
        return max(0, end - beginning)
    inside = sum(1 for offset in progress.open if beginning <= offset < end)
    return inside + max(0, end - max(progress.end, beginning))


def rows(facts: GroupFacts) -> list[LagRow]:
    """Source first, then tiers by delay, then the replay lane."""
    found = []
    for topic in (facts.entry.topics.source, *facts.entry.topics.lanes):
        spec = facts.specs.get(topic)
        for partition in range(spec.partitions if spec else 0):
            place = TopicPartition(topic, partition)
            progress = facts.progress.get(place)
            beginning, end = facts.beginnings[place], facts.ends[place]
            found.append(
                LagRow(
                    lane_name(facts.entry, topic),
                    topic,
                    partition,
                    progress.offset if progress else None,
                    beginning,
                    end,
                    unsettled_count(progress, beginning, facts.readable.get(place, end)),
                    facts.parked.get(place, 0) if topic != facts.entry.topics.source else None,
                    facts.oldest_ms.get(place),
                )
            )
    return found


def warnings(facts: GroupFacts, lag: Sequence[LagRow], oldest_dead_ms: int | None, now_ms: int) -> list[str]:
    """One sentence for each thing that will be lost, or already is, unless somebody acts, and for what could not be looked at."""
    found = []
    group = facts.entry.group
    if facts.state in ("empty", "dead") and facts.progress:
        found.append(
            f"group {group} has no members: its committed offsets expire offsets.retention.minutes (7 days by default) "
            "after the last one left; start a worker before that"
        )
    for row in lag:
        if row.committed is not None and row.committed < row.beginning:
            found.append(
                f"{row.topic} partition {row.partition}: offsets {row.committed} to {row.beginning - 1} were deleted by retention "
                "before the group read them; raise retention.ms and reset the group"
            )
        if row.past_end:
            found.append(
                f"{row.topic} partition {row.partition}: the group stands at offset {row.committed}, and the topic ends at {row.end}: it "
                f"was made anew; no worker takes it until `pipeline groups reset {group} --topic {row.topic}` says where it goes on"
            )
    lanes = {row.topic for row in lag if row.committed is None and row.lag and row.lane != "source"}
    if lanes and any(row.committed is not None for row in lag if row.lane == "source"):
        found.append(
            f"group {group} has no committed offsets on {', '.join(sorted(lanes))}, which holds records: they expired, or no worker "
            "of this version has run; lanes are then read from their beginning"
        )
    if facts.entry.topics.dead_letters not in facts.specs:
        found.append(facts.entry.without_dead_letters())
    found += _dead_letter_expiry(facts, oldest_dead_ms, now_ms)
    return found


def _dead_letter_expiry(facts: GroupFacts, oldest_dead_ms: int | None, now_ms: int) -> list[str]:
    topic = facts.entry.topics.dead_letters
    spec = facts.specs.get(topic)
    kept = int(spec.configs.get("retention.ms", "-1")) if spec else -1
    if oldest_dead_ms is None or kept < 0 or now_ms - oldest_dead_ms < kept * EXPIRY_SHARE:
        return []
    return [f"the oldest dead letter in {topic} expires soon (retention.ms={kept}): redrive it, or raise retention.ms"]
