"""The coordinator's view of one consumer group: members, who should own what, who still does, committed positions.

Partitions move one by one: the target is computed when membership changes (sticky, even), an owner lets go of what is
no longer its own, and only then the next owner may claim it. Time is an argument, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.model.cluster import Position, TopicPartition


@dataclass(slots=True)
class Member:
    """`silent_since_ms` is None while its heartbeats come (they do not depend on polling). `since`: the generation in which it took
    each partition."""

    member_id: str
    client_id: str
    topic: str
    session_timeout_ms: int
    max_poll_interval_ms: int
    instance_id: str | None
    last_poll_ms: int
    silent_since_ms: int | None = None
    owned: set[TopicPartition] = field(default_factory=set)
    target: set[TopicPartition] = field(default_factory=set)
    since: dict[TopicPartition, int] = field(default_factory=dict)

    def expired(self, now_ms: int) -> bool:
        if self.silent_since_ms is not None and now_ms >= self.silent_since_ms + self.session_timeout_ms:
            return True
        return now_ms > self.last_poll_ms + self.max_poll_interval_ms


class Group:
    """Members in the order they joined; `generation` counts changes of membership."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.generation = 0
        self.protocol = "classic"
        self.members: dict[str, Member] = {}
        self.positions: dict[TopicPartition, Position] = {}
        self.pending: dict[TopicPartition, object] = {}  # by the transaction that is to decide them

    def join(self, member: Member, partition_counts: Mapping[str, int]) -> None:
        """A static member takes the place of the one with its instance id: that one is out, and fenced."""
        for old in [m for m in self.members.values() if member.instance_id and m.instance_id == member.instance_id]:
            member.target = set(old.target)
            del self.members[old.member_id]
        self.members[member.member_id] = member
        self.rebalance(partition_counts)

    def remove(self, member_id: str, partition_counts: Mapping[str, int]) -> None:
        if self.members.pop(member_id, None) is not None:
            self.rebalance(partition_counts)

    def expire(self, now_ms: int, partition_counts: Mapping[str, int]) -> list[Member]:
        gone = [member for member in self.members.values() if member.expired(now_ms)]
        for member in gone:
            del self.members[member.member_id]
        if gone:
            self.rebalance(partition_counts)
        return gone

    def rebalance(self, partition_counts: Mapping[str, int]) -> None:
        """Compute the targets anew: each member keeps what it has up to its share; the rest goes to who has least."""
        self.generation += 1
        for topic in {member.topic for member in self.members.values()}:
            members = [m for m in self.members.values() if m.topic == topic]
            partitions = [TopicPartition(topic, p) for p in range(partition_counts.get(topic, 0))]
            share, more = divmod(len(partitions), len(members))
            free = set(partitions)
            for member in sorted(members, key=lambda m: -len(m.owned | m.target)):
                quota = share + (1 if more > 0 else 0)
                had = sorted(tp for tp in member.owned | member.target if tp in free)
                member.target = set(sorted(had, key=lambda tp, m=member: (tp not in m.owned, tp))[:quota])  # type: ignore[misc]
                more -= len(member.target) > share
                free -= member.target
            for tp in sorted(free):
                min(members, key=lambda m: len(m.target)).target.add(tp)

    def claimable(self, member: Member) -> list[TopicPartition]:
        """What it should own, does not yet, and nobody else still does."""
        if member.target <= member.owned:
            return []
        held = {tp for other in self.members.values() if other is not member for tp in other.owned}
        return sorted(member.target - member.owned - held)

    def to_revoke(self, member: Member) -> list[TopicPartition]:
        return sorted(member.owned - member.target)

    @property
    def state(self) -> str:
        if not self.members:
            return "empty" if self.positions or self.generation else "dead"
        moving = any(member.owned != member.target for member in self.members.values())
        return "rebalancing" if moving else "stable"
