"""Records through the ports: what goes in comes out, in order, where its key says; seek, pause and resume keep their word."""

from __future__ import annotations

import random
import time

import pytest

from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.errors import ClusterError
from pipeline.model.partitioner import partition_of
from tests.conformance.sides import DEADLINE_S, MemberInTest, Side, wait_until
from tests.patience import PATIENCE

LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 100)


def read(side: Side, topic: str, count: int, partitions: int = 1) -> list[Message]:
    reader = side.cluster.reader()
    reader.assign({TopicPartition(topic, p): 0 for p in range(partitions)})
    records: list[Message] = []
    wait_until(lambda: len(records) >= count, f"{count} records", lambda: records.extend(reader.poll(100, 0.05)))
    reader.close()
    return records


def by_hand(side: Side, partition: TopicPartition, start: int = 0) -> MemberInTest:
    """A consumer that fetches one partition and is in no group's rebalances."""
    member = side.member()
    member.consumer.add({partition: start})
    return member


def collect(member: MemberInTest, count: int, what: str) -> list[Message]:
    got: list[Message] = []
    wait_until(lambda: len(got) >= count, what, lambda: got.extend(member.poll()))
    return got


def test_everything_of_a_record_comes_back(side: Side) -> None:
    topic = side.topic()
    producer = side.producer()
    headers: list[tuple[str, bytes | None]] = [("a", b"1"), ("a", b"2"), ("none", None), ("empty", b"")]
    producer.send(topic, b"key", b"value", headers, 0, 1_600_000_000_123)
    producer.send(topic, None, None, None, 0)
    producer.send(topic, b"tombstone", None, [], 0)
    producer.send(topic, b"\x00\xff", b"", [("x", bytes(range(256)))], 0)
    assert producer.flush(DEADLINE_S) == 0
    now_ms = time.time_ns() // 1_000_000
    first, empty, tombstone, odd = read(side, topic, 4)
    assert (first.topic(), first.partition(), first.offset()) == (topic, 0, 0)
    assert (first.key(), first.value(), first.headers()) == (b"key", b"value", headers)
    assert first.timestamp() == (1, 1_600_000_000_123)
    assert (empty.key(), empty.value(), empty.headers()) == (None, None, None)
    assert abs(empty.timestamp()[1] - now_ms) < 10_000
    assert (tombstone.key(), tombstone.value(), tombstone.headers()) == (b"tombstone", None, None)
    assert (odd.key(), odd.value(), odd.headers()) == (b"\x00\xff", b"", [("x", bytes(range(256)))])


def test_a_key_goes_where_the_java_client_sends_it(side: Side) -> None:
    topic = side.topic(7)
    rng = random.Random(7)
    keys = [rng.randbytes(length) for length in LENGTHS for _ in range(20)]
    producer = side.producer()
    for key in keys:
        producer.send(topic, key, b"")
    assert producer.flush(DEADLINE_S) == 0
    records = read(side, topic, len(keys), 7)
    assert {(m.key(), m.partition()) for m in records} == {(key, partition_of(key, 7)) for key in keys}
    assert len({m.partition() for m in records}) == 7


def test_records_without_key_are_spread(side: Side) -> None:
    topic = side.topic(3)
    producer = side.producer()
    for _ in range(40):
        for _ in range(5):
            producer.send(topic, None, b"x")
        assert producer.flush(DEADLINE_S) == 0
    assert {m.partition() for m in read(side, topic, 200, 3)} == {0, 1, 2}


def test_one_partition_keeps_the_order_of_sending(side: Side) -> None:
    topic = side.topic(3)
    producer = side.producer()
    reports: list[tuple[ClusterError | None, int]] = []
    for number in range(3_000):
        producer.send(topic, b"%d" % (number % 50), b"%d" % number, delivered=lambda *report: reports.append(report))
    assert producer.flush(DEADLINE_S) == 0
    assert len(reports) == 3_000
    assert all(error is None for error, _ in reports)
    records = read(side, topic, 3_000, 3)
    for partition in range(3):
        mine = [m for m in records if m.partition() == partition]
        assert [m.offset() for m in mine] == list(range(len(mine)))
        numbers = [int(m.value() or b"") for m in mine]
        assert numbers == sorted(numbers)


def test_a_delivery_report_has_the_offset(side: Side) -> None:
    topic = side.topic()
    side.fill(TopicPartition(topic, 0), 5)
    producer = side.producer()
    reports: list[tuple[ClusterError | None, int]] = []
    producer.send(topic, b"k", b"v", partition=0, delivered=lambda *report: reports.append(report))
    assert producer.flush(DEADLINE_S) == 0
    assert reports == [(None, 5)]


def test_poll_returns_at_most_what_was_asked_for_and_waits_only_for_the_first(side: Side) -> None:
    partition = TopicPartition(side.topic(), 0)
    side.fill(partition, 50)
    member = by_hand(side, partition)
    got: list[int] = []
    while len(got) < 50:
        batch = member.consumer.poll(7, DEADLINE_S)
        assert 1 <= len(batch) <= 7
        got += [m.offset() for m in batch]
    assert got == list(range(50))
    began = time.monotonic()
    assert member.consumer.poll(7, 0.2) == []
    assert 0.15 < time.monotonic() - began < 2.0 * PATIENCE
    assert member.consumer.poll(1, 0) == []


def test_after_a_seek_no_poll_returns_what_was_fetched_before(side: Side) -> None:
    partition = TopicPartition(side.topic(), 0)
    side.fill(partition, 2_000)
    member = by_hand(side, partition)
    rng = random.Random(1)
    collect(member, 1, "the first record")
    for _ in range(100):
        target = rng.randrange(2_000)
        member.consumer.seek(partition, target)
        batch = member.consumer.poll(rng.choice((1, 10, 500)), DEADLINE_S)
        assert batch[0].offset() == target
        assert [m.offset() for m in batch] == list(range(target, target + len(batch)))


def test_a_removed_partition_is_silent_and_can_be_added_again(side: Side) -> None:
    topic = side.topic(2)
    one, two = TopicPartition(topic, 0), TopicPartition(topic, 1)
    side.fill(one, 2_000)
    side.fill(two, 2_000)
    member = by_hand(side, one)
    for _ in range(30):
        member.consumer.add({two: 0})
        wait_until(lambda: member.poll() != [], "records", lambda: None)
        member.consumer.remove([two, TopicPartition(topic, 77)])
        for _ in range(3):
            assert all(m.partition() == 0 for m in member.poll(0.002))
        member.consumer.seek(one, 0)
    member.records.clear()
    member.consumer.remove([one])
    member.consumer.add({two: 1_500})
    collect(member, 500, "the rest of the partition that was added again")
    assert member.offsets(two) == list(range(1_500, 2_000))
    assert member.offsets(one) == []


def test_adding_what_is_there_already_seeks(side: Side) -> None:
    partition = TopicPartition(side.topic(), 0)
    side.fill(partition, 20)
    member = by_hand(side, partition, 10)
    assert [m.offset() for m in collect(member, 10, "the second half")] == list(range(10, 20))
    member.consumer.add({partition: 3})
    assert [m.offset() for m in collect(member, 17, "from the new position")] == list(range(3, 20))


def test_seeking_what_was_not_added_is_refused(side: Side) -> None:
    partition = TopicPartition(side.topic(), 0)
    member = side.member()
    with pytest.raises(ClusterError, match="add it before seeking"):
        member.consumer.seek(partition, 0)


def test_paused_partitions_are_silent_and_go_on_where_they_were(side: Side) -> None:
    topic = side.topic(2)
    one, two = TopicPartition(topic, 0), TopicPartition(topic, 1)
    side.fill(one, 300)
    side.fill(two, 300)
    member = side.member()
    member.consumer.add({one: 0, two: 0})
    wait_until(
        lambda: len(member.offsets(one)) >= 20,
        "some of one",
        lambda: member.records.extend(member.consumer.poll(10, 0.05)),
    )
    member.consumer.pause([one])
    had = len(member.offsets(one))
    wait_until(
        lambda: len(member.offsets(two)) == 300,
        "all of two",
        lambda: member.records.extend(member.consumer.poll(10, 0.05)),
    )
    for _ in range(10):
        assert member.poll() == []
    assert len(member.offsets(one)) == had
    member.consumer.resume([one])
    wait_until(lambda: len(member.offsets(one)) >= 300, "the rest of one", member.poll)
    assert member.offsets(one) == list(range(300))


def test_a_pause_survives_a_seek_and_ends_with_a_removal(side: Side) -> None:
    partition = TopicPartition(side.topic(), 0)
    side.fill(partition, 30)
    member = by_hand(side, partition)
    collect(member, 30, "all")
    member.consumer.pause([partition])
    member.consumer.seek(partition, 10)
    for _ in range(10):
        assert member.poll() == []
    member.consumer.resume([partition])
    assert [m.offset() for m in collect(member, 20, "from the seek")] == list(range(10, 30))
    member.consumer.pause([partition])
    member.consumer.remove([partition])
    member.consumer.add({partition: 25})
    assert [m.offset() for m in collect(member, 5, "unpaused after adding")] == list(range(25, 30))


def test_resuming_when_all_was_paused_is_quick(side: Side) -> None:
    """librdkafka's broker thread sleeps up to a second when it has nothing to fetch, and a resume alone does not wake it."""
    partition = TopicPartition(side.topic(), 0)
    side.fill(partition, 100)
    member = by_hand(side, partition)
    member.consumer.poll(1, DEADLINE_S)
    took_s = []
    for _ in range(5):
        member.consumer.pause([partition])
        began = time.monotonic()
        while time.monotonic() - began < 0.3:
            member.consumer.poll(10, 0.02)
        member.consumer.resume([partition])
        began = time.monotonic()
        assert len(member.consumer.poll(1, DEADLINE_S)) == 1
        took_s.append(time.monotonic() - began)
    assert sorted(took_s)[2] < 0.3, "half a second on average without our waking it"


def test_gaps_of_an_aborted_transaction_are_passed(side: Side) -> None:
    partition = TopicPartition(side.topic(), 0)
    side.fill(partition, 5)
    side.aborted_transaction(partition, 3)
    side.fill(partition, 5, first=5)
    member = by_hand(side, partition)
    records = collect(member, 10, "all committed records")
    assert [m.value() for m in records] == [b"%d" % n for n in range(10)]
    assert [m.offset() for m in records[:5]] == list(range(5))
    assert records[5].offset() == 9  # 3 aborted records and the marker
    member.consumer.seek(partition, 6)
    assert collect(member, 1, "from inside the gap")[0].offset() == 9


def test_gaps_of_compaction_are_passed(side: Side) -> None:
    topic = side.topic(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01", max_compaction_lag_ms="100"
    )
    partition = TopicPartition(topic, 0)
    producer = side.producer()
    for number in range(20):
        producer.send(topic, b"%d" % (number % 4), b"%d" % number, partition=0)
    assert producer.flush(DEADLINE_S) == 0
    time.sleep(0.15)  # segment.ms: the next record opens a new segment
    side.compact(topic)

    def seen() -> list[int]:
        end = side.admin.end_offsets([partition])[partition]
        reader = side.cluster.reader()
        reader.assign({partition: 0})
        offsets: list[int] = []
        while not offsets or offsets[-1] < end - 1:
            offsets += [m.offset() for m in reader.poll(100, DEADLINE_S)]
        reader.close()
        return offsets

    wait_until(lambda: seen()[:4] == [16, 17, 18, 19], "compaction", lambda: side.compact(topic) or time.sleep(0.3))


def test_a_reader_starts_where_told_and_a_new_assignment_replaces_the_old(side: Side) -> None:
    topic = side.topic(2)
    one, two = TopicPartition(topic, 0), TopicPartition(topic, 1)
    side.fill(one, 10)
    side.fill(two, 10)
    reader = side.cluster.reader()
    reader.assign({one: 7})
    got: list[Message] = []
    wait_until(lambda: len(got) >= 3, "the end of one", lambda: got.extend(reader.poll(10, 0.05)))
    assert [(m.partition(), m.offset()) for m in got] == [(0, 7), (0, 8), (0, 9)]
    reader.assign({two: 9})
    got.clear()
    wait_until(lambda: len(got) >= 1, "the end of two", lambda: got.extend(reader.poll(10, 0.05)))
    assert [(m.partition(), m.offset()) for m in got] == [(1, 9)]
    reader.assign({one: 99})
    with pytest.raises(ClusterError, match="offset 99"):
        wait_until(lambda: False, "an error", lambda: reader.poll(10, 0.1))
    reader.close()
    reader.close()
    with pytest.raises(ClusterError, match="closed"):
        reader.poll(1, 0)


def test_an_offset_that_is_gone_is_a_fault_and_a_seek_heals_it(side: Side) -> None:
    partition = TopicPartition(side.topic(), 0)
    side.fill(partition, 10)
    side.admin.delete_records({partition: 4})
    member = side.member(partition.topic)
    for wrong in (0, 50):
        member.listener.faults.clear()
        member.consumer.add({partition: wrong})
        wait_until(lambda: bool(member.listener.faults), "a fault", member.poll)
        fault = member.listener.faults[0]
        assert (fault.partition, fault.offset, fault.kind) == (partition, wrong, "out_of_range")
        for _ in range(5):
            assert member.poll() == []
        member.consumer.seek(partition, 4)
        assert [m.offset() for m in collect(member, 6, "after the seek")] == list(range(4, 10))
