"""Hand-offs, dead letters and outputs on their way to the brokers: nothing counts as settled before it is acknowledged.

A write that fails is tried again with back-off for as long as the unit is ours; meanwhile its partition takes no new work,
and later hand-offs to the same lane wait behind it: overtaking would break the key's order if the owner died in between.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from pipeline.core.delivery import Delivery
from pipeline.core.oversized import give_up, may_be_given_up
from pipeline.core.parking import Identity
from pipeline.core.unit import DeadLetter, HandOff, Unit
from pipeline.model.cluster import DeliveryCallback, Headers
from pipeline.model.errors import BufferFull, ClusterError, RecordTooLarge
from pipeline.model.headers import (
    EVENT_ID,
    SCHEMA,
    TRACEPARENT,
    Pointer,
    dead_letter_headers,
    encode,
    headers_in,
    producer_headers,
)
from pipeline.worker.inputs import Delivered, Input
from pipeline.worker.transaction_parts import is_large

RESEND_MS = (100, 300, 1_000, 3_000, 10_000)
KEPT_BYTES = 8_192
"""Of a key, and of its producer's headers, where both are too large without the value: with ours beside it that fits into whatever
takes a lane's records."""
KEPT_FIRST = (EVENT_ID, TRACEPARENT)


class Outlet(Protocol):
    """What of a `RecordProducer` is needed here."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        delivered: DeliveryCallback | None = None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class OutRecord:
    """An encoded output of a handler."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True)
class Outputs:
    """A processed delivery that waits for its outputs; `left` counts those not acknowledged. `refused`: one can't be written."""

    delivery: Delivery
    left: int
    warning: str | None = None
    refused: bool = False


@dataclass(slots=True, eq=False)
class _Sent:
    """One record under way. `what` is the effect or the `Outputs` it belongs to; `failed`: a try of it was refused.

    `again_ms`: when it is to go out again; an entry of the queue with another time is out of date. `offset`: where it was written.
    `accepted`: it is written, or in the open transaction.
    """

    what: HandOff | DeadLetter | Outputs
    record: OutRecord
    partition: int
    number: int
    tries: int = 0
    failed: bool = False
    again_ms: int = 0
    offset: int = -1
    accepted: bool = False

    @property
    def lane(self) -> tuple[Unit, int] | None:
        """Where its order matters: the lane it is handed to."""
        return (self.what.delivery.unit, self.what.lane) if isinstance(self.what, HandOff) else None


class Sender:
    """Owned by the engine's thread; the producer's answers come back through `post`."""

    def __init__(
        self,
        producer: Outlet,
        dead_letters: str,
        post: Callable[[Input], None],
        schema_of: Callable[[Delivery], str],
    ) -> None:
        self._producer = producer
        self._dead_letters = dead_letters
        self._post = post
        self._schema_of = schema_of
        self._pending: Counter[Unit] = Counter()
        self._waiting: deque[tuple[int, _Sent]] = deque()
        self._troubled: Counter[Unit] = Counter()
        self._stuck: dict[tuple[Unit, int], deque[_Sent]] = {}
        self._numbers = itertools.count()
        self._too_large: Counter[tuple[type, int, Identity]] = Counter()
        self.last_error: ClusterError | None = None

    def hand_off(self, effect: HandOff, now_ms: int) -> None:
        delivery = effect.delivery
        topic = delivery.unit.lanes[effect.lane].spec.topic
        if self._too_large and self.is_too_large(HandOff, delivery) and may_be_given_up(effect):
            give_up(effect, f"raise max.message.bytes of {topic}", now_ms)
            return
        headers = encode(producer_headers(headers_in(delivery.message)), effect.headers)
        self._start(effect, self._copy(topic, delivery, headers), delivery.unit.partition, now_ms)

    def dead_letter(self, effect: DeadLetter, now_ms: int) -> None:
        delivery = effect.delivery
        headers = dead_letter_headers(producer_headers(headers_in(delivery.message)), effect.headers)
        schema = self._schema_of(delivery)
        if schema:
            headers.append((SCHEMA, schema.encode()))
        record = self._copy(self._dead_letters, delivery, headers)
        refused = self._too_large[DeadLetter, delivery.unit.partition, delivery.identity] if self._too_large else 0
        if refused:
            # Each refusal costs a transaction: what may be refused again is not tried.
            small = refused > 1 or is_large(record.key, None, producer_headers(record.headers))
            record = self._pointer(effect, record, small)
        self._start(effect, record, delivery.unit.partition, now_ms)

    def outputs(self, delivery: Delivery, records: Sequence[OutRecord], warning: str | None, now_ms: int) -> None:
        waiting = Outputs(delivery, len(records), warning)
        for record in records:
            self._start(waiting, record, -1, now_ms)

    @staticmethod
    def _later_due(effect: HandOff, record: OutRecord) -> OutRecord:
        """Others may have landed in the tier since the first try: due times inside a tier never decrease (rule b)."""
        delivery = effect.delivery
        lane = delivery.unit.lanes[effect.lane]
        headers = replace(effect.headers, due_ms=max(effect.headers.due_ms, lane.last_due_ms))
        return replace(record, headers=encode(producer_headers(record.headers), headers))

    def is_too_large(self, kind: type, delivery: Delivery) -> bool:
        """What of this record was to be written failed a transaction for that: not to be tried again."""
        return (kind, delivery.unit.partition, delivery.identity) in self._too_large

    @staticmethod
    def _pointer(effect: DeadLetter, record: OutRecord, small: bool = False) -> OutRecord:
        """Without the value: that is mostly what is too large, and a held key is found by its letter's key. Where it is gone already, or
        with `small`, of key and headers only what is small."""
        pointer = effect.headers.pointer or Pointer("too_large", effect.headers.origin_offset)
        key, kept = record.key, producer_headers(record.headers)
        if small or record.value is None:
            key, kept = key if len(key or b"") <= KEPT_BYTES else None, _small(kept, KEPT_BYTES)
        return OutRecord(record.topic, key, None, dead_letter_headers(kept, replace(effect.headers, pointer=pointer)))

    @staticmethod
    def _copy(topic: str, delivery: Delivery, headers: Headers) -> OutRecord:
        return OutRecord(topic, delivery.key, delivery.message.value(), headers)

    def _start(self, what: HandOff | DeadLetter | Outputs, record: OutRecord, partition: int, now_ms: int) -> None:
        self._pending[what.delivery.unit] += 1
        self._send_in_order(_Sent(what, record, partition, next(self._numbers)), now_ms)

    def _send_in_order(self, sent: _Sent, now_ms: int) -> None:
        stuck = self._stuck.get(sent.lane) if sent.lane is not None else None
        if stuck is None:
            self._send(sent, now_ms)
        else:
            stuck.append(sent)

    def _send(self, sent: _Sent, now_ms: int) -> None:
        record = sent.record
        sent.again_ms = 0
        try:
            self._producer.send(
                record.topic, record.key, record.value, record.headers, sent.partition, 0, partial(self._answered, sent)
            )
        except RecordTooLarge as error:
            # More than the client itself takes, which it says at once: as good as a broker's answer, and no try helps.
            self._answered(sent, error, -1)
        except (BufferFull, ClusterError) as error:
            self._later(sent, error, now_ms)

    def _answered(self, sent: _Sent, error: ClusterError | None, offset: int) -> None:
        if offset >= 0:
            sent.offset = offset
        if not sent.accepted:
            sent.accepted = error is None
            self._post(Delivered(sent, error))
        elif isinstance(error, RecordTooLarge):
            # It fails its transaction; when its record is done again, it is not written, or the dead letter is a pointer.
            delivery = sent.what.delivery
            self._too_large[type(sent.what), delivery.unit.partition, delivery.identity] += 1

    def hold(self, unit: Unit) -> None:
        """Outputs of this unit are still to come: it is not drained before `let_go`."""
        self._pending[unit] += 1

    def let_go(self, unit: Unit) -> None:
        if self._pending[unit] > 1:
            self._pending[unit] -= 1
        else:
            del self._pending[unit]

    def answer(self, sent: _Sent, error: ClusterError | None, now_ms: int) -> HandOff | DeadLetter | Outputs | None:
        """The broker's answer; returns what is complete by it (an `Outputs` only with its last record)."""
        unit = sent.what.delivery.unit
        if not unit.open:
            return None
        if error is not None and not self._never(sent, error):
            self._later(sent, error, now_ms)
            return None
        if sent.failed:
            self._calm(unit)
            self._unstick(sent, now_ms)
        self.let_go(unit)
        if error is not None:
            if isinstance(sent.what, HandOff):
                give_up(sent.what, str(error), now_ms)
            return None
        if isinstance(sent.what, Outputs):
            sent.what.left -= 1
            return None if sent.what.left else sent.what
        return sent.what

    @staticmethod
    def _never(sent: _Sent, error: ClusterError) -> bool:
        """No further try helps. (A dead letter goes as a pointer, the mark of a held key without its value and large headers.)"""
        what = sent.what
        return isinstance(error, RecordTooLarge) and (
            isinstance(what, Outputs) or (isinstance(what, HandOff) and may_be_given_up(what))
        )

    def _later(self, sent: _Sent, error: Exception, now_ms: int) -> None:
        if isinstance(error, RecordTooLarge) and isinstance(sent.what, DeadLetter):
            # A small batch can unpack to more than a lane takes. Its bytes stay where they are; its partition goes on.
            sent.record = self._pointer(sent.what, sent.record)
        elif isinstance(error, RecordTooLarge) and isinstance(sent.what, HandOff) and sent.what.headers.hold:
            # It only says that its key is held.
            kept = _small(producer_headers(sent.record.headers), KEPT_BYTES)
            sent.record = replace(sent.record, value=None, headers=encode(kept, sent.what.headers))
        if not sent.failed:
            sent.failed = True
            self._troubled[sent.what.delivery.unit] += 1
        self.last_error = error if isinstance(error, ClusterError) else ClusterError(str(error))
        wait_ms = RESEND_MS[min(sent.tries, len(RESEND_MS) - 1)]
        sent.tries += 1
        if sent.lane is not None:
            stuck = self._stuck.setdefault(sent.lane, deque())
            if sent not in stuck:
                self._insert(stuck, sent)
        sent.again_ms = now_ms + wait_ms
        self._waiting.append((sent.again_ms, sent))

    @staticmethod
    def _insert(stuck: deque[_Sent], sent: _Sent) -> None:
        """Several were under way: they fail in any order and go out again in their own."""
        at = next((i for i, other in enumerate(stuck) if other.number > sent.number), len(stuck))
        stuck.insert(at, sent)

    def _unstick(self, sent: _Sent, now_ms: int) -> None:
        """The first of a lane is through: the others follow. One that went out again beside it says nothing of it: it may have failed."""
        stuck = self._stuck.get(sent.lane) if sent.lane is not None else None
        if stuck is None or sent not in stuck:
            return
        del self._stuck[sent.lane]  # type: ignore[arg-type]
        stuck.remove(sent)
        for other in stuck:
            self._resend(other, now_ms)

    def _resend(self, sent: _Sent, now_ms: int) -> None:
        if isinstance(sent.what, HandOff):
            sent.record = self._later_due(sent.what, sent.record)
        self._send_in_order(sent, now_ms)

    def _calm(self, unit: Unit) -> None:
        self._troubled[unit] -= 1
        if not self._troubled[unit]:
            del self._troubled[unit]

    def resend_due(self, now_ms: int) -> int | None:
        """Send again what is due (of a lane only its first); returns when the next one is."""
        for _ in range(len(self._waiting)):
            at, sent = self._waiting.popleft()
            if at != sent.again_ms:
                continue  # it went out meanwhile, when the one before it was through
            if at > now_ms:
                self._waiting.append((at, sent))
                continue
            stuck = self._stuck.get(sent.lane) if sent.lane is not None else None
            if sent.lane is None:
                self._send(sent, now_ms)
            elif stuck and stuck[0] is sent and isinstance(sent.what, HandOff):
                sent.record = self._later_due(sent.what, sent.record)
                self._send(sent, now_ms)
        return min((at for at, _ in self._waiting), default=None)

    def pending(self, unit: Unit) -> int:
        return self._pending[unit]

    def troubled(self, unit: Unit) -> bool:
        """A write for this unit failed and is not through yet: take no new work for it."""
        return unit in self._troubled

    def forget(self, unit: Unit) -> None:
        """The unit is closed: answers to what is under way are of no interest."""
        self._pending.pop(unit, None)
        self._troubled.pop(unit, None)
        self._stuck = {lane: stuck for lane, stuck in self._stuck.items() if lane[0] is not unit}
        self._waiting = deque((at, sent) for at, sent in self._waiting if sent.what.delivery.unit is not unit)


def _small(headers: Headers, most: int) -> Headers:
    """Those that fit into so many bytes, small ones first: what others find the record by, before all."""
    sizes = [len(name.encode()) + len(value or b"") for name, value in headers]
    kept = set()
    for index in sorted(range(len(headers)), key=lambda index: (headers[index][0] not in KEPT_FIRST, sizes[index])):
        if sizes[index] <= most:
            most -= sizes[index]
            kept.add(index)
    return [header for index, header in enumerate(headers) if index in kept]
