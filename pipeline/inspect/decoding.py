"""Values of any topic as something to show: Avro by its schema, else JSON, else text or hex. Never raises for bad bytes."""

from __future__ import annotations

import json
from typing import NamedTuple, Protocol

from pipeline.model.cluster import Headers, Message
from pipeline.model.errors import CodecError, SchemaUnavailable, UndecodableError
from pipeline.model.headers import HeaderError, decode, headers_in


class DictCodec(Protocol):
    """What of the Avro codec is needed here."""

    def decode_dict(self, topic: str, data: bytes | None, headers: Headers | None = None) -> tuple[str, object]: ...

    def fetch(self, topic: str, schema_id: int) -> None: ...


class Shown(NamedTuple):
    """`type`: record name, "json", "text", "bytes" or "null". `problem`: why an Avro value could not be decoded."""

    type: str
    value: object
    problem: str = ""


def schema_topic(message: Message) -> str:
    """Whose schemas a record is written with: a lane keeps the bytes of its source topic."""
    topic = message.topic()
    try:
        origin = decode(headers_in(message)).origin_topic
    except HeaderError:
        return topic
    return origin if topic.startswith(f"{origin}.") else topic


def show(codec: DictCodec | None, message: Message) -> Shown:
    """The value. A schema that is not known yet is asked for once; when the registry is away the record is shown raw."""
    data = message.value()
    if data is None:
        return Shown("null", None)
    problem = ""
    if codec is not None and (
        data[:1] == b"\x00" or any(name == "__value_schema_id" for name, _ in headers_in(message) or ())
    ):
        try:
            return _avro(codec, schema_topic(message), data, headers_in(message))
        except CodecError as error:
            problem = str(error)
    return _plain(data, problem)


def _avro(codec: DictCodec, topic: str, data: bytes, headers: Headers | None) -> Shown:
    try:
        return Shown(*codec.decode_dict(topic, data, headers))
    except SchemaUnavailable as unknown:
        if unknown.schema_id is None:
            raise
        codec.fetch(topic, unknown.schema_id)
    try:
        return Shown(*codec.decode_dict(topic, data, headers))
    except SchemaUnavailable as still:
        raise UndecodableError(str(still)) from still


def _plain(data: bytes, problem: str) -> Shown:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Shown("bytes", "0x" + data.hex(), problem)
    try:
        return Shown("json", json.loads(text), problem)
    except (ValueError, RecursionError):
        return Shown("text", text, problem)
