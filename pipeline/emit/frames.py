"""How spooled records look on disk: frames with a length and a checksum, found again after damage. Pure.

frame    4 bytes mark, u32 length of the payload, u32 CRC-32 of the payload, payload
payload  u64 number, then topic, key, value (i32 length or -1 for null, bytes), u32 count of headers,
         per header the name and the value in the same form,
         and, only where the value is an event's JSON still to be encoded, its record name
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from pipeline.emit.buffer import Outgoing
from pipeline.model.cluster import Headers

MARK = b"\xf5PLS"
_HEAD = struct.Struct(">4sII")
_NUMBER = struct.Struct(">Q")
_LENGTH = struct.Struct(">i")
FRAME_OVERHEAD_BYTES = _HEAD.size


class BadFrame(ValueError):
    """A payload whose checksum fits but whose content does not: written by something else."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a piece of a segment held: payloads in order, how many bytes are dealt with, how many of them
    were damaged."""

    payloads: list[bytes]
    consumed: int
    damaged_bytes: int


def pack(record: Outgoing) -> bytes:
    """The frame of one record."""
    parts = [_NUMBER.pack(record.number)]
    for item in (record.topic.encode(), record.key, record.value):
        _put(parts, item)
    parts.append(_LENGTH.pack(len(record.headers)))
    for name, value in record.headers:
        _put(parts, name.encode())
        _put(parts, value)
    if record.unencoded is not None:
        _put(parts, record.unencoded.encode())
    payload = b"".join(parts)
    return _HEAD.pack(MARK, len(payload), zlib.crc32(payload)) + payload


def unpack(payload: bytes) -> Outgoing:
    """The record of a payload, with its number. Raises BadFrame."""
    try:
        (number,) = _NUMBER.unpack_from(payload)
        at = _NUMBER.size
        topic, at = _get(payload, at)
        key, at = _get(payload, at)
        value, at = _get(payload, at)
        (count,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        headers: Headers = []
        for _ in range(count):
            name, at = _get(payload, at)
            content, at = _get(payload, at)
            headers.append(((name or b"").decode(), content))
        unencoded = None
        if at < len(payload):
            unencoded, at = _get(payload, at)
        if at != len(payload) or topic is None:
            raise BadFrame("the payload does not end where its last field ends")
        record = Outgoing(topic.decode(), key, value, headers)
        record.unencoded = None if unencoded is None else unencoded.decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise BadFrame(f"the payload can't be read: {error}") from None
    record.number = number
    return record


def scan(data: bytes, *, final: bool, limit: int) -> Scan:
    """The first `limit` whole frames in `data`. `final`: nothing follows, so an unfinished frame is damage
    (a torn write), no reason to wait."""
    payloads: list[bytes] = []
    at = damaged = 0
    while at < len(data) and len(payloads) < limit:
        payload = _frame_at(data, at)
        if payload is not None:
            payloads.append(payload)
            at += _HEAD.size + len(payload)
            continue
        if not final and _unfinished(data, at):
            break
        found = data.find(MARK, at + 1)
        step = (found if found >= 0 else len(data)) - at
        if found < 0 and not final:
            step = max(1, step - len(MARK) + 1)  # the mark itself may be cut at the end
        damaged += step
        at += step
    return Scan(payloads, at, damaged)


def _frame_at(data: bytes, at: int) -> bytes | None:
    """The payload of the frame that starts there, if it is whole and sound."""
    if len(data) - at < _HEAD.size:
        return None
    mark, length, checksum = _HEAD.unpack_from(data, at)
    start = at + _HEAD.size
    if mark != MARK or start + length > len(data):
        return None
    payload = data[start : start + length]
    return payload if zlib.crc32(payload) == checksum else None


def _unfinished(data: bytes, at: int) -> bool:
    """Whether more bytes could make a frame of what starts there."""
    if len(data) - at < _HEAD.size:
        return MARK.startswith(data[at : at + len(MARK)])
    mark, length, _ = _HEAD.unpack_from(data, at)
    return bool(mark == MARK) and at + _HEAD.size + int(length) > len(data)


def _put(parts: list[bytes], item: bytes | None) -> None:
    if item is None:
        parts.append(_LENGTH.pack(-1))
    else:
        parts.append(_LENGTH.pack(len(item)))
        parts.append(item)


def _get(payload: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = _LENGTH.unpack_from(payload, at)
    at += _LENGTH.size
    if length < 0:
        return None, at
    if at + length > len(payload):
        raise BadFrame("a field is longer than the payload")
    return payload[at : at + length], at + length
