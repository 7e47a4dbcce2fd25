"""How a schema's id travels with a value: Confluent's framing, and its newer form with a GUID in a header.

    prefix   value = 0x00, id as 4 bytes big endian, Avro body      written and read
    header   `__value_schema_id` = 0x01, GUID as 16 bytes; the value is the bare Avro body      read
             (confluent-kafka 2.11 and later; a header with 0x00 and a 4-byte id is read too)

When both are there the header counts, as in Confluent's own deserializer. Inside the codec a schema is known
by `SchemaKey`, the bytes that name it on the wire, so that finding a reader is one dict look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from pipeline.model.errors import UndecodableError

SCHEMA_ID_HEADER = "__value_schema_id"
PREFIX_BYTES = 5
ID_MAX = 2**31 - 1
_FIRST_BYTE_MAX = ID_MAX >> 24
"""Registries number with signed integers: what is above is no id, and not worth a question."""

_GUID_BYTES = 17
_GUIDS = 2**128
"""Added to the number of a GUID: a small one must not be taken for an id, which would be looked up under another key."""

SchemaKey = bytes
"""What names a schema on the wire: 5 bytes (0x00 + id) or 17 bytes (0x01 + GUID)."""

WireHeaders = Sequence[tuple[str, bytes | None]]


def key_of_id(schema_id: int) -> SchemaKey:
    """The 5 bytes that stand before a value written with this id; a number beyond 16 bytes is a GUID's."""
    if schema_id >= _GUIDS:
        return b"\x01" + (schema_id - _GUIDS).to_bytes(16, "big")
    return b"\x00" + schema_id.to_bytes(4, "big")


def id_of_key(key: SchemaKey) -> int:
    """The id a key names; for a GUID a number beyond all ids (`guid_of_id` turns it back)."""
    return int.from_bytes(key[1:], "big") + (_GUIDS if len(key) == _GUID_BYTES else 0)


def guid_of_id(schema_id: int) -> str | None:
    """The GUID when the number is one's, else None."""
    return str(UUID(int=schema_id - _GUIDS)) if schema_id >= _GUIDS else None


def split(data: bytes, headers: WireHeaders | None) -> tuple[SchemaKey, int]:
    """The schema's key and where the Avro body starts in `data`. Raises UndecodableError when neither form is
    there.
    """
    if headers:
        for name, value in headers:
            if name == SCHEMA_ID_HEADER and value is not None:
                return header_key(value), 0
    if len(data) < PREFIX_BYTES or data[0] != 0 or data[1] > _FIRST_BYTE_MAX:
        raise UndecodableError(
            f"The value is not framed as Avro: it starts with {data[:PREFIX_BYTES].hex() or 'nothing'} "
            "instead of 00 and a 4-byte schema id."
        )
    return data[:PREFIX_BYTES], PREFIX_BYTES


def header_key(value: bytes) -> SchemaKey:
    """The key in a schema id header's value. Raises UndecodableError when it is of neither form."""
    if len(value) == _GUID_BYTES and value[0] == 1:
        return value
    if len(value) == PREFIX_BYTES and value[0] == 0 and value[1] <= _FIRST_BYTE_MAX:
        return value
    raise UndecodableError(
        f"Header {SCHEMA_ID_HEADER} is {value[:20].hex() or 'empty'} instead of 01 and a 16-byte GUID."
    )
