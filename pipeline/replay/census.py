"""What a preview counts of the chosen records, a fetch at a time: partitions, keys, types, errors, times, replays so far. Pure.

Nothing is decoded here: a type comes from the CloudEvents header, else stands for its schema id until `samples` tell its name.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from operator import methodcaller

from pipeline.model.cluster import Message
from pipeline.model.headers import COUNTING, EDITED_FROM, HeaderError, decode, headers_in, replay_count_in, spelled_out

KEYS_MAX = 100_000
"""Keys counted at once; beyond it those seen least are forgotten, and counts of keys are lower bounds."""
BINS_MAX = 2_000
SAMPLES_MAX = 1_000
_MINUTE_MS = 60_000
_FRAME = 5

_partition, _key, _timestamp, _value = (methodcaller(name) for name in ("partition", "key", "timestamp", "value"))


class Census:
    """`stride`: every so many-th record is kept as a sample. `inverted`: keys whose origins do not ascend (dead letters only).

    `edited`: origins (topic, partition, offset) of edited dead letters."""

    def __init__(self, replays_max: int, stride: int, dead_letters: bool) -> None:
        self.selected = self.loop_capped = 0
        self.partitions: Counter[int] = Counter()
        self.keys: Counter[bytes | None] = Counter()
        self.keys_forgotten = False
        self.types: Counter[str | bytes] = Counter()
        self.errors: Counter[str] = Counter()
        self.samples: list[Message] = []
        self.inverted: set[tuple[int, bytes]] = set()
        self.edited: set[tuple[str, int, int]] = set()
        self._last_origin: dict[tuple[int, bytes], int] = {}
        self._replays_max = replays_max
        self._stride = max(1, stride)
        self._dead = dead_letters
        self._bins: Counter[int] = Counter()
        self._width_ms = _MINUTE_MS

    def add(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        first = -self.selected % self._stride
        if first < len(messages) and len(self.samples) < SAMPLES_MAX:
            self.samples += messages[first :: self._stride]
        self.selected += len(messages)
        self.partitions.update(map(_partition, messages))
        self._count_keys(messages)
        self._count_times(messages)
        self._look_at_headers(messages)

    def _count_keys(self, messages: Sequence[Message]) -> None:
        self.keys.update(map(_key, messages))
        if len(self.keys) > KEYS_MAX:
            self.keys_forgotten = True
            self.keys = Counter(dict(self.keys.most_common(KEYS_MAX // 2)))

    def _count_times(self, messages: Sequence[Message]) -> None:
        width = self._width_ms
        self._bins.update([time_ms // width for _, time_ms in map(_timestamp, messages)])
        while len(self._bins) > BINS_MAX:
            wider: Counter[int] = Counter()
            for number, count in self._bins.items():
                wider[number // 2] += count
            self._bins, self._width_ms = wider, self._width_ms * 2

    def _look_at_headers(self, messages: Sequence[Message]) -> None:
        kinds: list[str | bytes] = []
        for message in messages:
            kind: str | bytes = b""
            replayed = 0
            for name, value in headers_in(message) or ():
                if name == "ce_type" and value:
                    kind = value.decode("utf-8", "replace").rpartition(".")[2]
                elif name in COUNTING:
                    replayed = max(replayed, replay_count_in(name, value))
                elif name == EDITED_FROM:
                    self._take_edited(message)
            self.loop_capped += replayed >= self._replays_max
            if not kind:
                data = message.value()
                kind = "null" if data is None else data[:_FRAME] if data[:1] == b"\x00" else "other"
            kinds.append(kind)
        self.types.update(kinds)
        if self._dead:
            self._look_at_letters(messages)

    def _take_edited(self, message: Message) -> None:
        with contextlib.suppress(HeaderError):
            delivery = decode(headers_in(message))
            self.edited.add((delivery.origin_topic, delivery.origin_partition, delivery.origin_offset))

    def _look_at_letters(self, messages: Sequence[Message]) -> None:
        for message in messages:
            found = spelled_out(dict(headers_in(message) or ()))
            parts = (found.get("pl.error.class"), found.get("pl.error.type"))
            self.errors[": ".join(part.decode("utf-8", "replace") for part in parts if part) or "unknown"] += 1
            key, origin = message.key(), found.get("pl.origin.offset")
            if key is None or origin is None or not origin.isdigit():
                continue
            place, number = (message.partition(), key), int(origin)
            if number < self._last_origin.get(place, -1):
                self.inverted.add(place)
            else:
                self._last_origin[place] = number

    def name_types(self, names: dict[bytes, str]) -> None:
        """Schema ids that are known by now get their names."""
        for kind, count in list(self.types.items()):
            if isinstance(kind, bytes):
                del self.types[kind]
                self.types[names.get(kind) or f"schema {int.from_bytes(kind[1:], 'big')}"] += count

    def histogram(self, bars: int = 24) -> list[tuple[int, int, int]]:
        """(from_ms, to_ms, records), at most so many, all of the same width and without gaps."""
        if not self._bins:
            return []
        low, high = min(self._bins), max(self._bins)
        merge = -(-(high - low + 1) // bars)
        found: Counter[int] = Counter()
        for number, count in self._bins.items():
            found[(number - low) // merge] += count
        width = self._width_ms * merge
        start = low * self._width_ms
        return [(start + bar * width, start + (bar + 1) * width, found[bar]) for bar in range(max(found) + 1)]
