"""Values out of foreign JSON, whatever they turn out to be: text, counts, times. Pure, and never raises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.model.instants import epoch_ms_of

TIME_MAX_MS = 253_402_300_799_999
"""The end of the year 9999: later ones are no times."""
_SECONDS_BELOW = 100_000_000_000
_LONG_MAX = 2**63 - 1
_TIME_KEYS = ("timestamp", "created_at", "created", "time", "ts", "started_at", "start_time")


def clean(text: str) -> str:
    """The same, lone surrogates (legal in JSON, not in UTF-8) replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def as_json(value: Any) -> str:
    """The value as a JSON document; its Python text where JSON can't hold it."""
    try:
        return clean(json.dumps(value, ensure_ascii=False, default=str))
    except Exception:  # too deep, a circle, keys that are no text, somebody's own __str__
        return json.dumps(python_text(value))


def python_text(value: Any) -> str:
    """As Python shows it, where it can."""
    try:
        return clean(repr(value))
    except Exception:  # as above
        return f"<{type(value).__name__} that can't be shown>"


def as_text(value: Any) -> str | None:
    """Text as it is; None for None; a number or anything else as JSON."""
    if value is None:
        return None
    return clean(value) if isinstance(value, str) else as_json(value)


def content_text(content: Any) -> tuple[str | None, list[str]]:
    """The text of a message's content (text, parts, or null), and the kinds of parts that hold none."""
    if not isinstance(content, list):
        return as_text(content), []
    texts, others = [], []
    for part in content:
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping):
            text = next(
                (part[k] for k in ("text", "refusal", "input_text", "output_text") if isinstance(part.get(k), str)),
                None,
            )
        if text is None:
            others.append(clean(str(part.get("type")))[:40] if isinstance(part, Mapping) else type(part).__name__)
        else:
            texts.append(clean(text))
    return ("\n".join(texts) if texts else None), others


def as_count(value: Any) -> int:
    """A whole number from 0 that fits a long; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return min(max(0, int(value)), _LONG_MAX)


def time_of(holder: Mapping[str, Any]) -> int | None:
    """Milliseconds since the epoch from whichever time field there is: seconds, milliseconds, or ISO 8601
    (UTC when it names no zone)."""
    for key in _TIME_KEYS:
        found = _time(holder.get(key))
        if found is not None:
            return found
    return None


def _time(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        if not math.isfinite(value) or value <= 0:
            return None
        ms = int(value * 1_000) if value < _SECONDS_BELOW else int(value)
        return ms if ms <= TIME_MAX_MS else None
    if not isinstance(value, str):
        return None
    try:
        ms = epoch_ms_of(datetime.fromisoformat(value))
    except (ValueError, OverflowError):
        return None
    return ms if 0 < ms <= TIME_MAX_MS else None
