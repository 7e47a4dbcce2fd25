"""OffsetCommits to the simulated coordinator: checked per partition, answered later, and lost or late on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, FencedError

if TYPE_CHECKING:
    from pipeline.memory.cluster import MemoryCluster

METADATA_MAX_CHARACTERS = 4_095

Answer = dict[TopicPartition, ClusterError | None]


class Commits:
    """Requests of one consumer on their way to the coordinator."""

    def __init__(self, cluster: MemoryCluster, group: str) -> None:
        self._cluster = cluster
        self._group = group
        self._under_way: dict[int, Callable[[], None]] = {}
        self._last_due_ms = 0

    def send(
        self, positions: Mapping[TopicPartition, Position], member_id: str, answered: Callable[[Answer], None]
    ) -> None:
        """Arrives after the commit delay, behind those sent before; unless it is late or its answer is lost."""
        cluster, faults = self._cluster, self._cluster.faults
        wanted = {TopicPartition(*tp): position for tp, position in positions.items()}
        lost: Answer = dict.fromkeys(wanted, ClusterUnavailable("no answer to the commit; it may still be stored"))
        ticket = cluster.number()

        def arrive() -> None:
            if self._under_way.pop(ticket, None) is None:
                return
            if faults.happens(faults.commit_late):
                held = self._held(member_id)
                cluster.later(faults.drawn(faults.commit_late_ms), lambda: self._store_late(wanted, member_id, held))
                answered(lost)
            else:
                answer = self._store(wanted, member_id)
                answered(lost if faults.happens(faults.commit_lost) else answer)

        self._under_way[ticket] = arrive
        due_ms = max(self._last_due_ms, cluster.clock() + faults.drawn(faults.commit_delay_ms))
        self._last_due_ms = cluster.at(due_ms, arrive)

    def send_now(self, positions: Mapping[TopicPartition, Position], member_id: str) -> Answer:
        self.settle()
        return self._store({TopicPartition(*tp): position for tp, position in positions.items()}, member_id)

    def settle(self) -> None:
        """All that is under way arrives now, in order."""
        for arrive in list(self._under_way.values()):
            arrive()

    def _held(self, member_id: str) -> dict[int, int]:
        """Partition -> the generation since which the member owns it."""
        member = self._cluster.group(self._group).members.get(member_id)
        return {} if member is None else {tp.partition: member.since.get(tp, 0) for tp in member.owned}

    def _store_late(self, positions: dict[TopicPartition, Position], member_id: str, held: dict[int, int]) -> None:
        """A partition that moved meanwhile moved with a new generation, in which Kafka refuses what was sent in an older one."""
        now = self._held(member_id)
        still = {number for number, since in held.items() if now.get(number) == since} if held else None
        kept = {tp: position for tp, position in positions.items() if still is None or tp.partition in still}
        if kept:
            self._store(kept, member_id)

    def _store(self, positions: dict[TopicPartition, Position], member_id: str) -> Answer:
        cluster = self._cluster
        cluster.expire()
        with cluster.changed:
            group = cluster.group(self._group)
            if member_id not in group.members and (member_id or group.members):
                text = f"member {member_id!r} is not in group {self._group} any longer; its work belongs to another one"
                return dict.fromkeys(positions, FencedError(text))
            answer: Answer = {}
            for partition, position in positions.items():
                answer[partition] = self._refusal(partition, position)
                if answer[partition] is None:
                    group.positions[partition] = position
            return answer

    def _refusal(self, partition: TopicPartition, position: Position) -> ClusterError | None:
        where = f"the commit of {partition.topic}[{partition.partition}]"
        try:
            self._cluster.log(partition)
        except ClusterError as error:
            return ClusterError(f"{where} failed: {error}")
        if position.offset < 0:
            return ClusterError(f"{where} has offset {position.offset}; offsets start at 0")
        length = len(position.metadata.encode("utf-16-le")) // 2
        if length > METADATA_MAX_CHARACTERS:
            return ClusterError(
                f"{where} has {length} characters of metadata; at most {METADATA_MAX_CHARACTERS} are stored"
            )
        if "\0" in position.metadata:
            return ClusterError(f"{where} has a NUL character in its metadata; encode it")
        if self._cluster.faults.refuses_commit(partition):
            return ClusterUnavailable(f"{where} was not stored; commit again")
        return None
