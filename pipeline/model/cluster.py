"""What the pipeline needs of a Kafka cluster: the ports that `pipeline.kafka` and `pipeline.memory` implement.

One conformance suite (tests/conformance) runs over both. The message type is confluent-kafka's own shape, so that
the hot path wraps nothing. Every blocking call has a deadline in seconds and raises `ClusterUnavailable` past it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pipeline.model.errors import ClusterError

if TYPE_CHECKING:
    from pipeline.model.transactions import Membership, TransactionalProducer, TransactionPolicy

Headers = list[tuple[str, bytes | None]]


class TopicPartition(NamedTuple):
    """A partition of a topic. Compares equal to the plain tuple `(topic, partition)`, so hot code may use that."""

    topic: str
    partition: int


class Message(Protocol):
    """A fetched record: the methods of `confluent_kafka.Message` that we use."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Headers | None: ...
    def timestamp(self) -> tuple[int, int]:
        """(type, milliseconds since the epoch); type 0 means not available."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """A committed offset: the next offset to read, and the text kept with it (at most 4,095 characters)."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class FetchFault:
    """A fetch error that concerns one partition, as data: the caller decides (seek past, stop, alarm).

    `kind`: "bad_batch" (can't be decompressed or fails its CRC; `offset` is the batch's first), "out_of_range",
    "unknown_topic", "not_authorized", "other".
    """

    partition: TopicPartition
    offset: int
    kind: str
    text: str


class RebalanceListener(Protocol):
    """Called from inside `GroupConsumer.poll`, in its thread. Must not raise."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """New source partitions are ours. Nothing is fetched until `add` is called (now or in a later poll)."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
        """The group wants them back. Asked again until it returns True: then they are let go.

        All partitions that were `add`ed for them (their lanes) must have been `remove`d by then. Real Kafka asks within one
        `poll` (commits are answered meanwhile, nothing is fetched), memory once in each `poll`. When the drain deadline
        passes first, they are let go undrained and `lost` is called with them.
        """
        ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """They already belong to someone else: stop, never commit, `remove` their lanes. The partitions themselves are
        no longer fetched. Kafka can say `revoked` instead (then the commits are fenced)."""

    def fault(self, fault: FetchFault) -> None:
        """A fetch error of one partition; number and offset are -1 where it concerns the topic as a whole.

        After "out_of_range" and "unknown_topic" the partition is silent until sought; "bad_batch" repeats until sought past.
        """


CommitCallback = Callable[[Mapping[TopicPartition, ClusterError | None]], None]


class GroupConsumer(Protocol):
    """One member of a consumer group. All methods are called from one thread, except `wake`, which any thread may call."""

    def subscribe(self, topic: str, listener: RebalanceListener) -> None:
        """Join the group for one source topic. Assignments come through the listener, during `poll`."""

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        """Serve callbacks, then return what has been fetched, at most `max_records`; waits up to `timeout_s` for the first only."""
        ...

    def wake(self) -> None:
        """Make a `poll` that is waiting in another thread return soon. Best effort: the Kafka adapter can't, so keep
        `timeout_s` at 50 ms or less (and commit answers are served between polls, not during the wait)."""

    def add(self, positions: Mapping[TopicPartition, int]) -> None:
        """Start fetching these partitions (source partitions of ours, or lanes assigned by hand) from these offsets.

        They start unpaused; one that is fetched already is sought. Not while `revoked` is being asked."""

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        """Stop fetching them; those that are not assigned are ignored."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from there next; records fetched before are never returned by a later poll. A pause stays."""

    def pause(self, partitions: Collection[TopicPartition]) -> None: ...

    def resume(self, partitions: Collection[TopicPartition]) -> None: ...

    def committed(
        self, partitions: Collection[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, Position | None]:
        """None where the group never committed."""
        ...

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        """High watermark: the offset that the next record will get."""
        ...

    def beginning_offsets(
        self, partitions: Collection[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, int]: ...

    def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int, timeout_s: float
    ) -> dict[TopicPartition, int]:
        """The first offset whose timestamp is >= time_ms, or the end."""
        ...

    def commit(self, positions: Mapping[TopicPartition, Position], done: CommitCallback) -> None:
        """Send ONE OffsetCommit; `done` is called once, in a later `poll` (while `revoked` is being asked, between two
        questions; at the latest in `close`), with every partition's own error (None = stored). Never raises.

        `ClusterUnavailable` means that nobody knows: it may be stored, now or a little later."""

    def commit_now(
        self, positions: Mapping[TopicPartition, Position], timeout_s: float
    ) -> dict[TopicPartition, ClusterError | None]:
        """The same, waiting for the answer. A stale generation is a `FencedError` per partition."""
        ...

    def ended(self) -> Mapping[TopicPartition, int]:
        """Where the end of a lane was last met since it was added or sought; as in `PartitionReader`. Not for the source."""
        ...

    def member_id(self) -> str: ...

    def membership(self) -> Membership | None:
        """For a transaction: the member as it is now; None while it is none. Never block, and may be asked within `revoked`."""
        ...

    def close(self) -> None:
        """Leave the group (so that partitions move at once) and free everything. The listener is not asked any more:
        drain first. A static member does not leave. Calling it twice is fine."""


DeliveryCallback = Callable[[ClusterError | None, int], None]
"""(error or None, offset, -1 with an error): called once per record, in any thread: post to your own thread and return."""


OutRecord = tuple[bytes | None, bytes | None, Headers]
"""A record to be written: key, value, headers."""


@dataclass(slots=True)
class Acknowledgements:
    """What the brokers said of the records of one `send_many`, in the order they were sent, as it comes in.

    `offsets` grows in another thread: -1 stands for a record that was refused (its error is in `errors`, by index), or for
    one that is written at an offset nobody knows. With the answer number `count`, `done` is called, in whichever thread heard it.
    """

    offsets: list[int] = field(default_factory=list)
    errors: dict[int, ClusterError] = field(default_factory=dict)
    count: int = field(default=0, compare=False)
    done: Callable[[], None] | None = field(default=None, compare=False)

    def add(self, error: ClusterError | None, offset: int) -> None:
        """One more answer."""
        if error is not None:
            self.errors[len(self.offsets)] = error
        self.offsets.append(offset)
        if len(self.offsets) == self.count and self.done is not None:
            self.done()

    @property
    def error(self) -> ClusterError | None:
        """The first refusal."""
        return next(iter(self.errors.values()), None)


class RecordProducer(Protocol):
    """Idempotent producer, acks=all: records of one partition land in the order they were sent. Thread-safe."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        """Queue a record (partition -1 = by key, murmur2 as the Java client does; without key, any).

        Raises `BufferFull` at once when the local queue is full. Without `delivered` a failure is not reported anywhere.
        """

    def send_many(
        self, topic: str, partition: int, records: Sequence[OutRecord], acknowledgements: Acknowledgements
    ) -> int:
        """Queue many for one partition, in order; returns how many were taken: fewer when the local queue is full.

        Raises what `send` does, but for `BufferFull`, only when the first of them was not taken. The next call for the same
        partition may share its `acknowledgements`. (With partition -1 each goes by its key, and answers come in any order.)
        """
        ...

    def flush(self, timeout_s: float) -> int:
        """Wait until everything is answered; returns how many are not."""
        ...

    def hear(self) -> None:
        """Answers that are there, now and in this thread. For a caller that sends much at once: another thread would have to
        wait for the interpreter with each of them."""

    def close(self, timeout_s: float) -> None: ...


class BulkProducer(RecordProducer, Protocol):
    """For records by the million: one may wait some milliseconds for others, and answers are heard in `serve` only."""

    def serve(self, timeout_s: float) -> None:
        """Hear answers in this thread; waits up to `timeout_s` for the first. (`flush` and `close` do so too.)"""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be, or as it is. `configs` holds only what is set on purpose (strings, as Kafka has them)."""

    name: str
    partitions: int
    replication_factor: int = -1
    configs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupMember:
    member_id: str
    client_id: str
    host: str
    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class GroupState:
    """What the coordinator says of a group. `state`: "stable", "empty", "rebalancing", "dead", "unknown"."""

    group: str
    state: str
    protocol: str
    members: tuple[GroupMember, ...]


class ClusterAdmin(Protocol):
    """Reading and making topics and looking at groups."""

    def topics(self, names: Collection[str] | None = None, timeout_s: float = 10.0) -> dict[str, TopicSpec]:
        """Those that exist, with every config value in force; all (without internal ones) when `names` is None."""
        ...

    def topic_names(self, timeout_s: float = 10.0) -> list[str]:
        """Names alone (without internal ones): cheap, for discovery."""
        ...

    def create_topics(self, specs: Sequence[TopicSpec], timeout_s: float = 30.0) -> None:
        """Returns when they are visible; one that exists already is a `TopologyError`."""

    def set_configs(self, topic: str, configs: Mapping[str, str], timeout_s: float = 30.0) -> None: ...

    def add_partitions(self, topic: str, total: int, timeout_s: float = 30.0) -> None: ...

    def delete_topics(self, names: Collection[str], timeout_s: float = 30.0) -> None: ...

    def delete_records(self, before: Mapping[TopicPartition, int], timeout_s: float = 30.0) -> None: ...

    def groups(self, timeout_s: float = 10.0) -> list[str]: ...

    def describe_group(self, group: str, timeout_s: float = 10.0) -> GroupState: ...

    def group_positions(self, group: str, timeout_s: float = 10.0) -> dict[TopicPartition, Position]: ...

    def set_group_positions(
        self, group: str, positions: Mapping[TopicPartition, Position], timeout_s: float = 10.0
    ) -> None:
        """Only for a group with no members."""

    def end_offsets(
        self, partitions: Collection[TopicPartition], timeout_s: float = 10.0
    ) -> dict[TopicPartition, int]: ...

    def beginning_offsets(
        self, partitions: Collection[TopicPartition], timeout_s: float = 10.0
    ) -> dict[TopicPartition, int]: ...

    def broker_version(self, timeout_s: float = 10.0) -> str: ...

    def broker_setting(self, name: str, timeout_s: float = 10.0) -> str | None:
        """A setting of a broker; None when it has none by that name, or we may not see it."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ConsumerPolicy:
    """How a member joins and fetches. Times in milliseconds, sizes in bytes. `protocol`: "classic" or "consumer" (KIP-848)."""

    group: str
    client_id: str = "pipeline"
    protocol: str = "classic"
    session_timeout_ms: int = 10_000
    max_poll_interval_ms: int = 300_000
    instance_id: str | None = None
    drain_timeout_ms: int = 20_000
    fetch_wait_ms: int = 10
    fetch_partition_bytes: int = 1_048_576
    queued_records: int = 20_000
    queued_bytes: int = 16_777_216
    isolation: str = "read_committed"


class PartitionReader(Protocol):
    """Reads partitions without a group: for tools, read-back and compacted control topics. One thread."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these partitions from these offsets, instead of those before."""

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        """Stop reading them: no later poll returns their records. Those that are not assigned are ignored."""

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        """What has been fetched, at most `max_records`; waits up to `timeout_s` for the first only, and not even that
        long when a partition's end is met. Raises a `ClusterError` for what can't heal by itself."""
        ...

    def ended(self) -> Mapping[TopicPartition, int]:
        """Where the end of a partition was last met by a poll: all that can be read below that offset was returned.

        An end is met when nothing more can be read for now; a partition has no entry before its first. It tells what
        records alone can't: offsets of transaction markers, aborted records and compacted ones never come. It stays
        before the first record of a transaction that is still open.
        """
        ...

    def close(self) -> None: ...


class TimeDifference(NamedTuple):
    """The cluster's time is own time + `ahead_ms`, or up to `spread_ms` later."""

    ahead_ms: int
    spread_ms: int


class Cluster(Protocol):
    """Where the pipeline runs: makes clients. `address` is a bootstrap list, or `memory://name`."""

    address: str

    def consumer(self, policy: ConsumerPolicy) -> GroupConsumer: ...

    def producer(self, client_id: str = "pipeline") -> RecordProducer: ...

    def bulk_producer(self, client_id: str = "pipeline") -> BulkProducer: ...

    def transactional_producer(self, policy: TransactionPolicy) -> TransactionalProducer: ...

    def reader(self, client_id: str = "pipeline") -> PartitionReader: ...

    def admin(self) -> ClusterAdmin: ...

    def time_difference(self, topic: str, timeout_s: float) -> TimeDifference:
        """Between the cluster's clock and this machine's, by records written to a topic of partition 0 that stamps them."""
        ...
