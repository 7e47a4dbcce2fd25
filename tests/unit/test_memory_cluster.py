"""Faults of the simulated cluster, one by one, and that a seed repeats a run exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pipeline.memory.cluster import MemoryCluster, connect, forget, register
from pipeline.memory.consumer import MemoryConsumer
from pipeline.memory.faults import Faults
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.memory.timers import by_hand
from pipeline.model.cluster import Acknowledgements, ConsumerPolicy, FetchFault, Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, ConfigurationError, FencedError, NotAuthorized
from pipeline.model.partitioner import murmur2, partition_of

T0 = TopicPartition("t", 0)


class Hand:
    """A cluster whose time moves by hand."""

    def __init__(self, faults: Faults | None = None, partitions: int = 1) -> None:
        self.now_ms = 1_000
        self.cluster = MemoryCluster("hand", clock=lambda: self.now_ms, scheduler=by_hand, faults=faults or Faults())
        self.cluster.create("t", partitions)
        self.log: list[str] = []

    def move(self, ms: int) -> None:
        self.now_ms += ms
        self.cluster.tick()

    def consumer(self, **policy: object) -> MemoryConsumer:
        consumer = self.cluster.consumer(ConsumerPolicy("g", **policy))  # type: ignore[arg-type]
        consumer.subscribe("t", self)
        return consumer

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.log.append("assigned")

    def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
        self.log.append("revoked")
        return False

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.log.append("lost")

    def fault(self, fault: FetchFault) -> None:
        self.log.append(f"{fault.kind}@{fault.offset}")

    def values(self) -> list[bytes | None]:
        return [record.value() for record in self.cluster.logs["t"][0].records()]


def test_a_topic_with_log_append_time_puts_its_own_time_on_records() -> None:
    now = [1_000]
    cluster = MemoryCluster("stamps", clock=lambda: now[0], scheduler=lambda _ms, _do: None)
    cluster.create("own", 1, {"message.timestamp.type": "LogAppendTime"})
    cluster.create("given", 1)
    cluster.faults.land_delay_ms = (50, 50)
    for topic in ("own", "given"):
        cluster.producer().send(topic, None, b"", timestamp_ms=7)
    now[0] = 1_050
    cluster.tick()
    assert [cluster.logs[topic][0].records()[0].timestamp()[1] for topic in ("own", "given")] == [1_050, 7]


def test_murmur2_agrees_with_the_java_client() -> None:
    """Two values of Kafka's own unit test of its hash; placement itself is compared with librdkafka in the conformance suite."""
    assert murmur2(b"21") == -973932308 & 0xFFFFFFFF
    assert murmur2(b"foobar") == -790332482 & 0xFFFFFFFF
    assert 0 <= partition_of(b"21", 7) < 7


def test_a_record_is_seen_before_its_sender_knows() -> None:
    hand = Hand(Faults(land_delay_ms=(5, 5), ack_delay_ms=(50, 50)))
    reports: list[tuple[ClusterError | None, int]] = []
    hand.cluster.producer().send("t", None, b"a", partition=0, delivered=lambda *report: reports.append(report))
    assert hand.values() == []
    hand.move(5)
    assert (hand.values(), reports) == ([b"a"], [])
    hand.move(50)
    assert reports == [(None, 0)]


def test_random_delays_keep_the_order_of_a_partition() -> None:
    hand = Hand(Faults(3, land_delay_ms=(0, 50), ack_delay_ms=(0, 50)))
    producer, reports = hand.cluster.producer(), []
    for number in range(100):
        producer.send("t", None, b"%d" % number, partition=0, delivered=lambda _, offset: reports.append(offset))
    for _ in range(60):
        hand.move(2)
    assert hand.values() == [b"%d" % n for n in range(100)]
    assert reports == list(range(100))


@pytest.mark.parametrize(
    ("faults", "written", "kind"),
    [
        (Faults(send_failure=1.0), 0, ClusterUnavailable),
        (Faults(ack_lost=1.0), 1, ClusterUnavailable),
        (Faults(denied_topics={"t"}), 0, NotAuthorized),
    ],
)
def test_failures_of_sending(faults: Faults, written: int, kind: type[ClusterError]) -> None:
    hand = Hand(faults)
    reports: list[tuple[ClusterError | None, int]] = []
    hand.cluster.producer().send("t", None, b"a", partition=0, delivered=lambda *report: reports.append(report))
    hand.move(1)
    assert len(hand.values()) == written
    assert [(type(error), offset) for error, offset in reports] == [(kind, -1)]


def test_a_report_and_an_answer_may_come_twice() -> None:
    hand = Hand(Faults(ack_twice=1.0, ack_twice_ms=(100, 100), commit_twice=1.0))
    consumer, reports, answers = hand.consumer(), [], []
    consumer.poll(1, 0)
    hand.cluster.producer().send("t", None, b"a", partition=0, delivered=lambda _, offset: reports.append(offset))
    consumer.commit({T0: Position(1)}, answers.append)
    hand.move(0)
    consumer.poll(1, 0)
    assert (reports, answers) == ([0], [{T0: None}])
    hand.move(100)
    consumer.poll(1, 0)
    assert (reports, answers) == ([0, 0], [{T0: None}, {T0: None}])


def test_of_many_each_is_answered_once_since_their_answers_are_told_apart_by_number() -> None:
    hand = Hand(Faults(ack_twice=1.0, ack_twice_ms=(100, 100)))
    answers, done = Acknowledgements(count=2), []
    answers.done = lambda: done.append(len(answers.offsets))
    assert hand.cluster.producer().send_many("t", 0, [(None, b"a", []), (None, b"b", [])], answers) == 2
    hand.move(0)
    hand.move(1_000)
    assert answers == Acknowledgements([0, 1])
    assert done == [2]


def test_a_partition_without_leader_takes_and_gives_nothing_until_it_has_one() -> None:
    hand = Hand()
    consumer = hand.consumer()
    consumer.poll(10, 0)
    consumer.add({T0: 0})
    hand.cluster.faults.unavailable.add(T0)
    hand.cluster.producer().send("t", None, b"a", partition=0)
    hand.move(1_000)
    assert consumer.poll(10, 0) == []
    with pytest.raises(ClusterUnavailable):
        consumer.end_offsets([T0], 1.0)
    hand.cluster.faults.unavailable.clear()
    hand.move(100)
    assert [m.value() for m in consumer.poll(10, 0)] == [b"a"]


def test_a_bad_batch_is_a_fault_until_it_is_sought_past() -> None:
    hand = Hand(Faults(bad_batches={("t", 0, 2)}))
    producer = hand.cluster.producer()
    for number in range(4):
        producer.send("t", None, b"%d" % number, partition=0)
    hand.move(0)
    consumer = hand.consumer()
    consumer.poll(10, 0)
    consumer.add({T0: 0})
    assert [m.offset() for m in consumer.poll(10, 0)] == [0, 1]
    assert consumer.poll(10, 0) == consumer.poll(10, 0) == []
    assert hand.log == ["assigned", "bad_batch@2", "bad_batch@2"]
    consumer.seek(T0, 3)
    assert [m.offset() for m in consumer.poll(10, 0)] == [3]


def test_a_late_commit_overtakes_the_one_sent_after_it() -> None:
    hand = Hand(Faults(commit_late=1.0, commit_late_ms=(100, 100)))
    consumer = hand.consumer()
    consumer.poll(1, 0)
    answers: list[ClusterError | None] = []
    consumer.commit({T0: Position(1)}, lambda answer: answers.append(answer[T0]))
    hand.move(1)
    consumer.poll(1, 0)
    hand.cluster.faults.commit_late = 0.0
    consumer.commit({T0: Position(2)}, lambda answer: answers.append(answer[T0]))
    hand.move(1)
    consumer.poll(1, 0)
    assert [type(answer) for answer in answers] == [ClusterUnavailable, type(None)]
    assert consumer.committed([T0], 1.0) == {T0: Position(2)}
    hand.move(100)
    assert consumer.committed([T0], 1.0) == {T0: Position(1)}


def test_one_partition_of_a_commit_fails() -> None:
    hand = Hand(Faults(failing_commits={T0: 1}), partitions=2)
    consumer, other = hand.consumer(), TopicPartition("t", 1)
    answer = consumer.commit_now({T0: Position(1), other: Position(1)}, 1.0)
    assert (type(answer[T0]), answer[other]) == (ClusterUnavailable, None)
    assert consumer.commit_now({T0: Position(2)}, 1.0) == {T0: None}


def test_a_zombie_is_fenced_until_it_joins_again() -> None:
    hand = Hand()
    consumer = hand.consumer()
    consumer.poll(1, 0)
    hand.cluster.expel(consumer)
    assert isinstance(consumer.commit_now({T0: Position(1)}, 1.0)[T0], FencedError)
    consumer.poll(1, 0)
    assert hand.log == ["assigned", "lost", "assigned"]
    assert consumer.commit_now({T0: Position(1)}, 1.0) == {T0: None}


def test_a_loss_can_look_like_a_revocation() -> None:
    hand = Hand(Faults(lost_as_revoked=1.0))
    consumer = hand.consumer(drain_timeout_ms=1_000)
    consumer.poll(1, 0)
    hand.cluster.expel(consumer)
    consumer.poll(1, 0)
    assert hand.log == ["assigned", "revoked"]
    assert isinstance(consumer.commit_now({T0: Position(1)}, 1.0)[T0], FencedError)
    hand.move(1_000)
    consumer.poll(1, 0)
    assert hand.log == ["assigned", "revoked", "revoked", "lost"]
    consumer.poll(1, 0)
    assert hand.log[-1] == "assigned"


@pytest.mark.parametrize(("late_ms", "expected"), [(None, []), (500, [b"a", b"b"])])
def test_what_a_dead_producer_had_sent_is_lost_or_lands_late(late_ms: int | None, expected: list[bytes]) -> None:
    hand = Hand(Faults(land_delay_ms=(10, 10)))
    producer = hand.cluster.producer("w")
    reports: list[int] = []
    for value in (b"a", b"b"):
        producer.send("t", None, value, partition=0, delivered=lambda _, offset: reports.append(offset))
    hand.cluster.kill("w", late_ms)
    hand.move(499)
    assert hand.values() == []
    hand.move(1)
    hand.move(1_000)
    assert hand.values() == expected
    assert reports == []
    with pytest.raises(ClusterError):
        producer.send("t", None, b"c")


def test_a_frozen_member_is_not_brought_back_by_being_polled() -> None:
    hand = Hand()
    member = hand.consumer(client_id="w", session_timeout_ms=6_000)
    member.poll(10, 0)
    hand.cluster.freeze("w")
    for _ in range(5):
        hand.move(3_000)
        assert member.poll(10, 0) == []
    assert hand.cluster.admin().describe_group("g").members == ()
    assert hand.log == ["assigned"]
    hand.cluster.thaw("w")
    member.poll(10, 0)
    assert "lost" in hand.log


def test_a_frozen_process_loses_its_session_and_its_records_land_when_it_goes_on() -> None:
    hand = Hand(Faults(land_delay_ms=(10, 10)))
    consumer = hand.consumer(client_id="w", session_timeout_ms=1_000)
    consumer.poll(1, 0)
    hand.cluster.producer("w").send("t", None, b"late", partition=0)
    hand.cluster.freeze("w")
    other = hand.consumer(client_id="other")
    hand.move(1_000)
    other.poll(1, 0)
    assert hand.log == ["assigned", "assigned"]
    assert hand.values() == []
    hand.cluster.thaw("w")
    hand.move(0)
    assert hand.values() == [b"late"]
    consumer.poll(1, 0)
    assert hand.log[2] == "lost"


def test_a_member_that_does_not_poll_is_expelled() -> None:
    hand = Hand()
    consumer = hand.consumer(max_poll_interval_ms=30_000)
    consumer.poll(1, 0)
    hand.move(30_000)
    consumer.poll(1, 0)
    assert hand.log == ["assigned"]
    hand.move(30_001)
    consumer.poll(1, 0)
    assert hand.log == ["assigned", "lost", "assigned"]


def test_retention_deletes_what_is_old() -> None:
    hand = Hand()
    hand.cluster.configs["t"]["retention.ms"] = "100"
    producer = hand.cluster.producer()
    for age in (500, 200, 50):
        producer.send("t", None, b"%d" % age, partition=0, timestamp_ms=hand.now_ms - age)
    hand.move(0)
    hand.cluster.retain("t", hand.now_ms)
    assert hand.values() == [b"50"]
    assert hand.cluster.admin().beginning_offsets([T0]) == {T0: 2}


def test_activity_says_when_to_poll() -> None:
    hand = Hand()
    consumer = hand.consumer()
    calls: list[int] = []
    consumer.poll(10, 0)
    consumer.add({T0: 0})
    consumer.poll(10, 0)
    consumer.activity(lambda: calls.append(hand.now_ms))
    consumer.poll(10, 0)
    calls.clear()
    producer = hand.cluster.producer()
    for _ in range(3):
        producer.send("t", None, b"x", partition=0)
    hand.move(0)
    assert len(calls) == 1, "once between two polls"
    assert len(consumer.poll(2, 0)) == 2
    assert len(calls) == 2, "there is more"
    consumer.poll(2, 0)
    consumer.pause([T0])
    producer.send("t", None, b"x", partition=0)
    hand.move(0)
    assert len(calls) == 2, "nothing to fetch from a paused partition"
    consumer.resume([T0])
    assert len(calls) == 3


def history(seed: int) -> list[object]:
    """Two members and a producer under every kind of fault; all that they saw, with times."""
    seen: list[object] = []

    async def main(loop: VirtualClockLoop) -> None:
        faults = Faults(
            seed,
            land_delay_ms=(0, 20),
            ack_delay_ms=(0, 20),
            send_failure=0.05,
            ack_lost=0.05,
            fetch_records=(1, 7),
            commit_delay_ms=(0, 30),
            commit_partition_failure=0.1,
            commit_late=0.1,
        )
        cluster = MemoryCluster("h", clock=loop.clock, scheduler=loop.call_later_ms, faults=faults)
        cluster.create("t", 4)

        class Member:
            def __init__(self, name: str) -> None:
                self.name = name
                self.consumer = cluster.consumer(ConsumerPolicy("g", name))
                self.wake = asyncio.Event()
                self.consumer.activity(self.wake.set)
                self.consumer.subscribe("t", self)

            def assigned(self, partitions: Sequence[TopicPartition]) -> None:
                seen.append((loop.clock(), self.name, "assigned", list(partitions)))
                self.consumer.add(dict.fromkeys(partitions, 0))

            def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
                seen.append((loop.clock(), self.name, "revoked"))
                return loop.random.random() < 0.3

            def lost(self, partitions: Sequence[TopicPartition]) -> None:
                seen.append((loop.clock(), self.name, "lost"))

            def fault(self, fault: FetchFault) -> None:
                seen.append(fault)

            async def run(self) -> None:
                while True:
                    await self.wake.wait()
                    self.wake.clear()
                    for m in self.consumer.poll(100, 0):
                        seen.append((loop.clock(), self.name, m.partition(), m.offset(), m.value()))
                        where = TopicPartition("t", m.partition())
                        self.consumer.commit(
                            {where: Position(m.offset() + 1)}, lambda a: seen.append([type(e) for e in a.values()])
                        )

        one = asyncio.create_task(Member("one").run())
        producer = cluster.producer()
        for number in range(200):
            producer.send("t", b"%d" % number, b"%d" % number, delivered=lambda e, o: seen.append((loop.clock(), o)))
            await asyncio.sleep(loop.random.random() * 0.01)
            if number == 100:
                two = asyncio.create_task(Member("two").run())
        cluster.freeze("one")
        one.cancel()
        await asyncio.sleep(30)
        two.cancel()

    run(main, seed)
    return seen


def test_a_seed_repeats_a_run_exactly() -> None:
    first = history(5)
    assert len(first) > 500
    assert first == history(5)
    assert first != history(6)


def test_clusters_are_found_by_name() -> None:
    assert connect("memory://unit-x") is connect("memory://unit-x")
    own = MemoryCluster("unit-x", scheduler=by_hand)
    register(own)
    assert connect("memory://unit-x") is own
    forget("memory://unit-x")
    forget("memory://unit-x")
    assert connect("memory://unit-x") is not own
    forget("memory://unit-x")
    with pytest.raises(ConfigurationError, match="memory://name"):
        connect("kafka:9092")
