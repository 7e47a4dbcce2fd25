"""A child process of a worker: loads the application as the worker did, and runs one record at a time for it.

Whatever the record's bytes do to the decoder, or the handler to the process, happens here and nowhere else. The parent counts.
`python -m pipeline.worker.child SOCKET DUMP`: two inherited file descriptors; all else comes as frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import faulthandler
import inspect
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from pipeline.core.delivery import SOURCE, Delivery
from pipeline.model.cluster import Headers
from pipeline.model.errors import ConfigurationError, PipelineError, SchemaUnavailable
from pipeline.model.headers import decode as decode_headers
from pipeline.model.headers import headers_in
from pipeline.model.outbox import UNDER_WAY
from pipeline.model.outcome import Done, Emit, Failure, FailureKind, Reject, Retry
from pipeline.model.policies import HandlerKind, Subscription
from pipeline.worker.child_frames import Blobs, FrameBuffer, Head, pack
from pipeline.worker.concluding import registry_pause_s
from pipeline.worker.context import Context
from pipeline.worker.diagnosing import Diagnosis
from pipeline.worker.encoding import OutputEncoder, codec_of, headers_of
from pipeline.worker.execution import SKIP, Execution, concluded, decoder, failure_of, output_failure
from pipeline.worker.logs import configure, logger

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.worker.jobs.child_work import JobWork

DUMP_SIGNAL = signal.SIGUSR2
"""Tells a child to write down where it is; it is killed then."""
ORPHAN_S = 1.0
_READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1


class _Message:
    """A record as the parent describes it; the methods of `model.cluster.Message`."""

    def __init__(self, head: Head, blobs: Blobs) -> None:
        self._head = head
        self._key, self._value, *values = blobs
        self._headers: Headers = list(zip(head["headers"], values, strict=True))

    def topic(self) -> str:
        return str(self._head["topic"])

    def partition(self) -> int:
        return int(self._head["partition"])

    def offset(self) -> int:
        return int(self._head["offset"])

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Headers | None:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, int(self._head["timestamp"])


class _Place:
    """Stands for the unit, of which a record in a child knows only the partition."""

    def __init__(self, partition: int) -> None:
        self.partition = partition


class Work:
    """One subscription, ready to run its records."""

    def __init__(self, app: Pipeline, group: str, channel: socket.socket) -> None:
        self.subscription: Subscription = next(s for s in app.subscriptions if s.group == group)
        self._channel = channel
        self._source = app.topic_name(self.subscription.topic)
        self._codec = codec_of(app, self.subscription)
        if self.subscription.value == "avro":
            app.codec.prepare(self._source)
        self._outputs = OutputEncoder(app)
        self._diagnosis = Diagnosis(self.subscription, self._source, self._codec)
        log = logger(app=app.name, pid=os.getpid(), group=app.group_name(group), topic=self._source)
        self._execution = Execution(
            self.subscription,
            self._source,
            decoder(self.subscription, self._source, self._codec),
            log,
            cluster=app.settings.broker,
        )
        self._runner = asyncio.Runner()

    def run(self, head: Head, blobs: Blobs) -> bytes:
        """The frame that answers for this record."""
        delivery = _delivery(head, blobs)
        context = Context(self._execution, delivery)
        began_s = time.perf_counter()
        decoded = False
        try:
            event = self._decode(delivery, context)
            decoded = True
            UNDER_WAY.set(None if self.subscription.kind is HandlerKind.BATCH else context)
            returned = None if event is SKIP else self._call(event, context)
        except BaseException as error:  # also SystemExit: nobody would answer for the record
            if isinstance(error, SchemaUnavailable) and not decoded:
                return pack({"kind": "schema", "id": error.schema_id or 0})
            return self._failed(delivery, failure_of(error, self.subscription.retry.terminal))
        finally:
            context.ended = True
        outcome, emitted = concluded(returned, context)
        if isinstance(outcome, Done) and emitted:
            try:
                emitted = self._encoded(emitted)
            except Exception as error:
                outcome = output_failure(error)
        if isinstance(outcome, Failure):
            return self._failed(delivery, outcome)
        try:
            return _done(outcome, emitted, time.perf_counter() - began_s)
        except Exception as error:  # a warning that is not text: it must not count as a death
            return self._failed(delivery, output_failure(error))

    def _decode(self, delivery: Delivery, context: Context) -> object:
        try:
            return self._execution.decode(delivery, context)
        except SchemaUnavailable as unknown:
            try:
                self._codec.fetch(self._source, unknown.schema_id or 0)
            except PipelineError:
                time.sleep(registry_pause_s(0))  # the parent asks as well, and sends it again when it has an answer
                raise unknown from None
        return self._execution.decode(delivery, context)

    def _call(self, event: object, context: Context) -> object:
        handler: Any = self.subscription.handler
        if self.subscription.kind is HandlerKind.BATCH:
            return _only_item(self._finished(handler([event], [context])), self.subscription.batch.whole)
        return self._finished(handler(event, context))

    def _finished(self, returned: Any) -> object:
        return (
            self._runner.run(self._in_time(returned), context=copy_context())
            if inspect.isawaitable(returned)
            else returned
        )

    async def _in_time(self, running: Any) -> object:
        async with asyncio.timeout(self.subscription.timeout_ms / 1000):
            return await running

    def _encoded(self, emitted: Sequence[Emit]) -> list[Emit]:
        tries = 0
        while True:
            try:
                return [self._encode(item) for item in emitted]
            except SchemaUnavailable:
                self._channel.sendall(pack({"kind": "handled"}))  # the attempt is over: what follows has no deadline
            try:
                for item in emitted:
                    self._outputs.prepare(item)
            except SchemaUnavailable:
                time.sleep(registry_pause_s(tries))
                tries += 1

    def _encode(self, item: Emit) -> Emit:
        """The topic keeps its declared name: the parent adds the prefix."""
        _, key, value = self._outputs.encode(item)
        return Emit(item.topic, key, value, headers_of(item))

    def _failed(self, delivery: Delivery, failure: Failure) -> bytes:
        found = dataclasses.asdict(self._diagnosis.complete(delivery, failure))
        return pack({"kind": "failed", "failure": {**found, "kind": failure.kind.value, "scrubbed": True}})


def _delivery(head: Head, blobs: Blobs) -> Delivery:
    message = _Message(head, blobs)
    place: Any = _Place(message.partition())
    delivery = Delivery(place, head["lane"], message.offset(), message.key(), message)
    if delivery.lane != SOURCE:
        delivery.headers = decode_headers(headers_in(message))
    delivery.attempt, delivery.hop = head["attempt"], head["hop"]
    return delivery


def _only_item(returned: Any, whole: bool) -> object:
    """What a batch handler said of a batch of one."""
    if returned is None:
        return None
    if whole or not isinstance(returned, (list, tuple)) or len(returned) != 1:
        return returned  # not allowed: `concluded` says so
    item = returned[0]
    if isinstance(item, (Retry, Reject, Exception)):
        raise item
    return item


def _done(outcome: Done, emitted: Sequence[Emit], took_s: float) -> bytes:
    outputs, blobs = [], []
    for item in emitted:
        headers = list(item.headers or ())
        outputs.append([item.topic, [name for name, _ in headers]])
        blobs += [item.key, item.value, *(value for _, value in headers)]
    head = {"kind": "done", "warning": outcome.warning, "outputs": outputs, "took_s": took_s}
    return pack(head, blobs)  # type: ignore[arg-type]


def emits_of(head: Head, blobs: Blobs) -> list[Emit]:
    """The outputs in an answer."""
    left = iter(blobs)
    found = []
    for topic, names in head["outputs"]:
        key, value = next(left), next(left)
        found.append(Emit(topic, key, value, [(name, next(left)) for name in names]))
    return found


def failure_in(head: Head) -> Failure:
    """The failure in an answer."""
    fields = head["failure"]
    return Failure(**{**fields, "kind": FailureKind(fields["kind"])})


# -- the process


def _end_with_parent(channel: socket.socket) -> None:
    """No orphans: the kernel kills this process with its parent, and where it can't, the end of the channel does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        ends = select.poll()
        ends.register(channel.fileno(), 0)  # hang-up alone: reading is the main thread's
        ends.poll()
        time.sleep(ORPHAN_S)  # an idle child has seen the end itself by now
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _prepare_process(channel: socket.socket, dump: int) -> None:
    channel.set_inheritable(False)
    os.set_inheritable(dump, False)
    _end_with_parent(channel)
    faulthandler.enable(file=dump, all_threads=False)
    faulthandler.register(DUMP_SIGNAL, file=dump, all_threads=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Sent to all processes of a service at once: the parent decides when this one ends, after what runs.
        signal.signal(number, lambda *_: None)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("500")  # out of memory: this one goes before the worker


def _limit_memory(limit_bytes: int | None) -> None:
    if limit_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))


def _limit_processors(count: int | None) -> None:
    """To so many of those that the worker may run on; which, goes by the process, so that they are shared out."""
    if count is not None and hasattr(os, "sched_setaffinity"):
        all_of_them = sorted(os.sched_getaffinity(0))
        first = os.getpid() % len(all_of_them)
        os.sched_setaffinity(0, [*all_of_them[first:], *all_of_them[:first]][:count])


def _load(head: Head, channel: socket.socket) -> Work | JobWork:
    from pipeline.worker.process import load

    sys.path.extend(path for path in head["sys_path"] if path not in sys.path)
    app = load(head["target"])
    configure(app.settings.log_format, app.settings.log_level)
    if head["job"]:
        from pipeline.worker.jobs.child_work import JobWork

        return JobWork(app, head["job"], channel)
    return Work(app, head["group"], channel)


def main(arguments: Sequence[str]) -> int:
    channel = socket.socket(fileno=int(arguments[0]))
    _prepare_process(channel, int(arguments[1]))
    frames, work = FrameBuffer(), None
    while data := channel.recv(_READ_BYTES):
        for head, blobs in frames.feed(data):
            if work is not None:
                channel.sendall(work.run(head, blobs))
                continue
            try:
                work = _load(head, channel)
            except (ConfigurationError, StopIteration, KeyError) as error:
                channel.sendall(pack({"kind": "unloadable", "why": str(error) or "the group is not declared in it"}))
                return 2
            except PipelineError as error:
                print(f"error: {error}", file=sys.stderr)
                return 3
            _limit_processors(head["processors"])
            _limit_memory(head["memory_bytes"])
            channel.sendall(pack({"kind": "ready"}))
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # threads of clients must not hold it
