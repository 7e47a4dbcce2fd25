"""What the poll thread and the producer tell the engine: values, posted in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.progress import Progress
from pipeline.core.unit import Effect, LaneSpec
from pipeline.core.unreadable import Damage
from pipeline.model.cluster import FetchFault, Message, Position, TopicPartition
from pipeline.model.errors import ClusterError, PipelineError
from pipeline.model.transactions import Membership

if TYPE_CHECKING:
    from pipeline.worker.transaction_parts import State


@dataclass(frozen=True, slots=True)
class StorePlace:
    topic: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A partition is ours, and this is where its lanes stand. `ends` were read after the committed offsets.

    `term` counts the openings of the partition by this worker: what is said of an earlier one is out of date.
    `store`: a queue's, with where its log begins and ends.
    """

    partition: int
    lanes: tuple[LaneSpec, ...]
    source: Progress
    progress: Mapping[str, Progress]
    ends: Mapping[str, int]
    term: int = 0
    store: StorePlace | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """The epoch of this partition is durable: process."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The partition can't be processed; `error` says why and what to do (None: it is not ours any more)."""

    partition: int
    error: PipelineError | None


@dataclass(frozen=True, slots=True)
class Fetched:
    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Ended:
    """Lanes that are read for a rebuild were read to here: what is below and was not fetched holds no record."""

    offsets: Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class Revoking:
    """Drain these partitions, then `Fetcher.release` them."""

    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """These belong to someone else already."""

    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """`asked`: the very mapping that was to be committed, which tells the answers of two requests apart."""

    errors: Mapping[TopicPartition, ClusterError | None]
    asked: Mapping[TopicPartition, Position] | None = None


@dataclass(frozen=True, slots=True)
class Faulted:
    fault: FetchFault


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A batch that can't be read was passed over; records from behind it are posted after this."""

    partition: TopicPartition
    damage: Damage


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker's answer to an effect that was sent, or to an output of a delivery."""

    effect: Effect | object
    error: ClusterError | None


@dataclass(frozen=True, slots=True)
class Transacted:
    """An answer to the transaction's `number`th question, asked in the state `asked`."""

    asked: State
    number: int
    error: ClusterError | None
    membership: Membership | None = None


Input = (
    Opened
    | Claimed
    | Refused
    | Fetched
    | Ended
    | Revoking
    | Lost
    | Committed
    | Faulted
    | Unreadable
    | Delivered
    | Transacted
)
