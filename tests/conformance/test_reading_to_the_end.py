"""Where a partition's end is met, with and without records there; and scans that end exactly then, never early."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from itertools import chain

import confluent_kafka
import pytest

from pipeline.inspect.scan import read_batches, read_to_end
from pipeline.model.cluster import PartitionReader, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable
from tests.conformance.sides import DEADLINE_S, KafkaSide, MemorySide, Side, wait_until


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


def scan(side: Side, *places: TopicPartition, **settings: bool) -> list[bytes | None]:
    """All values, from the beginnings to the ends of now; a scan that waits for what never comes fails."""
    starts, ends = side.admin.beginning_offsets(places), side.admin.end_offsets(places)
    started = time.monotonic()
    found = [m.value() for m in read_to_end(side.cluster, starts, ends, DEADLINE_S, **settings)]  # type: ignore[arg-type]
    assert time.monotonic() - started < DEADLINE_S / 2
    return found


def commit_transaction(side: Side, partition: TopicPartition, count: int) -> None:
    """Records 0 ... of a committed transaction, then its marker, which takes an offset that no reader sees."""
    if isinstance(side, MemorySide):
        side.fill(partition, count)
        side.memory.skip_offsets(partition, 1)
        return
    assert isinstance(side, KafkaSide)
    producer = transactional(side.address)
    begin(producer, partition, count)
    producer.commit_transaction(DEADLINE_S)
    end = side.admin.end_offsets([partition])[partition]
    wait_until(
        lambda: side.admin.end_offsets([partition])[partition] > count,
        f"the marker after {end}",
        lambda: time.sleep(0.01),
    )


def transactional(address: str) -> confluent_kafka.Producer:
    settings = {"bootstrap.servers": address, "transactional.id": uuid.uuid4().hex, "linger.ms": 0, "log_level": 0}
    producer = confluent_kafka.Producer(settings)
    producer.init_transactions(DEADLINE_S)
    return producer


def begin(producer: confluent_kafka.Producer, partition: TopicPartition, count: int) -> None:
    producer.begin_transaction()
    for number in range(count):
        producer.produce(partition.topic, b"%d" % number, partition=partition.partition)
    assert producer.flush(DEADLINE_S) == 0


@pytest.fixture
def reader(side: Side) -> Iterator[PartitionReader]:
    made = side.cluster.reader()
    yield made
    made.close()


def read_until_ended(reader: PartitionReader, wanted: dict[TopicPartition, int]) -> list[bytes | None]:
    found: list[bytes | None] = []
    wait_until(
        lambda: reader.ended() == wanted,
        f"the ends {wanted}, not {reader.ended()}",
        lambda: found.extend(m.value() for m in reader.poll(100, 0.05)),
    )
    return found


def test_the_end_of_an_empty_partition_is_met_at_once(side: Side, reader: PartitionReader) -> None:
    place = TopicPartition(side.topic(), 0)
    reader.assign({place: 0})
    assert not reader.ended()
    started = time.monotonic()
    wait_until(lambda: reader.ended() == {place: 0}, "the end", lambda: reader.poll(10, DEADLINE_S))
    assert time.monotonic() - started < DEADLINE_S / 2, "the poll waited for a record"


def test_an_end_is_met_behind_the_records_and_again_when_more_have_come(side: Side, reader: PartitionReader) -> None:
    place = TopicPartition(side.topic(), 0)
    side.fill(place, 250)
    reader.assign({place: 0})
    assert read_until_ended(reader, {place: 250}) == numbers(0, 250)
    side.fill(place, 5, first=250)
    assert read_until_ended(reader, {place: 255}) == numbers(250, 255)
    reader.assign({place: 250})
    assert not reader.ended(), "what was met belongs to the assignment before"
    assert read_until_ended(reader, {place: 255}) == numbers(250, 255)


def test_an_end_is_never_met_before_all_of_its_records_were_returned(side: Side, reader: PartitionReader) -> None:
    place = TopicPartition(side.topic(), 0)
    side.fill(place, 20)
    reader.assign({place: 0})
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += len(reader.poll(3, 0.05))
        assert seen == 20 or not reader.ended()

    wait_until(lambda: bool(reader.ended()), "the end", step)
    assert seen == 20


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "aborted"])
def test_a_partition_that_ends_in_a_transactions_marker_is_read_to_its_end(
    side: Side, reader: PartitionReader, committed: bool
) -> None:
    place = TopicPartition(side.topic(), 0)
    if committed:
        commit_transaction(side, place, 3)
        wanted = numbers(0, 3)
    else:
        side.fill(place, 2)
        side.aborted_transaction(place, 4)
        wanted = numbers(0, 2)
    end = side.admin.end_offsets([place])[place]
    assert end > len(wanted)
    reader.assign({place: 0})
    assert read_until_ended(reader, {place: end}) == wanted
    assert scan(side, place) == wanted


def test_a_scan_of_nothing_but_an_aborted_transaction_ends(side: Side) -> None:
    place = TopicPartition(side.topic(), 0)
    side.aborted_transaction(place, 5)
    assert scan(side, place) == []


def test_a_compacted_partition_is_read_to_its_end_and_to_an_end_within_a_gap(side: Side) -> None:
    topic = side.topic(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01", max_compaction_lag_ms="100"
    )
    place = TopicPartition(topic, 0)
    producer = side.producer()
    for number in range(40):
        producer.send(topic, b"%d" % (number % 4 + 4 * (number >= 20)), b"%d" % number, partition=0)
    assert producer.flush(DEADLINE_S) == 0
    time.sleep(0.15)  # segment.ms: the next record opens a new segment
    side.compact(topic)

    def first() -> list[bytes | None]:
        return scan(side, place)[:8]

    wanted = [*numbers(16, 20), *numbers(36, 40)]
    wait_until(lambda: first() == wanted, "compaction", lambda: side.compact(topic) or time.sleep(0.3))
    within_the_gap = [m.value() for m in read_to_end(side.cluster, {place: 0}, {place: 30}, DEADLINE_S)]
    assert within_the_gap == numbers(16, 20)


def test_a_scan_keeps_to_its_ends_while_the_topic_grows(side: Side) -> None:
    one, two, three, other = (TopicPartition(side.topic(2), p % 2) for p in range(4))
    for place in (one, two, three, other):
        side.fill(place, 50)
    starts = {one: 10, two: 0, three: 50, other: 0}
    ends = {one: 20, two: 50, three: 50}  # one that has more, one exactly, one with nothing to read, one not asked for
    found: dict[TopicPartition, list[int]] = {}
    for batch in read_batches(side.cluster, starts, ends, DEADLINE_S):
        assert batch, "a batch is never empty"
        for message in batch:
            found.setdefault(TopicPartition(message.topic(), message.partition()), []).append(message.offset())
    assert found == {one: list(range(10, 20)), two: list(range(50))}


def test_a_partition_that_was_removed_gives_nothing_more_and_the_others_go_on(
    side: Side, reader: PartitionReader
) -> None:
    topic = side.topic(2)
    kept, gone = TopicPartition(topic, 0), TopicPartition(topic, 1)
    side.fill(kept, 5)
    side.fill(gone, 5)
    reader.assign({kept: 0, gone: 0})
    wait_until(lambda: reader.ended() == {kept: 5, gone: 5}, "both ends", lambda: reader.poll(100, 0.05))
    reader.remove([gone, TopicPartition(topic, 7)])
    assert reader.ended() == {kept: 5}
    side.fill(gone, 5, first=100)
    side.fill(kept, 5, first=5)
    assert read_until_ended(reader, {kept: 10}) == numbers(5, 10)
    reader.remove([kept])
    assert reader.poll(100, 0.05) == []
    reader.assign({gone: 5})
    assert read_until_ended(reader, {gone: 10}) == numbers(100, 105)


def test_a_start_that_is_gone_is_an_error_not_an_end(side: Side) -> None:
    place = TopicPartition(side.topic(), 0)
    side.fill(place, 10)
    side.admin.delete_records({place: 4})
    with pytest.raises(ClusterError, match=f"{place.topic}.*offset 2"):
        list(read_to_end(side.cluster, {place: 2}, {place: 10}, DEADLINE_S))


def test_what_is_behind_an_open_transaction_is_waited_for_or_left_out_as_asked(kafka: str) -> None:
    side = KafkaSide(kafka, "classic")
    try:
        place = TopicPartition(side.topic(), 0)
        side.fill(place, 3)
        producer = transactional(kafka)
        begin(producer, place, 4)
        ends = side.admin.end_offsets([place])
        assert ends == {place: 7}
        assert [m.value() for m in read_to_end(side.cluster, {place: 0}, ends, DEADLINE_S, stop_at_open=True)] == (
            numbers(0, 3)
        )
        seen: list[int] = []
        short = read_batches(side.cluster, {place: 0}, ends, stall_s=1.0)
        with pytest.raises(ClusterUnavailable, match=r"up to offset 3 only, and 7 was asked for.*transaction"):
            seen.extend(m.offset() for m in chain.from_iterable(short))
        assert seen == [0, 1, 2]
        reading = read_batches(side.cluster, {place: 0}, ends, DEADLINE_S)
        first = next(reading)
        producer.commit_transaction(DEADLINE_S)
        rest = [m for batch in reading for m in batch]
        assert [m.value() for m in (*first, *rest)] == numbers(0, 3) + numbers(0, 4)
    finally:
        side.close()
