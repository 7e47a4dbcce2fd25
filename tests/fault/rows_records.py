"""Rows in which the records are at fault: poison, bytes that can't be decoded, a registry that is away, producers that repeat."""

from __future__ import annotations

from collections import Counter
from typing import Any

from confluent_kafka import KafkaException, Producer

from pipeline.codec import product_catalogue
from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy
from pipeline.codec.verdict import register
from pipeline.kafka.embedded import EmbeddedRegistry
from pipeline.model.events import EVENT_TYPES, RunStarted, ToolCall
from pipeline.model.headers import decode
from pipeline.model.views import VALUE_TYPES, RunRate
from pipeline.settings import Settings
from pipeline.topology.rules import DECOMPRESSED, KAFKA_MAX_DECOMPRESSED_BYTES
from pipeline.worker.damage import BAD
from tests.fault.feed import NUMBER, Value, values
from tests.fault.reading import read_all
from tests.fault.trial import Trial
from tests.integration.test_unreadable_on_kafka import bomb, resident_mb

COMMON: dict[str, Any] = {"sequence": 0, "occurred_at": 1, "agent": "a", "tenant": "t"}


def poison(trial: Trial) -> None:
    """Row 13: handlers that raise for ever: each such record is one dead letter, and the others go on."""
    trial.prepare(2)
    wanted = sum(
        isinstance(v, dict) and (v.get("fails", 0) > 4 or bool(v.get("reject")))
        for _, v in values(trial.plan.seed, trial.plan.records, trial.plan.mix)
    )
    trial.faults.append(f"{wanted} records that always fail or are rejected")
    trial.feed.wait(120 + trial.plan.load_s)
    dead = trial.scene.lane("dlq")
    trial.wait("each is a dead letter", lambda: trial.scene.count(dead) >= wanted, 60)
    if (count := trial.scene.count(dead)) != wanted:
        trial.problem(f"{count} dead letters for {wanted} records")


def started(number: int) -> RunStarted:
    return RunStarted(event_id=f"e{number}", run_id=f"r{number % 500}", **COMMON)


FOREIGN = next(name for name in VALUE_TYPES if name.endswith("RunRate"))


def undecodable(trial: Trial) -> None:
    """Row 14: garbage, unknown and foreign ids, trailing bytes, nothing: dead letters with their raw bytes and no retry."""
    trial.make_topics()
    scene, draw = trial.scene, trial.draw
    codec = scene.client.codec
    codec.prepare(scene.topic())
    good = codec.encode(started(0), topic=scene.topic())
    # An id follows from the schema's text: only a type that the source does not have is foreign to it.
    codec.prepare(scene.topic("elsewhere"), [FOREIGN])
    kinds = {
        "garbage": b"\xde\xad\xbe\xef",
        "unknown id": b"\x00\x00\x0f\x42\x40abc",
        "foreign id": codec.encode(RunRate(agent="a", tenant="t", minute=0), topic=scene.topic("elsewhere")),
        "trailing byte": good + b"\x00",
        "cut short": good[:-3],
        "id alone": good[:5],
        "empty": b"",
        "tombstone": None,
    }
    hostile: dict[int, bytes | None] = {}
    records: list[tuple[str, Value]] = []
    for number in range(trial.plan.records):
        value: bytes | None = codec.encode(started(number), topic=scene.topic())
        if draw.random() < max(0.01, 5 * len(kinds) / trial.plan.records):
            value = hostile[number] = list(kinds.values())[len(hostile) % len(kinds)]
        records.append((f"r{number % 500}", value))
    drawn = {kind: sum(value == raw for value in hostile.values()) for kind, raw in kinds.items()}
    trial.result.note = ", ".join(f"{kind}: {count}" for kind, count in drawn.items())
    if not all(drawn.values()):
        trial.problem("a kind was not drawn, so the row shows nothing of it")
    trial.feed = trial.new_feed(records)
    trial.workers(2, kind="avro")
    trial.begin()
    trial.faults.append(f"{len(hostile)} records that can't be decoded")
    trial.feed.wait(120 + trial.plan.load_s)
    trial.undecodable = {origin for origin, sent in trial.feed.sent.items() if sent.number in hostile}
    dead = scene.lane("dlq")
    trial.wait("each is a dead letter", lambda: scene.count(dead) >= len(hostile), 60)
    found = read_all(trial.ground.direct, [dead])
    raw = Counter((dict(m.headers())[NUMBER], m.value()) for m in found)
    if raw != Counter((str(number).encode(), value) for number, value in hostile.items()):
        trial.problem(f"{len(found)} dead letters are not the {len(hostile)} records with their raw bytes")
    if {dict(m.headers())["pl.attempt"] for m in found} - {b"1"}:
        trial.problem("a record that can't be decoded was tried again")


def registry_down(trial: Trial) -> None:
    """Row 17: the registry is stopped: known ids work, cold ones wait, and none becomes a dead letter."""
    trial.make_topics()
    source = trial.scene.topic()
    with EmbeddedRegistry(mirror=Settings.load().maven_mirror or None) as server:
        policy = RegistryPolicy(server.url)
        early = [kind for kind in EVENT_TYPES if not kind.endswith("ToolCall")]
        register(product_catalogue(), ConfluentRegistry(policy), source, early)
        trial.plan.settings["registry"] = server.url
        trial.workers(2, kind="avro")
        register(product_catalogue(), ConfluentRegistry(policy), source, EVENT_TYPES)
        codec = trial.scene.app(registry=server.url).codec
        codec.prepare(source)
        cold, half = set[int](), trial.plan.records // 2
        records: list[tuple[str, Value]] = []
        for number in range(trial.plan.records):
            event: Any = started(number)
            if number >= half and number % 500 == 7 and len(cold) < 50:
                cold.add(number)
                event = ToolCall(
                    event_id=f"e{number}", run_id=event.run_id, tool="t", call_id="1", arguments="{}", **COMMON
                )
            records.append((event.run_id, codec.encode(event, topic=source)))
        trial.feed = trial.new_feed(records)
        trial.begin()
        trial.until_done(0.2)
        server.stop()
        trial.disturb("registry stopped")
        trial.feed.wait(120 + trial.plan.load_s)
        behind = {sent.key for sent in trial.feed.sent.values() if sent.number in cold}
        free = {o for o, sent in trial.feed.sent.items() if sent.key not in behind or sent.number < half}
        trial.wait("what is known goes on", lambda: free <= trial.tally.update().done, 60)
        waiting = {o for o, sent in trial.feed.sent.items() if sent.number in cold}
        if waiting & trial.tally.done:
            trial.problem("a record with an unknown id was handled without the registry")
        server.start()
        trial.healed({partition for partition, _ in waiting})
        trial.wait("everything has its ending", trial._all_ended, 90)
    if trial.scene.count(trial.scene.lane("dlq")):
        trial.problem("an outage of the registry made dead letters")


def duplicate_producer(trial: Trial) -> None:
    """Row 18: a producer started twice with one transactional id, then every event published twice: one effect each."""
    trial.make_topics()
    trial.workers(2, kind="effects")
    trial.result.records += _older_is_fenced(trial)
    half = trial.plan.records // 2
    records: list[tuple[str, Value]] = []
    for number in range(half):
        record: tuple[str, Value] = (f"k{number % 500}", {"n": number, "event": f"e{number}"})
        records += [record, record] if number % 2 else [record]
    late = [record for number, record in enumerate(records) if number % 3 == 0]
    trial.feed = trial.new_feed([*records, *late])
    trial.begin()
    trial.faults.append(f"{len(records) + len(late) - half} events published again")
    trial.feed.wait(120 + trial.plan.load_s)
    trial.wait("everything has its ending", trial._all_ended, 120)
    keys = Counter(trial.scene.ledger.path.with_name("ledger.effects").read_bytes().split())
    events = {key for key in keys if key.rsplit(b":", 1)[-1].startswith(b"e")}
    if len(events) != half:
        trial.problem(f"{len(events)} different idempotency keys for {half} events")
    if len([key for key in keys if b"tx-new" in key]) != TRANSACTION or any(b"tx-old" in key for key in keys):
        trial.problem("the handlers did not see exactly the newer producer's transaction")


TRANSACTION = 500


def _older_is_fenced(trial: Trial) -> int:
    """The newer producer aborts what the older one has open; the older one's commit is refused, and nobody reads its records."""
    settings = {"bootstrap.servers": trial.ground.direct, "transactional.id": trial.scene.prefix + "p", "log_level": 0}
    older = Producer(settings)
    older.init_transactions(30)
    older.begin_transaction()
    for n in range(TRANSACTION):
        older.produce(trial.scene.topic(), b'{"n": -1}', f"k{n}", headers=[("pl.event_id", f"tx-old-{n}".encode())])
    older.flush(30)
    newer = Producer(settings)
    newer.init_transactions(30)
    newer.begin_transaction()
    for n in range(TRANSACTION):
        newer.produce(trial.scene.topic(), b'{"n": -1}', f"k{n}", headers=[("pl.event_id", f"tx-new-{n}".encode())])
    newer.commit_transaction(30)
    trial.faults.append("transactional id used twice")
    try:
        older.commit_transaction(30)
        trial.problem("the older of two producers with one transactional id was not fenced")
    except KafkaException:
        older.purge()
    return TRANSACTION


def bombs(trial: Trial) -> None:
    """Row 16: batches of 300 MB of zeros in a few kilobytes: a pointer in the dead letters, and the partition moves on."""
    trial.make_topics()
    scene = trial.scene
    scene.admin.set_configs(scene.topic(), {DECOMPRESSED: str(KAFKA_MAX_DECOMPRESSED_BYTES)})
    trial.workers(2)
    trial.begin()
    for share in (0.2, 0.5):
        trial.until_done(share)
        if refused := bomb(scene, 30, 10_000_000):
            trial.problem(f"the broker refused the batch: {refused[0]}")
        trial.disturb("a batch of 30 records and 300 MB")
        trial.healed({0})
    trial.feed.wait(120 + trial.plan.load_s)
    trial.wait("everything is committed", trial.drained, 120)
    for message in read_all(trial.ground.direct, [scene.lane("dlq")]):
        pointer = decode(message.headers()).pointer
        if (
            pointer is not None and pointer.kind == BAD
        ):  # a batch that left in two may leave records that are only too large
            trial.unreadable.append(pointer.last_offset)
    if len(trial.unreadable) != 2:
        trial.problem(f"{len(trial.unreadable)} pointers in the dead letters for 2 batches")
    held = max(resident_mb(process) for process in trial.live)
    trial.result.note = f"a worker held at most {held} MB"
