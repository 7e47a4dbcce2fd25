"""What the transactions of a subscription are made of: their states, bounds and counts, and what they ask of the engine."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core.unit import Unit
from pipeline.model.cluster import Cluster, Headers
from pipeline.model.errors import ClusterError
from pipeline.model.policies import Subscription
from pipeline.model.transactions import TransactionalProducer, TransactionPolicy
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.inputs import Transacted
from pipeline.worker.parts import Clock, Executor

SPAN_MAX = 12_000
"""Offsets from the first that is open to the last that was fetched. With as many again in buffers it fits a commit's text."""
LARGE_BYTES = 65_536
"""No topic that is meant for events takes less."""


class State(enum.Enum):
    IDLE = "idle"
    OPENING = "opening"
    OPEN = "open"
    VOUCHING = "vouching"
    COMMITTING = "committing"
    UNDOING = "undoing"
    """To be said again: the brokers forget it first."""
    REPEATING = "repeating"
    IN_DOUBT = "in doubt"
    REOPENING = "reopening"


class Keeper(Protocol):
    """What it needs of the engine."""

    fetcher: Fetcher
    executor: Executor
    clock: Clock
    log: Any

    @property
    def owned(self) -> Sequence[Unit]: ...

    def post(self, item: Transacted) -> None: ...

    def restart(self) -> Mapping[int, int]:
        """Close every unit; returns the partitions that are to be opened again, with the term of each."""
        ...

    def stall(self, on: bool) -> None:
        """Take no new work, or take it again."""

    def later(self, delay_ms: int, action: Callable[[], None]) -> None: ...

    def fail(self, error: BaseException) -> None: ...

    def wake(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """`waiting`: records for the next transaction, at which no new work is taken; `open_ms`: how long one may stay open;
    `rest_ms`: how long handlers may take to end after a doubt. Of records for `dead_letters` the offset is asked for."""

    dead_letters: str
    waiting: int = 5_000
    open_ms: int = 5_000
    rest_ms: int = 20_000


@dataclass(slots=True)
class Counts:
    """Since the start of this process. `repeated`: aborted and written once more, handlers apart. `commit_s`: sum of the time from
    closing a transaction to its answer."""

    committed: int = 0
    aborted: int = 0
    repeated: int = 0
    commit_s: float = 0.0
    why: ClusterError | None = None


def is_large(key: bytes | None, value: bytes | None, headers: Headers | None) -> bool:
    """Its topic may refuse it for its size."""
    size = len(key or b"") + len(value or b"")
    return size + sum([len(name) + len(text or b"") for name, text in headers or ()]) >= LARGE_BYTES


def producer_for(
    subscription: Subscription, group: str, cluster: Cluster, client_id: str, instance_id: str | None
) -> TransactionalProducer | None:
    """One per subscription and process. With an instance id it has the same id after a restart, so that what a killed process left
    open ends as soon as it is back. The id begins with the group's name, for one ACL."""
    if subscription.delivery != "exactly_once":
        return None
    timeout_ms = subscription.flow.transaction_timeout_ms
    policy = TransactionPolicy(f"{group}.{instance_id or uuid.uuid4().hex}", group, client_id, timeout_ms)
    return cluster.transactional_producer(policy)


def poll_s(subscription: Subscription) -> float:
    """How long the poll thread may wait: a transaction waits for it to vouch."""
    return 0.02 if subscription.delivery == "at_least_once" else 0.005
