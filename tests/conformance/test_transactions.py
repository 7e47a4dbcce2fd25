"""Transactions: what readers of committed records see, on both clusters alike."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import pytest

from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, ProducerFenced
from pipeline.model.transactions import Membership, TransactionalProducer, TransactionPolicy
from tests.conformance.sides import DEADLINE_S, MemberInTest, Side, wait_until


class Asked:
    """Answers of one producer, waited for."""

    def __init__(self, side: Side, group: str, transactional_id: str = "", timeout_ms: int = 10_000) -> None:
        policy = TransactionPolicy(transactional_id or f"{group}.{uuid.uuid4().hex}", group, "t", timeout_ms)
        self._side = side
        self.id = policy.transactional_id
        self.producer: TransactionalProducer = side.cluster.transactional_producer(policy)
        side._closing.append(lambda: self.producer.close(5.0))

    def _wait(self, ask: Callable[[Callable[[ClusterError | None], None]], None]) -> ClusterError | None:
        answers: list[ClusterError | None] = []
        answered = threading.Event()

        def done(error: ClusterError | None) -> None:
            answers.append(error)
            answered.set()

        ask(done)
        assert answered.wait(DEADLINE_S), "no answer"
        return answers[0]

    def begin(self) -> None:
        assert self._wait(self.producer.begin) is None

    def abort(self) -> None:
        assert self._wait(self.producer.abort) is None

    def commit(self, positions: dict[TopicPartition, Position], membership: Membership) -> ClusterError | None:
        return self._wait(lambda done: self.producer.commit(positions, membership, done))

    def send(self, partition: TopicPartition, *values: bytes) -> None:
        for value in values:
            self.producer.send(partition.topic, None, value, None, partition.partition)


def scene(side: Side) -> tuple[MemberInTest, str, TopicPartition, TopicPartition]:
    group = f"g.{uuid.uuid4().hex[:8]}"
    source, out = side.topic(), TopicPartition(side.topic(), 0)
    member = side.member(source, group)
    wait_until(lambda: bool(member.listener.owned), "an assignment", member.poll)
    return member, group, TopicPartition(source, 0), out


def membership(member: MemberInTest) -> Membership:
    found = member.consumer.membership()
    assert found is not None
    return found


def visible(side: Side, partition: TopicPartition) -> list[bytes | None]:
    """What a reader of committed records gets now, to the end that it can see."""
    reader = side.cluster.reader()
    try:
        reader.assign({partition: 0})
        found = []
        deadline = time.monotonic() + DEADLINE_S
        while partition not in reader.ended():
            assert time.monotonic() < deadline, "the end was not met"
            found += [message.value() for message in reader.poll(100, 0.05)]
        return found
    finally:
        reader.close()


def test_records_and_positions_appear_together(grouped: Side) -> None:
    member, group, source, out = scene(grouped)
    asked = Asked(grouped, group)
    asked.begin()
    asked.send(out, b"a", b"b")
    wait_until(lambda: grouped.admin.end_offsets([out])[out] == 2, "both written", member.poll)
    assert visible(grouped, out) == []
    assert asked.commit({source: Position(7, "text")}, membership(member)) is None
    wait_until(lambda: visible(grouped, out) == [b"a", b"b"], "both are seen", member.poll)
    assert member.consumer.committed([source], 10.0)[source] == Position(7, "text")
    assert grouped.admin.end_offsets([out])[out] == 3, "the marker has an offset"
    asked.begin()
    asked.send(out, b"c")
    assert asked.commit({source: Position(8)}, membership(member)) is None
    wait_until(lambda: visible(grouped, out) == [b"a", b"b", b"c"], "the next one's too", member.poll)
    assert asked.producer.rebuilt == 0


def test_what_is_aborted_never_was(grouped: Side) -> None:
    member, group, source, out = scene(grouped)
    asked = Asked(grouped, group)
    asked.begin()
    asked.send(out, b"never")
    wait_until(lambda: grouped.admin.end_offsets([out])[out] == 1, "written", member.poll)
    asked.abort()
    assert asked.producer.rebuilt == 1
    asked.begin()
    asked.send(out, b"a")
    assert asked.commit({source: Position(1)}, membership(member)) is None
    wait_until(lambda: visible(grouped, out) == [b"a"], "the second alone", member.poll)


def test_an_abort_does_not_overtake_the_commit_that_was_asked_before_it(grouped: Side) -> None:
    member, group, source, out = scene(grouped)
    if hasattr(grouped, "memory"):
        grouped.memory.faults.commit_delay_ms = (0, 40)
    asked = Asked(grouped, group)
    told: list[tuple[str, ClusterError | None]] = []
    for number in range(1, 9):
        asked.begin()
        asked.send(out, b"%d" % number)
        told.clear()
        asked.producer.commit(
            {source: Position(number)}, membership(member), lambda error: told.append(("commit", error))
        )
        asked.producer.abort(lambda error: told.append(("abort", error)))
        wait_until(lambda: len(told) == 2, "both answered", member.poll)
        assert told == [("commit", None), ("abort", None)]
        assert member.consumer.committed([source], 10.0)[source] == Position(number)
    wait_until(lambda: visible(grouped, out) == [b"%d" % number for number in range(1, 9)], "all are seen", member.poll)


def test_an_open_transaction_holds_back_what_others_write_behind_it(side: Side) -> None:
    member, group, source, out = scene(side)
    asked = Asked(side, group)
    asked.begin()
    asked.send(out, b"first")
    wait_until(lambda: side.admin.end_offsets([out])[out] == 1, "written", member.poll)
    side.fill(out, 1)
    assert visible(side, out) == []
    assert asked.commit({source: Position(1)}, membership(member)) is None
    wait_until(lambda: visible(side, out) == [b"first", b"0"], "both, in order", member.poll)


def test_a_member_that_left_commits_nothing(grouped: Side) -> None:
    member, group, source, out = scene(grouped)
    stale = membership(member)
    asked = Asked(grouped, group)
    asked.begin()
    asked.send(out, b"stale")
    member.consumer.close()
    heir = grouped.member(source.topic, group)
    wait_until(lambda: bool(heir.listener.owned), "the partition moves", heir.poll)
    assert isinstance(asked.commit({source: Position(9)}, stale), ClusterError)
    asked.abort()
    assert visible(grouped, out) == []
    assert heir.consumer.committed([source], 10.0)[source] is None


def test_of_two_producers_with_one_id_the_older_is_fenced(side: Side) -> None:
    member, group, source, out = scene(side)
    old = Asked(side, group)
    old.begin()
    old.send(out, b"old")
    wait_until(lambda: side.admin.end_offsets([out])[out] == 1, "written", member.poll)
    new = Asked(side, group, old.id)
    new.begin()
    error = old.commit({source: Position(1)}, membership(member))
    assert isinstance(error, ProducerFenced)
    assert old.id in str(error)
    new.send(out, b"new")
    assert new.commit({source: Position(2)}, membership(member)) is None
    wait_until(lambda: visible(side, out) == [b"new"], "the new one's alone", member.poll)


def test_a_write_that_is_refused_fails_the_commit(side: Side) -> None:
    member, group, source, out = scene(side)
    small = TopicPartition(side.topic(max_message_bytes="2000"), 0)
    asked = Asked(side, group)
    asked.begin()
    asked.send(out, b"fine")
    asked.send(small, b"x" * 5_000)
    assert isinstance(asked.commit({source: Position(1)}, membership(member)), ClusterError)
    asked.abort()
    assert visible(side, out) == []
    assert member.consumer.committed([source], 10.0)[source] is None


@pytest.mark.parametrize("partitions", [30])
def test_a_transaction_is_one_over_many_partitions(side: Side, partitions: int) -> None:
    """Row 25: all or none, also for a reader that reads all the time."""
    member, group, source, _ = scene(side)
    topic = side.topic(partitions=partitions)
    places = [TopicPartition(topic, p) for p in range(partitions)]
    asked = Asked(side, group)
    for number in range(6):
        asked.begin()
        for tp in places:
            asked.send(tp, b"%d" % number)
        if number % 2:
            asked.abort()
        else:
            assert asked.commit({source: Position(number)}, membership(member)) is None
    reader = side.cluster.reader()
    reader.assign(dict.fromkeys(places, 0))
    found: dict[int, list[bytes | None]] = {}

    def read() -> None:
        for message in reader.poll(500, 0.05):
            found.setdefault(message.partition(), []).append(message.value())

    wait_until(lambda: sum(map(len, found.values())) >= 3 * partitions, "what was committed", read)
    reader.close()
    assert all(values == [b"0", b"2", b"4"] for values in found.values()), found


def test_offsets_that_a_transaction_may_still_change_are_waited_for(side: Side) -> None:
    """The next owner must not start from what was committed before them."""
    member, group, source, out = scene(side)
    if hasattr(side, "memory"):
        side.memory.faults.transaction_torn = 1.0
        asked = Asked(side, group)
        asked.begin()
        asked.send(out, b"torn")
        assert isinstance(asked.commit({source: Position(5)}, membership(member)), ClusterUnavailable)
    else:
        from confluent_kafka import Producer
        from confluent_kafka import TopicPartition as Assigned

        asked = Asked(side, group)
        torn = Producer({"bootstrap.servers": side.address, "transactional.id": asked.id, "log_level": 0})  # type: ignore[attr-defined]
        torn.init_transactions(DEADLINE_S)
        torn.begin_transaction()
        torn.produce(out.topic, b"torn", partition=0)
        torn.send_offsets_to_transaction([Assigned(*source, 5)], membership(member).token, DEADLINE_S)
        assert torn.flush(DEADLINE_S) == 0
    with pytest.raises(ClusterUnavailable):
        member.consumer.committed([source], 1.0)
    asked.abort()

    def answers() -> bool:
        try:
            return member.consumer.committed([source], 1.0)[source] is None
        except ClusterUnavailable:
            return False

    wait_until(answers, "the abort", member.poll)
    assert visible(side, out) == []
