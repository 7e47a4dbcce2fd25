"""Dead letters on real Kafka: what they carry, what ends there without a retry, and what happens when they can't be written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Context, FlowPolicy, Reject
from pipeline.codec import AvroCodec
from pipeline.codec.schema import parse
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.control import Pause
from pipeline.model.events import RunEvent, RunStarted, UnknownEvent
from tests.integration.harness import GROUP, SOURCE, Scene, make_app, running, until_async, verdict

TIERS = ("200ms",)
QUICK = {"producer.topic.metadata.propagation.max.ms": "500"}
"""How long librdkafka waits before it believes that a topic is gone (30 s by default)."""


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


def started(run_id: str) -> RunStarted:
    return RunStarted(event_id=run_id, run_id=run_id, sequence=0, occurred_at=1, agent="a", tenant="t")


class NoRegistry:
    """Says so whenever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the registry was asked for {name}")


def test_a_dead_letter_is_the_original_and_decodes_without_a_registry(scene: Scene) -> None:
    app = scene.app()

    @app.subscribe(SOURCE, group="g", tiers=TIERS, attempts=2)
    async def handle(event: RunEvent, ctx: Context) -> None:
        raise RuntimeError("it does not work: " + "x" * 20_000)

    scene.make_topics(app)
    codec = scene.client.codec
    codec.prepare(scene.topic())
    event = started("r")
    value = codec.encode(event, topic=scene.topic())
    given = [("pl.event_id", b"r"), ("traceparent", b"00-a-b-01"), ("mine", b"\xff\x00"), ("empty", None)]
    origin = scene.publish("r", value, given)  # type: ignore[arg-type]

    async def go() -> None:
        async with running(app):
            await until_async("the dead letter", lambda: scene.count(scene.lane("dlq")) == 1)
            await until_async("committed", scene.settled)

    asyncio.run(go())
    (dead,) = scene.dead()
    assert (dead.key(), dead.value(), dead.partition()) == (b"r", value, origin[0])
    headers = dead.headers() or []
    assert [h for h in headers if h in given] == given, headers
    found = dict(headers)
    assert found["pl.origin.topic"] == scene.topic().encode()
    assert (int(found["pl.origin.partition"]), int(found["pl.origin.offset"])) == origin
    assert (found["pl.attempt"], found["pl.error.type"], found["pl.error.class"]) == (
        b"2",
        b"RuntimeError",
        b"RuntimeError",
    )
    assert found["pl.group"] == (scene.prefix + GROUP).encode()
    assert int(found["pl.first_failed"]) > 0
    assert b"in handle" in found["pl.error.stack"]
    assert sum(len(v) for k, v in found.items() if k.startswith("pl.error.")) <= 8_192
    assert found["__dlq.errors.topic"] == scene.topic().encode()
    assert int(found["__dlq.errors.offset"]) == origin[1]
    assert found["__dlq.errors.exception.class.name"] == b"RuntimeError"
    assert "pl.due" not in found
    offline = AvroCodec(NoRegistry())  # type: ignore[arg-type]
    fingerprint = found["pl.schema"].decode()
    name, fields = offline.decode_by_fingerprint(fingerprint, dead.value() or b"")
    assert name == event.record_name
    assert RunStarted(**fields) == event


def test_what_can_not_be_decoded_is_a_dead_letter_as_it_is_without_a_retry(scene: Scene) -> None:
    app = scene.app()
    seen: list[Any] = []

    @app.subscribe(SOURCE, group="g", tiers=TIERS, attempts=5)
    async def handle(event: RunEvent, ctx: Context) -> None:
        seen.append(event)

    @app.subscribe(SOURCE, group="json", tiers=TIERS, attempts=5, value="json")
    def handle_json(value: Any, ctx: Context) -> None:
        seen.append(value)

    scene.make_topics(app)
    codec = scene.client.codec
    codec.prepare(scene.topic())
    good = codec.encode(started("r"), topic=scene.topic())
    bad = {
        "garbage": b"\xde\xad\xbe\xef", "unknown id": b"\x00\x00\x00\x00\x01abc", "trailing": good + b"\x00",
        "cut short": good[:-3], "empty": b"", "only an id": good[:5], "tombstone": None,
    }  # fmt: skip
    for name, value in bad.items():
        scene.publish(name, value)
    last = scene.publish("good", good)

    async def go() -> None:
        async with running(app):
            await until_async("the dead letters", lambda: scene.count(scene.lane("dlq")) >= len(bad))
            await until_async("the good one", lambda: seen)
            await until_async("committed", scene.settled)

    asyncio.run(go())
    assert {m.key(): m.value() for m in scene.dead()} == {name.encode(): value for name, value in bad.items()}
    assert seen == [started("r")]
    for message in scene.dead():
        found = dict(message.headers() or [])
        assert found["pl.attempt"] == b"1", message.key()
        assert found["pl.error.class"] == b"Undecodable", message.key()
        assert found.get("pl.schema") is None or message.key() in (b"trailing", b"cut short", b"only an id")
    assert scene.count(scene.lane("retry.200ms")) == 0
    assert scene.count(scene.lane("dlq", "json")) == len(bad) + 1
    assert last


@pytest.mark.parametrize("policy", ["skip", "dead_letter"])
def test_an_event_type_this_build_does_not_know_is_skipped_or_dead_lettered(scene: Scene, policy: Any) -> None:
    app = scene.app()
    seen: list[Any] = []

    @app.subscribe(SOURCE, group="g", tiers=TIERS, unknown_event=policy)
    async def handle(event: RunEvent, ctx: Context) -> None:
        assert not isinstance(event, UnknownEvent)
        seen.append(event)

    scene.make_topics(app)
    codec = scene.client.codec
    codec.prepare(scene.topic())
    newer = parse({"type": "record", "name": "agent.run.FromTheFuture", "fields": [{"name": "x", "type": "long"}]})
    from pipeline.codec import subject_of

    number = scene.client._registry().register(subject_of(scene.topic(), newer.name), newer)
    value = b"\x00" + number.to_bytes(4, "big") + b"\x0e"
    scene.publish("k", value)
    scene.publish("k", codec.encode(started("k"), topic=scene.topic()))

    async def go() -> None:
        async with running(app):
            await until_async("the known one", lambda: seen)
            await until_async("committed", scene.settled)

    asyncio.run(go())
    assert seen == [started("k")]
    dead = scene.dead()
    assert [m.value() for m in dead] == ([value] if policy == "dead_letter" else [])
    if dead:
        assert b"FromTheFuture" in dict(dead[0].headers() or [])["pl.error.message"]


def test_a_foreign_record_in_a_lane_is_a_dead_letter_and_disturbs_nothing(scene: Scene) -> None:
    app = make_app(scene.spec(tiers=TIERS, attempts=3))
    scene.make_topics(app)
    for lane in ("retry.200ms", "replay"):
        topic = scene.lane(lane).removeprefix(scene.prefix)
        scene.publish("k", b"who am I", partition=0, topic=topic)
        scene.publish(None, b"nobody", [("pl.v", b"1"), ("pl.hop", b"x")], partition=1, topic=topic)
    scene.publish_many([("k", {"fails": int(n == 0)}) for n in range(6)])

    async def go() -> None:
        async with running(app):
            await until_async("all are done", lambda: len(scene.ledger.done()) == 6)
            await until_async("four dead letters", lambda: scene.count(scene.lane("dlq")) == 4)
            await until_async("committed", scene.settled)
            scene.publish("k", b"one more", partition=0, topic=scene.lane("replay").removeprefix(scene.prefix))
            await until_async("five dead letters", lambda: scene.count(scene.lane("dlq")) == 5)

    asyncio.run(go())
    verdict(scene.ledger.marks(), scene.published, tier_s=0.2).check()
    values = sorted(m.value() or b"" for m in scene.dead())
    assert values == sorted([b"who am I", b"nobody"] * 2 + [b"one more"])
    assert {dict(m.headers() or [])["pl.error.class"] for m in scene.dead()} == {b"ForeignRecord"}
    ends = scene.admin.end_offsets([TopicPartition(scene.lane("retry.200ms"), p) for p in (0, 1)])
    assert all(scene.committed()[tp].offset == end for tp, end in ends.items()), "the lane goes on"


def test_a_dead_letter_topic_that_is_gone_stops_the_partition_until_it_is_back(scene: Scene) -> None:
    app = scene.app(client=QUICK)
    seen: list[int] = []

    @app.subscribe(SOURCE, group="g", tiers=TIERS, value="json", concurrency=1, flow=FlowPolicy(buffered=10))
    async def handle(value: int, ctx: Context) -> None:
        seen.append(value)
        if value == 0:
            raise Reject("no")

    scene.make_topics(app)
    dlq = scene.lane("dlq")
    spec = scene.admin.topics([dlq])[dlq]

    async def go() -> None:
        async with running(app, 2):
            assert app.worker
            engine, fetcher = app.worker.running[0].engine, app.worker.running[0].fetcher
            scene.admin.delete_topics([dlq])
            bad = await asyncio.to_thread(scene.publish, "bad", 0, None, 0)
            await until_async("the write is refused", lambda: engine.stuck, 60)
            # A poll under way may still bring a batch; what is published after it stays at the broker.
            await until_async("it is not fetched any more", lambda: (scene.topic(), 0) in fetcher._paused)
            await asyncio.sleep(0.1)
            behind = await asyncio.to_thread(scene.publish_many, [(f"k{n}", n) for n in range(1, 40)], None, 0)
            other = await asyncio.to_thread(scene.publish, "other", 99, None, 1)
            await until_async("the other partition goes on", lambda: 99 in seen)
            await asyncio.sleep(1.2)  # two commits' time
            assert sorted(seen) == [0, 99], "the partition whose dead letter is not written must pause"
            assert scene.progress(0).offset <= bad[1], "its offset must stay"
            assert engine.stats.dead == {}
            health = app.worker.health()[scene.prefix + "g"]
            assert "dead letter" in health["why"] or dlq in health["why"], health
            assert not health["consuming"], "not consuming, and it says why"
            scene.admin.create_topics([TopicSpec(dlq, spec.partitions)])
            await until_async("it is healed", lambda: len(seen) == 41, 60)
            await until_async("committed", scene.settled)
            health = app.worker.health()[scene.prefix + "g"]
            assert health["consuming"], health
            assert behind
            assert other

    asyncio.run(go())
    assert seen.count(0) == 1, "the handler must not run again for it"
    assert [json.loads(m.value() or b"") for m in scene.dead()] == [0]


def test_a_flood_of_dead_letters_pauses_the_subscription_until_it_is_resumed(scene: Scene) -> None:
    app = scene.app()
    seen: list[int] = []
    broken = [True]

    @app.subscribe(
        SOURCE, group="g", tiers=TIERS, attempts=1, value="json", concurrency=1,
        flow=FlowPolicy(dead_letter_flood=20, flood_window_ms=60_000),
    )  # fmt: skip
    async def handle(value: int, ctx: Context) -> None:
        seen.append(value)
        await asyncio.sleep(0.005)
        if broken[0]:
            raise RuntimeError("everything fails")

    scene.make_topics(app)
    scene.publish_many([(f"k{n}", n) for n in range(300)])

    async def go() -> None:
        async with running(app, 2):
            assert app.worker
            engine = app.worker.running[0].engine
            await until_async("the guard trips", lambda: engine.flood.tripped)
            await until_async("what ran has ended", lambda: engine.executor.running() == 0)
            before = len(seen)
            assert before < 60, "it went on emptying the topic"
            health = app.worker.health()[scene.prefix + "g"]
            assert not health["consuming"]
            assert "dead letters" in health["why"]
            await asyncio.sleep(0.7)
            assert len(seen) == before
            broken[0] = False
            await asyncio.to_thread(scene.switch, Pause(scene.prefix + "g"), False)  # what `pipeline resume` writes
            await until_async("all have run", lambda: len(seen) == 300, 40)
            assert app.worker.health()[scene.prefix + "g"]["consuming"]

    asyncio.run(go())
    assert sorted(seen) == list(range(300))
    assert 20 < scene.count(scene.lane("dlq")) < 60


def test_the_dead_letter_topic_can_be_named(scene: Scene) -> None:
    app = scene.app()

    @app.subscribe(SOURCE, group="g", tiers=TIERS, value="bytes", dead_letter_topic="graveyard")
    async def handle(value: bytes, ctx: Context) -> None:
        raise Reject("no")

    scene.make_topics(app)
    scene.publish("k", b"v")

    async def go() -> None:
        async with running(app):
            await until_async("it is there", lambda: scene.count(scene.topic("graveyard")) == 1)

    asyncio.run(go())
    assert [m.value() for m in scene.read(scene.topic("graveyard"))] == [b"v"]
