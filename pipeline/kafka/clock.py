"""The cluster's time against this machine's: what a broker stamps on a record that is written now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaException, Message, Producer

from pipeline.kafka.errors import cluster_error, raised
from pipeline.model.cluster import TimeDifference
from pipeline.model.errors import ClusterUnavailable, TopologyError

_SAMPLES = 3


def time_difference(settings: Mapping[str, Any], topic: str, timeout_s: float) -> TimeDifference:
    """Of several records that are written one after the other the one that was answered fastest. Raises a `ClusterError`, or a
    `TopologyError` for a topic that does not say when its records were appended."""
    producer = Producer({**settings, "linger.ms": 0})
    return min((_sample(producer, topic, timeout_s) for _ in range(_SAMPLES)), key=lambda found: found.spread_ms)


def _sample(producer: Producer, topic: str, timeout_s: float) -> TimeDifference:
    answers: list[tuple[Any, Message, int]] = []

    def answered(error: Any, message: Message) -> None:
        answers.append((error, message, time.time_ns()))

    asked_ns = time.time_ns()
    try:
        producer.produce(topic, b"", None, 0, answered)
        producer.flush(timeout_s)
    except KafkaException as exception:
        raise raised(exception, f"asking {topic} for the time") from exception
    if not answers:
        producer.purge()
        raise ClusterUnavailable(f"{topic} was asked for the time and did not answer in {timeout_s:.0f} s")
    error, message, heard_ns = answers[0]
    if error is not None:
        raise cluster_error(error, f"asking {topic} for the time")
    kind, stamped_ms = message.timestamp()
    if kind != TIMESTAMP_LOG_APPEND_TIME:
        raise TopologyError(f"topic {topic} does not tell the time: set message.timestamp.type=LogAppendTime")
    return difference(asked_ns // 1_000_000, -(-heard_ns // 1_000_000), stamped_ms)


def difference(asked_ms: int, heard_ms: int, stamped_ms: int) -> TimeDifference:
    """From own times before and after, and the broker's in between. No difference where both clocks can be right."""
    if asked_ms <= stamped_ms <= heard_ms:
        return TimeDifference(0, 0)
    return TimeDifference(stamped_ms - heard_ms, heard_ms - asked_ms)
