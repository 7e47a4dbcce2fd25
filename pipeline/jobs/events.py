"""What happens to the jobs of a queue, as it happens: its store followed from now, or from some time on.

Every change that a job's owner writes down is seen. A job that starts at once and ends within a commit interval is written once, when
it has ended, so there is no event for its start. An event may come twice after a worker was killed; `JobEvent.at` names its place.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from pipeline.jobs.ordering import InOrder
from pipeline.jobs.topics import QueueTopics
from pipeline.model.cluster import Cluster, ConsumerPolicy, Message, PartitionReader, TopicPartition
from pipeline.model.errors import CodecError, ConfigurationError, SchemaUnavailable
from pipeline.model.headers import epoch_of, headers_in, is_again
from pipeline.model.job_states import GIVEN_UP, SUCCEEDED, JobState
from pipeline.model.jobs import STALLED, JobEntry, JobProgress, JobRecord
from pipeline.model.store_keys import JOB, parts_of

EventKind = Literal["completed", "failed", "cancelled", "retrying", "stalled", "progress"]
KINDS: tuple[EventKind, ...] = ("completed", "failed", "cancelled", "retrying", "stalled", "progress")
REMEMBERED = 10_000
"""Jobs of which is known what was told of them."""
RECORDS = 1_000
POLL_S, MEMORY_POLL_S = 0.25, 0.01
LOOK_UP_S = 10.0
AWAY_S = 1.0
"""Between two questions to a registry that does not answer."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """`kind`: completed (a warning included), failed (given up: no attempt is left, or none would help), cancelled, retrying (an attempt
    failed, there will be another one), stalled (its worker died or hung), progress. `at`: partition and offset in the store.
    """

    kind: EventKind
    at: tuple[int, int]
    time_ms: int
    record: JobRecord

    @property
    def job_id(self) -> str:
        return self.record.request.id

    @property
    def type(self) -> str:
        return self.record.request.type

    @property
    def progress(self) -> JobProgress | None:
        return self.record.outcome.progress

    @property
    def error(self) -> str:
        """Of the last attempt that failed."""
        error = self.record.outcome.error
        return "" if error is None else f"{error.error_type}: {error.message}"


@dataclass(frozen=True, slots=True)
class Known:
    """What was told of a job."""

    version: int
    state: JobState
    stalls: int
    progress: JobProgress | None


class Telling:
    """From entries, in the order of the log, to events: what was told is not told again. Pure."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._remembered = remembered
        self._epochs: dict[int, int] = {}

    def trusted(self, partition: int, epoch: int) -> bool:
        """Along a store's log epochs only grow: a lower one is of a worker that was taken for dead."""
        if epoch < self._epochs.get(partition, 0):
            return False
        self._epochs[partition] = epoch
        return True

    def forgotten(self, job_id: str) -> None:
        self._known.pop(job_id, None)

    def kinds(self, record: JobRecord) -> list[EventKind]:
        job_id, now = record.request.id, _known(record)
        before = self._known.pop(job_id, None)
        older = before is not None and before.version > now.version
        self._known[job_id] = before if before is not None and older else now
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)
        if older:
            return []  # written over again after a crash, by an owner that knew less
        found: list[EventKind] = []
        if before.stalls < now.stalls if before is not None else _is_stall(record):
            found.append("stalled")
        changed = before is None or (before.version, before.state) != (now.version, now.state)
        kind = _KIND_OF.get(now.state)
        if kind is not None and changed:
            found.append(kind)
        told = None if before is None else before.progress
        if now.state is JobState.RUNNING and now.progress not in (None, told):
            found.append("progress")
        return found


_KIND_OF: Mapping[JobState, EventKind] = {
    **dict.fromkeys(SUCCEEDED, "completed"),
    JobState.FAILED: "failed",
    JobState.DEAD_LETTER: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.RETRYING: "retrying",
}


def _is_stall(record: JobRecord) -> bool:
    """Of what is heard first of a job: a stall is an entry of its own, and what is written later only has the number of them."""
    error = record.outcome.error
    given_up = record.state in GIVEN_UP and error is not None and error.error_class == STALLED
    return record.stalls > 0 and (record.state is JobState.QUEUED or given_up)


def _known(record: JobRecord) -> Known:
    """A job that is given up is written once more when its dead letter is there: only then it is told."""
    state = JobState.QUEUED if record.letter_due else record.state
    return Known(record.version, state, record.stalls, record.outcome.progress)


def check_kinds(kinds: Collection[str]) -> frozenset[str]:
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigurationError(f"kinds={kind!r:.40} must be some of {', '.join(KINDS)}")
    return frozenset(kinds or KINDS)


@dataclass(frozen=True, slots=True)
class Source:
    """A store to follow. `unpack` decodes an entry; it may ask the registry."""

    cluster: Cluster
    topics: QueueTopics
    unpack: Callable[[bytes, bytes], JobEntry]
    in_memory: bool
    client_id: str


async def follow(
    source: Source, kinds: frozenset[str], since_ms: int | None = None, after: Mapping[int, int] | None = None
) -> AsyncIterator[JobEvent]:
    """Events without end. `since_ms`: from this time on, else from now; `after`: go on behind these offsets, by partition.

    Raises ConfigurationError when there is no such queue, ClusterError for what can't heal by itself.
    """
    loop, telling = asyncio.get_running_loop(), Telling()
    with ThreadPoolExecutor(1, "pipeline-job-events") as thread:
        reader = source.cluster.reader(source.client_id)
        try:
            starts, ends = await loop.run_in_executor(thread, _bounds, source, since_ms, after or {})
            order = InOrder[JobEvent](ends, lambda event: event.at, lambda event: event.time_ms)
            reader.assign(starts)
            while True:
                messages = await _poll(source, reader, loop, thread)
                if messages:
                    entries = await _read(source, messages, loop, thread)
                    order.add(_events(telling, messages, entries, kinds))
                    for message in messages:
                        order.read(message.partition(), message.offset(), message.timestamp()[1])
                for event in order.ready(idle=not messages):
                    yield event
        finally:
            # In its thread, behind a poll that is under way: Kafka's client may end the process that closes it meanwhile.
            reader.close() if source.in_memory else thread.submit(reader.close)


async def _poll(
    source: Source, reader: PartitionReader, loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor
) -> list[Message]:
    if not source.in_memory:
        return await loop.run_in_executor(thread, reader.poll, RECORDS, POLL_S)
    messages = reader.poll(RECORDS, 0)
    if not messages:
        await asyncio.sleep(MEMORY_POLL_S)
    return messages


async def _read(
    source: Source, messages: list[Message], loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor
) -> list[JobEntry | None]:
    """Waits for as long as the registry is away: what is passed over is never told."""
    while True:
        try:
            return await loop.run_in_executor(thread, _entries, source, messages)
        except SchemaUnavailable:
            await asyncio.sleep(AWAY_S)


def _bounds(
    source: Source, since_ms: int | None, after: Mapping[int, int]
) -> tuple[dict[TopicPartition, int], dict[int, int]]:
    """Where reading starts, and of partitions that have something to read then, where they end by now."""
    places = source.topics.places(source.cluster)
    admin = source.cluster.admin()
    try:
        ends = dict(admin.end_offsets(places))
    finally:
        admin.close()
    starts = _starts(source, places, ends, since_ms, after)
    return starts, {place.partition: ends[place] for place in places if starts[place] < ends[place]}


def _starts(
    source: Source,
    places: Sequence[TopicPartition],
    ends: Mapping[TopicPartition, int],
    since_ms: int | None,
    after: Mapping[int, int],
) -> dict[TopicPartition, int]:
    if since_ms is None:
        starts = dict(ends)
    else:
        consumer = source.cluster.consumer(ConsumerPolicy(group="pipeline-job-events", client_id=source.client_id))
        try:
            starts = consumer.offsets_at(places, since_ms, LOOK_UP_S)
        finally:
            consumer.close()
    for place in places:
        if place.partition in after:
            starts[place] = after[place.partition] + 1
    return starts


def _entries(source: Source, messages: list[Message]) -> list[JobEntry | None]:
    """What each of them says, as far as it is to be told. May wait. Raises SchemaUnavailable: they are asked for again then."""
    found: list[JobEntry | None] = []
    for message in messages:
        key, value, entry = message.key(), message.value(), None
        if key is not None and value is not None and parts_of(key)[0] == JOB and not is_again(headers_in(message)):
            try:
                entry = source.unpack(key, value)
            except SchemaUnavailable:
                raise
            except CodecError:
                pass  # no queue wrote it
        found.append(entry)
    return found


def _events(
    telling: Telling, messages: list[Message], entries: list[JobEntry | None], kinds: frozenset[str]
) -> list[JobEvent]:
    found = []
    for message, entry in zip(messages, entries, strict=True):
        key = message.key()
        if key is None or not telling.trusted(message.partition(), epoch_of(headers_in(message))):
            continue
        kind, job_id = parts_of(key)
        if kind == JOB and message.value() is None:
            telling.forgotten(job_id)
        if isinstance(entry, JobRecord):
            at = (message.partition(), message.offset())
            found += [
                JobEvent(each, at, message.timestamp()[1], entry) for each in telling.kinds(entry) if each in kinds
            ]
    return found
