"""Values of dead letters, decoded also when the registry is gone: by the writer schema's fingerprint, which each of them carries.

The schemas are those of the installation and their history, then those that an index remembered while a registry was there.
What is remembered goes by fingerprint and id: schemas that differ in tags alone have one fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import NamedTuple, Protocol

from pipeline.codec import SchemaCatalogue, wire
from pipeline.codec.reading import SchemaReader
from pipeline.codec.schema import AvroSchema, SchemaRefused, parse
from pipeline.dead_letters.letter import plain
from pipeline.model.cluster import Headers, Message
from pipeline.model.errors import CodecError, SchemaUnavailable, UndecodableError
from pipeline.model.headers import SCHEMA, headers_in, spelled_out

_SCHEMA_IDS_REMEMBERED = 10_000


class Registered(Protocol):
    """What of the Avro codec is needed where a fingerprint says nothing: it asks the registry."""

    catalogue: SchemaCatalogue

    def decode_dict(self, topic: str, data: bytes | None, headers: Headers | None = None) -> tuple[str, object]: ...

    def fetch(self, topic: str, schema_id: int) -> None: ...

    def writer_schema(self, topic: str, data: bytes | None, headers: Headers | None = None) -> AvroSchema | None: ...


class Shown(NamedTuple):
    """`type`: record name, "json", "text", "bytes" or "null". `problem`: why it is shown raw. `schema`: of its fields."""

    type: str
    value: object
    problem: str = ""
    schema: AvroSchema | None = None


class Values:
    """Decodes. `texts` (`remembered_as` -> schema) is read, and grows by what the registry says. One thread."""

    def __init__(self, codec: Registered, texts: MutableMapping[str, str] | None = None) -> None:
        self._codec = codec
        self.texts: MutableMapping[str, str] = {} if texts is None else texts
        self._readers: dict[str, SchemaReader | None] = {}
        self._away = ""
        self.unknown = 0

    def __call__(
        self, pairs: Headers | None, headers: Mapping[str, bytes | None], data: bytes | None, topic: str
    ) -> tuple[str, object]:
        """(type, value) of one record. `topic`: whose schemas it is written with. Never raises for bad bytes."""
        if data is None or not (data[:1] == b"\x00" or wire.SCHEMA_ID_HEADER in headers):
            return plain(data)
        try:
            reader = self._reader(headers.get(SCHEMA), data, pairs)
            if reader is not None:
                start = 0 if wire.SCHEMA_ID_HEADER in headers else wire.PREFIX_BYTES
                return reader.name, reader.fields(data, start)
            return self._registered(pairs, data, topic)
        except CodecError as error:
            self.unknown += isinstance(error, SchemaUnavailable)
            return plain(data)

    def show(self, message: Message) -> Shown:
        """The same with what went wrong, for people."""
        pairs, data = headers_in(message), message.value()
        headers = spelled_out(dict(pairs or ()))
        if data is None or not (data[:1] == b"\x00" or wire.SCHEMA_ID_HEADER in headers):
            return Shown(*plain(data))
        topic = (headers.get("pl.origin.topic") or message.topic().encode()).decode("utf-8", "replace")
        try:
            reader = self._reader(headers.get(SCHEMA), data, pairs)
            if reader is not None:
                value = reader.fields(data, wire.split(data, pairs)[1])
                return Shown(reader.name, value, "", self._contract(reader.name) or reader.writer)
            kind, value = self._registered(pairs, data, topic)
            return Shown(kind, value, "", self._contract(kind) or self._codec.writer_schema(topic, data, pairs))
        except CodecError as error:
            return Shown(*plain(data), str(error))

    def as_written(self, message: Message) -> tuple[object, AvroSchema] | None:
        """(value, schema) with all that its producer wrote, also what this build's contract does not have; None: no known schema.

        Raises `CodecError` when the bytes are not what the schema says.
        """
        pairs, data = headers_in(message), message.value() or b""
        headers = spelled_out(dict(pairs or ()))
        topic = (headers.get("pl.origin.topic") or message.topic().encode()).decode("utf-8", "replace")
        known = self._reader(headers.get(SCHEMA), data, pairs)
        writer = known.writer if known is not None else self._codec.writer_schema(topic, data, pairs)
        if writer is None:
            return None
        return SchemaReader.make(writer, None, None).fields(data, wire.split(data, pairs)[1]), writer

    def _contract(self, name: str) -> AvroSchema | None:
        return self._codec.catalogue.present.get(name)

    def _reader(self, raw: bytes | None, data: bytes, pairs: Headers | None) -> SchemaReader | None:
        """Of the schema with this fingerprint, where it is known without a registry. Raises UndecodableError without a frame."""
        if not raw:
            return None
        fingerprint = raw.decode("latin-1")
        schema = self._codec.catalogue.by_fingerprint.get(fingerprint)
        name = fingerprint if schema is not None else remembered_as(fingerprint, wire.split(data, pairs)[0])
        try:
            return self._readers[name]
        except KeyError:
            pass
        schema = schema or self._remembered(fingerprint, name)
        reader = None
        if schema is not None:
            reader = SchemaReader.make(schema, self._contract(schema.name), None)
        if len(self._readers) < _SCHEMA_IDS_REMEMBERED:
            self._readers[name] = reader
        return reader

    def _remembered(self, fingerprint: str, name: str) -> AvroSchema | None:
        text = self.texts.get(name)
        try:
            schema = parse(text) if text else None
        except SchemaRefused:
            return None
        return schema if schema is not None and schema.fingerprint == fingerprint else None

    def _registered(self, pairs: Headers | None, data: bytes, topic: str) -> tuple[str, object]:
        """By the registry, which is asked for what the codec does not know, and no more once it did not answer."""
        try:
            return self._codec.decode_dict(topic, data, pairs)
        except SchemaUnavailable as unknown:
            number = unknown.schema_id
            if self._away or number is None:
                raise SchemaUnavailable(self._away or str(unknown), number) from None
            try:
                self._codec.fetch(topic, number)
            except SchemaUnavailable as away:
                self._away = str(away)
                raise
        found = self._codec.decode_dict(topic, data, pairs)
        schema = self._codec.writer_schema(topic, data, pairs)
        if schema is not None and schema.fingerprint not in self._codec.catalogue.by_fingerprint:
            name = remembered_as(schema.fingerprint, wire.split(data, pairs)[0])
            self.texts[name] = schema.text
            self._readers.pop(name, None)
        return found


def remembered_as(fingerprint: str, key: wire.SchemaKey) -> str:
    """What an index calls the schema of a value: its fingerprint as the header has it, and the id as hex digits."""
    return f"{fingerprint} {key.hex()}"


def undecoded(shown: Shown) -> UndecodableError:
    """For those who can't go on without the value."""
    why = shown.problem.rstrip(".") or f"the value is {shown.type}, not a record"
    return UndecodableError(f"it can't be edited ({why}): convert it to a task, cancel or purge it")
