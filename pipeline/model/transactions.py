"""Transactions: what a subscription writes, and how far it has read, become visible together or not at all (KIP-447).

begin --> send ... --> commit --> begin ...
   ^                      | an error: nobody knows, or it did not happen
   '------- abort <-------'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.model.cluster import DeliveryCallback, Headers, Position, TopicPartition
from pipeline.model.errors import ClusterError

Answered = Callable[[ClusterError | None], None]
"""Called once, in any thread: post to your own thread and return."""


@dataclass(frozen=True, slots=True)
class TransactionPolicy:
    """Who writes, and after how long without an end the brokers abort what is open.

    `transactional_id`: of two producers with one id the older is fenced.
    """

    transactional_id: str
    group: str
    client_id: str = "pipeline"
    timeout_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class Membership:
    """A group's member at one moment; `token` is the adapter's own. A transaction with an old one is refused by the broker."""

    member_id: str
    token: object


class TransactionalProducer(Protocol):
    """One transaction after the other. `begin`, `commit` and `abort` return at once, are done in the order they were asked for,
    and answer through `done`. An error of `commit` means that nobody knows: ask to `abort`, which decides it."""

    @property
    def rebuilt(self) -> int:
        """How often a producer took the place of one that was in doubt."""
        ...

    def begin(self, done: Answered) -> None:
        """Open a transaction. If anything since the last `begin` makes it doubtful whether a request of an earlier transaction is
        still on its way (it could end this one), the producer is made anew first."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        """Into the open transaction. Raises `BufferFull` when the local queue is full: nothing was taken. A write that is refused
        later fails the commit; `delivered` hears of it too, or of the offset."""

    def commit(self, positions: Mapping[TopicPartition, Position], membership: Membership, done: Answered) -> None:
        """Everything sent since `begin`, and these positions. `done(None)`: it is so, for readers of committed records too."""

    def abort(self, done: Answered) -> None:
        """Make the producer anew. `done(None)`: whatever was open is decided: it never happened, unless its commit had gone through."""

    def mind(self) -> None:
        """Call it now and then: who waits longer for an answer than anything may take gets one, an error."""

    def close(self, timeout_s: float) -> None:
        """What is open is aborted."""
