"""One member of a consumer group on real Kafka: the rules of `GroupConsumer` over a confluent Consumer.

Only the source topic is subscribed. The group's assignment is answered with an empty one, so nothing of the source is
fetched until `add`; lanes are added by hand and live through rebalances (measured: classic cooperative and KIP-848).

Lanes are fetched by a client of their own that never joins: librdkafka names every partition in every fetch, so with lanes in
it each record of the source would cost the broker a look at all of them (measured at 1,000 records/s, 12 partitions and four
tiers: p99 from publish to poll 25 ms with them, 9 ms without).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, cast

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import Message as Fetched
from confluent_kafka import TopicPartition as Assigned

from pipeline.kafka.commits import Committer, names
from pipeline.kafka.errors import cluster_error, fatal_error, fault_kind, fetch_fault, is_fatal, raised
from pipeline.kafka.settings import lane_settings
from pipeline.model.cluster import (
    CommitCallback,
    FetchFault,
    Message,
    Position,
    RebalanceListener,
    TopicPartition,
)
from pipeline.model.errors import ClusterError
from pipeline.model.transactions import Membership

CLOSE_TIMEOUT_S = LET_GO_TIMEOUT_S = 5.0
_SILENCE_MS, _NEWS_S = 10_000, 5.0
_WAIT_FIRST_S, _WAIT_LONGEST_S = 0.002, 0.010

OnError = Callable[[str], None]
_error_of = Fetched.error


class Watermarks(Protocol):
    """Batched offset queries: the admin client's, since a consumer asks the broker for one partition at a time."""

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]: ...

    def beginning_offsets(
        self, partitions: Collection[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, int]: ...

    def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int, timeout_s: float
    ) -> dict[TopicPartition, int]: ...


class KafkaConsumer:
    """See `GroupConsumer`. `settings` are librdkafka's; `on_error` hears of what heals by itself."""

    def __init__(
        self, settings: Mapping[str, Any], drain_timeout_ms: int, watermarks: Watermarks, on_error: OnError
    ) -> None:
        self._drain_timeout_s = drain_timeout_ms / 1000
        self._watermarks = watermarks
        self._on_error = on_error
        self._settings = settings
        self._topic = ""
        self._consumer = Consumer({**settings, "error_cb": self._client_error})
        self._lanes: Consumer | None = None
        times_ms = (settings[name] for name in ("session.timeout.ms", "max.poll.interval.ms") if name in settings)
        self._silence_s = min(times_ms, default=_SILENCE_MS) / 1000
        self._polled_at_s = self._listen_until_s = time.monotonic()
        self._doubtful = False
        self._committer = Committer(self._consumer)
        self._listener: RebalanceListener | None = None
        self._starts: dict[TopicPartition, int] = {}  # what is assigned in the client, with the offset last asked for
        self._paused: set[TopicPartition] = set()
        self._touched: set[TopicPartition] = set()  # added, removed or sought by callbacks of the poll under way
        self._ended: dict[TopicPartition, int] = {}
        self._let_go: set[TopicPartition] | None = None  # removals put off to the end of a revoke callback
        self._fatal: ClusterError | None = None
        self._closing = self._closed = False

    # -- membership

    def subscribe(self, topic: str, listener: RebalanceListener) -> None:
        self._listener, self._topic = listener, topic
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def member_id(self) -> str:
        return self._consumer.memberid() or ""

    def membership(self) -> Membership | None:
        """Member id and generation belong together only if the id is the same before and after: ids never come back.

        A member that was removed has no id for a moment and generation -1: a broker takes a transaction's offsets from such a
        one without looking at the group.
        """
        member_id = self.member_id()
        metadata = self._consumer.consumer_group_metadata()
        return Membership(member_id, metadata) if member_id and self.member_id() == member_id else None

    def _assigned(self, consumer: Consumer, partitions: list[Assigned]) -> None:
        # Without this call confluent-kafka would assign the partitions itself and fetch at once.
        consumer.incremental_assign([])
        self._committer.member_id = self.member_id()
        ours = _plain(partitions)
        if ours and self._listener is not None and not self._closing:
            self._listener.assigned(ours)

    def _revoked(self, consumer: Consumer, partitions: list[Assigned]) -> None:
        """Ask until let go, at most for the drain timeout; then unassign, in one call, all that is to go.

        One call, as librdkafka's API asks for, so lanes that the listener removes while it drains go with the rest.
        (A call for the lanes alone did not end the revocation early when tried with 2.16; nothing promises that.)
        """
        ours = _plain(partitions)
        self._let_go = set(ours)
        drained = self._closing or self._listener is None or self._drain(self._listener, ours)
        going, self._let_go = self._let_go, None
        self._end_commits(ours)
        self._unassign(set(self._starts) if self._closing else going)
        if not drained and self._listener is not None:
            self._on_error(f"{names(ours)} were let go undrained after {self._drain_timeout_s} s")
            self._listener.lost(ours)

    def _drain(self, listener: RebalanceListener, partitions: Sequence[TopicPartition]) -> bool:
        deadline, wait_s = time.monotonic() + self._drain_timeout_s, _WAIT_FIRST_S
        while not listener.revoked(partitions):
            if time.monotonic() >= deadline:
                return False
            self._committer.wait(wait_s)
            self._committer.serve()
            wait_s = min(wait_s * 1.5, _WAIT_LONGEST_S)
        return True

    def _lost(self, consumer: Consumer, partitions: list[Assigned]) -> None:
        ours = _plain(partitions)
        self._end_commits(ours)
        self._unassign(ours)
        if self._listener is not None and not self._closing:
            self._listener.lost(ours)

    def _end_commits(self, ours: Collection[TopicPartition]) -> None:
        """Before `_unassign`, the answer after which the client may join again and be given the same partitions."""
        if not self._closing and not self._committer.let_go(ours, LET_GO_TIMEOUT_S):
            self._on_error(
                f"a commit of {names(ours)} is not answered after {LET_GO_TIMEOUT_S} s: it may still be stored"
            )

    def _unassign(self, partitions: Collection[TopicPartition]) -> None:
        """Always a call, also with nothing: inside a callback it is the answer that librdkafka waits for."""
        known = [tp for tp in partitions if tp in self._starts]
        for tp in known:
            del self._starts[tp]
            self._ended.pop(tp, None)
        self._touched.update(known)
        for client, mine in self._by_client(known, always=self._consumer).items():
            try:
                client.incremental_unassign([Assigned(t, p) for t, p in mine])
            except KafkaException as exception:
                self._on_error(str(raised(exception, f"unassigning {names(mine)}")))

    def _client(self, topic: str) -> Consumer:
        """The group's own client for the source, another for everything else."""
        if topic == self._topic or not self._topic:
            return self._consumer
        if self._lanes is None:
            self._lanes = Consumer({**lane_settings(self._settings), "error_cb": self._client_error})
        return self._lanes

    def _by_client(
        self, partitions: Collection[TopicPartition], always: Consumer | None = None
    ) -> dict[Consumer, list[TopicPartition]]:
        found: dict[Consumer, list[TopicPartition]] = {} if always is None else {always: []}
        for tp in partitions:
            found.setdefault(self._client(tp[0]), []).append(tp)
        return found

    # -- fetching

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        self._committer.serve()
        if self._touched:
            self._touched.clear()
        try:
            # consume(n, t) would wait the whole time to fill n records; this returns what is there.
            # The group's client first: what its callbacks take away must not come from the lanes' client any more.
            # A quarter is kept for lanes: a busy source must not make retries late.
            for_lanes = max_records // 4 if self._lanes is not None else 0
            batch = self._consumer.consume(max_records - for_lanes, 0)
            if self._lanes is not None and not self._may_have_lost() and len(batch) < max_records:
                batch += self._lanes.consume(max_records - len(batch), 0)
            if not batch:
                first = self._consumer.poll(timeout_s)
                if first is not None:
                    batch = self._consumer.consume(max_records - 1, 0) if max_records > 1 else []
                    batch.insert(0, first)
        except RuntimeError as error:
            raise ClusterError(f"the consumer is closed: {error}") from error
        except KafkaException as exception:
            raise raised(exception, "polling") from exception
        self._committer.serve()
        if self._touched:
            batch = self._still_wanted(batch)
        if any(map(_error_of, batch)):
            batch = self._sort_out(batch)
        if self._fatal is not None:
            raise self._fatal
        return cast("list[Message]", batch)

    def _may_have_lost(self) -> bool:
        """Nobody polled for so long that the group may have gone on without us: its news comes within moments (a client that
        left by itself has no member id before that), and until then no lane gives work that is somebody else's by now."""
        now_s = time.monotonic()
        if now_s - self._polled_at_s > self._silence_s:
            self._listen_until_s, self._doubtful = now_s + _NEWS_S, True
        self._polled_at_s = now_s
        if self._doubtful and now_s >= self._listen_until_s:
            self._doubtful = self.member_id() != self._committer.member_id
        return self._doubtful

    def wake(self) -> None:
        """Nothing: librdkafka's queue can't be woken through confluent-kafka, so keep `timeout_s` at 50 ms or less."""

    def _still_wanted(self, batch: list[Fetched]) -> list[Fetched]:
        """Records fetched before a callback of this very poll removed, added or sought their partition are dropped.

        For a partition that goes on, old and new records can't be told apart within one batch: fetch it again.
        """
        kept = [m for m in batch if (m.topic(), m.partition()) not in self._touched or m.error() is not None]
        if len(kept) != len(batch):
            for tp in self._touched & self._starts.keys():
                self.seek(tp, self._starts[tp])
        return kept

    def _sort_out(self, batch: list[Fetched]) -> list[Fetched]:
        """Hand faults to the listener and the rest of the errors to `on_error`."""
        kept = []
        for message in batch:
            error = message.error()
            if error is None:
                kept.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._note_end(message)
            elif is_fatal(error):
                self._client_error(error)
            elif message.topic() is not None and error.code() != KafkaError._MAX_POLL_EXCEEDED:
                if self._listener is not None:
                    self._listener.fault(fetch_fault(message, error))
            elif error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED and self._listener is not None:
                denied = cluster_error(error, f"joining group {self._settings['group.id']}")
                self._listener.fault(FetchFault(TopicPartition(self._topic, -1), -1, fault_kind(error), str(denied)))
            else:
                self._client_error(error)
        return kept

    def _note_end(self, message: Fetched) -> None:
        """Met before a callback of this very poll sought the lane, it says nothing."""
        tp, offset = TopicPartition(message.topic() or "", message.partition() or 0), message.offset()
        if tp in self._starts and tp not in self._touched and offset is not None:
            self._ended[tp] = offset

    def ended(self) -> Mapping[TopicPartition, int]:
        return self._ended

    def _client_error(self, error: KafkaError) -> None:
        """What librdkafka says of the client as a whole: it goes on by itself, except after a fatal error."""
        if is_fatal(error):
            self._fatal = fatal_error(error, "the consumer")
        self._on_error(f"{error.str()} [{error.name()}]")

    def add(self, positions: Mapping[TopicPartition, int]) -> None:
        new = {TopicPartition(*tp): offset for tp, offset in positions.items() if tp not in self._starts}
        for tp, offset in positions.items():
            if tp in self._starts:
                self.seek(tp, offset)
        if not new:
            return
        for client, mine in self._by_client(new).items():
            try:
                client.incremental_assign([Assigned(*tp, new[tp]) for tp in mine])
            except KafkaException as exception:
                raise raised(exception, f"assigning {names(mine)}") from exception
        self._starts.update(new)
        self._touched.update(new)
        if was_paused := self._paused & new.keys():  # librdkafka keeps the pause over an unassign
            self._paused -= was_paused
            for client, mine in self._by_client(was_paused).items():
                client.resume([Assigned(t, p) for t, p in mine])

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        if self._let_go is not None:  # in a revoke callback: the group's own client gets one call, at its end
            self._let_go.update(partitions)
        elif known := [tp for tp in partitions if tp in self._starts]:
            self._unassign(known)
            # Answered by the same thread and queue that stops the fetchers, so it returns after they are stopped:
            # no record of theirs comes from a later poll.
            for client in self._by_client(known):
                client.assignment()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._starts:
            raise ClusterError(f"{partition[0]}[{partition[1]}] is not fetched by this consumer: add it before seeking")
        self._starts[partition] = offset
        self._touched.add(partition)
        self._ended.pop(partition, None)
        target, client = Assigned(*partition, offset), self._client(partition[0])
        try:
            client.seek(target)
        except KafkaException:
            # Refused while its fetcher is stopped (after a fault) or starting: assign it anew; a pause is kept.
            client.incremental_unassign([Assigned(*partition)])
            client.assignment()
            client.incremental_assign([target])

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        known = [tp for tp in partitions if tp in self._starts]
        self._paused.update(known)
        for client, mine in self._by_client(known).items():
            client.pause([Assigned(t, p) for t, p in mine])

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Also seeks each to where it stands: resuming alone does not wake the fetcher of a broker whose partitions
        were all paused (measured: up to 1,000 ms until the first record, 4 ms with the seek). A pause has dropped
        what was prefetched, so nothing is fetched twice for it."""
        paused = [tp for tp in partitions if tp in self._paused and tp in self._starts]
        self._paused.difference_update(partitions)
        for client, mine in self._by_client(paused).items():
            positions = client.position([Assigned(t, p) for t, p in mine])
            client.resume([Assigned(t, p) for t, p in mine])
            for tp, position in zip(mine, positions, strict=True):
                self.seek(tp, position.offset if position.offset >= 0 else self._starts[tp])

    # -- offsets

    def committed(
        self, partitions: Collection[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, Position | None]:
        if not partitions:
            return {}
        try:
            found = self._consumer.committed([Assigned(t, p) for t, p in partitions], timeout_s)
        except KafkaException as exception:
            raise raised(exception, f"reading the committed offsets of {self._settings['group.id']}") from exception
        answer: dict[TopicPartition, Position | None] = {}
        for each in found:
            if each.error is not None:
                raise cluster_error(each.error, f"reading the committed offset of {each.topic}[{each.partition}]")
            answer[TopicPartition(each.topic, each.partition)] = (
                Position(each.offset, each.metadata or "") if each.offset >= 0 else None
            )
        return answer

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        return self._watermarks.end_offsets(partitions, timeout_s)

    def beginning_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        return self._watermarks.beginning_offsets(partitions, timeout_s)

    def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int, timeout_s: float
    ) -> dict[TopicPartition, int]:
        return self._watermarks.offsets_at(partitions, time_ms, timeout_s)

    def commit(self, positions: Mapping[TopicPartition, Position], done: CommitCallback) -> None:
        self._committer.commit(positions, done)

    def commit_now(
        self, positions: Mapping[TopicPartition, Position], timeout_s: float
    ) -> dict[TopicPartition, ClusterError | None]:
        return self._committer.commit_now(positions, timeout_s)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = self._closing = True
        self._committer.close(CLOSE_TIMEOUT_S)
        self._consumer.close()
        if self._lanes is not None:
            self._lanes.close()
        self._starts.clear()
        self._committer.serve()


def _plain(partitions: Sequence[Assigned]) -> list[TopicPartition]:
    return [TopicPartition(each.topic, each.partition) for each in partitions]
