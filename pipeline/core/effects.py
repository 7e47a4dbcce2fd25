"""What a unit is told of its subscription, and what it asks the worker to do."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.delivery import Delivery
from pipeline.model.headers import DeliveryHeaders
from pipeline.model.outcome import Failure
from pipeline.model.policies import Order, RetryPolicy


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """A lane as this worker knows it.

    `delay_ms` is None for the replay lane; `declared` is False for a retired tier: it is read, and not fed by failures.
    """

    name: str
    topic: str
    delay_ms: int | None
    declared: bool = True


@dataclass(frozen=True, slots=True)
class UnitPolicy:
    """What the unit needs of its subscription. `source`: topic name; `group`: as the headers name it.

    `blocked`: lane records that may wait in memory behind a lower one of their key; `held_back`: offsets that one of them may hold
    back its lane's commit by (a map of them fits into the commit's metadata). `isolated`: no handler can end the worker.
    `hold`: successors of a record that is given up follow it into the dead letters; `renew_ms`: so old may what keeps a key held become
    before it is written anew, since its lane has a retention.
    """

    source: str
    group: str
    order: Order
    retry: RetryPolicy
    blocked: int = 10_000
    held_back: int = 16_384
    isolated: bool = False
    hold: bool = False
    renew_ms: int = 86_400_000


@dataclass(frozen=True, slots=True)
class HandOff:
    """Write this record to a lane of the unit; answer with `Unit.handed_off` when acknowledged. `caused_by`: as `copies.Hop.cause`."""

    delivery: Delivery
    lane: int
    headers: DeliveryHeaders
    caused_by: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Write this record to the dead letters; answer with `Unit.dead_lettered` when acknowledged."""

    delivery: Delivery
    headers: DeliveryHeaders
    failure: Failure


@dataclass(frozen=True, slots=True)
class RunAgain:
    """Run it again at `at_ms`; its key stays blocked until then."""

    delivery: Delivery
    at_ms: int


Effect = HandOff | DeadLetter | RunAgain
