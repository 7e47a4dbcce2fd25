"""The history of a record's failed attempts, as header `pl.history` carries it: bounded, the first and the newest kept.

    [{"n":1,"s":1767225600000,"at":1767225600250,"c":"RateLimit","t":"RateLimitError","m":"..."}, {"dropped":12}, {...}]

`n` number of the attempt, `s` when it started (left out where nobody knows), `at` when it failed, `c` class, `t` type, `m` message,
clipped. An entry `dropped` stands where so many were left out. Numbers begin at 1 again after a replay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

HISTORY_BYTES = 4_096
ENTRY_BYTES = 1_000
"""Most bytes of one entry: so the first, the newest and the count of what is between them always fit."""
MESSAGE_BYTES = 400
_NAME_BYTES = 120
_DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution that failed. Times are milliseconds since the epoch; `started_ms` is 0 where it is not known."""

    number: int
    failed_ms: int
    error_class: str = ""
    error_type: str = ""
    message: str = ""
    started_ms: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """Oldest first; `dropped` attempts are left out between the first and the second of `attempts`."""

    attempts: tuple[Attempt, ...] = ()
    dropped: int = 0

    @property
    def complete(self) -> bool:
        """Nothing was dropped, and the numbers have no gap (workers of an older version write no history)."""
        numbers = [attempt.number for attempt in self.attempts]
        gaps = any(b not in (a + 1, 1) for a, b in pairwise(numbers))
        return not self.dropped and not gaps and numbers[:1] in ([], [1])


def append(raw: bytes, attempt: Attempt) -> bytes:
    """The header with one more attempt: at most HISTORY_BYTES, whatever `raw` is. Unreadable bytes count as no history."""
    entry = _encoded(attempt)
    if not raw:
        return b"[%b]" % entry
    past = parse(raw)
    if past.attempts and len(raw) + len(entry) + 1 <= HISTORY_BYTES and raw.endswith(b"}]"):
        return b"%b,%b]" % (raw[:-1], entry)  # as long as there is room the text only grows
    return _fitted([_encoded(each) for each in past.attempts], past.dropped, entry)


def attempts(count: int) -> str:
    """So many, for people."""
    return "1 attempt" if count == 1 else f"{count} attempts"


def parse(raw: bytes | None) -> History:
    """What can be read of the header; entries of another shape are passed over, and nothing raises."""
    try:
        entries = json.loads(raw or b"[]")
    except (ValueError, RecursionError):
        return History()
    if not isinstance(entries, list):
        return History()
    dropped = sum(_count(entry.get(_DROPPED)) for entry in entries if isinstance(entry, dict))
    found = (_attempt(entry) for entry in entries if isinstance(entry, dict) and _DROPPED not in entry)
    return History(tuple(attempt for attempt in found if attempt is not None), dropped)


def _fitted(past: Sequence[bytes], dropped: int, newest: bytes) -> bytes:
    """The first and as many of the newest as fit."""
    first, rest = list(past[:1]), list(past[1:])
    while True:
        marker = [b'{"%b":%d}' % (_DROPPED.encode(), dropped)] if dropped else []
        made = b"[%b]" % b",".join((*first, *marker, *rest, newest))
        if len(made) <= HISTORY_BYTES or not (rest or first):
            return made
        (rest or first).pop(0)
        dropped += 1


def _encoded(attempt: Attempt) -> bytes:
    entry: dict[str, Any] = {"n": attempt.number}
    if attempt.started_ms:
        entry["s"] = attempt.started_ms
    entry |= {
        "at": attempt.failed_ms,
        "c": _clip(attempt.error_class, _NAME_BYTES),
        "t": _clip(attempt.error_type, _NAME_BYTES),
        "m": _clip(attempt.message, MESSAGE_BYTES),
    }
    made = _json(entry)
    while len(made) > ENTRY_BYTES:  # control characters take six bytes each
        for name in ("c", "t", "m"):
            entry[name] = entry[name][: len(entry[name]) // 2]
        made = _json(entry)
    return made


def _json(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _clip(text: str, limit_bytes: int) -> str:
    """Both ends."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw.decode()
    half = (limit_bytes - 5) // 2
    return (raw[:half] + b" ... " + raw[-half:]).decode("utf-8", "ignore")


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else 0


def _time(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15 else 0


def _attempt(entry: dict[str, Any]) -> Attempt | None:
    number = entry.get("n")
    if not _count(number):
        return None
    texts = [text if isinstance(text := entry.get(name, ""), str) else "" for name in ("c", "t", "m")]
    return Attempt(_count(number), _time(entry.get("at")), texts[0], texts[1], texts[2], _time(entry.get("s")))
