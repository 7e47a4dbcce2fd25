"""Publishing to real Kafka: what arrives, what a broker that goes away and comes back costs the agent, and that nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from pipeline import Pipeline, Settings
from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.registry_local import LocalRegistry, MemorySchemaLog
from pipeline.emit.feed import Feeder
from pipeline.emit.openai_chat import ImportOptions
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.publisher import Publisher, PublishOptions
from pipeline.emit.recorder import Recorder
from pipeline.emit.transcripts import read_runs
from pipeline.kafka.cluster import connect
from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker
from pipeline.model.cluster import Message as Fetched
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import BufferFull
from pipeline.model.events import Message, RunEvent
from pipeline.model.headers import event_id_of
from tests.integration.waiting import until
from tests.patience import PATIENCE

PARTITIONS = 3
CLIENT = {"producer.delivery.timeout.ms": "0"}
"""Records wait for the broker as long as it takes: the publisher bounds them itself."""


def codec_for(topic: str) -> AvroCodec:
    registry = LocalRegistry(MemorySchemaLog(), product_catalogue())
    codec = AvroCodec(registry)
    for name, schema in codec.catalogue.present.items():
        registry.register(f"{topic}-{name}", schema)
    assert codec.prepare(topic) == []
    return codec


def create(bootstrap: str, topic: str) -> None:
    connect(bootstrap).admin().create_topics([TopicSpec(topic, PARTITIONS, 1)])


def publisher_for(bootstrap: str, topic: str, policy: BufferPolicy | None = None) -> Publisher:
    cluster = connect(bootstrap, client_settings=CLIENT)
    return Publisher(cluster.producer("test"), codec_for(topic), policy, PublishOptions(topic=topic))


def read_all(bootstrap: str, topic: str, deadline_s: float = 30.0) -> list[Fetched]:
    """Every record of the topic, up to its end as of now; in order within each partition."""
    cluster = connect(bootstrap)
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    missing = sum(cluster.admin().end_offsets(partitions).values())
    reader, found, end = cluster.reader(), [], time.monotonic() + deadline_s
    reader.assign(dict.fromkeys(partitions, 0))
    try:
        while len(found) < missing:
            assert time.monotonic() < end, f"read {len(found)} of {missing}"
            found += reader.poll(1_000, 0.2)
    finally:
        reader.close()
    return found


def message(number: int) -> Message:
    run = f"run-{number % 7}"
    fields = {"event_id": f"e{number}", "run_id": run, "sequence": number, "occurred_at": 1_700_000_000_000}
    return Message(**fields, agent="a", tenant="t", role="USER", content="hello " * 10)  # type: ignore[arg-type]


def check_arrivals(records: list[Fetched], count: int) -> int:
    """All of 0..count-1 arrived, each key's in order; returns how many came twice."""
    arrived: dict[bytes, list[int]] = {}
    seen: set[str] = set()
    for record in records:
        event_id, key = event_id_of(record.headers()), record.key()
        assert event_id is not None
        assert key is not None
        if event_id not in seen:
            arrived.setdefault(key, []).append(int(event_id[1:]))
        seen.add(event_id)
    assert seen == {f"e{number}" for number in range(count)}
    for numbers in arrived.values():
        assert numbers == sorted(numbers)
    return len(records) - len(seen)


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    """One node of our own that a test may kill and start again."""
    with EmbeddedBroker(BrokerSpec()) as own:
        yield own


def kill(broker: EmbeddedBroker) -> int:
    (node,) = broker.node_pids
    broker.kill_node(node)
    return node


def test_a_recorded_run_can_be_read_back(kafka: str, topic_name: str) -> None:
    create(kafka, topic_name)
    with Recorder(publisher_for(kafka, topic_name)) as recorder, recorder.run(agent="support", tenant="acme") as run:
        with run.model_call("gpt-large") as call:
            call.usage(input_tokens=1200, output_tokens=340)
        with run.tool_call("search", arguments={"q": "refund"}) as tool:
            tool.result("...")
    codec, records = codec_for(topic_name), read_all(kafka, topic_name)
    events = [codec.decode(topic_name, record.value()) for record in records]
    assert [type(event).__name__ for event in events] == [
        "RunStarted",
        "ModelCall",
        "ToolCall",
        "ToolResult",
        "RunCompleted",
    ]
    assert {record.key() for record in records} == {run.run_id.encode()}
    for event, record in zip(events, records, strict=True):
        assert isinstance(event, RunEvent)
        assert event_id_of(record.headers()) == event.event_id


def test_imported_transcripts_can_be_read_back(kafka: str, topic_name: str, real_runs: Path) -> None:
    create(kafka, topic_name)
    publisher, sent = publisher_for(kafka, topic_name), list[RunEvent]()
    for result, _ in islice(read_runs(real_runs, ImportOptions("tau")), 20):
        Feeder(publisher).feed(result.events)
        sent += result.events
    assert publisher.close(30).complete
    codec = codec_for(topic_name)
    back = [codec.decode(topic_name, record.value()) for record in read_all(kafka, topic_name)]
    by_run: dict[str, list[object]] = {}
    for event in back:
        assert isinstance(event, RunEvent)
        by_run.setdefault(event.run_id, []).append(event)
    assert len(back) == len(sent)
    for run_id, events in by_run.items():
        assert events == [event for event in sent if event.run_id == run_id]


def test_spooling_through_a_broker_that_is_killed_and_comes_back(
    broker: EmbeddedBroker, topic_name: str, tmp_path: Path
) -> None:
    create(broker.bootstrap, topic_name)
    policy = BufferPolicy(mode="spool", spool_dir=tmp_path, max_records=1_000, away_after="500ms")
    publisher = publisher_for(broker.bootstrap, topic_name, policy)
    try:
        longest, number = 0.0, 0

        def publish(count: int) -> None:
            nonlocal longest, number
            for _ in range(count):
                began = time.monotonic()
                publisher.publish(message(number))
                longest, number = max(longest, time.monotonic() - began), number + 1

        publish(500)
        node = kill(broker)
        publish(100)
        until("the publisher notices", lambda: publisher.stats().away)
        publish(8_000)
        until("they are on disk", lambda: publisher.stats().spooled >= 8_000)
        broker.start_node(node)
        publish(2_000)
        left = publisher.flush(60)
        assert left.complete, f"{left} {publisher.stats()}"
        publish(100)
        assert publisher.flush(30).complete
        assert longest < policy.block_timeout_ms / 1_000, "the agent waited longer than its policy says"
        print(f"longest publish {longest * 1_000:.1f} ms, {publisher.stats()}")
    finally:
        publisher.close(5)
    duplicates = check_arrivals(read_all(broker.bootstrap, topic_name), number)
    assert duplicates <= policy.window
    assert list(tmp_path.iterdir()) == []


def test_blocking_no_longer_than_the_policy_says_while_the_broker_is_silent(
    broker: EmbeddedBroker, topic_name: str
) -> None:
    create(broker.bootstrap, topic_name)
    policy = BufferPolicy(mode="block", max_records=200, block_timeout="300ms")
    publisher = publisher_for(broker.bootstrap, topic_name, policy)
    try:
        publisher.publish(message(0))
        assert publisher.flush(20).complete
        node = kill(broker)
        waits, taken = list[float](), 1
        try:
            for _ in range(212):
                began = time.monotonic()
                try:
                    publisher.publish(message(taken))
                    taken += 1
                except BufferFull:
                    waits.append(time.monotonic() - began)
                if len(waits) == 5:
                    break
        finally:
            broker.start_node(node)  # others need it too
        assert len(waits) == 5
        assert min(waits) >= 0.3
        assert sorted(waits)[2] < 0.6
        assert max(waits) < 2, "one may have waited for a processor as well"
        assert publisher.flush(60).complete
    finally:
        publisher.close(5)
    assert check_arrivals(read_all(broker.bootstrap, topic_name), taken) == 0


DYING = """
import os, sys
sys.path.insert(0, sys.argv[5])
from test_emit_on_kafka import *
bootstrap, topic, spool, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
publisher = publisher_for(bootstrap, topic, BufferPolicy(mode="spool", spool_dir=spool, away_after="300ms"))
for number in range(count):
    publisher.publish(message(number))
until("all is on disk", lambda: publisher.stats().spooled >= count)
os._exit(9)
"""


def test_a_spool_of_a_process_that_died_is_sent_by_the_next(
    broker: EmbeddedBroker, topic_name: str, tmp_path: Path
) -> None:
    create(broker.bootstrap, topic_name)
    node = kill(broker)
    arguments = [broker.bootstrap, topic_name, str(tmp_path), "600", str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    died = subprocess.run(
        [sys.executable, "-c", DYING, *arguments], timeout=60 * PATIENCE, check=False, env=environment
    )
    assert died.returncode == 9
    broker.start_node(node)
    publisher = publisher_for(broker.bootstrap, topic_name, BufferPolicy(mode="spool", spool_dir=tmp_path))
    for number in range(600, 900):
        publisher.publish(message(number))
    assert publisher.flush(60).complete
    assert publisher.close(5).complete
    assert check_arrivals(read_all(broker.bootstrap, topic_name), 900) == 0


@pytest.mark.parametrize("example", ["record_run.py", "record_run_sync.py"])
def test_the_examples_run(kafka: str, topic_name: str, example: str) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PIPELINE_BROKER": kafka, "PIPELINE_EVENTS_TOPIC": topic_name, "PYTHONPATH": str(root)}
    create(kafka, topic_name)
    register = [sys.executable, "-c", "from pipeline.cli.main import run; run()", "schemas", "register", topic_name]
    registered = subprocess.run(
        register, timeout=60 * PATIENCE, check=False, env=environment, capture_output=True, text=True
    )
    assert registered.returncode == 0, registered.stderr
    command = [sys.executable, str(root / "examples" / example)]
    done = subprocess.run(command, timeout=60 * PATIENCE, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = read_all(kafka, topic_name)
    assert {record.key() for record in records} == {done.stdout.strip().encode()}
    assert len(records) == 6


CLOSE_S, IN_TIME_S = 30, 20
"""What an agent's process gives its publisher at its end; and whole, with its start on a busy machine, if it did not wait so long."""

COLD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_emit_on_kafka import message
from pipeline import Pipeline, Settings
from pipeline.emit.policy import BufferPolicy
broker, prefix, spool, first, last, away_after, close_s = sys.argv[2:]
app = Pipeline("agent", settings=Settings(broker=broker, prefix=prefix))
publisher = app.publisher(BufferPolicy(mode="spool", spool_dir=spool, away_after=away_after), "events")
for number in range(int(first), int(last)):
    publisher.publish(message(number))
left = publisher.close(float(close_s))
print(json.dumps([left.undelivered, left.spool_bytes, left.trouble]))
"""


def agent(
    broker: EmbeddedBroker, prefix: str, spool: Path, first: int, last: int, away_after: str = "300ms"
) -> tuple[int, int, str, str, float]:
    """An agent's process from start to end: undelivered, bytes spooled, why, what it printed, and how long it took."""
    options = (prefix, str(spool), str(first), str(last), away_after, str(CLOSE_S))
    arguments = [str(Path(__file__).parent), broker.bootstrap, *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", COLD, *arguments],
        timeout=60 * PATIENCE,
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    undelivered, spooled, why = json.loads(ran.stdout)
    return undelivered, spooled, why, ran.stderr, time.monotonic() - began


def test_an_agent_whose_broker_was_never_there_loses_nothing(
    broker: EmbeddedBroker, topic_name: str, tmp_path: Path
) -> None:
    prefix = f"{topic_name}."
    create(broker.bootstrap, f"{prefix}events")
    node = kill(broker)
    undelivered, spooled, why, printed, took_s = agent(broker, prefix, tmp_path, 0, 300)
    assert undelivered == 0
    assert spooled > 0
    assert why
    assert took_s < IN_TIME_S, f"it waited for the broker: {printed}"
    assert printed.count("kafka client:") <= 1, printed
    assert agent(broker, prefix, tmp_path, 300, 400)[0] == 0
    broker.start_node(node)
    undelivered, spooled, why, printed, _ = agent(broker, prefix, tmp_path, 400, 500)
    assert (undelivered, spooled, why) == (0, 0, ""), printed
    records = read_all(broker.bootstrap, f"{prefix}events")
    assert check_arrivals(records, 500) == 0
    app = Pipeline("reader", settings=Settings(broker=broker.bootstrap, prefix=prefix))
    assert app.codec.prepare(f"{prefix}events") == []
    for record in records:
        event = app.codec.decode(f"{prefix}events", record.value())
        assert isinstance(event, Message)
        assert event == message(event.sequence)


def test_a_missing_topic_is_named_and_what_was_for_it_is_kept(
    broker: EmbeddedBroker, topic_name: str, tmp_path: Path
) -> None:
    prefix = f"{topic_name}."
    undelivered, spooled, why, printed, took_s = agent(broker, prefix, tmp_path, 0, 100, "2s")
    assert undelivered == 0
    assert spooled > 0
    assert why == f"topic {prefix}events does not exist: make it with `pipeline topics apply --topic {prefix}events`"
    assert why in printed
    assert "does not answer" not in printed
    assert took_s < IN_TIME_S, printed
    create(broker.bootstrap, f"{prefix}events")
    assert agent(broker, prefix, tmp_path, 100, 200)[:3] == (0, 0, "")
    assert check_arrivals(read_all(broker.bootstrap, f"{prefix}events"), 200) == 0
