"""Writing a few records and waiting until every one is acknowledged: switches, audit entries, results, tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.model.cluster import Cluster, Headers, RecordProducer
from pipeline.model.errors import BufferFull, ClusterError, ClusterUnavailable, TopologyError

ACK_TIMEOUT_S = 15.0
_FULL_PAUSE_S = 0.005


class Entry(NamedTuple):
    """A record to write; partition -1: by its key."""

    key: bytes | None
    value: bytes | None
    headers: Headers = []  # noqa: RUF012 - never changed
    partition: int = -1


def append(cluster: Cluster, topic: str, entries: Sequence[Entry], timeout_s: float = ACK_TIMEOUT_S) -> list[int]:
    """Write all of them with a producer of its own; their offsets, in order.

    Raises `TopologyError` when the topic is missing, `ClusterUnavailable` when not all were acknowledged in time, and what the
    brokers answered when they refused one.
    """
    require_topic(cluster, topic)
    producer = cluster.producer("pipeline-append")
    try:
        return _append(producer, topic, entries, timeout_s)
    finally:
        producer.close(1.0)


def _append(producer: RecordProducer, topic: str, entries: Sequence[Entry], timeout_s: float) -> list[int]:
    offsets = [-1] * len(entries)
    failures: list[ClusterError] = []
    answered = threading.Semaphore(0)
    until = time.monotonic() + timeout_s
    for index, entry in enumerate(entries):

        def delivered(error: ClusterError | None, offset: int, index: int = index) -> None:
            if error is not None:
                failures.append(error)
            offsets[index] = offset
            answered.release()

        while True:
            try:
                producer.send(topic, entry.key, entry.value, entry.headers, entry.partition, delivered=delivered)
                break
            except BufferFull:
                if time.monotonic() > until:
                    raise
                time.sleep(_FULL_PAUSE_S)
    for _ in entries:
        if not answered.acquire(timeout=max(0.0, until - time.monotonic())):
            raise ClusterUnavailable(
                f"the brokers did not acknowledge what was written to {topic} in {timeout_s:g} s: try again"
            )
    if failures:
        raise failures[0]
    return offsets


def require_topic(cluster: Cluster, topic: str) -> int:
    """How many partitions it has. Raises `TopologyError` when it is missing: without its record no action is taken."""
    admin = cluster.admin()
    try:
        spec = admin.topics([topic]).get(topic)
    finally:
        admin.close()
    if spec is None:
        raise TopologyError(f"topic {topic} does not exist, so nothing was done: run `pipeline topics apply` first")
    return spec.partitions
