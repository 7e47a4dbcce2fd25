"""One record as filters see it. Headers are read and the value is decoded only when somebody asks, once each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from pipeline.model.cluster import Message
from pipeline.model.headers import headers_in, spelled_out
from pipeline.model.keys import key_text

_NOT_YET = object()


class Decoded(Protocol):
    """A decoded value: its record name (or "json", "text", "bytes", "null") and the value as plain Python."""

    @property
    def type(self) -> str: ...

    @property
    def value(self) -> object: ...


class Row(Protocol):
    """What a filter reads. Anything with these attributes can be filtered: a fetched record, a row of an index.

    `timestamp_ms` is None where the record has none; `headers` is the last value of each name, a tier copy's packed numbers spelled out;
    `type` and `value` come from decoding.
    """

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp_ms(self) -> int | None: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def key(self) -> str | None: ...
    @property
    def headers(self) -> Mapping[str, bytes | None]: ...
    @property
    def type(self) -> str | None: ...
    @property
    def value(self) -> object: ...


D = TypeVar("D", bound=Decoded)


class MessageRow(Generic[D]):
    """A `Row` over a fetched record. `show` decodes it and never raises for bad bytes (`pipeline.inspect.decoding.show`)."""

    __slots__ = ("_decoded", "_headers", "_show", "message")

    def __init__(self, message: Message, show: Callable[[Message], D]) -> None:
        self.message = message
        self._show = show
        self._headers: Mapping[str, bytes | None] | None = None
        self._decoded: object = _NOT_YET

    @property
    def topic(self) -> str:
        return self.message.topic()

    @property
    def partition(self) -> int:
        return self.message.partition()

    @property
    def offset(self) -> int:
        return self.message.offset()

    @property
    def timestamp_ms(self) -> int | None:
        kind, time_ms = self.message.timestamp()
        return time_ms if kind else None

    @property
    def size_bytes(self) -> int:
        """Key and value."""
        return len(self.message.key() or b"") + len(self.message.value() or b"")

    @property
    def key(self) -> str | None:
        """As text; `0x` and hex where it is not UTF-8."""
        return key_text(self.message.key())

    @property
    def headers(self) -> Mapping[str, bytes | None]:
        found = self._headers
        if found is None:
            found = self._headers = spelled_out(dict(headers_in(self.message) or ()))
        return found

    @property
    def decoded(self) -> D:
        """What `show` said, asked once: use it to print the record without decoding it again."""
        found = self._decoded
        if found is _NOT_YET:
            found = self._decoded = self._show(self.message)
        return found  # type: ignore[return-value]

    @property
    def type(self) -> str:
        return self.decoded.type

    @property
    def value(self) -> object:
        return self.decoded.value
