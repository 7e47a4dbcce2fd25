"""What a group's coordinator stored, commit by commit in its own order: read from Kafka's internal offsets topic."""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError
from confluent_kafka import TopicPartition as Named

from pipeline.core.progress import Progress, decode
from pipeline.model.cluster import TopicPartition
from tests.patience import PATIENCE

TOPIC = "__consumer_offsets"
_COMMIT_KEYS = (0, 1)
_FLEXIBLE_SINCE = 4


class Stored(NamedTuple):
    """One stored commit; `at` is its place in the log of its group. `progress`: its text, where that was read already."""

    at: int
    place: TopicPartition
    offset: int
    metadata: str
    progress: Progress | None = None
    at_ms: int = 0


def _text(raw: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">h", raw, at)
    return raw[at + 2 : at + 2 + length].decode(), at + 2 + length


def _compact_text(raw: bytes, at: int) -> str:
    length, shift = 0, 0
    while True:
        byte = raw[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return raw[at : at + length - 1].decode()


def _parse(key: bytes, value: bytes, group: str, at: int, at_ms: int = 0) -> Stored | None:
    (version,) = struct.unpack_from(">h", key)
    if version not in _COMMIT_KEYS:
        return None
    name, place = _text(key, 2)
    if name != group:
        return None
    topic, place = _text(key, place)
    (partition,) = struct.unpack_from(">i", key, place)
    version, offset = struct.unpack_from(">hq", value)
    text = 14 if version >= 3 else 10
    metadata = _compact_text(value, text) if version >= _FLEXIBLE_SINCE else _text(value, text)[0]
    # confluent-kafka sends the end of a C text with it, and takes it away again when it reads.
    return Stored(at, TopicPartition(topic, partition), offset, metadata.rstrip("\0"), None, at_ms)


def _java_hash(text: str) -> int:
    """What Kafka makes of a group's name to choose its partition of the offsets topic: the amount of Java's signed hash."""
    found = 0
    for unit in memoryview(text.encode("utf-16-be")).cast("B").tolist()[1::2]:
        found = (found * 31 + unit) & 0xFFFFFFFF
    return found if found < 1 << 31 else (1 << 32) - found


def stored_commits(bootstrap: str, group: str) -> list[Stored]:
    """Every commit of the group that is still in the log (which is compacted, but not within a test), in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "commit-log",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    try:
        count = len(consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions)
        consumer.assign([Named(TOPIC, _java_hash(group) % count, 0)])
        found: list[Stored] = []
        until = time.monotonic() + 60 * PATIENCE
        while True:
            assert time.monotonic() < until, "the offsets topic could not be read to its end"
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    return found
                if message.key() and message.value():
                    stored = _parse(message.key(), message.value(), group, len(found), message.timestamp()[1])
                    if stored is not None:
                        found.append(stored)
    finally:
        consumer.close()


def setbacks(commits: list[Stored], source: str) -> list[str]:
    """Commits that took back what an earlier one had: a lower offset, an older epoch of the source, or a settled record open again.

    Empty is what a test wants.
    """
    last: dict[TopicPartition, Progress] = {}
    count: dict[TopicPartition, int] = defaultdict(int)
    found = []
    for commit in commits:
        progress = commit.progress or decode(commit.offset, commit.metadata)
        before = last.get(commit.place)
        count[commit.place] += 1
        last[commit.place] = progress
        if before is None:
            continue
        where = f"commit {count[commit.place]} of {commit.place.topic}[{commit.place.partition}]"
        if progress.offset < before.offset:
            found.append(f"{where}: offset {before.offset} -> {progress.offset}")
        elif commit.place.topic == source and progress.epoch < before.epoch:
            found.append(f"{where}: epoch {before.epoch} -> {progress.epoch}")
        elif again := [o for o in progress.open if o < before.end and o not in before.open]:
            found.append(f"{where}: settled and open again: {again[:5]}")
    return found
