"""Kafka records in an Avro container file: bytes, headers and place of each, for copies that outlive the topic and go back later."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, TypeVar

import fastavro
from fastavro.write import Writer

from pipeline.model.cluster import Headers, Message
from pipeline.model.errors import ConfigurationError, UndecodableError
from pipeline.model.headers import headers_in

SCHEMA: Final = {
    "type": "record",
    "name": "StoredRecord",
    "namespace": "pipeline.replay",
    "fields": [
        {"name": "topic", "type": "string"},
        {"name": "partition", "type": "int"},
        {"name": "offset", "type": "long"},
        {"name": "timestamp_ms", "type": "long"},
        {"name": "key", "type": ["null", "bytes"]},
        {"name": "value", "type": ["null", "bytes"]},
        {
            "name": "headers",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "StoredHeader",
                    "fields": [{"name": "name", "type": "string"}, {"name": "value", "type": ["null", "bytes"]}],
                },
            },
        },
    ],
}
_PARSED: Final = fastavro.parse_schema(SCHEMA)


class StoredRecord:
    """A record of a file, in the shape of a fetched one. Its offset is its number in the file; `place` is where it lay."""

    __slots__ = ("_fields", "_number")

    def __init__(self, number: int, fields: dict[str, Any]) -> None:
        self._number = number
        self._fields = fields

    @property
    def place(self) -> tuple[str, int, int]:
        return self._fields["topic"], self._fields["partition"], self._fields["offset"]

    def topic(self) -> str:
        return str(self._fields["topic"])

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._number

    def key(self) -> bytes | None:
        found: bytes | None = self._fields["key"]
        return found

    def value(self) -> bytes | None:
        found: bytes | None = self._fields["value"]
        return found

    def headers(self) -> Headers | None:
        return [(header["name"], header["value"]) for header in self._fields["headers"]]

    def timestamp(self) -> tuple[int, int]:
        return 1, int(self._fields["timestamp_ms"])


class ContainerWriter:
    """Writes beside the file and puts it in place when it is complete: a file that is there is whole. A context manager.

    Raises `ConfigurationError` while another writer is at the same file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file = _owned(self._part)
        self._writer = Writer(self._file, _PARSED, codec="deflate")

    def add(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._writer.write(
                {
                    "topic": message.topic(),
                    "partition": message.partition(),
                    "offset": message.offset(),
                    "timestamp_ms": message.timestamp()[1],
                    "key": message.key(),
                    "value": message.value(),
                    "headers": [{"name": name, "value": value} for name, value in headers_in(message) or ()],
                }
            )

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:  # closed last: until then nobody else may touch what bears the name
            try:
                if kind is None:
                    self._writer.flush()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._part.replace(self._path)
                    return
            except BaseException:
                self._part.unlink(missing_ok=True)
                raise
            self._part.unlink(missing_ok=True)


def _owned(part: Path) -> IO[bytes]:
    """The file, empty, for one writer alone until it is closed."""
    while True:
        file = os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it before may have put it in its place since it was opened: then it is no part any more.
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                file.truncate()
                return file
        except BlockingIOError:
            file.close()
            raise ConfigurationError(
                f"{part} is being written by another process: wait until it ends, or write to another file"
            ) from None
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


R = TypeVar("R", bound=StoredRecord)


def read_container(path: Path, kind: type[R]) -> Iterator[R]:
    """The records of a file in order, as `kind`. Raises `UndecodableError` for a file that is not one of these, or is cut short."""
    number = 0
    try:
        with path.open("rb") as file:
            found = fastavro.reader(file)
            if not isinstance(found.writer_schema, dict) or found.writer_schema.get("name") != _PARSED["name"]:  # type: ignore[index,call-overload]
                raise UndecodableError(f"{path} is an Avro file of something else: a replay reads those of --to-file")
            for fields in found:
                yield kind(number, fields)  # type: ignore[arg-type]
                number += 1
    except OSError as error:
        raise UndecodableError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, EOFError, KeyError, TypeError, IndexError) as error:
        raise UndecodableError(
            f"{path} is no container file of records, or is cut short after {number}: {error}"
        ) from None
