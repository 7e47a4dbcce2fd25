"""Producing: one idempotent librdkafka producer with a thread that serves its delivery reports.

A fatal error (the broker forgot the producer's state, so idempotence can't be kept) ends a librdkafka producer:
its queued records are reported as failed and a new one takes its place; the sender decides what to send again.
The transactional form (`exactly_once`) will be a class of its own beside this one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered

from pipeline.kafka.errors import cluster_error, is_fatal, raised
from pipeline.model.cluster import DeliveryCallback, Headers
from pipeline.model.errors import BufferFull, ClusterError

_SERVE_S = 0.1


class KafkaProducer:
    """See `RecordProducer`. Any thread may send; `delivered` is called in the serving thread."""

    def __init__(self, settings: Mapping[str, Any], on_error: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_error = on_error
        self._lock = threading.Lock()  # guards the exchange of a dead producer
        self._dead = False
        self._closed = False
        self._producer = self._build()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kafka-deliveries", daemon=True)
        self._thread.start()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        if self._dead:
            self._replace()
        if self._closed:
            raise ClusterError(f"the producer is closed: nothing can be sent to {topic} any more")
        try:
            if delivered is None:
                self._producer.produce(topic, value, key, partition, timestamp=timestamp_ms, headers=headers)  # type: ignore[arg-type]
            else:
                report = _reporting(delivered)
                self._producer.produce(
                    topic,
                    value,
                    key,
                    partition,
                    report,  # as `callback`: given as `on_delivery` after a None it is never called (measured, 2.16.1)
                    None,
                    timestamp_ms,
                    headers,  # type: ignore[arg-type]
                )
        except BufferError as error:
            raise BufferFull(
                f"the producer's buffer is full, so a record for {topic} was not taken: wait, then send again"
            ) from error
        except KafkaException as exception:
            if exception.args[0].code() == KafkaError._FATAL and not self._dead:
                self._dead = True
                self.send(topic, key, value, headers, partition, timestamp_ms, delivered)
                return
            raise raised(exception, f"sending {len(value or b'')} bytes to {topic}") from exception

    def flush(self, timeout_s: float) -> int:
        return self._producer.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Flushes for at most `timeout_s`; what is not answered by then is reported to `delivered` as failed."""
        if self._closed:
            return
        self._closed = True
        if self._producer.flush(timeout_s):
            self._producer.purge()
            self._producer.flush(1.0)
        self._stop.set()
        self._thread.join(2.0)

    def _build(self) -> Producer:
        return Producer({**self._settings, "error_cb": self._client_error})

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(_SERVE_S)

    def _client_error(self, error: KafkaError) -> None:
        if is_fatal(error):
            self._dead = True
        self._on_error(f"{error.str()} [{error.name()}]")

    def _replace(self) -> None:
        with self._lock:
            if not self._dead:
                return
            dead, self._producer, self._dead = self._producer, self._build(), False
        dead.purge()
        dead.flush(1.0)


def _reporting(delivered: DeliveryCallback) -> Callable[[KafkaError | None, Delivered], None]:
    def report(error: KafkaError | None, message: Delivered) -> None:
        if error is None:
            delivered(None, message.offset() or 0)
        else:
            delivered(cluster_error(error, f"writing a record to {message.topic()}"), -1)

    return report
