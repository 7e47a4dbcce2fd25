"""What is found out about a failed attempt, and only then: its log tail, and its error text without what its record must not show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pipeline.codec.scrub import scrub, tagged_texts
from pipeline.core.delivery import Delivery
from pipeline.core.effects import DeadLetter
from pipeline.model.alerts import DeadLetterAlert
from pipeline.model.errors import CodecError
from pipeline.model.headers import TRACEPARENT, event_id_of, headers_in
from pipeline.model.history import parse
from pipeline.model.outcome import Failure
from pipeline.model.policies import Subscription
from pipeline.model.scrubbing import Sensitive
from pipeline.worker.execution import PROCESS_DIED

NOT_DECODED = frozenset({PROCESS_DIED, "MemoryError"})


class Diagnosis:
    """Of one subscription. `source` is the source topic's real name. `complete*` never raise: what can't be scrubbed is left out."""

    def __init__(self, subscription: Subscription, source: str, codec: Any) -> None:
        self._subscription = subscription
        self._source = source
        self._codec = codec

    def complete(self, delivery: Delivery, failure: Failure) -> Failure:
        """The failure with its attempt's log tail, and no text quoting a tagged field or a secret."""
        try:
            return self._complete(delivery, failure)
        except Exception as error:  # whatever it is, it must end neither the worker nor the secrecy
            return _left_out(failure, error)

    def _complete(self, delivery: Delivery, failure: Failure) -> Failure:
        tail = getattr(delivery, "tail", None)
        log = ""
        if tail is not None:
            log, delivery.tail = tail.text(), None
        if failure.scrubbed and not log:
            return failure
        sensitive = Sensitive(self._tagged(delivery))
        if failure.scrubbed:
            return replace(failure, log=sensitive.scrub(log))
        return _scrubbed(failure, sensitive, log)

    def complete_all(self, deliveries: Sequence[Delivery], failure: Failure) -> Failure:
        """The failure of a whole batch: its text may quote any of the records, and goes into the headers of each."""
        try:
            return _scrubbed(failure, Sensitive(pair for delivery in deliveries for pair in self._tagged(delivery)))
        except Exception as error:
            return _left_out(failure, error)

    def _tagged(self, delivery: Delivery) -> Iterable[tuple[str, str]]:
        try:
            _, value, schema = self._read(delivery)
            return list(tagged_texts(value, schema))
        except (CodecError, RecursionError):
            return ()

    def _read(self, delivery: Delivery) -> tuple[str, Any, Any]:
        """(record name, value, schema), the schema None where the values have none."""
        data = delivery.message.value()
        if self._subscription.value == "bytes":
            return "", None, None
        if self._subscription.value == "json":
            return "", self._codec.decode(self._source, data), None
        headers = None if data and data[0] == 0 else headers_in(delivery.message)
        name, value = self._codec.decode_dict(self._source, data, headers)
        return name, value, self._codec.schema_of(self._source, data, headers)

    def alert(self, effect: DeadLetter, topic: str, offset: int) -> DeadLetterAlert:
        """What is told of a dead letter that stands at `topic`, the unit's partition and `offset`."""
        delivery, headers, failure = effect.delivery, effect.headers, effect.failure
        record, shown = "", None
        try:
            if failure.error_class in NOT_DECODED:
                raise CodecError("what it did to its own process it must not do to this one")
            record, value, schema = self._read(delivery)
            # Without a contract nobody knows what is personal in it, and alerts leave the house.
            shown = scrub(value, schema) if schema is not None else None
        except (CodecError, RecursionError):
            pass
        history = parse(headers.history)
        own = headers_in(delivery.message) or []
        trace = next((value for name, value in own if name == TRACEPARENT and value), b"")
        return DeadLetterAlert(
            group=headers.group,
            topic=topic,
            partition=delivery.unit.partition,
            offset=offset,
            origin=(headers.origin_topic, headers.origin_partition, headers.origin_offset),
            key=(delivery.key or b"").decode("utf-8", "replace"),
            event_id=event_id_of(own) or f"{headers.origin_topic}/{headers.origin_partition}/{headers.origin_offset}",
            handler=getattr(self._subscription.handler, "__qualname__", type(self._subscription.handler).__name__),
            record=record,
            input=shown,
            attempt=headers.attempt,
            attempts=self._subscription.retry.attempts,
            error=headers.error,
            history=history,
            started_ms=failure.started_ms,
            failed_ms=history.attempts[-1].failed_ms if history.attempts else headers.first_failed_ms,
            log=tuple(headers.log.splitlines()),
            traceparent=trace.decode("utf-8", "replace"),
        )


def _left_out(failure: Failure, error: Exception) -> Failure:
    text = f"(left out: scrubbing it failed with {type(error).__name__})"
    return replace(failure, message=text, stack=text, log="", scrubbed=True)


def _scrubbed(failure: Failure, sensitive: Sensitive, log: str = "") -> Failure:
    name, message, stack, log = sensitive.scrub_all(failure.error_class, failure.message, failure.stack, log)
    return replace(failure, error_class=name, message=message, stack=stack, log=log, scrubbed=True)
