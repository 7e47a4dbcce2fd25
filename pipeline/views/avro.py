"""Our topics for Faust agents: typed events in, dead letters instead of lost records.

Faust acknowledges and drops what its own codecs can't decode, and skips the record an agent raised on. So a topic stays
bytes for Faust, decoding happens inside the agent, and a record is done only when it was handled or is a dead letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.codec.avro import AvroCodec
from pipeline.model.errors import SchemaUnavailable, UndecodableError
from pipeline.model.topics import lane_topics
from pipeline.views.dead_letters import dead_letter
from pipeline.views.registry import open_codec

if TYPE_CHECKING:
    from faust import App
    from faust.types import StreamT, TopicT

FETCH_ATTEMPTS, FETCH_PAUSE_S = 30, 1.0


async def find_schema(codec: AvroCodec, topic: str, unknown: SchemaUnavailable) -> None:
    """Ask the registry for the schema, for about half a minute; then raise SchemaUnavailable.

    That concerns the process and not the record: let it end the process, never make a dead letter of it.
    """
    if unknown.schema_id is None:
        raise unknown
    for attempt in range(FETCH_ATTEMPTS):
        try:
            await asyncio.to_thread(codec.fetch, topic, unknown.schema_id)
        except SchemaUnavailable:
            if attempt == FETCH_ATTEMPTS - 1:
                raise
            await asyncio.sleep(FETCH_PAUSE_S)
        else:
            return


async def decode_dict(codec: AvroCodec, topic: str, data: bytes | None) -> tuple[str, Any]:
    """`codec.decode_dict`, finding a schema that is not known yet. Raises UndecodableError or SchemaUnavailable."""
    try:
        return codec.decode_dict(topic, data)
    except SchemaUnavailable as unknown:
        await find_schema(codec, topic, unknown)
    return codec.decode_dict(topic, data)


def raw_topic(app: App, name: str, **options: Any) -> TopicT:
    """A topic whose keys and values stay bytes."""
    raw = {
        "key_type": bytes,
        "value_type": bytes,
        "key_serializer": "raw",
        "value_serializer": "raw",
        "allow_empty": True,
    }
    return app.topic(name, **raw, **options)  # type: ignore[arg-type]


class AvroTopic:
    """One of our topics in a Faust app of yours: `app.agent(it.topic)`, then `it.each(stream, handler)` or `it.events(stream)`.

    Dead letters go to `<topic>.<app id>.dlq`, made on first use.
    """

    def __init__(self, app: App, name: str, codec: AvroCodec | None = None) -> None:
        self.topic = raw_topic(app, name)
        self._app = app
        self._name = name
        self._given = codec
        self._dead_letters: TopicT | None = None

    async def each(self, stream: StreamT[Any], handler: Callable[[Any], Awaitable[None]]) -> None:
        """Await `handler(event)` for each event; what it raises on, or can't be decoded, becomes a dead letter."""
        async for event in stream.events():
            try:
                await handler(await self._decode(event.message))
            except SchemaUnavailable:
                raise
            except Exception as error:
                await self._give_up(event.message, error)

    async def events(self, stream: StreamT[Any]) -> AsyncIterator[Any]:
        """The typed events; undecodable records become dead letters. A record that your loop raises on is skipped: see `each`."""
        async for event in stream.events():
            try:
                value = await self._decode(event.message)
            except UndecodableError as error:
                await self._give_up(event.message, error)
            else:
                yield value

    @cached_property
    def _codec(self) -> AvroCodec:
        """The one given, else one over the app's own cluster; made late, since asking for its address fixes the app's settings."""
        return self._given or open_codec(",".join(f"{url.host}:{url.port or 9092}" for url in self._app.conf.broker))

    async def _decode(self, message: Any) -> Any:
        try:
            return self._codec.decode(self._name, message.value)
        except SchemaUnavailable as unknown:
            await find_schema(self._codec, self._name, unknown)
        return self._codec.decode(self._name, message.value)

    async def _give_up(self, message: Any, error: Exception) -> None:
        group = self._app.conf.id
        if self._dead_letters is None:
            partitions = self._app.consumer.topic_partitions(self._name)
            name = lane_topics(self._name, group, ()).dead_letters
            topic = raw_topic(self._app, name, partitions=partitions)
            await topic.declare()
            self._dead_letters = topic
        await dead_letter(self._dead_letters, message, group, error)


def avro_topic(app: App, name: str, codec: AvroCodec | None = None) -> AvroTopic:
    """One of our topics for an agent in your own Faust app; see `AvroTopic`.

    Without a codec, schemas are found in the registry that the app's own cluster keeps; else `open_codec(bootstrap, url)`.
    """
    return AvroTopic(app, name, codec)
