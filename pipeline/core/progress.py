"""What a group keeps with a committed offset: the owner's epoch, the lanes' fences and which later offsets are done.

The commit says "everything below this offset is settled". Out-of-order completions beyond it travel in the commit's metadata
text, so a crash does not run them again. One text per partition, at most 4,095 characters (Kafka's `offset.metadata.max.bytes`).

    "pl1:" base64url( epoch  fence-count { name-length name end }  kind  payload )      all numbers are varints

Marks (see `care`) travel among the fences, under names that no lane can have: a worker that does not know them reads past them.

`kind` 0: nothing is open below `end`; 1: a bitset of open offsets from the committed one; 2: run lengths, open and settled in turn.
Whatever is not open and lies in [offset, end) is settled: gaps of compaction and transactions count as done.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.model.cluster import Position

METADATA_LIMIT = 4_095
_PREFIX = "pl1:"
_MARK = "\0"
"""Stands before the name of a mark."""
_OPEN_RUN_MAX = 10_000_000
"""No worker holds more open records: a forged text must not fill the memory."""
_NOTHING_OPEN, _BITSET, _RUNS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Progress:
    """The settled part of one lane of one partition. `open`: offsets in [offset, end) that are not settled, ascending.

    `epoch`, `fences` (lane name -> its end when that epoch began) and `marks` are set on the source lane only.
    """

    offset: int
    end: int
    open: tuple[int, ...] = ()
    epoch: int = 0
    fences: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[str, int] = field(default_factory=dict)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _numbers(raw: bytes, at: int) -> Iterator[int]:
    number, shift = 0, 0
    for byte in memoryview(raw)[at:]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number, shift = 0, 0


def _run_lengths(offset: int, end: int, open_offsets: Collection[int]) -> bytes:
    """Alternating lengths, an open run first (it may be empty)."""
    out, at, run = bytearray(), offset, 0
    for position in open_offsets:
        if position != at + run:
            out += _varint(run) + _varint(position - at - run)
            at, run = position, 0
        run += 1
    out += _varint(run)
    if end > at + run:
        out += _varint(end - at - run)
    return bytes(out)


def _bitset(offset: int, end: int, open_offsets: Collection[int]) -> bytes:
    bits = bytearray((end - offset + 7) // 8)
    for position in open_offsets:
        bits[(position - offset) >> 3] |= 1 << ((position - offset) & 7)
    return bytes(bits)


def _head(epoch: int, fences: Mapping[str, int], marks: Mapping[str, int]) -> bytes:
    named = sorted([*fences.items(), *((_MARK + name, number) for name, number in marks.items())])
    out = bytearray(_varint(epoch) + _varint(len(named)))
    for name, end in named:
        raw = name.encode()
        out += _varint(len(raw)) + raw + _varint(end)
    return bytes(out)


def _text(head: bytes, payload: bytes) -> str:
    return _PREFIX + base64.urlsafe_b64encode(head + payload).decode().rstrip("=")


def encode(progress: Progress, limit: int = METADATA_LIMIT) -> str:
    """The metadata text. What does not fit `limit` is cut from the far end: those offsets would run again, none is lost."""
    head = _head(progress.epoch, progress.fences, progress.marks)
    span = progress.end - progress.offset
    if not progress.open:
        return _text(head, _varint(_NOTHING_OPEN) + _varint(span))
    open_offsets = progress.open
    room = max(0, (limit - len(_PREFIX)) * 3 // 4 - len(head) - 1)
    runs = _run_lengths(progress.offset, progress.end, open_offsets)
    if len(runs) <= min(room, (span + 7) // 8):
        return _text(head, _varint(_RUNS) + runs)
    size = (span + 7) // 8
    bits = _bitset(progress.offset, progress.end, open_offsets)
    if size > room:
        # The offsets past the cut are unknown to the next owner, hence open for it: trailing bits say no more than that.
        bits = bits[:room]
    else:
        spare = size * 8 - span
        if spare:
            # Bits past `end` must not read as settled.
            bits = bits[:-1] + bytes([bits[-1] | (0xFF << (8 - spare)) & 0xFF])
    return _text(head, _varint(_BITSET) + bits)


def decode(offset: int, metadata: str) -> Progress:
    """What a commit says. Text that is not ours (another tool committed) means: nothing known beyond the offset."""
    if not metadata.startswith(_PREFIX):
        return Progress(offset, offset)
    text = metadata[len(_PREFIX) :]
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return _decode(offset, raw)
    except (binascii.Error, IndexError, ValueError):
        return Progress(offset, offset)


def lane_progress(position: Position | None, beginning: int, end: int) -> Progress:
    """A lane's commit. Lanes always start at the earliest; a lane that was made anew (its end is below the commit) starts over."""
    if position is None or position.offset > end:
        return Progress(beginning, beginning)
    return decode(position.offset, position.metadata)


def _take(raw: bytes, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def _decode(offset: int, raw: bytes) -> Progress:
    epoch, at = _take(raw, 0)
    count, at = _take(raw, at)
    fences: dict[str, int] = {}
    marks: dict[str, int] = {}
    for _ in range(count):
        length, at = _take(raw, at)
        name = raw[at : at + length].decode()
        number, at = _take(raw, at + length)
        if name.startswith(_MARK):
            marks[name.removeprefix(_MARK)] = number
        else:
            fences[name] = number
    kind, at = _take(raw, at)
    if kind == _NOTHING_OPEN:
        span, at = _take(raw, at)
        return Progress(offset, offset + span, (), epoch, fences, marks)
    if kind == _BITSET:
        bits = raw[at:]
        opened = tuple(offset + i for i in range(len(bits) * 8) if bits[i >> 3] >> (i & 7) & 1)
        return Progress(offset, offset + len(bits) * 8, opened, epoch, fences, marks)
    if kind != _RUNS:
        return Progress(offset, offset, (), epoch, fences, marks)
    position, is_open = offset, True
    found: list[int] = []
    for run in _numbers(raw, at):
        if is_open:
            if run > _OPEN_RUN_MAX:
                raise ValueError(f"a run of {run} open offsets")
            found.extend(range(position, position + run))
        position += run
        is_open = not is_open
    return Progress(offset, position, tuple(found), epoch, fences, marks)
