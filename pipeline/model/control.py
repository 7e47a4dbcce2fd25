"""Operators' switches: records of the compacted control topic that every worker reads in full and follows.

    record key                                          value (JSON object)
    pause/<group>                                       kind, group, who, why, at_ms
    skip/<group>/<topic>/<partition>/<origin offset>    the same + topic, partition, origin_offset, key
    release/<group>/<topic>/<partition>/<key>           the same + topic, partition, up_to_origin, key
    replay/<plan id>                                    kind, group (the plan's), plan, state, who, why, at_ms

A tombstone (null value) undoes the switch of that key. Names and keys are percent-encoded in the record key, so that a
`/` in them can't be mistaken. In the value a key is `"key"` (text), or `"key_base64"` where it is not UTF-8, or neither (null key).
`topic` and `group` are real names, with the environment prefix: origin offsets mean nothing without their topic.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

VALUE_BYTES_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Pause:
    """The group takes no new work until the switch is undone."""

    group: str
    who: str = ""
    why: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Skip:
    """The record with this origin is given up: when it comes up it goes to the dead letters without running."""

    group: str
    topic: str
    partition: int
    origin_offset: int
    key: bytes | None = None
    who: str = ""
    why: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """Records of this key with an origin up to and including `up_to_origin` no longer wait for each other: each runs when it is due."""

    group: str
    topic: str
    partition: int
    key: bytes | None
    up_to_origin: int
    who: str = ""
    why: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """The replay of a plan stands still ("paused"), or has ended before its time ("cancelled"). `group` is the one that executes it."""

    plan_id: str
    state: str
    group: str = ""
    who: str = ""
    why: str = ""
    at_ms: int = 0


Switch = Pause | Skip | Release | Replay


class ControlRecordError(ValueError):
    """A record of the control topic is not readable; the message names the field."""


def _part(text: str | bytes) -> str:
    return quote(text, safe="")


def record_key(switch: Switch) -> str:
    """The stable key under which compaction keeps the newest state of this switch."""
    if isinstance(switch, Pause):
        return f"pause/{_part(switch.group)}"
    if isinstance(switch, Replay):
        return f"replay/{_part(switch.plan_id)}"
    place = f"{_part(switch.group)}/{_part(switch.topic)}/{switch.partition}"
    if isinstance(switch, Skip):
        return f"skip/{place}/{switch.origin_offset}"
    return f"release/{place}/" + ("-null" if switch.key is None else f"={_part(switch.key)}")


def _key_fields(key: bytes | None) -> dict[str, str]:
    if key is None:
        return {}
    try:
        return {"key": key.decode()}
    except UnicodeDecodeError:
        return {"key_base64": base64.b64encode(key).decode()}


def encode(switch: Switch) -> tuple[bytes, bytes]:
    """(key, value) of the control record that turns the switch on; (key, None) turns it off."""
    fields: dict[str, object] = {
        "group": switch.group,
        "who": switch.who,
        "why": switch.why,
        "at_ms": switch.at_ms,
    }
    if isinstance(switch, Pause):
        fields["kind"] = "pause"
    elif isinstance(switch, Replay):
        fields |= {"kind": "replay", "plan": switch.plan_id, "state": switch.state}
    else:
        fields |= {"topic": switch.topic, "partition": switch.partition, **_key_fields(switch.key)}
        if isinstance(switch, Skip):
            fields |= {"kind": "skip", "origin_offset": switch.origin_offset}
        else:
            fields |= {"kind": "release", "up_to_origin": switch.up_to_origin}
    return record_key(switch).encode(), json.dumps(fields, sort_keys=True).encode()


def _text(fields: dict[str, object], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise ControlRecordError(f"field {name} of a control record must be text, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ControlRecordError(f"field {name} of a control record is not text that can be written as UTF-8") from None
    return value


def _number(fields: dict[str, object], name: str, default: int | None = None) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ControlRecordError(f"field {name} of a control record must be a whole number >= 0, not {value!r:.40}")
    return value


def _key(fields: dict[str, object]) -> bytes | None:
    if "key" in fields:
        return _text(fields, "key").encode()
    if "key_base64" in fields:
        try:
            return base64.b64decode(_text(fields, "key_base64"), validate=True)
        except ValueError:
            raise ControlRecordError("field key_base64 of a control record is not base64") from None
    return None


def decode(value: bytes) -> Switch | None:
    """The switch in a control record's value; None for a kind that only a newer version knows.

    Raises `ControlRecordError` for bytes that are not a control record: log it and go on with the next one.
    """
    if len(value) > VALUE_BYTES_MAX:
        raise ControlRecordError(f"a control record has {len(value)} bytes; at most {VALUE_BYTES_MAX} are read")
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        raise ControlRecordError("a control record's value is not JSON") from None
    if not isinstance(fields, dict):
        raise ControlRecordError("a control record's value is not a JSON object")
    kind, group = _text(fields, "kind"), _text(fields, "group")
    who, why, at_ms = _text(fields, "who", ""), _text(fields, "why", ""), _number(fields, "at_ms", 0)
    if kind == "pause":
        return Pause(group, who, why, at_ms)
    if kind == "replay":
        return Replay(_text(fields, "plan"), _text(fields, "state"), group, who, why, at_ms)
    if kind not in ("skip", "release"):
        return None
    topic, partition, key = _text(fields, "topic"), _number(fields, "partition"), _key(fields)
    if kind == "skip":
        return Skip(group, topic, partition, _number(fields, "origin_offset"), key, who, why, at_ms)
    return Release(group, topic, partition, key, _number(fields, "up_to_origin"), who, why, at_ms)


class Switches:
    """What is switched on now: fold every record of the control topic into it, in order. Pure; one thread.

    `read`: the topic has been read to its end once; before that nobody knows what is paused.
    """

    def __init__(self) -> None:
        self.read = True
        self._on: dict[bytes, Switch] = {}
        self._paused: dict[str, Pause] = {}
        self._skipped: dict[tuple[str, str, int], dict[int, Skip]] = {}
        self._released: dict[tuple[str, str, int], dict[bytes | None, Release]] = {}
        self._replays: dict[str, Replay] = {}

    def fold(self, key: bytes | None, value: bytes | None) -> Switch | None:
        """Take in one record; returns the switch it turned on or off (None when nothing changed).

        Raises `ControlRecordError` for an unreadable value, and when the key is not the one its value stands for.
        """
        if key is None:
            raise ControlRecordError("a control record has no key")
        if value is None:
            gone = self._on.pop(key, None)
            if gone is not None:
                self._drop(gone)
            return gone
        switch = decode(value)
        if switch is None:
            return None
        if record_key(switch).encode() != key:
            raise ControlRecordError(f"the key {key!r:.80} of a control record does not fit its value")
        self._on[key] = switch
        if isinstance(switch, Pause):
            self._paused[switch.group] = switch
        elif isinstance(switch, Skip):
            self._skipped.setdefault((switch.group, switch.topic, switch.partition), {})[switch.origin_offset] = switch
        elif isinstance(switch, Replay):
            self._replays[switch.plan_id] = switch
        else:
            self._released.setdefault((switch.group, switch.topic, switch.partition), {})[switch.key] = switch
        return switch

    def _drop(self, switch: Switch) -> None:
        if isinstance(switch, Pause):
            del self._paused[switch.group]
        elif isinstance(switch, Replay):
            del self._replays[switch.plan_id]
        elif isinstance(switch, Skip):
            place = (switch.group, switch.topic, switch.partition)
            del self._skipped[place][switch.origin_offset]
            if not self._skipped[place]:
                del self._skipped[place]
        else:
            place = (switch.group, switch.topic, switch.partition)
            del self._released[place][switch.key]
            if not self._released[place]:
                del self._released[place]

    def paused(self, group: str) -> Pause | None:
        return self._paused.get(group)

    def replay(self, plan_id: str) -> Replay | None:
        return self._replays.get(plan_id)

    def skips(self, group: str, topic: str, partition: int) -> dict[int, Skip]:
        """Skipped records of one source partition, by origin offset."""
        return dict(self._skipped.get((group, topic, partition), {}))

    def releases(self, group: str, topic: str, partition: int) -> dict[bytes | None, Release]:
        """Released keys of one source partition."""
        return dict(self._released.get((group, topic, partition), {}))

    def __iter__(self) -> Iterator[Switch]:
        return iter(tuple(self._on.values()))
