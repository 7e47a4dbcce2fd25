"""Replays to a file and back, to another topic, and forks of real runs, on real Kafka."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pipeline.codec import product_catalogue
from pipeline.codec.container import StoredRecord, read_container
from pipeline.codec.verdict import register
from pipeline.emit.openai_chat import ImportOptions
from pipeline.emit.transcripts import read_runs
from pipeline.model.errors import ConfigurationError, UndecodableError
from pipeline.model.events import EVENT_TYPES
from pipeline.model.headers import decode, replay_count_of
from pipeline.replay.forking import FORKED_FROM, forked_id
from pipeline.replay.plan import Fork, PlanError
from pipeline.replay.status import status_of
from tests.integration.harness import Scene, until
from tests.integration.replays import Replays, check_history, origins
from tests.patience import PATIENCE


@pytest.fixture
def replays(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Replays]:
    with Scene(kafka, topic_name, tmp_path, partitions=2) as scene:
        yield Replays(scene)


def test_to_a_file_and_back_into_the_lane(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(1_200)
    path = scene.folder / "kept.avro"
    out = replays.plan(to_file=str(path), where="value.n < 1000")
    assert replays.run(out).counts == {"written": 1_000}
    assert status_of(replays.surroundings, out).state == "finished"
    assert replays.run(out).state == "finished"
    source = {(m.partition(), m.offset()): m for m in scene.read(scene.topic())}
    stored = list(read_container(path, StoredRecord))
    for record in stored:
        topic, partition, offset = record.place
        original = source[partition, offset]
        assert (topic, record.key(), record.value()) == (scene.topic(), original.key(), original.value())
        assert record.timestamp() == original.timestamp()
    wanted = {record.place[1:] for record in stored}
    assert len(wanted) == 1_000

    back = replays.plan(str(path), kind="file", group=scene.prefix + "g")
    assert back.preview is not None
    assert back.preview["selected"] == 1_000
    assert replays.run(back).counts == {"written": 1_000}
    first: dict[bytes | None, list[int]] = defaultdict(list)
    for message, delivery in replays.copies():
        assert (delivery.origin_topic, delivery.replay_id) == (scene.topic(), back.plan_id)
        assert message.partition() == delivery.origin_partition
        first[message.key()].append(delivery.origin_offset)
    assert sum(map(len, first.values())) == 1_000
    assert all(found == sorted(found) for found in first.values())
    assert status_of(replays.surroundings, back).state == "finished"
    assert replays.run(back).state == "finished"
    assert len(replays.copies()) == 1_000


def test_from_a_file_killed_and_taken_up(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(3_000)
    path = scene.folder / "kept.avro"
    replays.run(replays.plan(to_file=str(path)))
    plan = replays.plan(str(path), kind="file", group=scene.prefix + "g")
    for _ in range(2):
        replays.dies(plan, die_at="sent", die_after=3, window=200)
    assert replays.run(plan).counts == {"written": 3_000}
    seen: dict[bytes | None, list[int]] = defaultdict(list)
    copies = replays.copies()
    for message, delivery in copies:
        if delivery.origin_offset not in seen[message.key()]:
            seen[message.key()].append(delivery.origin_offset)
    assert sum(map(len, seen.values())) == 3_000
    assert all(found == sorted(found) for found in seen.values())
    assert len(copies) <= 3_000 + 2 * (200 + 500 + 500)


def test_files_that_can_not_be_read_are_told(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(20)
    path = scene.folder / "kept.avro"
    replays.run(replays.plan(to_file=str(path)))
    whole = path.read_bytes()
    cut = scene.folder / "cut.avro"
    cut.write_bytes(whole[:-20])
    other = scene.folder / "other.avro"
    other.write_bytes(b"no avro at all")
    for file, said in ((cut, "cut short"), (other, "no container file"), (scene.folder / "none", "can't be read")):
        with pytest.raises(UndecodableError, match=said):
            replays.plan(str(file), kind="file", group=scene.prefix + "g")
    plan = replays.plan(str(path), kind="file", group=scene.prefix + "g")
    again = dataclasses.replace(plan.source, spans={0: dataclasses.replace(plan.source.spans[0], end=21)})
    with pytest.raises(PlanError, match=r"holds 20 records and plan .* was made of 21"):
        replays.run(dataclasses.replace(plan, source=again))


def test_a_file_is_there_only_when_it_is_whole(replays: Replays) -> None:
    replays.prepare(200)
    path = replays.scene.folder / "kept.avro"
    plan = replays.plan(to_file=str(path))
    tally = replays.run(plan, started=lambda executor: executor.stop())
    assert tally.state == "stopped"
    assert not path.exists()
    assert list(replays.scene.folder.glob("*.part")) == []
    assert replays.run(plan).state == "finished"
    assert len(list(read_container(path, StoredRecord))) == 200


def test_two_runs_at_once_write_no_file_together(replays: Replays) -> None:
    """The first holds its file open. A second process of the plan is refused, and another plan that names the same file."""
    scene, surroundings = replays.scene, replays.surroundings
    replays.prepare(500)
    path, writing, go_on = (scene.folder / name for name in ("kept.avro", "writing", "go on"))
    plan, other = replays.plan(to_file=str(path)), replays.plan(to_file=str(path), keys=(b"k1",))
    first = replays.start(plan, announce=str(writing), hold=str(go_on))
    until("the first writes", writing.exists)
    assert status_of(surroundings, plan).state == "running"
    _, error = replays.start(plan).communicate(timeout=60 * PATIENCE)
    assert b"is being run by pipeline-replay on" in error
    assert b"wait until that ends" in error
    with pytest.raises(ConfigurationError, match="is being written by another process"):
        replays.run(other)
    go_on.touch()
    assert replays.finish(first) == {"state": "finished", "counts": {"written": 500}}
    assert {record.place[1:] for record in read_container(path, StoredRecord)} == origins(scene)
    assert replays.run(plan).state == "finished"
    with pytest.raises(ConfigurationError, match="is there already"):
        replays.run(other)


def test_two_runs_from_a_file_at_once_one_goes_on(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(400)
    path, sending, go_on = (scene.folder / name for name in ("kept.avro", "sending", "go on"))
    replays.run(replays.plan(to_file=str(path)))
    plan = replays.plan(str(path), kind="file", group=scene.prefix + "g")
    first = replays.start(plan, announce=str(sending), hold=str(go_on))
    until("the first sends", sending.exists)
    with pytest.raises(
        ConfigurationError, match=r"is being run by .*: wait until that ends; .* until 3 s after its last"
    ):
        replays.run(plan)
    go_on.touch()
    assert replays.finish(first) == {"state": "finished", "counts": {"written": 400}}
    assert len(replays.copies()) == 400


def test_to_another_topic_of_the_topology(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(500)
    scene.make_topics(scene.app(), "copies")
    plan = replays.plan(to_topic=scene.topic("copies"), allowed=frozenset({scene.topic("copies")}))
    replays.run(plan)
    check_history(replays, plan, origins(scene), 0, scene.topic("copies"))
    for message in scene.read(scene.topic("copies")):
        assert replay_count_of(message.headers()) == 1
    assert replays.copies() == []


def test_forks_and_parts_of_real_runs(replays: Replays, real_runs: Path) -> None:
    """Real runs go onto a topic; one is replayed up to a step, and taken up again under another id."""
    scene = replays.scene
    codec, topic = scene.client.codec, scene.topic("events")
    replays.prepare(0)
    registered(scene, topic)
    events = real_events(real_runs, 12)
    producer = scene.client.cluster.bulk_producer()
    for event in events:
        producer.send(
            topic, event.run_id.encode(), codec.encode(event, topic=topic), [("pl.event_id", event.event_id.encode())]
        )
    assert producer.flush(30) == 0
    producer.close(1)
    replays.all_processed()
    everything = replays.plan()
    assert everything.preview is not None
    assert everything.preview["selected"] == len(events)
    assert everything.preview["decoded"] == everything.preview["checked"] == everything.preview["valid"]
    assert set(everything.preview["types"]) == {type(event).__name__ for event in events}
    run = max({e.run_id for e in events}, key=lambda r: sum(e.run_id == r for e in events))
    own = [event for event in events if event.run_id == run]
    step = sorted({e.step for e in own if e.step is not None})[1]
    expected = own[: next(i for i, e in enumerate(own) if e.step is not None and e.step > step)]

    part = replays.plan(keys=(run.encode(),), to_step=step)
    assert replays.run(part).done == len(expected)
    fork = replays.plan(keys=(run.encode(),), to_step=step, to_topic=topic, fork=Fork("again"))
    replays.dies(fork, die_at="acknowledged")
    assert replays.run(fork).done == len(expected)
    found: dict[str, Any] = {}
    for message in scene.read(topic):
        if message.key() == b"again":
            name, value = codec.decode_dict(topic, message.value(), message.headers())
            found.setdefault(value["event_id"], (name, value, message))
    assert list(found) == [forked_id(event.event_id, fork.plan_id) for event in expected], "a resume makes the same ids"
    for event, (name, value, message) in zip(expected, found.values(), strict=True):
        headers = dict(message.headers() or ())
        assert (name, value["run_id"], value["sequence"]) == (event.record_name, "again", event.sequence)
        assert headers[FORKED_FROM] == run.encode()
        assert headers["pl.event_id"] == value["event_id"].encode()
        assert decode(message.headers()).replay_id == fork.plan_id


@pytest.mark.parametrize("asked", [{"to_step": 3}, {"fork": Fork("x")}, {"keys": (b"a",), "fork": Fork("x")}])
def test_a_fork_is_of_one_run_and_to_a_topic(replays: Replays, asked: dict[str, Any]) -> None:
    replays.prepare(10)
    with pytest.raises(ConfigurationError, match=r"--key RUN_ID|--to-topic"):
        replays.plan(**asked)


def registered(scene: Scene, topic: str) -> None:
    register(product_catalogue(), scene.client._registry(), topic, EVENT_TYPES)
    assert scene.client.codec.prepare(topic) == []


def real_events(path: Path, many: int) -> list[Any]:
    """With steps: transcripts have none, so every fifth event of a run begins one."""
    runs = islice(read_runs(path, ImportOptions("tau")), many)
    return [event.model_copy(update={"step": n // 5}) for run, _ in runs for n, event in enumerate(run.events)]
