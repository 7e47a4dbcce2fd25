"""Transactions through librdkafka: its blocking calls, one after the other, in a thread of their own.

librdkafka ends transactions by version 1 of the protocol, which does not tell one transaction of a producer from the next: a
request that was delayed on a connection that is gone can end the *next* one. So after any sign of trouble with connections or
coordinators the producer is made anew before the next begin: `init_transactions` raises the epoch, and what is late is refused.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered
from confluent_kafka import TopicPartition as Assigned

from pipeline.kafka.client_log import ClientLog, Trouble
from pipeline.kafka.errors import PRODUCER_FENCED_CODES, cluster_error, not_taken, raised
from pipeline.kafka.producer import BURY_S, bury, reporting
from pipeline.model.cluster import DeliveryCallback, Headers, Position, TopicPartition
from pipeline.model.errors import BufferFull, ClusterError, ClusterUnavailable, ProducerFenced, StaleGeneration
from pipeline.model.transactions import Answered, Membership, TransactionPolicy

REQUEST_BYTES = 900_000
_SERVE_S = 0.01
_IDLE_S = 0.1
_ABORT_S = 3.0
_LEAVE_S = 1.0
"""For an abort when another producer is made, whose `init_transactions` decides all the same: nobody waits long for brokers
that are away."""
_RETRY_S = 0.05
_GRACE_S = 5.0
"""So much later than a call should have come back it counts as one that never will."""
_FOLLOWING = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._DESTROY})
"""What records are told that were under way when another one failed."""
_MOVED_ON = frozenset({KafkaError.ILLEGAL_GENERATION, KafkaError.STALE_MEMBER_EPOCH, KafkaError.REBALANCE_IN_PROGRESS})
"""A member that was removed is told UNKNOWN_MEMBER_ID."""

Call = Callable[[float], object]
"""A librdkafka call that is given the seconds it may take."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What was asked for; `limit_s`: all the time that it gives the calls it makes."""

    call: Callable[[], None]
    done: Answered
    limit_s: float


class TransactionThread:
    """`begin`, `commit`, `abort`, `send` and `close` of a `TransactionalProducer`. `send` is for one thread, that of the caller, and only
    while a transaction is open."""

    def __init__(
        self, settings: Mapping[str, Any], policy: TransactionPolicy, log: ClientLog, on_error: Callable[[str], None]
    ) -> None:
        self.rebuilt = -1
        self._settings = settings
        self._policy = policy
        self._log = log
        self._on_error = on_error
        self._trouble: Trouble | None = None
        self._producer: Producer | None = None
        self._open = False
        self._refused: ClusterError | None = None
        self._used_at_s: float | None = None  # since when brokers know of the transaction
        self._asked: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._under_way: _Work | None = None
        self._due_s = 0.0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="kafka-transactions", daemon=True)
        self._thread.start()

    # -- asked by the engine

    def begin(self, done: Answered) -> None:
        self._asked.put(_Work(self._begin, done, self._renew_s))

    def commit(self, positions: Mapping[TopicPartition, Position], membership: Membership, done: Answered) -> None:
        self._asked.put(_Work(partial(self._commit, positions, membership), done, self._policy.timeout_ms / 1000))

    def abort(self, done: Answered) -> None:
        self._asked.put(_Work(self._renew, done, self._renew_s))

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        producer = self._producer
        if producer is None:
            raise ClusterError(f"no transaction is open: nothing can be sent to {topic}")
        if self._used_at_s is None:
            self._used_at_s = time.monotonic()
        report = reporting(delivered) if delivered is not None else self._heard
        try:
            producer.produce(topic, value, key, partition, report, None, 0, headers)  # type: ignore[arg-type]
        except BufferError as error:
            raise BufferFull(f"the producer's buffer is full, so a record for {topic} was not taken") from error
        except KafkaException as exception:
            raise not_taken(exception, topic, value) from exception

    def _heard(self, error: KafkaError | None, message: Delivered) -> None:
        """The commit fails after a write that was refused, and would not say why."""
        if error is not None and self._refused is None and error.code() not in _FOLLOWING:
            self._refused = cluster_error(error, f"writing a record to {message.topic()}")

    def close(self, timeout_s: float) -> None:
        self._asked.put(None)
        self._thread.join(timeout_s)

    def give_up_if_stuck(self) -> bool:
        """A call has not come back long after its time: what was asked for is answered with an error. The thread ends when the call does
        come back, and takes its producer with it; until then both are left alone, since nothing else can end them."""
        with self._lock:
            if (work := self._under_way) is None or time.monotonic() < self._due_s:
                return False
            self._under_way = None
        self._asked.put(None)
        work.done(ClusterUnavailable(f"the client has not come back from a call after {work.limit_s + _GRACE_S:.0f} s"))
        return True

    # -- in the thread

    def _run(self) -> None:
        while True:
            try:
                work = self._asked.get(
                    timeout=_SERVE_S if self._producer is not None and len(self._producer) else _IDLE_S
                )
            except queue.Empty:
                self._serve()
                continue
            if work is None:
                self._end()
                return
            self._due_s = time.monotonic() + work.limit_s + _GRACE_S
            self._under_way = work
            answer: ClusterError | None = None
            try:
                work.call()
            except ClusterError as error:
                answer = error
            with self._lock:
                given_up, self._under_way = self._under_way is None, None
            if not given_up:
                work.done(answer)

    def _serve(self) -> None:
        if self._producer is not None:
            with contextlib.suppress(KafkaException):  # a fatal error comes up again with the next call
                self._producer.poll(0)

    def _begin(self) -> None:
        self._serve()  # log lines that tell of trouble are delivered by this
        if self._producer is None or self._trouble is None or self._trouble.seen:
            self._renew()
        assert self._producer is not None
        try:
            self._producer.begin_transaction()
        except KafkaException as exception:
            raise self._refusal(exception, "beginning a transaction") from exception
        self._open = True

    def _commit(self, positions: Mapping[TopicPartition, Position], membership: Membership) -> None:
        assert self._producer is not None
        if self._used_at_s is None:
            self._used_at_s = time.monotonic()
        until_s = time.monotonic() + self._policy.timeout_ms / 1000
        for part in _requests(positions):
            offsets = [Assigned(t, p, position.offset, position.metadata) for (t, p), position in part.items()]
            send = self._producer.send_offsets_to_transaction
            self._insist(partial(send, offsets, membership.token), until_s, "sending offsets to the transaction")
        self._insist(self._producer.commit_transaction, until_s, "committing the transaction")
        self._open, self._used_at_s = False, None

    def _insist(self, call: Call, until_s: float, doing: str) -> None:
        """librdkafka wants a call that timed out, or may be tried again, to be made again: until the time is over."""
        while True:
            left_s = until_s - time.monotonic()
            try:
                call(max(0.1, left_s))
                return
            except KafkaException as exception:
                error = exception.args[0]
                if not (isinstance(error, KafkaError) and error.retriable()) or left_s <= 0:
                    raise self._refusal(exception, doing) from exception
                time.sleep(_RETRY_S)

    def _refusal(self, exception: KafkaException, doing: str) -> ClusterError:
        """Who is fenced sooner than the brokers time a transaction out was fenced by another process."""
        error = exception.args[0]
        if self._trouble is not None:
            self._trouble.seen = True
        if isinstance(error, KafkaError) and error.code() in PRODUCER_FENCED_CODES:
            age_s = time.monotonic() - (self._used_at_s or time.monotonic())
            if age_s < self._policy.timeout_ms / 1000:
                return ProducerFenced(
                    f"transactional id {self._policy.transactional_id!r} was taken over by another process "
                    f"[{error.name()}]: give every process its own instance_id"
                )
            return ClusterUnavailable(
                f"the brokers ended a transaction that was open for {age_s:.0f} s [{error.name()}]"
            )
        if isinstance(error, KafkaError) and error.code() in _MOVED_ON and self._refused is None:
            return StaleGeneration(f"{doing} failed [{error.name()}]: the group is in another generation by now")
        failed = self._refused or raised(exception, doing)
        return failed if isinstance(failed, ClusterError) else ClusterError(str(failed))

    def _renew(self) -> None:
        """A new producer with the same id: what the old one left open is decided before this returns."""
        old, in_transaction = self._producer, self._open
        self._producer, self._open, self._used_at_s = None, False, None
        if old is not None:
            _leave(old, _LEAVE_S if in_transaction else None)
            del old
        self._refused = None
        self._trouble = trouble = Trouble(self._log)
        try:
            producer = Producer({**self._settings, "logger": trouble, "error_cb": self._client_error})
            self._insist(producer.init_transactions, time.monotonic() + self._init_s, "initialising transactions")
            producer.poll(0)
        except KafkaException as exception:
            raise self._refusal(exception, "making a transactional producer") from exception
        trouble.seen = False
        self._producer = producer
        self.rebuilt += 1

    @property
    def _renew_s(self) -> float:
        return _LEAVE_S + BURY_S + self._init_s

    @property
    def _init_s(self) -> float:
        return max(10.0, 2 * self._policy.timeout_ms / 1000)

    def _client_error(self, error: KafkaError) -> None:
        if self._trouble is not None:
            self._trouble.seen = True
        self._on_error(f"{error.str()} [{error.name()}]")

    def _end(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            _leave(producer, _ABORT_S if self._open else None)


def _leave(producer: Producer, abort_s: float | None) -> None:
    """Makes it fit to be destroyed, which is what happens to one that nobody refers to any more. `abort_s`: a transaction is open,
    seconds for its abort.

    librdkafka ends the *process* (SIGABRT, `txn_req_cnt > 0` in `rd_kafka_txn_handle_AddPartitionsToTxn`) when it is destroyed
    while it tells the coordinator of a transaction's first partitions, a millisecond or so after the first record: it counts the
    request after it has sent it, and the thread that fails it for the destruction may be faster. Once an abort has begun, within
    librdkafka and whatever brokers answer, no such request is made.
    """
    if abort_s is not None:
        with contextlib.suppress(KafkaException):
            producer.abort_transaction(abort_s)
    bury(producer)


def _requests(positions: Mapping[TopicPartition, Position]) -> Iterator[dict[TopicPartition, Position]]:
    """One request is one batch in the coordinator's log, which has a largest size."""
    part: dict[TopicPartition, Position] = {}
    size = 0
    for tp, position in positions.items():
        weight = len(position.metadata) + len(tp[0]) + 40
        if part and size + weight > REQUEST_BYTES:
            yield part
            part, size = {}, 0
        part[tp] = position
        size += weight
    if part:
        yield part
