"""Who we were when a partition was assigned: only as that member is it committed for (rule h).

A member that the group has removed (it was stopped, or cut off) hears of it with a callback, some time after its id is gone.
Until then the partition looks like ours. A commit without an id is taken by any group that has run empty, and one under the
next id by any group: either would put the progress of whoever owned the partition meanwhile back.
Under KIP-848 the id stays and the epoch in it tells: the group refuses the old one, and the client gets the next one only
after that callback (see `kafka/commits.py`, `let_go`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pipeline.model.cluster import GroupConsumer, Position, TopicPartition
from pipeline.model.errors import ClusterError, FencedError, PipelineError
from pipeline.worker.opening import REQUEST_TIMEOUT_S

LAST_COMMIT_TRIES, LAST_COMMIT_PAUSE_S = 30, 0.1
LAST_COMMIT_GAP_S = 2.5
"""Below any session timeout in use, above the second that a coordinator in a rebalance may take to answer."""

Answer = dict[TopicPartition, ClusterError | None]


class Tenure:
    """The member of each partition number, and the commits that wait for their answer. Used in the poll thread only."""

    def __init__(self, consumer: GroupConsumer, monotonic: Callable[[], float], wait: Callable[[float], None]) -> None:
        self._consumer = consumer
        self._monotonic = monotonic
        self._wait = wait
        self._members: dict[int, str] = {}

    def begin(self, partitions: Collection[TopicPartition]) -> None:
        self._members.update(dict.fromkeys((tp.partition for tp in partitions), self._consumer.member_id()))

    def is_of(self, member_id: str, partitions: Collection[TopicPartition]) -> bool:
        return bool(member_id) and all(self._members.get(tp.partition) == member_id for tp in partitions)

    def ended(self, partitions: Collection[TopicPartition]) -> Answer:
        """Those that were assigned to a member that we are not any more, each with the error that says so."""
        member_id = self._consumer.member_id()
        return {
            tp: FencedError(f"{tp.topic}[{tp.partition}] was assigned to a member that the group has removed since")
            for tp in partitions
            if not self.is_of(member_id, [tp])
        }

    def commit_now(self, positions: Mapping[TopicPartition, Position]) -> Answer:
        """As `GroupConsumer.commit_now`; what is not ours as this member is refused without being sent."""
        if not positions:
            return {}
        refused = self.ended(positions)
        left = {tp: position for tp, position in positions.items() if tp not in refused}
        return {**refused, **(self._consumer.commit_now(left, REQUEST_TIMEOUT_S) if left else {})}

    def commit_last(self, positions: Mapping[TopicPartition, Position]) -> None:
        """The last word on partitions that are let go; what is not stored runs again elsewhere: nothing is lost.

        In the moment between two generations the coordinator refuses even a member that it knows, so a refusal is answered by
        trying again, but only while tries follow each other closely: after a gap (a process that was stopped) this
        could be a member that was replaced and has joined again, whose commit would be taken.
        """
        left = dict(positions)
        for _ in range(LAST_COMMIT_TRIES):
            began = self._monotonic()
            try:
                errors = self.commit_now(left)
            except PipelineError:
                return
            left = {tp: position for tp, position in left.items() if errors.get(tp) is not None}
            if not left:
                return
            self._wait(LAST_COMMIT_PAUSE_S)
            if self._monotonic() - began > LAST_COMMIT_GAP_S:
                return
