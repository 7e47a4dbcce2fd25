"""Values that are not Avro: JSON, and bytes as they are. And `Codec`, what a subscription needs of any of the
three.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from pydantic import BaseModel

from pipeline.codec.wire import WireHeaders
from pipeline.model.errors import EncodeError, UndecodableError


class Codec(Protocol):
    """Bytes <-> the values of a subscription (`value="avro" | "json" | "bytes"`)."""

    def decode(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> Any:
        """The value. Raises UndecodableError, or SchemaUnavailable when waiting may help."""
        ...

    def encode(self, value: Any, *, topic: str, record_name: str | None = None) -> bytes:
        """The bytes. Raises EncodeError."""
        ...


class JsonCodec:
    """UTF-8 JSON. A number that JSON does not have (NaN, Infinity) is refused both ways."""

    def decode(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> Any:
        if data is None:
            raise UndecodableError(f"A record of {topic} has no value (a tombstone), so there is no JSON in it.")
        try:
            return json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise UndecodableError(f"A value of {topic} is not JSON: {error}.") from error

    def encode(self, value: Any, *, topic: str, record_name: str | None = None) -> bytes:
        try:
            if isinstance(value, BaseModel):
                return value.model_dump_json().encode()
            return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise EncodeError(f"The value for topic {topic} can't be written as JSON: {error}.") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


class BytesCodec:
    """The bytes themselves; a tombstone is None."""

    def decode(self, topic: str, data: bytes | None, headers: WireHeaders | None = None) -> bytes | None:
        return data

    def encode(self, value: Any, *, topic: str, record_name: str | None = None) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise EncodeError(f"The value for topic {topic} is {type(value).__name__}, not bytes.")
        return bytes(value)
