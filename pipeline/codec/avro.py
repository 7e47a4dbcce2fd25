"""The Avro codec: bytes <-> typed events, with every schema found beforehand, so that no call here waits.

A reader belongs to a topic *and* an id: an id that the registry knows but that is none of this topic's is
refused. `decode` of an id not seen yet raises SchemaUnavailable; whoever owns a thread that may wait calls
`fetch` with it and decodes again. `fetch` also settles that an id is foreign: from then on it is an UndecodableError, for good
where its schema is unsafe, else for `NOT_FOUND_S`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final

from pipeline.codec import wire
from pipeline.codec.catalogue import SchemaCatalogue, product_catalogue
from pipeline.codec.misfit import misfit
from pipeline.codec.reading import Reader, SchemaReader, Unreadable
from pipeline.codec.registry import SchemaNotFound, SchemaRegistry, subject_of, topic_subjects
from pipeline.codec.schema import AvroSchema, SchemaRefused, parse
from pipeline.codec.wire import SchemaKey, WireHeaders
from pipeline.codec.writer import WRITE_ERRORS, Write, WriteRow, compile_row_writer, compile_writer, fields_of
from pipeline.model.errors import CodecError, EncodeError, SchemaUnavailable, UndecodableError
from pipeline.model.events import EVENT_TYPES, TypedValue, UnknownEvent
from pipeline.model.views import VALUE_TYPES

UNREADABLE_MAX: Final = 10_000
"""Ids found foreign that are remembered per topic; a flood of made-up ids must not fill the memory."""
NOT_FOUND_S: Final = 30.0
"""A registry is asked again for what it did not have: a replica of it may lag behind, and would make records dead letters for ever."""


@dataclass(frozen=True, slots=True)
class AvroPolicy:
    """Bounds of decoding. `max_value_bytes` is checked before a byte is read."""

    max_value_bytes: int = 8 * 1024 * 1024
    types: Mapping[str, type[TypedValue]] = field(default_factory=lambda: VALUE_TYPES)


@dataclass(slots=True)
class _Topic:
    """What is known of one topic: how to read each id, and how to write each type."""

    readers: dict[SchemaKey, Reader] = field(default_factory=dict)
    unreadable: dict[SchemaKey, None] = field(default_factory=dict)  # the oldest first
    writers: dict[str | type, _Writer] = field(default_factory=dict)


@dataclass(slots=True)
class _Writer:
    schema: AvroSchema
    prefix: bytes
    write: Write
    field_names: frozenset[str]
    write_row: WriteRow | None = None  # made when it is first asked for


class AvroCodec:
    """One per worker or producer. `decode*` and `encode` never block; `prepare` and `fetch` do.

    `decode*` and `encode` may run in one thread while `fetch` runs in another. Retry tiers, the replay lane
    and dead letters hold the original bytes: decode them under the name of their source topic.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        catalogue: SchemaCatalogue | None = None,
        policy: AvroPolicy | None = None,
    ) -> None:
        self.catalogue = catalogue or product_catalogue()
        self._registry = registry
        self._policy = policy or AvroPolicy()
        self._max_bytes = self._policy.max_value_bytes
        self._topics: dict[str, _Topic] = {}
        self._by_fingerprint: dict[str, SchemaReader] = {}

    # -- finding schemas: these block
    # -------------------------------------------------------------------------

    def prepare(self, topic: str, record_names: Iterable[str] = tuple(EVENT_TYPES)) -> list[str]:
        """Look up the ids of this build's contracts under the topic; gives the names the registry lacks.

        Those can't be encoded until `pipeline schemas register` has run. Raises SchemaUnavailable.
        """
        known, missing = self._topic(topic), []
        for name in record_names:
            schema = self._contract(name)
            try:
                schema_id = self._registry.lookup(subject_of(topic, name), schema)
            except SchemaNotFound:
                missing.append(name)
                continue
            prefix = wire.key_of_id(schema_id)
            names = frozenset(member["name"] for member in schema.node["fields"])
            writer = _Writer(schema, prefix, compile_writer(schema), names)
            known.writers[name] = writer
            if name in self._policy.types:
                known.writers[self._policy.types[name]] = writer
            known.readers[prefix] = self._schema_reader(schema)
        return missing

    def fetch(self, topic: str, schema_id: int) -> None:
        """Ask the registry for the id of a SchemaUnavailable, so that decoding it next time succeeds or is
        refused.

        Raises SchemaUnavailable while the registry does not answer; call it again after a pause.
        """
        known, key = self._topic(topic), wire.key_of_id(schema_id)
        try:
            known.readers[key] = self._schema_reader(self._find(topic, schema_id))
            known.unreadable.pop(key, None)
        except SchemaUnavailable:
            raise
        except CodecError as error:
            until_s = time.monotonic() + NOT_FOUND_S if isinstance(error, SchemaNotFound) else inf
            known.readers[key] = Unreadable(str(error), schema_id=schema_id, until_s=until_s)
            known.unreadable.pop(key, None)
            known.unreadable[key] = None
            if len(known.unreadable) > UNREADABLE_MAX:
                oldest = next(iter(known.unreadable))
                del known.unreadable[oldest]
                known.readers.pop(oldest, None)

    def _find(self, topic: str, schema_id: int) -> AvroSchema:
        """The writer's schema, when it is one of the topic's own. Raises SchemaNotFound or SchemaRefused."""
        guid = wire.guid_of_id(schema_id)
        text = self._registry.schema_by_guid(guid) if guid else self._registry.schema_by_id(schema_id)
        schema = parse(text)
        allowed = topic_subjects(topic, schema.name)
        if guid:
            belongs = any(version.text == schema.text for name in allowed for version in self._versions(name))
        else:
            belongs = not set(allowed).isdisjoint(self._registry.subjects_of(schema_id))
        if not belongs:
            raise SchemaNotFound(
                f"Schema {guid or schema_id} ({schema.name}) is registered, but not for topic {topic}: "
                f"none of its subjects is {' or '.join(allowed)}."
            )
        return schema

    def _versions(self, subject: str) -> Sequence[Any]:
        try:
            return [parse(version.text) for version in self._registry.versions(subject)]
        except (SchemaNotFound, SchemaRefused):
            return []

    def _schema_reader(self, writer: AvroSchema) -> SchemaReader:
        reader = self._by_fingerprint.get(writer.fingerprint)
        if reader is None or reader.writer.name != writer.name:
            contract = self.catalogue.present.get(writer.name)
            reader = SchemaReader.make(writer, contract, self._policy.types.get(writer.name))
            self._by_fingerprint[writer.fingerprint] = reader
        elif reader.writer.text != writer.text:
            # Read alike, but tags are no part of a fingerprint: what one marks as personal the other may not.
            reader = replace(reader, writer=writer)
        return reader

    def _contract(self, name: str) -> AvroSchema:
        schema = self.catalogue.present.get(name)
        if schema is None:
            raise EncodeError(f"Record {name} has no contract in schemas/; add {name}.avsc or correct the name.")
        return schema

    def _topic(self, topic: str) -> _Topic:
        return self._topics.setdefault(topic, _Topic())

    # -- decoding: these never block
    # --------------------------------------------------------------------------

    def decode_dict(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> tuple[str, Any]:
        """(full record name, fields). Fields are those of this build's contract when it has one, else the
        writer's.

        Raises UndecodableError when the bytes are not exactly one value of a schema of this topic, and
        SchemaUnavailable (with the id to `fetch`) when the schema is not known yet.
        """
        reader, start = self._reader(topic, data, headers)
        return reader.name, reader.fields(data, start)

    def decode(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> TypedValue | UnknownEvent:
        """The typed value (a RunEvent on a topic of run events); an UnknownEvent when this build has no class
        for it.

        Raises as `decode_dict`. The value is not validated again: the schema has fixed every field's type.
        """
        reader, start = self._reader(topic, data, headers)
        return reader.typed(data, start)

    def decode_many(self, topic: str, values: Sequence[bytes | None], typed: bool) -> tuple[list[str], list[Any]]:
        """(record names, values) of a batch whose every value begins with a known id and is readable.

        Raises CodecError when one is not: decode them one by one then, which says which and why.
        """
        known = self._topics.get(topic)
        readers: Mapping[bytes, Reader] = known.readers if known is not None else {}
        names: list[str] = []
        found: list[Any] = []
        for data in values:
            if not data or len(data) > self._max_bytes:
                raise self._no_reader(topic, data, None)
            reader = readers.get(data[: wire.PREFIX_BYTES])
            if reader is None:
                raise self._no_reader(topic, data, None)
            names.append(reader.name)
            found.append(reader.typed(data, wire.PREFIX_BYTES) if typed else reader.fields(data, wire.PREFIX_BYTES))
        return names, found

    def writer_schema(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> AvroSchema | None:
        """The schema a value was written with; None when it is not known here."""
        try:
            reader, _ = self._reader(topic, data, headers)
        except CodecError:
            return None
        return reader.writer if isinstance(reader, SchemaReader) else None

    def fingerprint(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> str:
        """The writer schema's fingerprint for a dead letter's header; empty when it is not known."""
        writer = self.writer_schema(topic, data, headers)
        return "" if writer is None else writer.fingerprint

    def schema_of(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> AvroSchema | None:
        """The schema that `decode_dict`'s fields have: this build's contract, else the writer's. None when it is not known."""
        writer = self.writer_schema(topic, data, headers)
        return None if writer is None else self.catalogue.present.get(writer.name, writer)

    def decode_by_fingerprint(
        self,
        fingerprint: str,
        data: bytes,
        headers: WireHeaders | None = None,
        writer_schema: str | None = None,
    ) -> tuple[str, Any]:
        """As `decode_dict`, without a registry: the writer's schema is found in `schemas/`, its history, or
        given.

        Raises UndecodableError when the fingerprint is none of those.
        """
        _, start = wire.split(data, headers)
        schema = parse(writer_schema) if writer_schema else self.catalogue.by_fingerprint.get(fingerprint)
        if schema is None and fingerprint in self._by_fingerprint:
            schema = self._by_fingerprint[fingerprint].writer
        if schema is None:
            raise UndecodableError(
                f"No schema with fingerprint {fingerprint or '(none)'} is in schemas/ or its history; "
                "give the writer's schema or a registry."
            )
        reader = self._schema_reader(schema)
        return reader.name, reader.fields(data, start)

    def _reader(self, topic: str, data: bytes | None, headers: WireHeaders | None) -> tuple[Reader, int]:
        if data and len(data) <= self._max_bytes:
            key, start = data[: wire.PREFIX_BYTES], wire.PREFIX_BYTES
            if headers:
                for name, value in headers:
                    if name == wire.SCHEMA_ID_HEADER and value is not None:
                        key, start = wire.header_key(value), 0
                        break
            known = self._topics.get(topic)
            reader = known.readers.get(key) if known is not None else None
            if reader is not None:
                return reader, start
        raise self._no_reader(topic, data, headers)

    def _no_reader(self, topic: str, data: bytes | None, headers: WireHeaders | None) -> CodecError:
        if not data:
            return UndecodableError(
                f"A record of {topic} has no value (a tombstone or empty), so there is no event in it."
            )
        if len(data) > self._max_bytes:
            return UndecodableError(
                f"A value of {topic} has {len(data)} bytes, more than max_value_bytes={self._max_bytes}."
            )
        try:
            key, _ = wire.split(data, headers)
        except UndecodableError as error:
            return error
        schema_id = wire.id_of_key(key)
        name = wire.guid_of_id(schema_id) or schema_id
        return SchemaUnavailable(
            f"Schema {name} of topic {topic} is not known yet; fetch it, then decode again.", schema_id
        )

    # -- encoding: never blocks
    # -------------------------------------------------------------------------------

    def encode(self, value: TypedValue | Mapping[str, Any], *, topic: str, record_name: str | None = None) -> bytes:
        """The framed bytes of an event, or of a mapping together with its record's full name.

        Raises EncodeError naming the field that does not fit, or the record that is not registered for the
        topic.
        """
        known = self._topics.get(topic)
        if isinstance(value, TypedValue):
            writer = known.writers.get(type(value)) if known else None
            fields: Mapping[str, Any] = value.__dict__
        else:
            writer = known.writers.get(record_name or "") if known else None
            fields = value
            if writer and not fields.keys() <= writer.field_names:
                raise EncodeError(
                    f"{record_name} has no field {', '.join(sorted(fields.keys() - writer.field_names))}."
                )
        if writer is None:
            raise _unregistered(topic, record_name or getattr(value, "record_name", "") or "(no record_name given)")
        try:
            return writer.write(fields, writer.prefix)
        except WRITE_ERRORS as error:
            raise EncodeError(misfit(writer.schema, fields, error)) from error

    def encode_row(self, row: Sequence[Any], *, topic: str, record_name: str) -> bytes:
        """`encode` of a record's values in the contract's order, all of them, and of records in it likewise: in half the time."""
        known = self._topics.get(topic)
        writer = known.writers.get(record_name) if known else None
        if writer is None:
            raise _unregistered(topic, record_name)
        write = writer.write_row
        if write is None:
            write = writer.write_row = compile_row_writer(writer.schema)
        try:
            return write(row, writer.prefix)
        except WRITE_ERRORS as error:
            raise EncodeError(misfit(writer.schema, fields_of(writer.schema, row), error)) from error


def _unregistered(topic: str, record_name: str) -> EncodeError:
    return EncodeError(
        f"{record_name} is not registered for topic {topic}: run `pipeline schemas register {topic} --record {record_name}`, "
        "then prepare the topic again."
    )
