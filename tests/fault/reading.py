"""Reads what a trial left: topics (committed and uncommitted), the group's stored commits, and the ledger, as a `History`."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Named
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.core.progress import decode as decode_progress
from pipeline.model.headers import HeaderError
from pipeline.model.headers import decode as decode_headers
from tests.fault.feed import NUMBER
from tests.fault.history import Commit, Copy, Origin
from tests.integration.commit_log import stored_commits
from tests.patience import PATIENCE

READ_S = 90.0


def _consumer(bootstrap: str, isolation: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "fault-reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": isolation,
            "fetch.queue.backoff.ms": 5,
            "log_level": 0,
        }
    )


def read_all(
    bootstrap: str, topics: Iterable[str], isolation: str = "read_committed", unreadable: Sequence[int] = ()
) -> list[Any]:
    """Every record of the topics that exist, each partition in offset order, to where its leader says that it ends.

    That is asked for beforehand: a leader that was only just elected may give a consumer less than the one before it did, for a
    moment, and call that the end; asked for its end, it does not answer until it knows (KIP-207).

    `unreadable`: the last offsets of batches that no client can read, which are passed over.
    """
    passed = list(unreadable)
    consumer = _consumer(bootstrap, isolation)
    found: list[Any] = []
    try:
        known = consumer.list_topics(timeout=20).topics
        places = [Named(name, p, 0) for name in topics if name in known for p in known[name].partitions]
        if not places:
            return found
        consumer.assign(places)
        left = _ends(bootstrap, places, isolation)
        end = time.monotonic() + READ_S
        while left:
            assert time.monotonic() < end, f"{sorted(left)[:5]} could not be read to the end in {READ_S:.0f} s"
            for message in consumer.consume(5_000, 0.2):
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended = (message.topic(), message.partition())
                    if message.offset() >= left.get(ended, 0):
                        left.pop(ended, None)
                elif error.code() == KafkaError._BAD_COMPRESSION and passed:
                    consumer.seek(Named(message.topic(), message.partition(), passed.pop(0) + 1))
    finally:
        consumer.close()
    return found


def _ends(bootstrap: str, places: Sequence[Named], isolation: str) -> dict[tuple[str, int], int]:
    """All at once; those whose leader does not answer, or can't yet, are asked for again."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    level = IsolationLevel.READ_COMMITTED if isolation == "read_committed" else IsolationLevel.READ_UNCOMMITTED
    found: dict[tuple[str, int], int] = {}
    deadline = time.monotonic() + READ_S
    while left := [place for place in places if (place.topic, place.partition) not in found]:
        asked = {place: OffsetSpec.latest() for place in left}
        for place, answer in admin.list_offsets(asked, isolation_level=level, request_timeout=2.0).items():
            try:
                offset = answer.result(20).offset
                if offset >= 0:  # else its leader's answer is missing, and librdkafka says so by nothing else
                    found[place.topic, place.partition] = offset
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    return found


def copies(messages: Iterable[Any]) -> list[Copy]:
    """Records of lanes and dead letters whose headers are the pipeline's."""
    found = []
    for message in messages:
        try:
            headers = decode_headers(message.headers())
        except HeaderError:
            continue
        found.append(
            Copy(
                message.topic(), message.partition(), message.offset(), message.timestamp()[1],
                (headers.origin_partition, headers.origin_offset), headers.hop, headers.attempt, headers.epoch,
            )
        )  # fmt: skip
    return found


def commits(bootstrap: str, group: str) -> list[Commit]:
    found = [
        Commit(
            stored.at_ms, stored.place.topic, stored.place.partition, decode_progress(stored.offset, stored.metadata)
        )
        for stored in stored_commits(bootstrap, group)
    ]
    assert not found or any(commit.progress.epoch for commit in found), (
        "no stored commit can be read: nothing is judged"
    )
    return found


def number_of(message: Any) -> int:
    """The number that the load gave a record; -1 where it is not the load's."""
    for name, value in message.headers() or ():
        if name == NUMBER:
            return int(value)
    try:
        found = json.loads(message.value() or b"")
    except ValueError:
        return -1
    return int(found.get("n", -1)) if isinstance(found, dict) else -1


def output_origins(messages: Iterable[Any]) -> list[Origin]:
    found: list[Origin] = []
    for message in messages:
        value = json.loads(message.value())
        if "part" not in value:
            found.append((value["of"][0], value["of"][1]))
    return found


def parts_of(messages: Iterable[Any]) -> Counter[tuple[Origin, int]]:
    """How often each of a record's several outputs is there; the first is part 0."""
    values = [json.loads(message.value()) for message in messages]
    return Counter(((v["of"][0], v["of"][1]), v.get("part", 0)) for v in values)


class Beside:
    """A reader that reads a topic in read_committed while the trial goes on. Of several partitions the order is its own."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = _consumer(bootstrap, "read_committed")
        count = len(self._consumer.list_topics(topic, timeout=20).topics[topic].partitions)
        self._consumer.assign([Named(topic, p, 0) for p in range(count)])
        self._found: list[Any] = []
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="beside", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(1_000, 0.1):
                if message.error() is None:
                    self._ended.clear()
                    self._found.append(message)
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    self._ended.set()
        self._consumer.close()

    def records(self) -> list[Any]:
        return list(self._found)

    def seen(self, wanted: int) -> Sequence[Origin]:
        """Once it has seen that many, or nothing more comes."""
        end = time.monotonic() + 20 * PATIENCE
        while time.monotonic() < end and not (len(self._found) >= wanted and self._ended.is_set()):
            time.sleep(0.05)
        self.close()
        return output_origins(self._found)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
