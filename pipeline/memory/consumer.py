"""One member of a consumer group on the simulated cluster: the same callbacks, in the same order, as on real Kafka.

A poll does, in this order: hear that the session was lost, let go of partitions (asking the listener),
receive partitions, serve commit answers, fetch. On a cluster with virtual time a poll never waits: `activity` says when to poll.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, cast

from pipeline.memory.commits import Answer, Commits
from pipeline.memory.fetching import Fetcher
from pipeline.memory.group import Member
from pipeline.memory.log import MemoryMessage
from pipeline.model.cluster import (
    CommitCallback,
    ConsumerPolicy,
    FetchFault,
    Message,
    Position,
    RebalanceListener,
    TopicPartition,
)
from pipeline.model.errors import ClusterError, ClusterUnavailable, ConfigurationError, FencedError
from pipeline.model.transactions import Membership

if TYPE_CHECKING:
    from pipeline.memory.cluster import MemoryCluster

ASK_AGAIN_MS = 5
COMMIT_TWICE_MS = 60


class MemoryConsumer:
    """See `GroupConsumer`."""

    def __init__(self, cluster: MemoryCluster, policy: ConsumerPolicy) -> None:
        if policy.protocol not in ("classic", "consumer"):
            raise ConfigurationError(f"protocol={policy.protocol!r} is unknown: use one of classic, consumer")
        self.client_id = policy.client_id
        self.group_name = policy.group
        self.killed = False
        self._cluster = cluster
        self._policy = policy
        self._fetcher = Fetcher(cluster)
        self._commits = Commits(cluster, policy.group)
        self._listener: RebalanceListener | None = None
        self._topic = ""
        self._member: Member | None = None
        self._owned: set[TopicPartition] = set()  # what the listener was told it has
        self._letting_go: list[TopicPartition] = []
        self._let_go_by_ms = 0
        self._answers: deque[tuple[CommitCallback, Answer]] = deque()
        self._activity: Callable[[], None] | None = None
        self._signalled = self._frozen = self._closed = False
        self._woken = False
        self._complained = False
        self._disguised = False  # a lost session that the listener hears of as a revocation

    # -- membership

    def subscribe(self, topic: str, listener: RebalanceListener) -> None:
        self._topic, self._listener = topic, listener
        with self._cluster.changed:
            self._join()

    def _join(self) -> None:
        policy, cluster = self._policy, self._cluster
        self._member = Member(
            f"{policy.client_id}-{cluster.number()}",
            policy.client_id,
            self._topic,
            policy.session_timeout_ms,
            policy.max_poll_interval_ms,
            policy.instance_id,
            cluster.clock(),
        )
        group = cluster.group(self.group_name)
        group.protocol = policy.protocol
        group.join(self._member, cluster.partition_counts())
        cluster.wake_all()

    def member_id(self) -> str:
        return self._member.member_id if self._member is not None else ""

    def membership(self) -> Membership | None:
        return Membership(self.member_id(), None) if self._is_member() else None

    def _is_member(self) -> bool:
        return self._member is not None and self.member_id() in self._cluster.group(self.group_name).members

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        if self._closed or self.killed:
            raise ClusterError("the consumer is closed: make a new one")
        deadline = time.monotonic() + timeout_s
        while True:
            self._cluster.tick()
            self._signalled = False
            records = self._poll_once(max_records)
            if records or not self._cluster.blocking or self._woken:
                self._woken = False
                return cast("list[Message]", records)
            with self._cluster.changed:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return []
                if not self._signalled:
                    self._cluster.changed.wait(min(left_s, ASK_AGAIN_MS / 1000) if self._letting_go else left_s)

    def _poll_once(self, max_records: int) -> list[MemoryMessage]:
        if self._frozen:
            return []  # a stopped process polls nothing: whoever still drives it must not bring it back into its group
        self._serve()
        if self._listener is not None:
            self._heartbeat()
            if not self._let_go_of_revoked(self._listener):
                self._cluster.later(ASK_AGAIN_MS, self.signal)
                return []
            self._take_assigned(self._listener)
        self._serve()
        with self._cluster.changed:
            records, faults = self._fetcher.fetch(max_records)
            if (records or faults) and self._fetcher.ready():
                self.signal()
        for fault in faults:
            if self._listener is not None:
                self._listener.fault(fault)
        return records

    def _heartbeat(self) -> None:
        """Hear of a lost session, and join again; a static member that was replaced is out for good."""
        with self._cluster.changed:
            if self._is_member():
                cast("Member", self._member).last_poll_ms = self._cluster.clock()
                return
            members = self._cluster.group(self.group_name).members.values()
            replaced = self._policy.instance_id and any(m.instance_id == self._policy.instance_id for m in members)
            if self._disguised and self._letting_go:
                return
            faults = self._cluster.faults
            self._disguised = bool(self._owned) and faults.happens(faults.lost_as_revoked)
            if self._disguised:
                self._letting_go = sorted(self._owned)
                self._let_go_by_ms = self._cluster.clock() + self._policy.drain_timeout_ms
                return
            lost = self._forget(self._owned)
        if lost and self._listener is not None:
            self._listener.lost(lost)
        if replaced:
            raise FencedError(f"instance_id={self._policy.instance_id!r} is used by another member now: stop this one")
        with self._cluster.changed:
            self._join()

    def _forget(self, partitions: Collection[TopicPartition]) -> list[TopicPartition]:
        gone = sorted(partitions)
        for partition in gone:
            self._fetcher.drop(partition)
            self._owned.discard(partition)
        self._letting_go = [tp for tp in self._letting_go if tp not in gone]
        return gone

    def _let_go_of_revoked(self, listener: RebalanceListener) -> bool:
        """Ask the listener once; True when nothing is (any longer) to be let go."""
        with self._cluster.changed:
            if not self._letting_go and self._is_member():
                self._letting_go = self._cluster.group(self.group_name).to_revoke(cast("Member", self._member))
                self._let_go_by_ms = self._cluster.clock() + self._policy.drain_timeout_ms
        if not self._letting_go:
            return True
        partitions = list(self._letting_go)
        drained = listener.revoked(partitions)
        if not drained and self._cluster.clock() < self._let_go_by_ms:
            return False
        with self._cluster.changed:
            self._forget(partitions)
            if self._member is not None:
                self._member.owned -= set(partitions)
            self._cluster.wake_all()
            self._cluster.changed.notify_all()
        if not drained:
            listener.lost(partitions)
        return True

    def _take_assigned(self, listener: RebalanceListener) -> None:
        with self._cluster.changed:
            if not self._is_member():
                return
            member = cast("Member", self._member)
            group = self._cluster.group(self.group_name)
            new = group.claimable(member)
            member.owned.update(new)
            member.since.update(dict.fromkeys(new, group.generation))
            self._owned.update(new)
            missing = self._topic not in self._cluster.logs and not self._complained
            self._complained |= missing
        if missing:
            unknown = TopicPartition(self._topic, -1)
            listener.fault(FetchFault(unknown, -1, "unknown_topic", f"topic {self._topic} does not exist"))
        if new:
            listener.assigned(new)

    # -- fetching

    def add(self, positions: Mapping[TopicPartition, int]) -> None:
        with self._cluster.changed:
            for partition, offset in positions.items():
                self._fetcher.set(TopicPartition(*partition), offset)
            self.signal()

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        with self._cluster.changed:
            for partition in partitions:
                self._fetcher.drop(partition)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        with self._cluster.changed:
            if partition not in self._fetcher.positions:
                raise ClusterError(
                    f"{partition[0]}[{partition[1]}] is not fetched by this consumer: add it before seeking"
                )
            self._fetcher.set(TopicPartition(*partition), offset)
            self.signal()

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        with self._cluster.changed:
            self._fetcher.paused.update(tp for tp in partitions if tp in self._fetcher.positions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        with self._cluster.changed:
            self._fetcher.paused.difference_update(partitions)
            self.signal()

    def ended(self) -> Mapping[TopicPartition, int]:
        with self._cluster.changed:
            return {tp: end for tp, end in self._fetcher.ends().items() if tp.topic != self._topic}

    # -- offsets

    def committed(
        self, partitions: Collection[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, Position | None]:
        with self._cluster.changed:
            group = self._cluster.group(self.group_name)
            positions = group.positions
            if undecided := [tp for tp in partitions if tp in group.pending]:
                raise ClusterUnavailable(f"the offset of {undecided[0]} waits for a transaction's end; try again")
            return {TopicPartition(*tp): positions.get(TopicPartition(*tp)) for tp in partitions}

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        return self._cluster.admin().end_offsets(partitions, timeout_s)

    def beginning_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        return self._cluster.admin().beginning_offsets(partitions, timeout_s)

    def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int, timeout_s: float
    ) -> dict[TopicPartition, int]:
        with self._cluster.changed:
            return {TopicPartition(*tp): self._cluster.led(tp).first_at(time_ms) for tp in partitions}

    def commit(self, positions: Mapping[TopicPartition, Position], done: CommitCallback) -> None:
        def answered(answer: Answer) -> None:
            faults = self._cluster.faults
            self._answers.append((done, answer))
            if faults.happens(faults.commit_twice):
                self._cluster.later(COMMIT_TWICE_MS, lambda: self._answers.append((done, answer)))
            self.signal()

        self._commits.send(positions, self.member_id(), answered)

    def commit_now(
        self, positions: Mapping[TopicPartition, Position], timeout_s: float
    ) -> dict[TopicPartition, ClusterError | None]:
        return self._commits.send_now(positions, self.member_id())

    def _serve(self) -> None:
        while self._answers:
            done, answer = self._answers.popleft()
            done(answer)

    # -- signals and failures

    def wake(self) -> None:
        with self._cluster.changed:
            self._woken = True
            self._signalled = True
            self._cluster.changed.notify_all()

    def activity(self, callback: Callable[[], None]) -> None:
        """`callback` is called, at most once between two polls, when a poll may have something to do; not to poll in."""
        self._activity = callback
        self.signal()

    def signal(self) -> None:
        if self._signalled or self._frozen or self._closed:
            return
        self._signalled = True
        if self._cluster.blocking:
            with self._cluster.changed:
                self._cluster.changed.notify_all()
        if self._activity is not None:
            self._activity()

    def wants(self, partition: TopicPartition) -> bool:
        return partition in self._fetcher.positions and partition not in self._fetcher.paused

    def freeze(self) -> None:
        with self._cluster.changed:
            self._frozen = True
            if self._member is not None and self._member.silent_since_ms is None:
                self._member.silent_since_ms = self._cluster.clock()
                self._cluster.later(self._policy.session_timeout_ms, self._cluster.expire)

    def thaw(self) -> None:
        with self._cluster.changed:
            self._cluster.expire()
            self._frozen = False
            if self._member is not None:
                self._member.silent_since_ms = None
        self.signal()

    def close(self) -> None:
        if self._closed:
            return
        self._commits.settle()
        self._closed = True
        with self._cluster.changed:
            for partition in list(self._fetcher.positions):
                self._fetcher.drop(partition)
            if self._policy.instance_id is None and not self.killed:
                self._cluster.group(self.group_name).remove(self.member_id(), self._cluster.partition_counts())
            elif self._member is not None and self._member.silent_since_ms is None:
                self._member.silent_since_ms = self._cluster.clock()
                self._cluster.later(self._policy.session_timeout_ms, self._cluster.expire)
            self._cluster.consumers.remove(self)
            self._cluster.wake_all()
            self._cluster.changed.notify_all()
        self._serve()
