"""Ids of jobs. They carry the time at which they were made, so that a job that is forgotten can be told from one that never was.

A request's id is a UUIDv7 (RFC 9562); that of a tick is `SCHEDULE@MILLISECONDS`, the same whoever fires it and however often.
"""

from __future__ import annotations

import re
from typing import Literal

RANDOM_BYTES = 10
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_TICK = re.compile(r".+@(\d{1,15})", re.DOTALL)
_MS_MAX = (1 << 48) - 1


def job_id(now_ms: int, random: bytes) -> str:
    """A new id from the time and RANDOM_BYTES random bytes."""
    if len(random) != RANDOM_BYTES or not 0 <= now_ms <= _MS_MAX:
        raise ValueError(f"an id is made of a time and {RANDOM_BYTES} random bytes")
    drawn = int.from_bytes(random)
    number = now_ms << 80 | 7 << 76 | (drawn >> 62 & 0xFFF) << 64 | 2 << 62 | drawn & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def tick_id(schedule: str, tick_ms: int) -> str:
    return f"{schedule}@{tick_ms}"


def made_ms(text: str) -> int | None:
    """When the id was made, or the tick was; None for a text that is neither."""
    if _UUID7.fullmatch(text):
        return int(text[:8] + text[9:13], 16)
    match = _TICK.fullmatch(text)
    return int(match[1]) if match else None


def absent(text: str, now_ms: int, kept_ms: int) -> Literal["expired", "unknown"]:
    """Why there is no job of this id: so old that it may be forgotten, or never heard of. `kept_ms`: retention by age."""
    at_ms = made_ms(text)
    return "expired" if at_ms is not None and at_ms <= now_ms - kept_ms else "unknown"
