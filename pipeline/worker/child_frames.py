"""What a worker and its child processes say to each other: frames of a length, a JSON head and raw bytes. Nothing is unpickled.

length (u32)  head length (u32)  head (JSON; `blobs` has the length of each, -1 for None)  blobs
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

FRAME_MAX = 1 << 30
_LENGTH = struct.Struct(">I")

Head = dict[str, Any]
Blobs = list[bytes | None]


def pack(head: Head, blobs: Sequence[bytes | None] = ()) -> bytes:
    text = json.dumps(
        {**head, "blobs": [-1 if blob is None else len(blob) for blob in blobs]}, separators=(",", ":")
    ).encode()
    body = b"".join((_LENGTH.pack(len(text)), text, *(blob for blob in blobs if blob)))
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> tuple[Head, Blobs]:
    """A frame without its length."""
    (length,) = _LENGTH.unpack_from(body)
    at = _LENGTH.size + length
    head: Head = json.loads(body[_LENGTH.size : at])
    blobs: Blobs = []
    for size in head.pop("blobs"):
        if size < 0:
            blobs.append(None)
            continue
        blobs.append(bytes(body[at : at + size]))
        at += size
    return head, blobs


class FrameBuffer:
    """Bytes as they come in, frames out."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Head, Blobs]]:
        """The frames that are complete now. Raises ValueError for what can't be a frame."""
        held = self._held
        held += data
        while len(held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held)
            if length > FRAME_MAX:
                raise ValueError(f"a frame of {length} bytes")
            end = _LENGTH.size + length
            if len(held) < end:
                return
            body = bytes(held[_LENGTH.size : end])
            del held[:end]
            yield unpack(body)
