"""A fetched record on its way through one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pipeline.core.parking import Identity
from pipeline.model.cluster import Message
from pipeline.model.headers import DeliveryHeaders

if TYPE_CHECKING:
    from pipeline.core.unit import Unit


class Tail(Protocol):
    """The last lines that an attempt logged."""

    def text(self) -> str: ...


SOURCE = 0
"""Index of the source among a unit's lanes."""


class Delivery:
    """One record of a unit. `attempt` counts executions so far, `hop` hand-offs so far; `headers` is None on the source lane.

    Made once per record on the hot path, hence slots and nothing that a source record does not need. `history` (of failed
    attempts, those in memory included) and `tail` (what the running attempt logged) are not set before there is any.
    """

    __slots__ = ("attempt", "headers", "history", "hop", "identity", "key", "lane", "message", "offset", "tail", "unit")

    history: bytes
    identity: Identity
    tail: Tail | None

    def __init__(self, unit: Unit, lane: int, offset: int, key: bytes | None, message: Message) -> None:
        self.unit = unit
        self.lane = lane
        self.offset = offset
        self.key = key
        self.message = message
        self.attempt = 0
        self.hop = 0
        self.headers: DeliveryHeaders | None = None

    def __getattr__(self, name: str) -> Any:
        """`identity`, when it is asked for first: most records of the source never are."""
        if name != "identity":
            raise AttributeError(name)
        headers = self.headers
        found = Identity(self.offset) if headers is None else Identity(headers.origin_offset, headers.replay_id)
        self.identity = found
        return found

    @property
    def due_ms(self) -> int:
        return 0 if self.headers is None else self.headers.due_ms

    @property
    def not_before_ms(self) -> int:
        return 0 if self.headers is None else self.headers.not_before_ms


def identity_of(delivery: Delivery) -> Identity:
    """What the records of one key are put in order by."""
    return delivery.identity
