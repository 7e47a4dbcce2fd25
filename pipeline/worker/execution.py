"""From a delivery to the handler's event, and from what the handler did to an outcome."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.core.delivery import Delivery
from pipeline.model.errors import CodecError, EncodeError, PipelineError, SchemaUnavailable, UndecodableError
from pipeline.model.events import UnknownEvent
from pipeline.model.headers import headers_in
from pipeline.model.outcome import Done, Emit, Failure, FailureKind, Reject, Retry, outcome_of
from pipeline.model.policies import Subscription
from pipeline.worker.context import Context

Decode = Callable[[Delivery, Context], object]
DecodeMany = Callable[[Sequence[Delivery]], tuple[Sequence[str], list[object]]]
STACK_FRAMES = 30
PROCESS_DIED = "ProcessDied"
"""Error class of a record that was given up because the process that ran it ended. Nobody may decode it outside a child."""


class Skip:
    """Stands in the place of an event that this handler is not for."""


SKIP = Skip()


@dataclass(frozen=True, slots=True)
class Execution:
    """What every execution of one subscription shares. `source` is the source topic's real name, `cluster` the address of
    its brokers.

    `decode_many` gives (record names, events) of a batch in which nothing is amiss, or raises CodecError: then one by one.
    """

    subscription: Subscription
    source: str
    decode: Decode
    log: Any
    decode_many: DecodeMany | None = None
    cluster: str = ""

    @property
    def prefix(self) -> str:
        """What stands before the names of topics."""
        return self.source.removesuffix(self.subscription.topic)


def decoder(subscription: Subscription, source: str, codec: Any) -> Decode:
    """How this subscription's values become events: typed, dict, JSON or bytes."""
    if subscription.value == "bytes":
        return lambda delivery, _context: delivery.message.value()
    if subscription.value == "json":
        return lambda delivery, _context: codec.decode(source, delivery.message.value())
    if subscription.typed:
        return _typed(subscription, source, codec)
    decode_dict = codec.decode_dict

    def fields(delivery: Delivery, context: Context) -> object:
        data = delivery.message.value()
        headers = None if data and data[0] == 0 else headers_in(delivery.message)
        context.record_name, value = decode_dict(source, data, headers)
        return value

    return fields


def batch_decoder(subscription: Subscription, source: str, codec: Any) -> DecodeMany | None:
    """The same for whole batches, where that is faster."""
    if subscription.value == "json":
        return None
    if subscription.value == "bytes":
        return lambda batch: ((), [delivery.message.value() for delivery in batch])
    typed = subscription.typed
    wanted = subscription.event_types

    def many(batch: Sequence[Delivery]) -> tuple[Sequence[str], list[object]]:
        names, events = codec.decode_many(source, [delivery.message.value() for delivery in batch], typed)
        if typed:
            kinds = set(map(type, events))
            if UnknownEvent in kinds or not (wanted is None or kinds.issubset(wanted)):
                raise UndecodableError("some of this batch are not for this handler")
            return (), events
        return names, events

    return many


def _typed(subscription: Subscription, source: str, codec: Any) -> Decode:
    decode = codec.decode
    accepted = subscription.event_types
    dead_letter = subscription.unknown_event == "dead_letter"

    def typed(delivery: Delivery, _context: Context) -> object:
        data = delivery.message.value()
        # Only header framing needs the headers; asking for them costs more than looking at the first byte.
        event = decode(source, data, None if data and data[0] == 0 else headers_in(delivery.message))
        kind = type(event)
        if kind is UnknownEvent:
            if dead_letter:
                raise UndecodableError(
                    f"record type {event.record_name} is not known to this build: update it, or set unknown_event='skip'"
                )
            return SKIP
        return event if accepted is None or kind in accepted else SKIP

    return typed


def text_of(words: object) -> str:
    """Of whatever a handler raised or said."""
    try:
        return str(words)
    except Exception:
        return f"{type(words).__name__}, which can't be turned into text"


def failure_of(error: BaseException, terminal: tuple[type[BaseException], ...]) -> Failure:
    """The failure that an exception stands for."""
    name, text = type(error).__name__, text_of(error)
    stack = "".join(traceback.format_exception(error, limit=-STACK_FRAMES))
    if isinstance(error, Retry):
        return Failure(FailureKind.RETRYABLE, "Retry", name, text, stack, error.after_ms)
    if isinstance(error, Reject):
        return Failure(FailureKind.TERMINAL, "Reject", name, text, stack)
    if isinstance(error, UndecodableError):
        return Failure(FailureKind.UNDECODABLE, "Undecodable", name, text, stack)
    if isinstance(error, (EncodeError, ValidationError, terminal)):
        return Failure(FailureKind.TERMINAL, name, name, text, stack)
    if isinstance(error, SchemaUnavailable):
        return Failure(FailureKind.RETRYABLE, "SchemaUnavailable", name, text, stack)
    if isinstance(error, TimeoutError):
        return Failure(FailureKind.TIMED_OUT, "Timeout", name, text or "the handler timed out", stack)
    if isinstance(error, CodecError):
        return Failure(FailureKind.UNDECODABLE, "Undecodable", name, text, stack)
    return Failure(FailureKind.RETRYABLE, name, name, text, stack)


def output_failure(error: Exception) -> Failure:
    """The failure of an output that can't be encoded. One that has no JSON form, or a key that is a number: no attempt changes it."""
    return failure_of(error, () if isinstance(error, PipelineError) else (Exception,))


def timed_out(timeout_ms: int) -> Failure:
    return Failure(
        FailureKind.TIMED_OUT, "Timeout", "TimeoutError", f"the attempt took longer than timeout={timeout_ms / 1000:g}s"
    )


def concluded(returned: object, context: Context) -> tuple[Done | Failure, Sequence[Emit]]:
    """Outcome and outputs of an execution that returned. Outputs of one that failed are dropped."""
    outcome, emitted = outcome_of(returned)
    if isinstance(outcome, Failure):
        return outcome, ()
    return outcome, (*(context.emitted or ()), *emitted)
