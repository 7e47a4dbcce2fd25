"""A job's dead letter as people read and edit it: its input stands as the JSON that it is. What is no JSON stays bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.codec.jobs import REQUEST
from pipeline.dead_letters.forms import BYTES, BYTES_FORM, from_json
from pipeline.dead_letters.literals import dumps, loads
from pipeline.model.errors import EncodeError

_KEPT = ("key", "dedup_id", "dedup_window_ms", "schedule", "created_ms")
"""What `core.jobs.commands.renewed` takes from the job and not from what was edited."""
_NOTHING = object()


def readable(kind: str, value: Any) -> Any:
    """The value of a dead letter of type `kind`; that of a job is a copy with its input as JSON."""
    if kind != REQUEST or not isinstance(value, dict) or not isinstance(value.get("payload"), bytes):
        return value
    found = _json_of(value["payload"])
    return {**value, "payload": value["payload"] if found is _NOTHING else found}


def _json_of(payload: bytes) -> Any:
    """Only what can be written again: no numbers that JSON does not have, and nothing that looks like the form of bytes."""
    try:
        found = loads(payload.decode())
        _payload_of(found)
        _with_floats(found)
    except (ValueError, RecursionError):
        return _NOTHING
    return _NOTHING if _is_bytes(found) else found


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {BYTES}


def _payload_of(value: Any) -> bytes:
    return dumps(value).encode()


def _with_floats(value: Any) -> bytes:
    """As it is shown: with the digits that a float has. Raises `ValueError` for a number beyond floats."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def encoded_input(before: Mapping[str, Any], given: Any) -> bytes:
    """The edited input; `before` is the request as it was written. One that was not edited stays as it is, to the byte."""
    if _is_bytes(given):
        payload: bytes = from_json(given)
        return payload
    try:
        payload = _payload_of(given)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"write the job's input as JSON, or as {BYTES_FORM} ({error})") from None
    was = _json_of(before["payload"])
    same = was is not _NOTHING and payload in (_payload_of(was), _with_floats(was))
    return before["payload"] if same else payload


def check_request(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises `EncodeError` when it would be another job, or when a redrive would not do what was edited."""
    for field in ("id", "type"):
        if after.get(field) != before[field]:
            raise EncodeError(
                f"{name}.{field} can't be changed, it would be another job: cancel this dead letter and ask for a new job"
            )
    for field in _KEPT:
        if after.get(field, before[field]) != before[field]:
            raise EncodeError(
                f"{name}.{field} can't be changed, a redrive keeps that of the job: cancel this dead letter and ask for a new job"
            )
    if "payload" not in after:
        raise EncodeError(f"{name} lacks field payload: write the job's input as JSON")
    if after["payload"] != before["payload"] and after.get("payload_ref") is not None:
        raise EncodeError(
            f"{name}.payload says nothing while payload_ref says where the input lies: set payload_ref to null"
        )
