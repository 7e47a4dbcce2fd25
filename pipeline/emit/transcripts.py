"""Reading transcript files: JSONL, or one JSON array, or one JSON object; plain or gzip. One run in memory at a time.

A line that is not JSON is handed on as an error with its number, and reading goes on with the next; inside
an array nothing can be
told apart after broken JSON, so there reading ends with the error.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.emit.openai_chat import ImportedRun, ImportOptions, Skipped, content_hash, import_run, run_id_of
from pipeline.model.errors import ConfigurationError

LINE_BYTES_MAX = 64 * 1024 * 1024
_CHUNK = 1 << 16
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Line:
    """One JSON value of a file, or what was wrong there. `line` counts from 1; `read_bytes` is how far the
    file has been read."""

    line: int
    value: Any
    error: str | None
    read_bytes: int


def read_runs(path: Path, options: ImportOptions) -> Iterator[tuple[ImportedRun, Line]]:
    """The runs of a file, each with its line. A bad line, or one that repeats an earlier one, is a run
    without events that says so.

    Raises ConfigurationError when the file can't be opened.
    """
    seen: dict[str, list[str]] = {}
    for line in read_values(path):
        if line.error is not None:
            yield ImportedRun("", (), (Skipped(line.line, "", line.error),)), line
            continue
        record = line.value if isinstance(line.value, dict) else {"messages": line.value}
        run_id, content = run_id_of(record, options.source), content_hash(record)[:16]
        earlier = seen.setdefault(run_id, [])
        if content in earlier:
            yield (
                ImportedRun(run_id, (), (Skipped(line.line, "", f"the same run as an earlier line ({run_id})"),)),
                line,
            )
            continue
        earlier.append(content)
        yield import_run(line.value, options, line.line, len(earlier)), line


def read_values(path: Path) -> Iterator[Line]:
    """The JSON values of a file."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise ConfigurationError(
            f"{path} can't be read: {error.strerror}; give the path of a transcript file."
        ) from None
    with raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source: BinaryIO = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
        lines = _Lines(source, raw)
        try:
            yield from _values(lines)
        except (OSError, EOFError, zlib.error) as error:
            yield Line(lines.number + 1, None, f"the file breaks off: {error}", raw.tell())


class _Lines:
    """Lines with their numbers, one step of look-back."""

    def __init__(self, source: BinaryIO, raw: BinaryIO) -> None:
        self._source = source
        self._raw = raw
        self.number = 0

    def next(self) -> bytes | None:
        """The next line, or None at the end. One longer than LINE_BYTES_MAX comes back cut, the rest of it
        dropped."""
        data = self._source.readline(LINE_BYTES_MAX + 1)
        if not data:
            return None
        self.number += 1
        if len(data) > LINE_BYTES_MAX and not data.endswith(b"\n"):
            while rest := self._source.readline(_CHUNK):
                if rest.endswith(b"\n"):
                    break
        return data

    def at(self) -> int:
        return self._raw.tell()


def _values(lines: _Lines) -> Iterator[Line]:
    first = lines.next()
    while first is not None and not first.strip(b"\xef\xbb\xbf \t\r\n"):
        first = lines.next()
    if first is None:
        return
    first = first.removeprefix(b"\xef\xbb\xbf")
    value, error = _parse(first)
    if first.lstrip()[:1] == b"[" and not _is_messages(value):
        yield from _array(first, lines)
    elif error is not None and first.strip() == b"{":
        yield from _whole(first, lines)
    else:
        yield Line(lines.number, value, error, lines.at())
        while (data := lines.next()) is not None:
            if data.strip():
                value, error = _parse(data)
                yield Line(lines.number, value, error, lines.at())


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)


def _parse(data: bytes) -> tuple[Any, str | None]:
    if len(data) > LINE_BYTES_MAX:
        return None, f"the line is longer than {LINE_BYTES_MAX} bytes"
    try:
        return json.loads(data), None
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at column {error.colno}"
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:  # an integer of thousands of digits
        return None, f"not usable JSON: {error}"


def _whole(first: bytes, lines: _Lines) -> Iterator[Line]:
    """One object over many lines."""
    number, parts, size = lines.number, [first], len(first)
    while size <= LINE_BYTES_MAX and (data := lines.next()) is not None:
        parts.append(data)
        size += len(data)
    value, error = _parse(b"".join(parts))
    yield Line(number, value, error, lines.at())


def _array(first: bytes, lines: _Lines) -> Iterator[Line]:
    """The elements of one array, decoded one by one as the text comes in."""
    decoder, text = json.JSONDecoder(), first.decode("utf-8", "replace").lstrip()[1:]
    start_line = lines.number
    more = True
    tried = 0
    while True:
        stripped = text.lstrip(_SPACE + ",")
        start_line += text[: len(text) - len(stripped)].count("\n")
        text = stripped
        if text.startswith("]"):
            return
        try:
            if (
                more and len(text) < 2 * tried
            ):  # decode again only when the text has doubled: an element may span many lines
                raise json.JSONDecodeError("unfinished", text, 0)
            value, end = decoder.raw_decode(text)
            if end == len(text) and more:
                raise json.JSONDecodeError("unfinished", text, 0)
        except (ValueError, RecursionError) as error:
            data = lines.next() if more and len(text) <= LINE_BYTES_MAX else None
            if data is not None:
                tried = max(tried, len(text)) if len(text) >= 2 * tried else tried
                text += data.decode("utf-8", "replace")
                continue
            if more and len(text) <= LINE_BYTES_MAX:
                more = False
                continue
            if text.strip() or isinstance(error, RecursionError):
                yield Line(start_line, None, f"not a JSON array to its end: {str(error)[:200]}", lines.at())
            else:
                yield Line(start_line, None, "the array is not closed", lines.at())
            return
        yield Line(start_line, value, None, lines.at())
        start_line += text[:end].count("\n")
        text, tried = text[end:], 0
