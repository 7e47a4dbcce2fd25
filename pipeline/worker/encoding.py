"""Outputs of handlers as bytes, and which codec a subscription's values have: the same in a worker and in its child processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.core.delivery import Delivery
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.events import TypedValue
from pipeline.model.outcome import Emit
from pipeline.model.policies import Subscription

if TYPE_CHECKING:
    from pipeline.app import Pipeline


class OutputEncoder:
    """`encode` never waits; `prepare` looks up what it needs first, and may block."""

    def __init__(self, app: Pipeline) -> None:
        self._app = app
        self._prepared: set[tuple[str, type[TypedValue]]] = set()

    def encode(self, item: Emit) -> tuple[str, bytes | None, bytes | None]:
        """(real topic, key, value). Raises SchemaUnavailable for a contract that was not prepared."""
        topic = self._app.topic_name(item.topic)
        key = item.key.encode() if isinstance(item.key, str) else item.key
        return topic, key, self._value(topic, item.value)

    def _value(self, topic: str, value: object) -> bytes | None:
        if value is None or isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, TypedValue):
            if (topic, type(value)) not in self._prepared:
                raise SchemaUnavailable(f"{value.record_name} was not looked up for topic {topic} yet")
            return self._app.codec.encode(value, topic=topic)
        return json.dumps(value, separators=(",", ":"), default=str).encode()

    def prepare(self, item: Emit) -> None:
        """Make the codec ready to write this output's type to its topic. Raises SchemaUnavailable."""
        if isinstance(item.value, TypedValue):
            topic, kind = self._app.topic_name(item.topic), type(item.value)
            self._app.codec.prepare(topic, [kind.record_name])
            self._prepared.add((topic, kind))


def codec_of(app: Pipeline, subscription: Subscription) -> Any:
    if subscription.value == "avro":
        return app.codec
    from pipeline.codec import BytesCodec, JsonCodec

    return JsonCodec() if subscription.value == "json" else BytesCodec()


def schema_of(subscription: Subscription, source: str, codec: Any) -> Callable[[Delivery], str]:
    """The writer schema's fingerprint, for dead letters."""
    if subscription.value != "avro":
        return lambda _delivery: ""
    return lambda delivery: str(codec.fingerprint(source, delivery.message.value(), delivery.message.headers()))
