"""The commands on real Kafka, against lanes and commits written by hand: what they say and the codes they leave with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline import Pipeline, Settings
from pipeline.cli.main import app
from pipeline.core import progress
from pipeline.inspect.control import read_switches
from pipeline.kafka.cluster import connect
from pipeline.model import headers
from pipeline.model.cluster import Cluster, ConsumerPolicy, Headers, Position, RecordProducer, TopicPartition
from pipeline.model.errors import ClusterError
from pipeline.model.partitioner import partition_of
from tests.patience import PATIENCE

PARTITIONS = 3
MODULE = """
from pipeline import Pipeline
app = Pipeline("cli-test")
@app.subscribe({topic!r}, group={group!r}, tiers=("10s", "1m"), value="json")
async def handle(event, ctx): ...
"""


@dataclass
class Place:
    """One test's application: its module on disk, its names, and a command line."""

    cluster: Cluster
    topic: str
    group: str
    target: str
    run: Callable[..., Result]
    producer: RecordProducer

    def lane(self, name: str) -> str:
        return f"{self.topic}.{self.group}.{name}"

    def json(self, *arguments: str, code: int = 0) -> Any:
        shown = self.run(*arguments, "--json")
        assert shown.exit_code == code, shown.output
        return json.loads(shown.stdout)

    def publish(
        self, topic: str, key: bytes, value: bytes = b"{}", partition: int = 0, more: Headers | None = None
    ) -> None:
        errors: list[ClusterError | None] = []
        self.producer.send(topic, key, value, more, partition, delivered=lambda error, offset: errors.append(error))
        assert self.producer.flush(20.0) == 0
        assert errors == [None]

    def commit(self, positions: dict[TopicPartition, Position]) -> None:
        consumer = self.cluster.consumer(ConsumerPolicy(group=self.group))
        deadline = time.monotonic() + 20.0 * PATIENCE
        while any(consumer.commit_now(positions, 5.0).values()):
            assert time.monotonic() < deadline, "the coordinator takes no commit"
        consumer.close()


@pytest.fixture
def place(kafka: str, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    group = f"g-{topic_name[-10:]}"
    name = f"cli_app_{topic_name[-10:]}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(topic=topic_name, group=group))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_BROKER", kafka)
    runner = CliRunner()

    def run(*arguments: str) -> Result:
        return runner.invoke(app, list(arguments))

    cluster = connect(kafka)
    producer = cluster.producer()
    yield Place(cluster, topic_name, group, f"{name}:app", run, producer)
    producer.close(5.0)


@pytest.fixture
def made(place: Place) -> Place:
    assert place.run("topics", "apply", place.target, "--partitions", str(PARTITIONS)).exit_code == 0
    return place


def delivery(place: Place, origin: int, partition: int, due_in_ms: int, **more: Any) -> headers.DeliveryHeaders:
    now = int(time.time() * 1000)
    error = headers.ErrorInfo("retryable", "TimeoutError", "too \x1b[31mslow")
    values = {"attempt": 1, "hop": 1, "epoch": 1, "origin_timestamp_ms": now, "first_failed_ms": now - 90_000} | more
    return headers.DeliveryHeaders(
        origin_topic=place.topic,
        origin_partition=partition,
        origin_offset=origin,
        group=place.group,
        due_ms=now + due_in_ms,
        error=error,
        **values,
    )


@pytest.fixture
def parked(made: Place) -> tuple[Place, str, int]:
    """Key run-7: offset 0 done, 1 parked in the first tier, 2 behind it, 3 not read yet, 4 of another key a dead letter."""
    key, group = "run-7", made.group
    partition = partition_of(key.encode(), PARTITIONS)
    for number in range(4):
        made.publish(made.topic, key.encode(), b'{"n": %d}' % number, partition, [(headers.EVENT_ID, b"e-%d" % number)])
    made.publish(made.topic, b"other", b"{}", partition)
    for origin, due in ((1, 3_600_000), (2, 0)):
        kept: Headers = [(headers.EVENT_ID, b"e-%d" % origin)]
        copy = headers.encode(kept, delivery(made, origin, partition, due, attempt=2 - origin))
        made.publish(made.lane("retry.10s"), key.encode(), b"{}", partition, copy)
    letter = headers.dead_letter_headers([], delivery(made, 4, partition, 0, attempt=5, hop=4))
    made.publish(made.lane("dlq"), b"other", b"\x80raw", partition, letter)
    done = progress.Progress(3, 5, (3,), epoch=1, fences={"10s": 0, "1m": 0, "replay": 0})
    made.commit(
        {
            TopicPartition(made.topic, partition): Position(3, progress.encode(done)),
            TopicPartition(made.lane("retry.10s"), partition): Position(0),
        }
    )
    assert group
    return made, key, partition


def test_plan_apply_list(place: Place) -> None:
    first = place.json("topics", "plan", place.target, "--partitions", "3", code=1)
    assert {"create"} == {action["action"] for action in first["actions"]}
    assert place.lane("retry.10s") in {action["topic"] for action in first["actions"]}
    applied = place.run("topics", "apply", place.target, "--partitions", "3")
    assert applied.exit_code == 0, applied.output
    assert place.lane("dlq") in applied.stdout
    assert place.json("topics", "plan", place.target) == {"actions": [], "findings": []}
    assert place.run("topics", "plan", place.target).stdout == "Every topic is as it should be.\n"
    listed = {row["topic"]: row for row in place.json("topics", "list", "--all")}
    assert listed[place.topic]["partitions"] == 3
    assert listed["_pipeline.control"]["kind"] == "control"


def test_topics_of_those_who_only_publish(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = f"{place.topic}."
    monkeypatch.setenv("PIPELINE_PREFIX", prefix)
    more = ("--topic", "invoices", "--topic", f"{prefix}receipts", "--partitions", "2")
    planned = place.json("topics", "plan", *more, code=1)
    sizes = {action["topic"].removeprefix(prefix): action["partitions"] for action in planned["actions"]}
    own = {"_pipeline.schemas": 1, "_pipeline.control": 1}
    own |= {"_pipeline.audit": 1, "_pipeline.replay.results": 6, "_pipeline.tasks": 1, "_pipeline.clock": 1}
    assert sizes == {"agent.run.events": 2, "invoices": 2, "receipts": 2, **own}
    applied = place.run("topics", "apply", *more)
    assert applied.exit_code == 0, applied.output
    assert place.run("topics", "plan", *more).stdout == "Every topic is as it should be.\n"
    shown = place.run("topics", "list")
    assert f"{prefix}agent.run.events" in shown.stdout
    assert place.run("topics", "plan", "--topic", "bad name").exit_code == 2

    app = Pipeline("agent", settings=Settings(broker=place.cluster.address, prefix=prefix))
    assert app.codec.prepare(f"{prefix}agent.run.events") == []
    assert place.run("topics", "plan", *more).exit_code == 0, "the registry and the plan want different schema topics"

    monkeypatch.setenv("PIPELINE_REGISTRY", "http://127.0.0.1:1")
    monkeypatch.setenv("PIPELINE_PREFIX", f"{prefix}other.")
    names = {action["topic"] for action in place.json("topics", "plan", code=1)["actions"]}
    assert f"{prefix}other._pipeline.schemas" not in names
    assert len(names) == 6


def test_a_topic_to_emit_to_is_made_with_the_application(place: Place) -> None:
    more = ("--topic", f"{place.topic}.invoices", "--partitions", "2")
    assert place.run("topics", "apply", place.target, *more).exit_code == 0
    listed = {row["topic"]: row["partitions"] for row in place.json("topics", "list", "--all")}
    assert (listed[place.topic], listed[f"{place.topic}.invoices"]) == (2, 2)


def test_a_missing_source_is_refused_when_it_may_not_be_made(place: Place) -> None:
    shown = place.run("topics", "apply", place.target, "--no-create-sources")
    assert shown.exit_code == 1
    assert f"{place.topic}: the source topic does not exist" in shown.stderr


def test_why_a_key(parked: tuple[Place, str, int]) -> None:
    place, key, partition = parked
    found = place.json("why", key, "--group", place.group)["found"]
    assert [(e["origin_offset"], e["state"]) for e in found] == [
        (0, "done"),
        (1, "parked"),
        (2, "blocked"),
        (3, "queued"),
    ]
    assert {e["partition"] for e in found} == {partition}
    assert found[1]["lane"] == place.lane("retry.10s")
    assert found[1]["due_ms"] > time.time() * 1000 + 3_000_000
    assert found[2]["blocked_by"]["origin_offset"] == 1
    text = place.run("why", key, "--group", place.group).stdout
    assert "parked in" in text
    assert "it waits for offset 1 of the same key" in text
    assert "no worker of the group has this partition now" in text
    assert "\x1b" not in text
    assert "too \\x1b[31mslow" in text


def test_why_an_event_id_looks_at_every_group_and_partition(parked: tuple[Place, str, int]) -> None:
    place, _, _ = parked
    found = [e for e in place.json("why", "e-2")["found"] if e["group"] == place.group]
    assert [(e["origin_offset"], e["state"]) for e in found] == [(2, "blocked")]


def test_why_a_dead_letter(parked: tuple[Place, str, int]) -> None:
    place, _, _ = parked
    (found,) = place.json("why", "other", "--group", place.group)["found"]
    assert (found["state"], found["lane"], found["attempt"]) == ("dead letter", place.lane("dlq"), 5)
    assert "TimeoutError" in found["error"]


def test_why_nothing_is_found(made: Place) -> None:
    assert made.json("why", "no-such-key", "--group", made.group, code=1)["found"] == []


def test_lag_lane_by_lane(parked: tuple[Place, str, int]) -> None:
    place, _, partition = parked
    lag = place.json("groups", "lag", place.group)
    rows = {(row["lane"], row["partition"]): row for row in lag["rows"]}
    assert rows["source", partition]["committed"] == 3
    assert rows["source", partition]["lag"] == 1
    assert (rows["10s", partition]["lag"], rows["10s", partition]["parked_keys"]) == (2, 1)
    assert rows["1m", partition]["lag"] == 0
    assert (lag["lag"], lag["waiting"], lag["dead_letters"]) == (1, 2, 1)
    assert any("no members" in text for text in lag["warnings"])
    assert place.run("groups", "lag", place.group, "--max", "0").exit_code == 1
    shown = place.run("groups", "lag", place.group, "--fast")
    assert shown.exit_code == 0
    assert "3 records not settled, 1 dead letters" in shown.stdout


def test_records_lost_to_retention_are_an_alarm(parked: tuple[Place, str, int]) -> None:
    place, _, partition = parked
    admin = place.cluster.admin()
    admin.delete_records({TopicPartition(place.topic, partition): 5})
    lag = place.json("groups", "lag", place.group, code=1)
    assert any("deleted by retention" in text for text in lag["warnings"])


def test_groups_are_listed(parked: tuple[Place, str, int]) -> None:
    place, _, _ = parked
    mine = [g for g in place.json("groups", "list") if g["group"] == place.group]
    assert [g["state"] for g in mine] == ["empty"]
    assert place.topic in mine[0]["topics"]


def test_pause_and_resume_are_records_workers_read(made: Place) -> None:
    assert made.json("pause", made.group, "--who", "ana", "--why", "provider down") == {
        "group": made.group,
        "paused": True,
        "changed": True,
    }
    paused = read_switches(made.cluster, "_pipeline.control").paused(made.group)
    assert paused is not None
    assert (paused.who, paused.why) == ("ana", "provider down")
    assert made.run("resume", made.group).exit_code == 0
    assert read_switches(made.cluster, "_pipeline.control").paused(made.group) is None


def test_a_group_without_lanes_is_refused(made: Place) -> None:
    shown = made.run("pause", "no-such-group")
    assert shown.exit_code == 2
    assert "has no lanes" in shown.stderr


def test_skip_gives_up_the_head_and_release_frees_the_rest(parked: tuple[Place, str, int]) -> None:
    place, key, partition = parked
    done = place.json("keys", "skip", place.group, key, "--why", "fixed by hand")
    assert (done["origin_offset"], done["waiting"]) == (1, 2)
    switches = read_switches(place.cluster, "_pipeline.control")
    skips = switches.skips(place.group, place.topic, partition)
    assert [(s.origin_offset, s.key, s.why) for s in skips.values()] == [(1, key.encode(), "fixed by hand")]
    assert place.run("keys", "release", place.group, key).exit_code == 0
    switches = read_switches(place.cluster, "_pipeline.control")
    released = switches.releases(place.group, place.topic, partition)
    assert {key: release.up_to_origin for key, release in released.items()} == {key.encode(): 2}
    assert place.json("keys", "skip", place.group, "idle-key", code=1)["done"] is False


def test_tail_filters_and_decodes(parked: tuple[Place, str, int]) -> None:
    place, key, partition = parked

    def tail(*arguments: str) -> list[Any]:
        shown = place.run("tail", *arguments, "--no-follow", "--json")
        assert shown.exit_code == 0, shown.output
        return [json.loads(line) for line in shown.stdout.splitlines()]

    every = tail(place.topic, "--from", "earliest")
    assert len(every) == 5
    mine = tail(place.topic, "--from", "earliest", "--key", key)
    assert [(r["offset"], r["value"], r["event_id"], r["type"]) for r in mine][:2] == [
        (0, {"n": 0}, "e-0", "json"),
        (1, {"n": 1}, "e-1", "json"),
    ]
    assert [r["offset"] for r in tail(place.topic, "--from", f"{partition}:2", "--limit", "2")] == [2, 3]
    assert len(tail(place.topic, "--last", "1h")) == 5
    assert tail(place.topic, "--from", "latest") == []
    (letter,) = tail(place.lane("dlq"), "--from", "earliest")
    assert letter["type"] == "bytes"
    assert letter["delivery"]["origin"] == f"{place.topic}/{partition}/4"
    text = place.run("tail", place.lane("dlq"), "--from", "earliest", "--no-follow", "--headers").stdout
    assert "0x80726177" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("start", ["never", "99:0", "1:x"])
def test_tail_refuses_a_start_that_makes_no_sense(made: Place, start: str) -> None:
    shown = made.run("tail", made.topic, "--from", start)
    assert shown.exit_code == 2
    assert "--from" in shown.stderr


def test_tail_follows(parked: tuple[Place, str, int]) -> None:
    place, _, _ = parked
    shown = place.run("tail", place.topic, "--from", "earliest", "--limit", "5")
    assert len(shown.stdout.splitlines()) == 5


def test_no_broker_is_3_in_one_sentence(place: Place) -> None:
    shown = place.run("topics", "list", "--broker", "127.0.0.1:1")
    assert shown.exit_code == 3
    assert shown.stderr.count("\n") == 1
