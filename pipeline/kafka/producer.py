"""Producing: one idempotent librdkafka producer with a thread that serves its delivery reports.

A fatal error (the broker forgot the producer's state, so idempotence can't be kept) ends a librdkafka producer:
its queued records are reported as failed and a new one takes its place; the sender decides what to send again.
confluent-kafka tells of one by raising from `poll` or `flush`, whoever calls it, and never through the error callback.
The transactional form (`exactly_once`) will be a class of its own beside this one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered

from pipeline.kafka.errors import cluster_error, not_taken, raised
from pipeline.model.cluster import Acknowledgements, DeliveryCallback, Headers, OutRecord
from pipeline.model.errors import BufferFull, ClusterError, NotAuthorized

_PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
_SERVE_S = 0.1
BURY_S = 1.0
_HEAR_S, _YIELD_S = 0.02, 0.005
_REPLACE_EVERY_S = 0.5
"""One that dies at once, for a right that is missing, is not made anew in a tight loop."""


class KafkaProducer:
    """See `RecordProducer`. Any thread may send; `delivered` is called in the serving thread."""

    def __init__(
        self, settings: Mapping[str, Any], on_error: Callable[[str], None], served_by_caller: bool = False
    ) -> None:
        """`served_by_caller`: no thread of its own. librdkafka's reports take the interpreter's lock one by one, so in a
        second thread each waits for the first (measured: a third of the rate of a loop that does nothing else)."""
        self._settings = settings
        self._on_error = on_error
        self._dead = self._denied = False
        self._why = ""
        self._replace_at_s = 0.0
        self._closed = False
        self._heard_until_s = 0.0
        self._hearing = threading.Lock()
        self._producer = self._build()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kafka-deliveries", daemon=True)
        if not served_by_caller:
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
        if self._closed:
            raise ClusterError(f"the producer is closed: nothing can be sent to {topic} any more")
        if self._dead:
            raise BufferFull(f"a record for {topic} was not taken, send it again: {self._why}")
        try:
            if delivered is None:
                self._producer.produce(topic, value, key, partition, timestamp=timestamp_ms, headers=headers)  # type: ignore[arg-type]
            else:
                report = reporting(delivered, self._refused)
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
            if exception.args[0].code() == KafkaError._FATAL:
                self._died(exception)
                raise BufferFull(f"a record for {topic} was not taken, send it again: {self._why}") from exception
            raise not_taken(exception, topic, value) from exception

    def send_many(
        self, topic: str, partition: int, records: Sequence[OutRecord], acknowledgements: Acknowledgements
    ) -> int:
        """One callback for all, and nothing else per record: the path for records by the million."""
        if self._closed:
            raise ClusterError(f"the producer is closed: nothing can be sent to {topic} any more")
        if self._dead:
            return 0
        taken, produce, report = 0, self._producer.produce, _collecting(acknowledgements, self._refused)
        try:
            for key, value, headers in records:
                produce(topic, value, key, partition, report, None, 0, headers)  # type: ignore[arg-type]
                taken += 1
        except BufferError:
            return taken
        except KafkaException as exception:
            if exception.args[0].code() == KafkaError._FATAL:
                self._died(exception)
            elif not taken:
                raise not_taken(exception, topic, records[0][1]) from exception
        return taken

    def flush(self, timeout_s: float) -> int:
        if not self._hearing.acquire(timeout=timeout_s + 2 * _SERVE_S):
            return len(self._producer)
        try:
            return self._producer.flush(timeout_s)
        except KafkaException as exception:
            self._died(exception)
            return len(self._producer)
        finally:
            self._hearing.release()

    def close(self, timeout_s: float) -> None:
        """Flushes for at most `timeout_s`; what is not answered by then is reported to `delivered` as failed."""
        if self._closed:
            return
        self._closed = True
        self.flush(timeout_s)
        bury(self._producer)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _build(self) -> Producer:
        return Producer({**self._settings, "error_cb": self._client_error})

    def _serve(self) -> None:
        """Also replaces a dead one: who waits for its answers may have nothing else to send."""
        while not self._stop.is_set():
            if not self._dead and time.monotonic() < self._heard_until_s:
                self._stop.wait(_YIELD_S)
            else:
                self.serve(_SERVE_S)

    def hear(self) -> None:
        """See `RecordProducer`. The serving thread leaves the answers to its caller for a moment; a dead one is left to it."""
        if not self._dead:
            self._heard_until_s = time.monotonic() + _HEAR_S
            self._poll(0, wait=False)

    def serve(self, timeout_s: float) -> None:
        """In one thread only, that which replaces a dead one: the serving thread, or the caller's where there is none."""
        if self._dead and not self._closed and not self._replace():
            self._stop.wait(timeout_s)
            return
        self._poll(timeout_s)

    def _poll(self, timeout_s: float, wait: bool = True) -> None:
        """One thread at a time: in two, answers to records of one partition would pass each other."""
        if not self._hearing.acquire(blocking=wait):
            return
        try:
            self._producer.poll(timeout_s)
        except KafkaException as exception:
            self._died(exception)
        finally:
            self._hearing.release()

    def _client_error(self, error: KafkaError) -> None:
        self._on_error(f"{error.str()} [{error.name()}]")

    def _died(self, exception: KafkaException) -> None:
        """Until the serving thread has made a new one nothing is taken: a record must not pass those that will be reported as failed."""
        if self._dead:
            return
        error = raised(exception, "producing")
        self._why, self._denied = str(error), isinstance(error, NotAuthorized)
        self._dead = True
        self._on_error(f"{self._why}; the producer is made anew")

    def _refused(self, error: KafkaError, topic: str | None) -> ClusterError:
        """What a dead one still held is reported as purged. Where it died for a right that is missing (without any Write, Kafka
        denies the id that idempotence needs, and names no topic), that is what to tell."""
        if self._denied and error.code() in _PURGED:
            return NotAuthorized(f"writing a record to {topic} is not authorized: {self._why}")
        return _refused(error, topic)

    def _replace(self) -> bool:
        """In the thread that serves: a new one instead of the dead one; False: too soon after the last."""
        if time.monotonic() < self._replace_at_s:
            return False
        self._replace_at_s = time.monotonic() + _REPLACE_EVERY_S
        bury(self._producer)
        self._producer, self._dead = self._build(), False
        return True


def bury(dead: Producer) -> None:
    """Have everything that it still holds reported as failed."""
    until = time.monotonic() + BURY_S
    while len(dead) and time.monotonic() < until:
        with contextlib.suppress(KafkaException):
            dead.purge()
            dead.flush(_SERVE_S)


def _collecting(
    into: Acknowledgements, refused: Callable[[KafkaError, str | None], ClusterError]
) -> Callable[[KafkaError | None, Delivered], None]:
    offsets, count = into.offsets, into.count
    append = offsets.append

    def report(
        error: KafkaError | None, message: Delivered
    ) -> None:  # as `into.add`, which would be one more call for each
        if error is None:
            offset = message.offset()
            append(-1 if offset is None else offset)
        else:
            into.errors[len(offsets)] = refused(error, message.topic())
            append(-1)
        if count and len(offsets) == count and into.done is not None:
            into.done()

    return report


def _refused(error: KafkaError, topic: str | None) -> ClusterError:
    return cluster_error(error, f"writing a record to {topic}")


def reporting(
    delivered: DeliveryCallback, refused: Callable[[KafkaError, str | None], ClusterError] = _refused
) -> Callable[[KafkaError | None, Delivered], None]:
    """librdkafka's report of one record, as `delivered` wants it; `refused` makes the error for a topic."""

    def report(error: KafkaError | None, message: Delivered) -> None:
        if error is None:
            delivered(None, message.offset() or 0)
        else:
            delivered(refused(error, message.topic()), -1)

    return report
