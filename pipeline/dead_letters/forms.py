"""The form in which a value is shown and edited: JSON, and back.

JSON has no bytes and no named union branches: in an Avro value they stand as {"$bytes": "hex"} and {"$record": "name", "value": {...}}.
"""

from __future__ import annotations

import math
from typing import Any

from pipeline.dead_letters.literals import Literal

BYTES, RECORD = "$bytes", "$record"
BYTES_FORM = f'{{"{BYTES}": "hex digits"}}'


def to_json(value: Any) -> Any:
    """As it is edited."""
    if isinstance(value, bytes):
        return {BYTES: value.hex()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return {RECORD: value[0], "value": to_json(value[1])}
    if isinstance(value, dict):
        return {key: to_json(each) for key, each in value.items()}
    return [to_json(each) for each in value] if isinstance(value, (list, tuple)) else value


def from_json(value: Any) -> Any:
    """Raises `ValueError` for a mark that is none."""
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, dict):
        return float(value) if isinstance(value, Literal) else value
    if value.keys() == {BYTES}:
        return _bytes(value[BYTES])
    if value.keys() == {RECORD, "value"}:
        if not isinstance(value[RECORD], str):
            raise ValueError(f"{RECORD} takes the name of a record")
        return (value[RECORD], from_json(value["value"]))
    return {key: from_json(each) for key, each in value.items()}


def _bytes(text: Any) -> bytes:
    try:
        return bytes.fromhex(text)
    except (ValueError, TypeError):
        raise ValueError(f"write bytes as {BYTES_FORM}") from None


def shown(value: Any) -> Any:
    """As it is shown to people and machines: bytes as they are edited, keys as texts, everything else as JSON has it.

    A number that JSON does not have is the text "NaN", "Infinity" or "-Infinity": strict readers refuse the whole line otherwise.
    """
    if isinstance(value, bytes):
        return {BYTES: value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): shown(each) for key, each in value.items()}
    return [shown(each) for each in value] if isinstance(value, (list, tuple)) else value
