"""Outputs of handlers as bytes, and which codec a subscription's values have: the same in a worker and in its child processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipeline.core.delivery import Delivery
from pipeline.model.cluster import Headers
from pipeline.model.errors import ConfigurationError, EncodeError, SchemaUnavailable
from pipeline.model.events import TypedValue
from pipeline.model.headers import headers_in
from pipeline.model.outcome import Emit
from pipeline.model.policies import Subscription
from pipeline.model.topics import check_topic

if TYPE_CHECKING:
    from pipeline.app import Pipeline


class OutputEncoder:
    """`encode` never waits; `prepare` looks up what it needs first, and may block."""

    def __init__(self, app: Pipeline) -> None:
        self._app = app
        self._prepared: set[tuple[str, type[TypedValue]]] = set()

    def encode(self, item: Emit) -> tuple[str, bytes | None, bytes | None]:
        """(real topic, key, value). SchemaUnavailable: its contract was not prepared; EncodeError: no producer takes it."""
        topic = _legal(self._app.topic_name(item.topic))
        key = item.key.encode() if isinstance(item.key, str) else item.key
        if not (key is None or isinstance(key, bytes)):
            raise EncodeError(f"an output for {topic} has a key of type {type(key).__name__}: use text, bytes or None")
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


@lru_cache(1_024)
def _legal(topic: str) -> str:
    """A topic that can't exist would be tried for ever, and its partition stand still."""
    try:
        return check_topic(topic, "the topic of an output")
    except ConfigurationError as error:
        raise EncodeError(str(error)) from None


def headers_of(item: Emit) -> Headers:
    """An output's headers. Raises EncodeError for what no producer takes: told by the producer it would stop the engine."""
    found: Headers = []
    for name, value in item.headers or ():
        data: object = value.encode() if isinstance(value, str) else value
        if not isinstance(name, str) or not (data is None or isinstance(data, bytes)):
            raise EncodeError(
                f"an output for {item.topic} has a header ({type(name).__name__}, {type(value).__name__}): "
                "use a name that is text, and bytes or None"
            )
        name.encode()  # what is no UTF-8 ends the process inside the client
        found.append((name, data))
    return found


def codec_of(app: Pipeline, subscription: Subscription) -> Any:
    if subscription.value == "avro":
        return app.codec
    from pipeline.codec import BytesCodec, JsonCodec

    return JsonCodec() if subscription.value == "json" else BytesCodec()


def schema_of(subscription: Subscription, source: str, codec: Any) -> Callable[[Delivery], str]:
    """The writer schema's fingerprint, for dead letters."""
    if subscription.value != "avro":
        return lambda _delivery: ""
    return lambda delivery: str(codec.fingerprint(source, delivery.message.value(), headers_in(delivery.message)))
