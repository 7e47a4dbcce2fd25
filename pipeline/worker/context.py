"""What a handler is given beside the event."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from pipeline.core.copies import event_id
from pipeline.core.delivery import Delivery
from pipeline.model.cluster import Headers
from pipeline.model.headers import DeliveryHeaders, headers_in
from pipeline.model.outbox import Outbox
from pipeline.model.outcome import Emit
from pipeline.worker.log_tail import LogTail, TailLogger

if TYPE_CHECKING:
    from pipeline.worker.execution import Execution


class _Accepted:
    """What `emit` returns: awaiting it is allowed and takes no time, so that `def` and `async def` handlers read alike."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_ACCEPTED = _Accepted()


class Context:
    """One execution of one record. Positions are those of the *origin*: the same on every attempt and in every lane."""

    __slots__ = ("_delivery", "_execution", "_log", "_outbox", "emitted", "ended", "record_name")

    _log: TailLogger
    _outbox: Outbox
    """Not set before they are used: most records log nothing, and ask for nothing."""

    def __init__(self, execution: Execution, delivery: Delivery) -> None:
        self._execution = execution
        self._delivery = delivery
        self.emitted: list[Emit] | None = None
        self.ended = False  # the handler has returned, or failed
        self.record_name = ""

    @property
    def key(self) -> bytes | None:
        return self._delivery.key

    @property
    def run_id(self) -> str:
        """The key as text."""
        return (self._delivery.key or b"").decode("utf-8", "replace")

    @property
    def attempt(self) -> int:
        """1 for the first execution."""
        return self._delivery.attempt + 1

    @property
    def attempts(self) -> int:
        return self._execution.subscription.retry.attempts

    @property
    def topic(self) -> str:
        """The source topic."""
        return self._execution.source

    @property
    def partition(self) -> int:
        return self._delivery.unit.partition

    @property
    def offset(self) -> int:
        """Offset of the origin in the source topic."""
        return self._delivery.identity.origin

    @property
    def timestamp_ms(self) -> int:
        """The origin's timestamp."""
        headers = self._delivery.headers
        return headers.origin_timestamp_ms if headers else self._delivery.message.timestamp()[1]

    @property
    def event_id(self) -> str:
        """The producer's event id, or the origin's position as text."""
        return event_id(self._delivery, self._execution.source)

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt and every replay: give it to the payment provider, the mail service, the model API."""
        return f"{self._execution.subscription.group}:{self.event_id}"

    def step_key(self, step: str) -> str:
        """An idempotency key for one of several side effects."""
        return f"{self.idempotency_key}:{step}"

    @property
    def replay_id(self) -> str:
        return self._delivery.identity.replay_id

    @property
    def deadline_s(self) -> float:
        """Seconds that the attempt may take in all."""
        return self._execution.subscription.timeout_ms / 1000

    @property
    def headers(self) -> Headers:
        return headers_in(self._delivery.message) or []

    @property
    def delivery(self) -> DeliveryHeaders | None:
        """Retry context: None on the first lane."""
        return self._delivery.headers

    @property
    def raw(self) -> bytes | None:
        """The value's bytes as they were published."""
        return self._delivery.message.value()

    @property
    def log(self) -> Any:
        """A structlog logger bound to this record. Should the attempt end in a dead letter, its last lines go with it."""
        try:
            return self._log
        except AttributeError:
            bound = self._execution.log.bind(
                key=self.run_id,
                event_id=self.event_id,
                partition=self.partition,
                offset=self.offset,
                attempt=self.attempt,
            )
            tail = self._delivery.tail = LogTail()
            self._log = TailLogger(bound, tail)
            return self._log

    def emit(self, topic: str, key: str | bytes | None, value: object, headers: Headers | None = None) -> _Accepted:
        """Publish a record when this execution succeeds; the input is settled only after it is acknowledged. `await` is optional."""
        if self.emitted is None:
            self.emitted = []
        self.emitted.append(Emit(topic, key, value, headers))
        return _ACCEPTED

    def outbox(self) -> Outbox | None:
        """See `model.outbox`: jobs that the handler asks for are outputs as any other."""
        if self.ended:
            return None
        try:
            return self._outbox
        except AttributeError:
            execution = self._execution
            self._outbox = Outbox(
                execution.cluster, execution.prefix, self.idempotency_key, self.timestamp_ms, self._put
            )
            return self._outbox

    def _put(self, topic: str, key: bytes, value: bytes) -> None:
        self.emit(topic, key, value)
