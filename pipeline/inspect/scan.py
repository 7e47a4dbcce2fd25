"""Reads whole partitions without a group, exactly up to the ends that were asked for: for tools, never for workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from operator import methodcaller

from pipeline.model.cluster import Cluster, Message, PartitionReader, TopicPartition
from pipeline.model.errors import ClusterUnavailable

POLL_RECORDS = 2_000
POLL_S = 0.25
STALL_S = 30.0
"""Without a record or an end for so long, the brokers are taken to be away."""
TAIL, TAIL_S = 16, 20.0

_topic, _partition, _offset = methodcaller("topic"), methodcaller("partition"), methodcaller("offset")


def read_to_end(
    cluster: Cluster,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    deadline_s: float | None = 60.0,
    monotonic: Callable[[], float] = time.monotonic,
    stop_at_open: bool = False,
) -> Iterator[Message]:
    """The records of `read_batches`, one by one."""
    return chain.from_iterable(read_batches(cluster, starts, ends, deadline_s, monotonic, stop_at_open))


def read_batches(
    cluster: Cluster,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    deadline_s: float | None = 60.0,
    monotonic: Callable[[], float] = time.monotonic,
    stop_at_open: bool = False,
    stall_s: float = STALL_S,
) -> Iterator[list[Message]]:
    """Every record of each partition from its start to before its end, in offset order per partition, as fetched.

    It ends when all of them were read: a record at or past the end was seen, or the broker said that there is nothing
    more below it (transaction markers and compaction leave offsets that never come). Only the partitions named in
    `starts` and with an end above it are read. `deadline_s` bounds the whole reading, with what the caller does between
    two batches (None: no bound), `stall_s` a wait in which nothing comes at all.

    Behind the first record of an open transaction nothing can be read: that is waited for. With `stop_at_open` the
    reading of the partition ends there instead: for tools that show what is there now.

    Raises `ClusterUnavailable` when either runs out: what was read until then is not everything. A start that is not
    there any more, a topic that is gone or a missing right is the `ClusterError` of the reader.
    """
    left = {place: ends[place] for place, start in starts.items() if start < ends.get(place, 0)}
    if not left:
        return
    reader = cluster.reader("pipeline-inspect")
    try:
        reader.assign({place: starts[place] for place in left})
        until, heard = monotonic() + (deadline_s or 0.0), monotonic()
        while left:
            messages = reader.poll(POLL_RECORDS, POLL_S)
            last = _last_offsets(messages)
            wanted, done = _up_to(messages, last, left), _finished(reader, last, left, stop_at_open)
            for place in done:
                del left[place]
            if done and left:
                reader.remove(done)
            now = monotonic()
            if messages or done:
                heard = now
            if wanted:
                yield wanted
                heard = monotonic()
            if left and ((deadline_s is not None and now > until) or now - heard > stall_s):
                raise _too_slow(reader, left, deadline_s if now - heard <= stall_s else None, stall_s)
    finally:
        reader.close()


def ends_of_records(
    cluster: Cluster, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Where the last record of each partition ends, as far as its last `TAIL` offsets tell: markers of transactions lie behind it, and
    nobody can be behind on those. Only partitions whose start is below their end are looked at."""
    tails = {place: max(start, ends[place] - TAIL) for place, start in starts.items() if start < ends[place]}
    found = {place: tail if tail == starts[place] else ends[place] for place, tail in tails.items()}
    for message in read_to_end(cluster, tails, ends, TAIL_S, stop_at_open=True):
        found[TopicPartition(message.topic(), message.partition())] = message.offset() + 1
    return found


def _last_offsets(messages: list[Message]) -> dict[tuple[str, int], int]:
    """The highest offset per partition. Nothing is called per record but by the interpreter's own loops."""
    places = zip(map(_topic, messages), map(_partition, messages), strict=True)
    return dict(zip(places, map(_offset, messages), strict=True))


def _up_to(
    messages: list[Message], last: Mapping[tuple[str, int], int], ends: Mapping[TopicPartition, int]
) -> list[Message]:
    """Those before their partition's end: almost always the list itself."""
    if all(offset < ends.get(place, 0) for place, offset in last.items()):  # type: ignore[call-overload]
        return messages
    return [m for m in messages if m.offset() < ends.get(TopicPartition(m.topic(), m.partition()), 0)]


def _finished(
    reader: PartitionReader,
    last: Mapping[tuple[str, int], int],
    left: Mapping[TopicPartition, int],
    stop_at_open: bool,
) -> list[TopicPartition]:
    met = reader.ended()
    return [
        place
        for place, end in left.items()
        if last.get(place, -1) + 1 >= end or (place in met and (stop_at_open or met[place] >= end))
    ]


def _too_slow(
    reader: PartitionReader, left: Mapping[TopicPartition, int], deadline_s: float | None, stall_s: float
) -> ClusterUnavailable:
    """What is known of the first partition that was not read to its end."""
    place, end = next(iter(left.items()))
    where = f"{place.topic}[{place.partition}]"
    stands = reader.ended().get(place)
    if stands is not None:
        return ClusterUnavailable(
            f"{where} can be read up to offset {stands} only, and {end} was asked for: a transaction may be open there; "
            "try again when it has ended"
        )
    if deadline_s is None:
        return ClusterUnavailable(
            f"reading {where} stood still for {stall_s:g} s: check that the brokers are reachable, and try again"
        )
    return ClusterUnavailable(f"reading {where} took longer than {deadline_s:g} s: try again, or ask for less")
