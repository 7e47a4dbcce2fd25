"""Remedies of docs/findings.md that no other cheap test would miss: each test here fails without its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from statistics import median
from typing import Any, Literal

import pytest
import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned
from fastavro import parse_schema, schemaless_reader

from pipeline import Context, Pipeline, Settings
from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.reading import SchemaReader
from pipeline.codec.registry import SubjectVersion
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.codec.verdict import register
from pipeline.core.unit import Unit
from pipeline.kafka import commits
from pipeline.kafka import consumer as consuming
from pipeline.kafka.admin import KafkaAdmin
from pipeline.kafka.commits import METADATA_MAX_CHARACTERS, Answer, Committer
from pipeline.kafka.consumer import KafkaConsumer
from pipeline.kafka.settings import admin_settings, consumer_settings, lane_settings, producer_settings, reader_settings
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import ConsumerPolicy, Message, Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, FencedError, IncompatibleSchema
from pipeline.model.policies import FlowPolicy
from pipeline.topology import Defaults, execute, plan
from pipeline.worker import committing
from pipeline.worker.worker import BROKER_SESSION_TIMEOUT, Worker
from tests.unit import test_core_unit as core
from tests.unit.test_codec_avro import EVENT, NAME, TOPIC, variant
from tests.unit.test_worker_review import SOURCE, Poll, until

REQUEST_MAX = 1_048_588
"""Bytes that a broker's `message.max.bytes` lets one commit have, by default."""
OVERHEAD = 40
"""And at least so many for each partition beside its text."""


@pytest.fixture(autouse=True)
def said() -> list[dict[str, Any]]:
    """What is logged."""
    lines: list[dict[str, Any]] = []

    def keep(_logger: Any, _name: str, event: dict[str, Any]) -> str:
        lines.append(dict(event))
        return ""

    structlog.configure(processors=[keep], logger_factory=structlog.ReturnLoggerFactory())
    return lines


# -- schemas and values


def test_a_version_that_breaks_readers_is_refused_whatever_the_registry_accepts() -> None:
    """Registries in mocks take anything, and a server's level may have been set to NONE."""
    other = variant(lambda fields: fields.append({"name": "extra", "type": "string"}))

    class Careless:
        def versions(self, subject: str) -> list[SubjectVersion]:
            return [SubjectVersion(subject, 1, 1, other.text)]

        def register(self, subject: str, schema: object) -> int:
            raise AssertionError(f"{subject} was asked for")

    with pytest.raises(IncompatibleSchema, match="extra"):
        register(product_catalogue(), Careless(), TOPIC, [NAME])  # type: ignore[arg-type]


def prepared(*topics: str) -> AvroCodec:
    codec = AvroCodec(LocalRegistry(MemorySchemaLog(), product_catalogue()))
    for topic in topics:
        assert codec.prepare(topic) == []
    return codec


def test_a_value_is_read_in_less_time_than_fastavro_takes() -> None:
    """By two fifths as a rule. (Confluent's deserializer takes three times fastavro's.)

    In turn, and by the thread's own time: what else the machine does slows neighbours in time alike, and a middle
    ratio needs that more than half of the pairs agree."""
    codec = prepared(TOPIC)
    data, schema = codec.encode(EVENT, topic=TOPIC), parse_schema(product_catalogue().present[NAME].node)

    def took_s(read: Callable[[], object]) -> float:
        began_s = time.thread_time()
        for _ in range(200):
            read()
        return time.thread_time() - began_s

    ratios = []
    for _ in range(31):
        theirs_s = took_s(lambda: schemaless_reader(BytesIO(data[5:]), schema))
        ratios.append(took_s(lambda: codec.decode_dict(TOPIC, data)) / theirs_s)
    assert median(ratios) < 1


def test_one_schema_has_one_reader_whatever_its_ids_and_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = SchemaReader.make, list[str]()

    def counted(writer: Any, contract: Any, kind: Any) -> SchemaReader:
        made.append(writer.name)
        return make(writer, contract, kind)

    monkeypatch.setattr(SchemaReader, "make", counted)
    codec = prepared("one", "two")
    data = codec.encode(EVENT, topic="two")
    assert [codec.decode("two", data) for _ in range(3)] == [EVENT] * 3
    assert len(made) == len(set(made))


# -- clients


def test_settings_that_measurements_chose() -> None:
    """Each is far from librdkafka's default, which cost minutes, or three quarters of the rate."""
    member = consumer_settings("b", ConsumerPolicy("g"), {})
    fetching = [member, lane_settings(member), reader_settings("b", "c", {})]
    for each in (*fetching, producer_settings("b", "c", {}), admin_settings("b", {})):
        assert each["topic.metadata.refresh.interval.ms"] <= 5_000, "a topic that comes later"
    for each in fetching:
        assert each["fetch.queue.backoff.ms"] <= 10, "after a full queue"
    assert 8 * member["fetch.message.max.bytes"] <= member["fetch.max.bytes"], "a fetch is of several partitions"
    assert 8 * member["fetch.message.max.bytes"] <= 1024 * member["queued.max.messages.kbytes"]


def test_an_answer_that_is_waited_for_keeps_its_client() -> None:
    """An AdminClient that nobody refers to any more ends, and what it was asked is answered with _DESTROY."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        admin = KafkaAdmin(admin_settings(f"127.0.0.1:{nobody.getsockname()[1]}", {}))
        with pytest.raises(ClusterUnavailable, match="_TIMED_OUT"):
            admin.topics(["t"], timeout_s=0.3)


@pytest.mark.parametrize(
    ("protocol", "value", "told"),
    [("consumer", "45000", True), ("consumer", None, True), ("consumer", "6000", False), ("classic", "45000", False)],
)
def test_a_broker_whose_sessions_are_long_is_told(
    protocol: Literal["classic", "consumer"], value: str | None, told: bool, said: list[dict[str, Any]]
) -> None:
    class Broker:
        def broker_setting(self, name: str) -> str | None:
            assert name == BROKER_SESSION_TIMEOUT
            return value

    app = Pipeline("app", settings=Settings(broker="memory://sessions", group_protocol=protocol))
    app.subscribe("t", group="g", value="bytes")(handle)
    Worker(app)._warn_of_slow_takeover(Broker())  # type: ignore[arg-type]
    assert [line["setting"] for line in said if "stand still" in line["event"]] == [BROKER_SESSION_TIMEOUT] * told


async def handle(value: bytes, ctx: Context) -> None: ...


def test_only_the_poll_for_the_first_record_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`consume(n, t)` would wait for all n: p50 52 ms instead of 0.7."""
    asked: list[tuple[str, float]] = []

    class Client:
        def __init__(self, _settings: object) -> None: ...

        def consume(self, _count: int, timeout_s: float) -> list[object]:
            asked.append(("consume", timeout_s))
            return []

        def poll(self, timeout_s: float) -> None:
            asked.append(("poll", timeout_s))

    monkeypatch.setattr(consuming, "Consumer", Client)
    consumer = KafkaConsumer({"max.poll.interval.ms": 60_000}, 1_000, None, print)  # type: ignore[arg-type]
    assert consumer.poll(100, 0.02) == []
    assert asked == [("consume", 0), ("poll", 0.02)]


def test_no_poll_is_long_however_long_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stops a worker (SIGTERM, a drain) is heard between two polls, and librdkafka's can't be woken."""
    poll, waits = Poll(), list[float]()

    def empty(_most: int, timeout_s: float) -> Sequence[Message]:
        waits.append(timeout_s)
        return []

    monkeypatch.setattr(poll.consumer, "poll", empty)
    poll.fetcher.step(60.0)
    assert waits
    assert max(waits) <= 0.05


# -- commits


class Coordinator:
    """A client whose commits are stored, but for partitions that it does not have: one such, and the whole request is an error."""

    def __init__(self, member: str) -> None:
        self.member = member
        self.held: dict[TopicPartition, Position] = {}
        self.requests: list[set[TopicPartition]] = []

    def memberid(self) -> str:
        return self.member

    def commit(self, offsets: list[Assigned], asynchronous: bool) -> list[Assigned]:
        assert not asynchronous
        self.requests.append({TopicPartition(each.topic, each.partition) for each in offsets})
        known = [each for each in offsets if each.topic == "t"]
        self.held |= {TopicPartition(t.topic, t.partition): Position(t.offset, t.metadata or "") for t in known}
        if len(known) < len(offsets):
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        return offsets

    def committed(self, wanted: list[Assigned], _timeout_s: float) -> list[Assigned]:
        found = [(tp, self.held.get(TopicPartition(tp.topic, tp.partition))) for tp in wanted]
        return [Assigned(tp.topic, tp.partition, at.offset, at.metadata) if at else tp for tp, at in found]


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator("m")


@pytest.fixture
def committer(coordinator: Coordinator) -> Iterator[Committer]:
    made = Committer(coordinator)  # type: ignore[arg-type]
    yield made
    made.close(5.0)


def place(partition: int, topic: str = "t") -> TopicPartition:
    return TopicPartition(topic, partition)


def test_what_can_not_be_committed_is_not_sent_with_the_others(committer: Committer, coordinator: Coordinator) -> None:
    """The broker refuses such a text, and the client then reports that for every partition of the request."""
    full = "x" * METADATA_MAX_CHARACTERS
    wanted = {
        place(0): Position(1, full),
        place(1): Position(1, full + "x"),
        place(2): Position(1, "a\0b"),
        place(3): Position(-1),
        place(4): Position(1, "\N{GRINNING FACE}" * 2_048),  # 4,096 of the broker's UTF-16 units
    }
    answer = committer.commit_now(wanted, 5.0)
    assert coordinator.requests == [{place(0)}]
    assert [tp.partition for tp, error in answer.items() if error is None] == [0]
    words = {tp.partition: str(error) for tp, error in answer.items() if error is not None}
    assert all(part in words[at] for at, part in ((1, "4096 char"), (2, "NUL"), (3, "offset -1"), (4, "4096 char")))


def test_what_was_stored_beside_a_refused_partition_is_told_apart(
    committer: Committer, coordinator: Coordinator
) -> None:
    gone = place(0, "gone")
    answer = committer.commit_now({place(0): Position(3, "a"), gone: Position(1), place(1): Position(4)}, 5.0)
    assert len(coordinator.requests) == 1
    assert {tp for tp, error in answer.items() if error is None} == {place(0), place(1)}
    assert isinstance(answer[gone], ClusterError)


def test_a_commit_goes_out_as_the_member_that_asked_for_it_or_not_at_all() -> None:
    """A member that was removed and has joined again is another one, whose commit the group would take."""
    coordinator = Coordinator("the next")
    committer = Committer(coordinator)  # type: ignore[arg-type]
    committer.member_id = "m"
    answer = committer.commit_now({place(0): Position(3)}, 5.0)
    committer.close(5.0)
    assert isinstance(answer[place(0)], FencedError)
    assert coordinator.requests == []


def test_of_what_is_let_go_nothing_is_sent_any_more_and_what_is_under_way_is_waited_for(
    committer: Committer, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of the new protocol that joins again is the same member: a commit of before would be taken."""
    asked, free, answers = threading.Event(), threading.Event(), dict[int, Answer]()
    store = coordinator.commit

    def slow(**request: Any) -> list[Assigned]:
        asked.set()
        assert free.wait(10)
        return store(**request)

    monkeypatch.setattr(coordinator, "commit", slow)
    for number, partition in enumerate((0, 0, 1)):
        committer.commit({place(partition): Position(number)}, partial(answers.__setitem__, number))
    assert asked.wait(10)
    assert not committer.let_go([place(0)], 0.05), "the first is under way"
    committer.serve()
    assert [*answers] == [1]
    assert isinstance(answers[1][place(0)], FencedError)
    threading.Timer(0.1, free.set).start()
    assert committer.let_go([place(0)], 10)
    committer.close(5.0)
    committer.serve()
    assert coordinator.requests == [{place(0)}, {place(1)}], "the one that is refused is not sent; others are"
    assert answers[0] == {place(0): None}
    assert answers[2] == {place(1): None}


def test_a_commit_that_is_about_to_be_sent_when_its_partition_goes_is_not_sent(
    committer: Committer, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused in the very moment in which it is found to wait: the thread goes on right behind that."""
    ready, free, answers = threading.Event(), threading.Event(), list[Answer]()

    def about_to_send(_thread_id: int) -> None:
        ready.set()
        assert free.wait(10)

    def refused(text: str) -> FencedError:
        free.set()
        time.sleep(0.1)
        return FencedError(text)

    monkeypatch.setattr(commits, "_pass_for", about_to_send)
    monkeypatch.setattr(commits, "FencedError", refused)
    committer.commit({place(0): Position(1)}, answers.append)
    assert ready.wait(10)
    assert committer.let_go([place(0)], 5.0)
    committer.close(5.0)
    committer.serve()
    assert coordinator.requests == []
    assert [type(answer[place(0)]) for answer in answers] == [FencedError]


def test_what_was_lost_is_not_committed_any_more() -> None:
    """Asked for just before: the group takes a commit of any partition from any member, and it is the next owner's by now."""
    poll = Poll()
    poll.opened()
    poll.fetcher.lost([SOURCE])
    poll.fetcher.request(lambda: poll.fetcher.commit({SOURCE: Position(5)}))
    poll.step()
    assert poll.consumer.stored == []


def test_254_full_partitions_go_out_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one they are more than a batch in the coordinator's log may have, which refuses them all."""
    monkeypatch.setattr(committing, "encode", lambda _progress, limit: "x" * limit)
    committer, units = committing.Committer(), [core.unit() for _ in range(254)]
    for number, target in enumerate(units):
        target.partition = number
        target.lanes = target.lanes[:1]
    sizes, seen = list[int](), set[int]()
    while len(seen) < len(units) and len(sizes) < 5:
        asked = committer.next(units, len(sizes))
        assert asked
        sizes.append(sum(len(position.metadata) + OVERHEAD for position in asked.values()))
        seen |= {tp.partition for tp in asked}
        committer.answered(dict.fromkeys(asked), len(sizes), asked)
    assert len(seen) == 254
    assert sum(sizes) > REQUEST_MAX, "they do not fit one"
    assert max(sizes) < REQUEST_MAX


# -- concurrency


def test_few_keys_per_partition_all_run_though_each_fetch_brings_one_partition() -> None:
    """What waits behind its keys must not keep other partitions' records out, or concurrency by key starves."""
    gate = asyncio.Event()
    app = Pipeline("app", settings=Settings(broker="memory://few"))

    @app.subscribe("t", group="g", value="bytes", concurrency=1_000, flow=FlowPolicy(buffered=200))
    async def wait(value: bytes, ctx: Context) -> None:
        await gate.wait()

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("few", clock=loop.clock, scheduler=loop.call_later_ms)
        memory.register(cluster)
        worker = Worker(app)
        try:
            admin, producer = cluster.admin(), cluster.producer("agents")
            for action in plan(app.subscriptions, admin.topics(), Defaults(partitions=8)).actions:
                execute(admin, action)
            for number in range(8 * 500):
                producer.send("t", b"k%d" % (number % 96), b"", partition=number % 8)
            cluster.faults.fetch_records = (500, 500)
            await worker.start()
            engine = worker.running[0].engine
            await until(lambda: engine.executor.running() == 96, 5.0)
            assert all(unit.waiting.count <= 100 + 500 for unit in engine.partitions.values())
            gate.set()
            await until(lambda: settled(list(engine.partitions.values())) == 8 * 500)
        finally:
            worker.abandon()
            memory.forget(cluster.address)

    run(main)


def settled(units: Sequence[Unit]) -> int:
    return sum(unit.lanes[0].tracker.position for unit in units)
