"""Publishing run events without holding up the agent: encode, enqueue, go on; one thread does the rest (see
`sender`).

Events of one key reach Kafka in the order in which they were published. Delivery is at-least-once under
stable event ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.emit.buffer import Buffer, Outgoing
from pipeline.emit.envelope import event_headers
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.schema_wait import EventEncoder, Prepare, SchemaWait
from pipeline.emit.scrubbing import EventScrubber
from pipeline.emit.sections import Bell, Section, inside_publishing, publishing, put_off, then_catch_up
from pipeline.emit.sender import Sender, leftover
from pipeline.emit.stats import Counters, Leftover, PublisherStats
from pipeline.model.cluster import Headers, RecordProducer
from pipeline.model.errors import BufferFull, PublishError
from pipeline.model.events import RunEvent
from pipeline.model.scrubbing import ScrubPolicy

if TYPE_CHECKING:
    from pipeline.emit.spool import Spool

log = logging.getLogger("pipeline.emit")

EVENTS_TOPIC = "agent.run.events"
CLOSE_TIMEOUT_S = 10.0
_CHUNK = 128
_IDLE_MIN_S, _IDLE_MAX_S, _ASLEEP_S = 0.001, 0.05, 1.0
_TRICKLE_S = 0.02
"""Between two looks at the answers to records that agents hand over themselves."""


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """`topic`: where events go that name none. `ce_source`: the CloudEvents source; set, it adds the `ce_*` headers.

    `prepare(topic)` finds the schema ids and may wait and raise a ClusterError or CodecError: it is called in a thread
    of its own until it succeeds, so that an agent works while broker and registry are away (events are encoded when
    they are sent). None: the encoder is ready. `scrub`: what of an event is masked before anything else is done with it.
    """

    topic: str = EVENTS_TOPIC
    ce_source: str | None = None
    prepare: Prepare | None = None
    scrub: ScrubPolicy = field(default_factory=ScrubPolicy)


class Publisher:
    """Takes events from any thread and any event loop. Owns `producer` and closes it. Make it after a fork,
    not before.

    A full buffer in "block" mode (or a full spool) makes `publish` wait for `policy.block_timeout` at most,
    then raise BufferFull;
    `publish_async` awaits instead. EncodeError: the event does not fit its schema and nothing was sent.
    """

    def __init__(
        self,
        producer: RecordProducer,
        encoder: EventEncoder,
        policy: BufferPolicy | None = None,
        options: PublishOptions | None = None,
    ) -> None:
        self.policy = policy or BufferPolicy()
        self.options = options or PublishOptions()
        self._schemas = SchemaWait(encoder, self.options.prepare)
        self._scrub = EventScrubber(self.options.scrub)
        self._lock = Section()
        self._buffer = Buffer(self.policy)
        self._counters = Counters()
        self._sender = Sender(producer, self._buffer, self._lock, self._counters, _open_spool(self.policy))
        self._sender.on_room = self._call_async_waiters
        self._sender.send_route.encode = self._schemas.encode
        self._sender.why_cold = lambda: self._schemas.trouble
        self._sender.first_look_up = self._schemas.first_look_up
        self._async_waiters: deque[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = deque()
        self._wake = Bell()
        self._sleeping = self._asleep = False
        self._flushing = 0
        self._closing = False
        self._left: Leftover | None = None
        self._thread = threading.Thread(target=self._run, name="pipeline-publisher", daemon=True)
        self._thread.start()

    def publish(self, event: RunEvent, *, topic: str | None = None, traceparent: str | None = None) -> None:
        """Encode and enqueue one event."""
        self._put(self._record(event, topic or self.options.topic, traceparent))

    async def publish_async(self, event: RunEvent, *, topic: str | None = None, traceparent: str | None = None) -> None:
        """The same without blocking the event loop: it awaits only while the buffer is full."""
        record = self._record(event, topic or self.options.topic, traceparent)
        if not self._offer(record):
            await self._wait_async(record)

    def offer(self, event: RunEvent, *, topic: str | None = None, traceparent: str | None = None) -> bool:
        """The same without ever waiting: False, and nothing is taken, when there is no room."""
        return self._offer(self._record(event, topic or self.options.topic, traceparent))

    def publish_many(self, events: Iterable[RunEvent], *, topic: str | None = None) -> int:
        """Encode and enqueue many, in order; returns how many. On an error those before the bad one stay
        published."""
        name, count, chunk = topic or self.options.topic, 0, list[Outgoing]()
        try:
            for event in events:
                chunk.append(self._record(event, name, None))
                if len(chunk) == _CHUNK:
                    full, chunk = chunk, []
                    count += self._put_many(full)
        finally:
            count += self._put_many(chunk)
        return count

    def publish_record(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers | None = None
    ) -> None:
        """Enqueue bytes as they are. Raises PublishError for what no record can hold."""
        self._put(_raw_record(topic, key, value, headers))

    @property
    def pending(self) -> int:
        """Records in memory that Kafka has not acknowledged. Cheap, and only roughly right while others publish."""
        return self._buffer.records

    def stats(self) -> PublisherStats:
        """Counts as of now."""
        with then_catch_up, publishing(), self._lock.raw:
            c, buffer, sender = self._counters, self._buffer, self._sender
            return PublisherStats(
                published=c.published,
                delivered=c.delivered,
                dropped=buffer.dropped,
                failed=c.failed,
                spooled=c.spooled,
                resent=c.resent,
                full=c.full,
                waiting=len(buffer.waiting),
                in_flight=len(buffer.in_flight),
                buffered_bytes=buffer.held_bytes,
                spool_bytes=sender.spool_bytes,
                away=sender.link.away,
                trouble=sender.trouble,
                missing_topic=sender.missing_topic,
                denied=sender.denied,
            )

    def flush(self, timeout_s: float = CLOSE_TIMEOUT_S) -> Leftover:
        """Wait until Kafka has acknowledged everything, or the time is over; says what is left."""
        return self._flush(timeout_s, spool_will_do=False)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> Leftover:
        """Flush, stop the thread and close the producer; with a spool, what is left goes to disk. Twice is fine.

        With a spool it does not wait for a broker that is away. Takes `timeout_s`, and a second at most for
        letting go of a client whose broker is away.
        """
        deadline = time.monotonic() + timeout_s
        self._flush(timeout_s, spool_will_do=True)
        with then_catch_up, publishing(), self._lock.raw:
            if self._left is not None:
                return self._left
            self._closing = True
            self._lock.notify_all()
        self._schemas.close()
        self._call_async_waiters()
        self._wake.ring()
        self._thread.join(max(1.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            raise PublishError(
                "The publisher's thread did not stop: the Kafka client or the spool's disk does not return."
            )
        left = self._sender.finish(_now_ms(), min(1.0, max(0.1, deadline - time.monotonic())))
        with then_catch_up, publishing(), self._lock.raw:
            self._left = left
        return left

    def _flush(self, timeout_s: float, *, spool_will_do: bool) -> Leftover:
        deadline = time.monotonic() + timeout_s
        with then_catch_up, publishing(), self._lock.raw:
            self._flushing += 1
            while self._left is None and not self._sender.idle and not (spool_will_do and self._sender.safe):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._thread.is_alive():
                    break
                self._nudge()
                self._lock.wait(min(remaining, 0.1))
            self._flushing -= 1
            if self._left is not None:
                return self._left
            records = (*self._buffer.in_flight.values(), *self._buffer.waiting)
            undelivered = [record for record in records if not record.copied]
            return leftover(undelivered, self._sender.spool_bytes, self._sender.trouble, self._counters.failed)

    def _record(self, event: RunEvent, topic: str, traceparent: str | None) -> Outgoing:
        event = self._scrub(event)
        headers = event_headers(event, traceparent, self.options.ce_source)
        return self._schemas.record(event, topic, headers)

    def _offer(self, record: Outgoing) -> bool:
        if inside_publishing():  # a stream that was left ends here, by the garbage collector
            put_off(self._put, record)
            return True
        nested = self._sender.send_route.at_it
        try:
            with then_catch_up, publishing(), self._lock.raw:
                if self._closing:
                    raise PublishError("The publisher is closed: publish before close().")
                # A thread that sleeps would have to wake up first, to hand over what can be handed over here.
                direct = self._sleeping and self._sender.launch(record)
                if not direct and not self._buffer.admit(record):
                    return False
                self._counters.published += 1
            if direct and self._sender.send_route.hand_over_launched(record) and not self._asleep:
                return True  # its report is found when the thread looks again, soon
        except BaseException:
            if not nested:
                self._sender.send_route.take_back(record)
            raise
        if self._sleeping:
            self._wake.ring()
        return True

    def _put(self, record: Outgoing) -> None:
        if self._offer(record):
            return
        # The thread that makes the room must not wait for it.
        wait_ms = 0 if threading.current_thread() is self._thread else self.policy.block_timeout_ms
        deadline = time.monotonic() + wait_ms / 1_000
        while not self._offer(record):
            with then_catch_up, publishing(), self._lock.raw:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise self._full()
                if not self._buffer.has_room(record.size_bytes) and not self._closing:
                    self._nudge()
                    self._lock.wait(remaining)

    def _put_many(self, records: list[Outgoing]) -> int:
        if self._closing:
            raise PublishError("The publisher is closed: publish before close().")
        taken = self._sender.send_direct(records)
        if taken:
            self._nudge()
        for record in records[taken:]:
            self._put(record)
        return len(records)

    async def _wait_async(self, record: Outgoing) -> None:
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        try:
            async with asyncio.timeout(self.policy.block_timeout_ms / 1_000):
                while True:
                    event.clear()
                    self._async_waiters.append(waiter)
                    if self._offer(record):
                        return
                    self._nudge()
                    await event.wait()
        except TimeoutError:
            with then_catch_up, publishing(), self._lock.raw:
                raise self._full() from None
        finally:
            with contextlib.suppress(ValueError):
                self._async_waiters.remove(waiter)

    def _call_async_waiters(self) -> None:
        """From the publisher's thread: there is room, or there never will be."""
        while self._async_waiters:
            try:
                loop, event = self._async_waiters.popleft()
                loop.call_soon_threadsafe(event.set)
            except (IndexError, RuntimeError):  # taken back meanwhile, or its loop is closed
                continue

    def _full(self) -> BufferFull:
        self._counters.full += 1
        held = f"{self._buffer.records} records, {self._buffer.held_bytes} bytes"
        return BufferFull(
            f"The publish buffer stayed full for block_timeout={self.policy.block_timeout} ({held}): "
            "is the broker away? Raise max_records or choose mode 'drop_oldest' or 'spool'."
        )

    def _nudge(self) -> None:
        if self._sleeping:
            self._wake.ring()

    def _run(self) -> None:
        idle_s = _IDLE_MIN_S
        self._schemas.look_up(self.options.topic)
        while not self._closing:
            seen = self._buffer.next_number
            try:
                worked = self._sender.step(_now_ms())
            except Exception:  # the thread must live: nothing would be sent any more, and nobody would know
                log.exception("publishing failed unexpectedly; going on")
                worked, idle_s = False, _IDLE_MAX_S
            if worked:
                idle_s = _IDLE_MIN_S
                time.sleep(0)  # hand the interpreter to the agent between batches
                continue
            self._rest(seen, idle_s)
            idle_s = min(_IDLE_MAX_S, 2 * idle_s)

    def _rest(self, seen: int, idle_s: float) -> None:
        """Sleep until there may be something to do; `seen` is how many records there had been before the last look.

        A new record ends the sleep, unless it goes past this thread, the broker is away or the window is full: then a
        tick is soon enough, and the agent is spared the wake-ups. The flag goes up before the last look, so that no
        record slips between.
        """
        with then_catch_up, publishing(), self._lock.raw:
            eager = not self._buffer.waiting and not self._sender.link.away
            asleep = eager and self._sender.idle
            trickle = eager and not self._flushing and self._sender.few_under_way
        self._wake.hush()
        self._asleep = asleep
        self._sleeping = eager
        if trickle:
            if not self._buffer.waiting and not self._closing:
                self._wake.wait(_ASLEEP_S if asleep else _TRICKLE_S)
        elif self._buffer.next_number == seen and not self._sender.reports and not self._closing:
            self._wake.wait(_ASLEEP_S if asleep else idle_s)
        elif not eager:
            self._wake.wait(_IDLE_MIN_S)
        self._sleeping = False


def _raw_record(topic: str, key: bytes | None, value: bytes | None, headers: Headers | None) -> Outgoing:
    """Raises PublishError: the client, or the spool, would refuse it in another thread, where nobody hears of it."""
    try:
        given = [(name, content) for name, content in headers or ()]
        for text in (topic, *(name for name, _ in given)):
            str.encode(text)
    except (TypeError, ValueError) as error:
        raise PublishError(
            f"A record for {topic!a} was not taken: topic and names of headers are text, headers a list of pairs ({error})."
        ) from error
    for content in (key, value, *(content for _, content in given)):
        if content is not None and not isinstance(content, bytes):
            raise PublishError(
                f"A record for {topic!a} was not taken: key, value and headers are bytes or None, not {type(content).__name__}."
            )
    return Outgoing(topic, key, value, given)


def _open_spool(policy: BufferPolicy) -> Spool | None:
    """The spool, when the policy has one; imported only then, since file locks are not everywhere."""
    if policy.mode != "spool":
        return None
    from pipeline.emit import spool

    assert policy.spool_dir is not None
    return spool.Spool(policy.spool_dir, policy.spool_max_bytes)


def _now_ms() -> int:
    """Milliseconds on a clock that never jumps: only differences matter here."""
    return time.monotonic_ns() // 1_000_000
