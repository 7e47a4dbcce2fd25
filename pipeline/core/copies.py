"""What the copy of a record in a lane carries in its headers: its origin, its count of attempts and hops, its last failure."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.delivery import Delivery
from pipeline.model.headers import (
    NO_ERROR,
    DeliveryHeaders,
    ErrorInfo,
    clip_error,
    event_id_of,
    headers_in,
    replay_count_of,
)
from pipeline.model.history import Attempt, append, parse
from pipeline.model.outcome import Failure


@dataclass(frozen=True, slots=True)
class Hop:
    """A hand-off that was decided: to which lane, when that lane lets the copy go, when it may run at all (0: then too).

    `cause` is "retry", "wait" (behind a lower record of its key), "hop" (its time has not come yet) or "hold" (its key is held by it).
    """

    lane: int
    due_ms: int
    not_before_ms: int
    cause: str


def history_of(delivery: Delivery) -> bytes:
    """Its failed attempts so far, those that were tried again in memory included."""
    history: bytes | None = getattr(delivery, "history", None)
    if history is None:
        history = delivery.headers.history if delivery.headers is not None else b""
    return history


def note_failure(delivery: Delivery, failure: Failure, now_ms: int) -> None:
    """One more failed attempt (it is counted in `attempt` already)."""
    attempt = Attempt(
        delivery.attempt, now_ms, failure.error_class, failure.error_type, failure.message, failure.started_ms
    )
    delivery.history = append(history_of(delivery), attempt)


def copy_headers(
    delivery: Delivery, now_ms: int, failure: Failure | None, due_ms: int = 0, not_before_ms: int = 0, log: str = ""
) -> DeliveryHeaders:
    """Headers of the record's next copy, written by the owner of its unit. `failure`: what just happened to it, if anything."""
    unit, before, history = delivery.unit, delivery.headers, history_of(delivery)
    error = before.error if before is not None else NO_ERROR
    if failure is not None:
        error = ErrorInfo(failure.error_class, failure.error_type, failure.message, failure.stack)
        error = clip_error(error, len(history) + len(log.encode("utf-8", "replace")))
    first_failed_ms = before.first_failed_ms if before is not None else 0
    if before is None:  # was in no lane before; a foreign record found in a lane has that lane as its origin
        message = delivery.message
        topic, partition, offset = unit.lanes[delivery.lane].spec.topic, unit.partition, delivery.offset
        timestamp_ms, group = max(0, message.timestamp()[1]), unit.policy.group
        replay_id, replay_count, schema = "", replay_count_of(headers_in(message)), ""
    else:
        topic, partition, offset = before.origin_topic, before.origin_partition, before.origin_offset
        timestamp_ms, group = before.origin_timestamp_ms, before.group
        replay_id, replay_count, schema = before.replay_id, before.replay_count, before.schema
    # By place: this runs for every hop, and `dataclasses.replace` would cost as much as all the rest.
    return DeliveryHeaders(
        delivery.attempt, delivery.hop + 1, unit.epoch, topic, partition, offset, timestamp_ms, group, due_ms, not_before_ms,
        first_failed_ms or _first_failed_ms(history, now_ms if failure else 0), replay_id, replay_count, schema, error, history, log,
    )  # fmt: skip


def _first_failed_ms(history: bytes, now_ms: int) -> int:
    """It may have failed in memory before it failed now."""
    attempts = parse(history).attempts if history else ()
    return attempts[0].failed_ms if attempts else now_ms


def event_id(delivery: Delivery, source: str) -> str:
    """The producer's event id, or a stable one made of the origin."""
    given = event_id_of(headers_in(delivery.message))
    return given or f"{source}/{delivery.unit.partition}/{delivery.identity.origin}"
