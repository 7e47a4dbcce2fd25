"""What the copy of a record in a lane carries in its headers: its origin, its count of attempts and hops, its last failure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.core.delivery import Delivery
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, clip_error, event_id_of, replay_count_of
from pipeline.model.outcome import Failure


@dataclass(frozen=True, slots=True)
class Hop:
    """A hand-off that was decided: to which lane, when that lane lets the copy go, when it may run at all (0: then too).

    `cause` is "retry", "wait" (behind a lower record of its key) or "hop" (its time has not come yet).
    """

    lane: int
    due_ms: int
    not_before_ms: int
    cause: str


def copy_headers(
    delivery: Delivery, now_ms: int, failure: Failure | None, due_ms: int = 0, not_before_ms: int = 0
) -> DeliveryHeaders:
    """Headers of the record's next copy, written by the owner of its unit. `failure`: what just happened to it, if anything."""
    before = delivery.headers or _first(delivery)
    error = before.error
    if failure is not None:
        error = clip_error(ErrorInfo(failure.error_class, failure.error_type, failure.message, failure.stack))
    return replace(
        before,
        attempt=delivery.attempt,
        hop=delivery.hop + 1,
        epoch=delivery.unit.epoch,
        due_ms=due_ms,
        not_before_ms=not_before_ms,
        first_failed_ms=before.first_failed_ms or (now_ms if failure else 0),
        error=error,
    )


def _first(delivery: Delivery) -> DeliveryHeaders:
    """Of a record that was not in a lane before. A foreign record found in a lane has that lane as its origin."""
    unit = delivery.unit
    return DeliveryHeaders(
        attempt=0,
        hop=0,
        epoch=unit.epoch,
        origin_topic=unit.lanes[delivery.lane].spec.topic,
        origin_partition=unit.partition,
        origin_offset=delivery.offset,
        origin_timestamp_ms=max(0, delivery.message.timestamp()[1]),
        group=unit.policy.group,
        replay_count=replay_count_of(delivery.message.headers()),
    )


def event_id(delivery: Delivery, source: str) -> str:
    """The producer's event id, or a stable one made of the origin."""
    given = event_id_of(delivery.message.headers())
    return given or f"{source}/{delivery.unit.partition}/{delivery.identity.origin}"
