"""Batches that no client can read, on real Kafka: a compression bomb, and bytes that rotted in a broker's log."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker
from pipeline.model.headers import Pointer, decode
from pipeline.topology.rules import DECOMPRESSED, DECOMPRESSED_BYTES, KAFKA_MAX_DECOMPRESSED_BYTES
from tests.integration.harness import Process, Scene

MEMORY_MB = 160
"""How much more than at its start a worker may ever have held: a decompression is given up at 100 MB, of which half is touched."""


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path, partitions=1) as scene:
        yield scene


def bomb(scene: Scene, records: int, record_bytes: int) -> list[str]:
    """One batch of zeros, compressed with zstd; gives the broker's refusals."""
    producer = Producer(
        {
            "bootstrap.servers": scene.bootstrap, "compression.type": "zstd", "linger.ms": 10_000,
            "message.max.bytes": 1_000_000_000, "batch.size": 1_000_000_000, "queue.buffering.max.kbytes": 2_000_000,
        }
    )  # fmt: skip
    answers: list[Any] = []
    zeros = bytes(record_bytes)
    for _ in range(records):
        producer.produce(scene.topic(), zeros, b"bomb", 0, lambda error, _: answers.append(error))
    left = producer.flush(60)
    assert left == 0
    assert len(answers) == records
    return [error.name() for error in answers if error is not None]


def resident_mb(process: Process, name: str = "VmHWM") -> int:
    text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) // 1024


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_compression_bomb_is_passed_over_with_a_pointer_in_bounded_memory(scene: Scene, delivery: str) -> None:
    spec = scene.spec(delivery=delivery)
    app = scene.app()
    app.subscribe("events", group="g", value="json")(lambda value, ctx: None)
    scene.make_topics(app)
    scene.admin.set_configs(scene.topic(), {DECOMPRESSED: str(KAFKA_MAX_DECOMPRESSED_BYTES)})
    scene.publish_many([(f"k{n}", {}) for n in range(5)])
    assert bomb(scene, 30, 10_000_000) == []
    after = scene.publish_many([(f"k{n}", {}) for n in range(5)])
    process = scene.start_and_wait(spec)
    before_mb = resident_mb(process, "VmRSS")
    scene.until("the pointer and all others", scene.settled)
    taken_mb = resident_mb(process) - before_mb
    print(f"memory: {before_mb} MB when it began, at most {taken_mb} MB more")
    assert taken_mb < MEMORY_MB
    assert sorted(mark.offset for mark in scene.ledger.marks("done")) == [*range(5), *(offset for _, offset in after)]
    (letter,) = scene.dead()
    headers = decode(letter.headers())
    assert letter.value() is None
    assert headers.pointer == Pointer("bad_batch", 34)
    assert (headers.origin_topic, headers.origin_offset) == (scene.topic(), 5)
    assert "Decompression" in headers.error.message
    assert process.stop() == 0


def test_the_limit_of_a_source_topic_refuses_a_large_record_at_the_broker_but_not_many_in_a_batch(scene: Scene) -> None:
    """Kafka 4.4 holds `max.decompressed.message.bytes` against each record: the pointer is needed all the same."""
    app = scene.app()
    app.subscribe("events", group="g", value="json")(lambda value, ctx: None)
    scene.make_topics(app)
    assert bomb(scene, 1, DECOMPRESSED_BYTES + 1_000) == ["INVALID_RECORD"]
    assert scene.count(scene.topic()) == 0
    assert bomb(scene, 8, DECOMPRESSED_BYTES - 1_000) == []
    assert scene.count(scene.topic()) == 8


# -- bytes that rotted


def rot(log: Path, offset: int) -> None:
    """Change a byte of the batch that holds the offset, in the broker's own file."""
    data, at = log.read_bytes(), 0
    while at + 27 <= len(data):
        base, length = struct.unpack(">qi", data[at : at + 12])
        last = base + struct.unpack(">i", data[at + 23 : at + 27])[0]
        if base <= offset <= last:
            with log.open("r+b") as file:
                file.seek(at + 12 + length - 2)
                file.write(bytes([data[at + 12 + length - 2] ^ 0xFF]))
            return
        at += 12 + length
    raise AssertionError(f"{log} has no offset {offset}")


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(BrokerSpec(data_dir=tmp_path / "kafka")) as broker:
        yield broker


def test_batches_that_rotted_in_source_and_tier_are_passed_over(own_broker: EmbeddedBroker, tmp_path: Path) -> None:
    """The head of key "parked" waits in a tier, in a batch that rots: its successor must not wait for ever."""
    with Scene(own_broker.bootstrap, "rot", tmp_path, partitions=1) as scene:
        spec = scene.spec(tiers=("2s",), attempts=3)
        app = scene.app()
        app.subscribe("events", group="g", value="json", tiers=("2s",))(lambda value, ctx: None)
        scene.make_topics(app)
        process = scene.start_and_wait(spec)
        scene.publish("parked", {"fails": 1})
        scene.until("it waits in the tier", lambda: scene.count(scene.lane("retry.2s")) == 1 and scene.settled())
        process.kill()
        logs = own_broker.data_dir / "node-1" / "log"
        rot(logs / f"{scene.lane('retry.2s')}-0" / f"{0:020}.log", 0)
        scene.publish_many([(f"k{n}", {}) for n in range(4)])  # 1-4
        scene.publish_many([(f"rotten{n}", {}) for n in range(300)])  # 5-304, several batches perhaps
        scene.publish_many([("parked", {}), *((f"k{n}", {}) for n in range(3))])  # 305-308
        rot(logs / f"{scene.topic()}-0" / f"{0:020}.log", 100)
        other = scene.start_and_wait(spec)
        scene.until("all that can be read is done", scene.settled)
        pointers = [decode(letter.headers()) for letter in scene.dead()]
        lost = {
            offset
            for each in pointers
            if each.origin_topic == scene.topic() and each.pointer
            for offset in range(each.origin_offset, each.pointer.last_offset + 1)
        }
        done = {mark.offset for mark in scene.ledger.marks("done")}
        assert 100 in lost
        assert lost <= set(range(5, 305))
        assert done == set(range(1, 309)) - lost
        in_tier = [each for each in pointers if each.origin_topic == scene.lane("retry.2s")]
        assert [(each.origin_offset, each.pointer) for each in in_tier] == [(0, Pointer("bad_batch", 0))]
        assert other.stop() == 0
