"""The stream views on real Kafka with real Faust worker processes; totals are read back from the output topics."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic

from pipeline.codec.avro import AvroCodec
from pipeline.codec.catalogue import product_catalogue
from pipeline.codec.registry_local import SCHEMA_LOG_TOPIC, LocalRegistry
from pipeline.kafka.schema_log import KafkaSchemaLog
from pipeline.model.events import ModelCall, RunCompleted, RunEvent, RunFailed, RunStarted, ToolCall, ToolResult
from pipeline.model.headers import decode as decode_headers
from pipeline.views.policy import ViewsPolicy
from tests.integration.waiting import until as until_in
from tests.patience import PATIENCE

pytestmark = [pytest.mark.first, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
PARTITIONS = 4
MINUTE = 60_000

until = partial(until_in, deadline_s=90.0)


def a_run(number: int) -> list[RunEvent]:
    """Seven events over two minutes; every third run fails, agents and tenants vary."""
    base: dict[str, Any] = {"run_id": f"run-{number}", "agent": f"agent-{number % 3}", "tenant": f"tenant-{number % 2}"}
    end: type[RunCompleted] | type[RunFailed] = RunFailed if number % 3 == 0 else RunCompleted
    more = {"error_class": "Boom", "error_message": "no"} if number % 3 == 0 else {}
    made: list[tuple[type[RunEvent], dict[str, Any]]] = [
        (RunStarted, {}),
        (ModelCall, {"model": "m", "input_tokens": 10 + number, "output_tokens": 3}),
        (ToolCall, {"tool": "t", "call_id": "1", "arguments": "{}"}),
        (ToolResult, {"tool": "t", "call_id": "1", "status": "ERROR" if number % 5 == 0 else "OK"}),
        (ModelCall, {"model": "m", "input_tokens": 5, "output_tokens": 2}),
        (ToolCall, {"tool": "t", "call_id": "2", "arguments": "{}"}),
        (end, more),
    ]
    return [
        kind(event_id=f"{number}-{n}", sequence=n, occurred_at=10 * MINUTE + n * 15_000, **base, **fields)
        for n, (kind, fields) in enumerate(made)
    ]


def expected_rates(events: list[RunEvent]) -> dict[str, Counter[str]]:
    """Counted here by hand, not by the product's folds."""
    out: dict[str, Counter[str]] = {}
    for event in events:
        minute = event.occurred_at // MINUTE * MINUTE
        counts = out.setdefault(f"{event.agent}|{event.tenant}|{minute}", Counter())
        counts["events"] += 1
        match event:
            case RunStarted():
                counts["runs_started"] += 1
            case ModelCall():
                counts["model_calls"] += 1
                counts["input_tokens"] += event.input_tokens
                counts["output_tokens"] += event.output_tokens
            case ToolCall():
                counts["tool_calls"] += 1
            case ToolResult():
                counts["tool_errors"] += event.status == "ERROR"
            case RunCompleted():
                counts["runs_completed"] += 1
            case RunFailed():
                counts["runs_failed"] += 1
    return out


class Scene:
    """One test's topics, its producer, and the views processes it started."""

    def __init__(self, bootstrap: str, prefix: str, log: Path) -> None:
        self.policy = ViewsPolicy(bootstrap, prefix=f"{prefix}.", session_timeout_ms=6_000)
        self.topics = self.policy.topics
        self.config = {"bootstrap.servers": bootstrap}
        self.admin = AdminClient(self.config)
        self.admin.create_topics([NewTopic(self.topics.source, PARTITIONS)])[self.topics.source].result(30)
        catalogue = product_catalogue()
        self.schema_log = KafkaSchemaLog(self.config, SCHEMA_LOG_TOPIC)
        self.codec = AvroCodec(LocalRegistry(self.schema_log, catalogue), catalogue)
        self.codec.prepare(self.topics.source)
        self.codec.prepare(self.topics.source, ["agent.run.Ledger"])
        self.codec.prepare(self.topics.summaries, ["agent.run.RunSummary"])
        self.codec.prepare(self.topics.rates, ["agent.run.RunRate"])
        self.producer = Producer(self.config | {"enable.idempotence": True, "partitioner": "murmur2_random"})
        self.log = log
        self.processes: list[subprocess.Popen[bytes]] = []

    def publish(self, events: list[RunEvent]) -> None:
        for event in events:
            value = self.codec.encode(event, topic=self.topics.source)
            self.producer.produce(self.topics.source, value, event.run_id)
        assert self.producer.flush(30) == 0

    def start(
        self, policy: ViewsPolicy | None = None, module: str = "pipeline.views.worker"
    ) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT
            )
        self.processes.append(process)
        assert process.stdin is not None
        process.stdin.write((policy or self.policy).to_json().encode() + b"\n")
        process.stdin.flush()
        return process

    @staticmethod
    def end_of(consumer: Consumer, partition: TopicPartition) -> int:
        """The end offset; 0 while a topic that was just made has no leader yet."""
        try:
            return int(consumer.get_watermark_offsets(partition, timeout=10)[1])
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE):
                raise
            return 0

    def read(self, topic: str) -> list[Any]:
        """Every record of a topic as it is now."""
        consumer = Consumer(self.config | {"group.id": "read-back", "enable.auto.commit": False})
        try:
            wanted = {
                partition: high
                for partition in consumer.list_topics(topic, 10).topics[topic].partitions
                if (high := self.end_of(consumer, TopicPartition(topic, partition))) > 0
            }
            consumer.assign([TopicPartition(topic, partition, 0) for partition in wanted])
            out: list[Any] = []
            end = time.monotonic() + 30 * PATIENCE
            while wanted:
                assert time.monotonic() < end, f"{topic} was not read to its end"
                message = consumer.poll(0.2)
                if message is None or message.error():
                    continue
                out.append(message)
                if message.offset() + 1 >= wanted.get(message.partition(), 0):
                    wanted.pop(message.partition(), None)
            return out
        finally:
            consumer.close()

    def latest(self, topic: str) -> dict[str, dict[str, Any]]:
        """The newest value of each key, decoded by the codec."""
        found: dict[str, tuple[int, dict[str, Any]]] = {}
        for message in self.read(topic):
            key = message.key().decode()
            assert key not in found or found[key][0] == message.partition(), f"{key} is in two partitions"
            found[key] = (message.partition(), self.codec.decode_dict(topic, message.value())[1])
        return {key: fields for key, (_, fields) in found.items()}

    def events_counted(self) -> int:
        return sum(fields["events"] for fields in self.latest(self.topics.summaries).values())

    def has_counted(self, events: int) -> bool:
        return self.has_topic(self.topics.summaries) and self.events_counted() >= events

    def limit_summaries(self, max_bytes: str) -> None:
        """Set the largest record that the summaries topic takes."""
        entry = ConfigEntry("max.message.bytes", max_bytes, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, self.topics.summaries, incremental_configs=[entry])
        self.admin.incremental_alter_configs([resource])[resource].result(30)

    def committed(self) -> int:
        consumer = Consumer(self.config | {"group.id": self.policy.group})
        try:
            asked = [TopicPartition(self.topics.source, partition) for partition in range(PARTITIONS)]
            return sum(max(0, position.offset) for position in consumer.committed(asked, 10))
        finally:
            consumer.close()

    def has_topic(self, topic: str) -> bool:
        return topic in self.admin.list_topics(timeout=10).topics

    def check(self, runs: list[int]) -> None:
        """Wait until the views say exactly what these runs amount to."""
        events = [event for number in runs for event in a_run(number)]
        wanted = expected_rates(events)
        names = sorted({name for counts in wanted.values() for name in counts})

        def done() -> bool:
            rates = self.latest(self.topics.rates)
            return self.events_counted() >= len(events) and sum(r["events"] for r in rates.values()) >= len(events)

        until("views caught up", done, tell=self.describe)
        rates = self.latest(self.topics.rates)
        assert {key: {n: fields[n] for n in names} for key, fields in rates.items()} == {
            key: {n: counts[n] for n in names} for key, counts in wanted.items()
        }
        summaries = self.latest(self.topics.summaries)
        assert summaries.keys() == {f"run-{number}" for number in runs}
        for number in runs:
            got = summaries[f"run-{number}"]
            told = {
                name: got[name]
                for name in ("state", "events", "model_calls", "tool_calls", "tool_errors", "input_tokens")
            }
            assert told == {
                "state": "FAILED" if number % 3 == 0 else "COMPLETED",
                "events": 7,
                "model_calls": 2,
                "tool_calls": 2,
                "tool_errors": int(number % 5 == 0),
                "input_tokens": 15 + number,
            }
            assert got["last_error"] == ("Boom: no" if number % 3 == 0 else "t: ERROR" if number % 5 == 0 else None)
            assert got["duration_ms"] == 90_000

    def describe(self) -> str:
        """For failures: how far each view is, and of each partition the committed and the end offset."""
        group = self.admin.describe_consumer_groups([self.policy.group])[self.policy.group].result(10)
        rates = sum(rate["events"] for rate in self.latest(self.topics.rates).values())
        lines = [f"{self.events_counted()} events in summaries, {rates} in rates; {len(group.members)} members"]
        consumer = Consumer(self.config | {"group.id": self.policy.group})
        try:
            for topic in (self.topics.source, self.topics.partials):
                asked = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
                ends = [(p.partition, p.offset, self.end_of(consumer, p)) for p in consumer.committed(asked, 10)]
                lines.append(f"{topic}: {ends}")
        finally:
            consumer.close()
        return "\n".join(lines)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10 * PATIENCE)
        self.schema_log.close()


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(kafka, topic_name, tmp_path / "views.log")
    yield made
    made.close()
    sys.stdout.write((tmp_path / "views.log").read_text()[-4_000:] if (tmp_path / "views.log").exists() else "")


@pytest.fixture
def unused_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def stop_cleanly(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(30 * PATIENCE) == 0


def test_events_become_summaries_and_rates(scene: Scene) -> None:
    runs = list(range(40))
    scene.publish([event for number in runs for event in a_run(number)])
    worker = scene.start()
    scene.check(runs)
    scene.publish(a_run(40) + a_run(3))  # a run published twice counts once
    scene.check([*runs, 40])
    stop_cleanly(worker)
    assert scene.committed() == 42 * 7


def test_what_cant_be_read_is_a_dead_letter_and_the_rest_goes_on(scene: Scene) -> None:
    scene.publish(a_run(1)[:3])
    ledger = {"group": "g", "event_id": "e", "key": "k", "origin_topic": "t", "origin_partition": 0, "origin_offset": 0}
    ledger |= {"attempt": 1, "action": "done", "worker": "w", "at_ms": 1}
    stranger = scene.codec.encode(ledger, topic=scene.topics.source, record_name="agent.run.Ledger")
    bad = [b"garbage", b"", None, b"\x00\x00\x00\x00\x07cut", stranger]
    for value in bad:
        scene.producer.produce(
            scene.topics.source, value, "run-1", headers=[("traceparent", b"00-a"), ("pl.attempt", b"99")]
        )
    scene.publish(a_run(1)[3:])
    worker = scene.start()
    scene.check([1])
    dead = scene.read(scene.topics.dead_letters)
    assert [message.value() for message in dead] == bad
    for message in dead:
        headers = decode_headers(message.headers())
        assert (headers.origin_topic, headers.origin_partition) == (scene.topics.source, message.partition())
        assert (headers.group, headers.attempt, headers.error.error_class) == (scene.policy.group, 1, "undecodable")
        assert dict(message.headers())["traceparent"] == b"00-a"
    assert [decode_headers(message.headers()).origin_offset for message in dead] == [3, 4, 5, 6, 7]
    stop_cleanly(worker)
    assert scene.committed() == 12


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
def test_a_killed_worker_leaves_right_totals(scene: Scene, store: str, tmp_path: Path) -> None:
    scene.policy = replace(
        scene.policy, store=store, data_dir=str(tmp_path) if store == "rocksdb" else "", batch_records=50
    )
    runs = list(range(400))
    events = [event for number in runs for event in a_run(number)]
    events.sort(key=lambda event: event.sequence)  # every run is open when the worker dies
    scene.publish(events[:2_000])
    for kill_at in (300, 1_200):
        worker = scene.start()
        until(f"{kill_at} events counted", partial(scene.has_counted, kill_at))
        worker.kill()
        worker.wait(10 * PATIENCE)
    scene.publish(events[2_000:])
    worker = scene.start()
    scene.check(runs)
    stop_cleanly(worker)


def health(policy: ViewsPolicy) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{policy.web_port}/health", timeout=2) as answer:
            return dict(json.load(answer))
    except OSError:
        return {"partitions": 0}


def test_two_workers_share_the_partitions(scene: Scene, unused_ports: tuple[int, int]) -> None:
    first, second = (replace(scene.policy, web_port=port) for port in unused_ports)
    runs = list(range(60))
    events = sorted((event for number in runs for event in a_run(number)), key=lambda event: event.sequence)
    scene.publish(events[:100])
    process = scene.start(first)
    until("the first owns all", lambda: health(first)["partitions"] == PARTITIONS)
    other = scene.start(second)
    scene.publish(events[100:200])
    until("both own half", lambda: (health(first)["partitions"], health(second)["partitions"]) == (2, 2))
    scene.publish(events[200:300])
    until("300 counted", lambda: scene.events_counted() >= 300)
    with urllib.request.urlopen(f"http://127.0.0.1:{second.web_port}/metrics", timeout=2) as answer:
        assert b'pipeline_views_records_total{result="counted"}' in answer.read()
    other.kill()
    scene.publish(events[300:])
    scene.check(runs)
    assert health(first) == {"status": "consuming", "partitions": PARTITIONS}
    stop_cleanly(process)


def test_a_slow_start_on_a_backlog_loses_nothing(scene: Scene) -> None:
    """Records are there to be fetched while the worker that takes over still asks from which offset on."""
    scene.policy = replace(scene.policy, batch_records=10)
    runs = list(range(150))
    events = sorted((event for number in runs for event in a_run(number)), key=lambda event: event.sequence)
    scene.publish(events[:700])
    worker = scene.start()
    until("events are counted", partial(scene.has_counted, 1))
    worker.kill()
    scene.publish(events[700:])
    slow = scene.start(module="tests.integration.slow_seek_views_worker")
    scene.check(runs)
    stop_cleanly(slow)


def test_a_refused_write_ends_the_worker_before_its_offset_is_committed(scene: Scene) -> None:
    scene.publish(a_run(1))
    worker = scene.start()
    scene.check([1])
    until("committed", lambda: scene.committed() == 7)
    scene.limit_summaries("10")
    scene.publish(a_run(2))
    assert worker.wait(60 * PATIENCE) == 1
    assert scene.committed() == 7, "an offset was committed past a write that Kafka refused"
    scene.limit_summaries("1048588")
    again = scene.start()
    scene.check([1, 2])
    stop_cleanly(again)


def test_a_worker_that_waits_for_a_lost_topic_still_ends(scene: Scene) -> None:
    scene.policy = replace(scene.policy, delivery_timeout_ms=3_000)
    scene.publish(a_run(1))
    worker = scene.start()
    scene.check([1])
    until("committed", lambda: scene.committed() == 7)
    scene.admin.delete_topics([scene.topics.summaries])[scene.topics.summaries].result(30)
    until("topic gone", lambda: not scene.has_topic(scene.topics.summaries))
    scene.publish(a_run(2))
    assert worker.wait(60 * PATIENCE) == 1
    again = scene.start()
    until("run 2 is written", lambda: scene.has_topic(scene.topics.summaries) and scene.events_counted() >= 7)
    assert scene.latest(scene.topics.summaries).keys() == {"run-2"}
    stop_cleanly(again)


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def views_command(scene: Scene, *arguments: str) -> subprocess.Popen[bytes]:
    code = "from pipeline.cli.main import run; run()"
    options = ["--broker", scene.policy.bootstrap, "--prefix", scene.policy.prefix, "--json", *arguments]
    process = subprocess.Popen([sys.executable, "-c", code, "views", *options], stdout=subprocess.PIPE, cwd=ROOT)
    scene.processes.append(process)
    return process


def test_the_command_restarts_a_killed_worker_and_stops_cleanly(scene: Scene) -> None:
    parent = views_command(scene, "--workers", "2")
    scene.publish([event for number in range(10) for event in a_run(number)])
    scene.check(list(range(10)))
    before = children(parent.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    until("a new worker", lambda: len(children(parent.pid)) == 2 and before[0] not in children(parent.pid))
    scene.publish([event for number in range(10, 20) for event in a_run(number)])
    scene.check(list(range(20)))
    workers = children(parent.pid)
    stop_cleanly(parent)
    assert parent.stdout is not None
    assert json.loads(parent.stdout.read().splitlines()[-1]) == {"state": "stopped", "exit_code": 0}
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_workers_end_when_their_parent_is_killed(scene: Scene) -> None:
    parent = views_command(scene, "--workers", "1")
    until("a worker", lambda: len(children(parent.pid)) == 1)
    [worker] = children(parent.pid)
    scene.publish(a_run(1))
    scene.check([1])
    parent.kill()
    parent.wait(10 * PATIENCE)
    until("the worker ended", lambda: not running(worker), deadline_s=30)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_missing_source_topic_is_one_sentence(scene: Scene) -> None:
    code = "from pipeline.cli.main import run; run()"
    options = ["--broker", scene.policy.bootstrap, "--prefix", "nothing-here."]
    process = subprocess.run(
        [sys.executable, "-c", code, "views", *options],
        cwd=ROOT,
        capture_output=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert process.returncode == 2
    assert b"nothing-here.agent.run.events does not exist" in process.stderr
    assert b"Traceback" not in process.stderr


def test_the_example_agent_sees_typed_events_and_keeps_what_it_cant_read(scene: Scene) -> None:
    scene.producer.produce(scene.topics.source, b"garbage", "run-1")
    large = ModelCall(
        event_id="l", run_id="run-1", sequence=9, occurred_at=1, agent="a", tenant="t", model="m", input_tokens=2_000
    )
    scene.publish([*a_run(1), large])
    environment = os.environ | {"PIPELINE_BROKER": scene.policy.bootstrap, "PIPELINE_PREFIX": scene.policy.prefix}
    with scene.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples/own_faust_agent.py"), "worker", "-l", "warn"],
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            cwd=scene.log.parent,
        )
    scene.processes.append(process)
    prefix = scene.policy.prefix
    reports, dead = f"{prefix}large.calls", f"{scene.topics.source}.{prefix}large-calls.dlq"
    until("a report", lambda: scene.has_topic(reports) and len(scene.read(reports)) >= 1)
    assert [json.loads(message.value()) for message in scene.read(reports)] == [{"model": "m", "tokens": 2_000}]
    [letter] = scene.read(dead)
    assert letter.value() == b"garbage"
    assert decode_headers(letter.headers()).group == f"{prefix}large-calls"
    process.send_signal(signal.SIGTERM)
    process.wait(40 * PATIENCE)
