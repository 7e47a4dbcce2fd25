"""Handlers on real Kafka: every kind of handler and value, what they are given, and what their outcomes do."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import BatchPolicy, Context, Emit, Pipeline, Reject, Retries, Retry, Router, Warn
from pipeline.model.events import Message, ModelCall, RunEvent, RunStarted, ToolCall
from pipeline.model.headers import EVENT_ID
from tests.integration.harness import OUT, SOURCE, Scene, running, until_async

TIER = ("200ms",)


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


def event(kind: type[RunEvent], run_id: str, sequence: int, **more: Any) -> RunEvent:
    own: dict[type[RunEvent], dict[str, Any]] = {
        RunStarted: {},
        ModelCall: {"model": "m"},
        ToolCall: {"tool": "t", "call_id": "c", "arguments": "{}"},
        Message: {"content": "hello"},
    }
    return kind(
        event_id=f"{run_id}-{sequence}", run_id=run_id, sequence=sequence, occurred_at=1, agent="a", tenant="t",
        **own[kind], **more,
    )  # fmt: skip


def publish_events(scene: Scene, *events: RunEvent) -> None:
    codec = scene.client.codec
    codec.prepare(scene.topic())
    for each in events:
        value = codec.encode(each, topic=scene.topic())
        scene.publish(each.run_id, value, [(EVENT_ID, each.event_id.encode())])


async def serve(app: Pipeline, what: str, done: Any, partitions: int = 2) -> None:
    async with running(app, partitions):
        await until_async(what, done)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("kind", ["async", "def", "batch", "def batch"])
def test_every_kind_of_handler_gets_each_event_once_in_the_order_of_its_key(
    scene: Scene, kind: str, protocol: str
) -> None:
    app = scene.app(group_protocol=protocol)
    seen: list[tuple[str, int]] = []
    lock = threading.Lock()

    def take(value: dict[str, Any], ctx: Context) -> None:
        with lock:
            seen.append((ctx.run_id, value["n"]))

    subscribe = app.subscribe(SOURCE, group="g", tiers=TIER, value="json", batch=7 if "batch" in kind else None)
    if kind == "async":

        @subscribe
        async def handle(value: Any, ctx: Context) -> None:
            await asyncio.sleep(0.001)
            take(value, ctx)
    elif kind == "def":

        @subscribe
        def plain(value: Any, ctx: Context) -> None:
            take(value, ctx)
    elif kind == "batch":

        @subscribe
        async def batch(values: list[Any], contexts: list[Context]) -> None:
            assert len({ctx.key for ctx in contexts}) == len(contexts), "one key twice in a batch"
            for value, ctx in zip(values, contexts, strict=True):
                take(value, ctx)
    else:

        @subscribe
        def plain_batch(values: list[Any], contexts: list[Context]) -> None:
            for value, ctx in zip(values, contexts, strict=True):
                take(value, ctx)

    scene.make_topics(app)
    scene.publish_many([(f"k{n % 11}", {"n": n}) for n in range(300)])
    asyncio.run(serve(app, "300 records", lambda: len(seen) >= 300))
    assert sorted(n for _, n in seen) == list(range(300))
    for key in {key for key, _ in seen}:
        numbers = [n for k, n in seen if k == key]
        assert numbers == sorted(numbers), key
    assert scene.settled(), scene.committed()


def test_events_are_typed_or_dicts_or_json_or_bytes_as_the_subscription_says(scene: Scene) -> None:
    app = scene.app()
    typed: list[RunEvent] = []
    narrow: list[object] = []
    dicts: list[Any] = []
    raw: list[Any] = []

    @app.subscribe(SOURCE, group="typed", tiers=TIER)
    async def all_types(event: RunEvent, ctx: Context) -> None:
        typed.append(event)

    @app.subscribe(SOURCE, group="narrow", tiers=TIER)
    async def some_types(event: ToolCall | ModelCall, ctx: Context) -> None:
        narrow.append(event)

    @app.subscribe(SOURCE, group="dicts", tiers=TIER)
    def fields(event: dict[str, Any], ctx: Context) -> None:
        dicts.append((ctx.record_name, event))

    @app.subscribe(SOURCE, group="raw", tiers=TIER, value="bytes")
    async def data(value: bytes, ctx: Context) -> None:
        raw.append((value, ctx.raw))

    scene.make_topics(app)
    events = [event(RunStarted, "r", 0), event(ToolCall, "r", 1), event(ModelCall, "r", 2), event(Message, "r", 3)]
    publish_events(scene, *events)
    asyncio.run(serve(app, "all groups", lambda: [len(x) for x in (typed, narrow, dicts, raw)] == [4, 2, 4, 4]))
    assert typed == events
    assert narrow == events[1:3]
    assert [name for name, _ in dicts] == [e.record_name for e in events]
    assert dicts[1][1]["tool"] == "t"
    assert all(value == copy and value[0] == 0 for value, copy in raw)
    for group in ("typed", "narrow", "dicts", "raw"):
        assert scene.count(scene.lane("dlq", group)) == 0, group


def test_a_router_gives_each_type_to_its_row_and_the_rest_to_otherwise(scene: Scene) -> None:
    app, router = scene.app(), Router()
    seen: list[tuple[str, str]] = []

    @router.on(ToolCall)
    async def tool(event: ToolCall, ctx: Context) -> None:
        seen.append(("tool", event.event_id))

    @router.on(RunStarted, Message)
    async def other_two(event: RunEvent, ctx: Context) -> None:
        seen.append(("two", event.event_id))

    @router.otherwise
    async def rest(event: RunEvent, ctx: Context) -> None:
        seen.append(("rest", event.event_id))

    app.subscribe(SOURCE, group="g", tiers=TIER)(router)
    scene.make_topics(app)
    kinds = (RunStarted, ToolCall, ModelCall, Message)
    publish_events(scene, *(event(kind, "r", n) for n, kind in enumerate(kinds)))
    asyncio.run(serve(app, "4 events", lambda: len(seen) >= 4))
    assert seen == [("two", "r-0"), ("tool", "r-1"), ("rest", "r-2"), ("two", "r-3")]


def test_the_context_is_that_of_the_origin_on_every_attempt(scene: Scene) -> None:
    app = scene.app()
    seen: list[dict[str, Any]] = []
    logged: list[Any] = []

    @app.subscribe(SOURCE, group="g", tiers=TIER, attempts=3, timeout="7s", value="json")
    async def handle(value: Any, ctx: Context) -> None:
        logged.append(ctx.log)
        seen.append(
            {
                "key": ctx.key, "run": ctx.run_id, "attempt": ctx.attempt, "of": ctx.attempts, "event": ctx.event_id,
                "idempotency": ctx.idempotency_key, "step": ctx.step_key("mail"), "at": ctx.timestamp_ms,
                "place": (ctx.topic, ctx.partition, ctx.offset), "deadline": ctx.deadline_s,
                "trace": dict(ctx.headers).get("traceparent"), "raw": ctx.raw,
            }
        )  # fmt: skip
        if ctx.attempt < 3:
            raise RuntimeError("again")

    scene.make_topics(app)
    # Delivery headers on a source topic are untrusted and must be ignored.
    forged = [("pl.v", b"1"), ("pl.attempt", b"4"), ("pl.hop", b"9"), ("pl.epoch", b"99"), ("pl.origin.offset", b"77")]
    forged += [("pl.origin.partition", b"0"), ("pl.origin.timestamp", b"5"), ("pl.not_before", b"99999999999999")]
    given = scene.publish("k", {"n": 1}, [(EVENT_ID, b"ev-1"), ("traceparent", b"00-1-2-03"), *forged])
    plain = scene.publish("other", {"n": 2})
    asyncio.run(serve(app, "two records, three attempts each", lambda: len(seen) >= 6))
    for origin, name in ((given, "ev-1"), (plain, f"{scene.topic()}/{plain[0]}/{plain[1]}")):
        mine = [each for each in seen if each["event"] == name]
        assert [each["attempt"] for each in mine] == [1, 2, 3], seen
        first = {k: v for k, v in mine[0].items() if k != "attempt"}
        assert all({k: v for k, v in each.items() if k != "attempt"} == first for each in mine), mine
        assert first["place"] == (scene.topic(), *origin)
        assert first["idempotency"] == f"g:{name}"
        assert first["step"] == f"g:{name}:mail"
        assert (first["of"], first["deadline"]) == (3, 7.0)
    assert seen[0]["trace"] == b"00-1-2-03" or seen[1]["trace"] == b"00-1-2-03"
    assert logged[0]._context["attempt"] == 1
    assert logged[0]._context["key"] in ("k", "other")
    assert scene.count(scene.lane("dlq")) == 0


def test_outcomes_settle_or_fail_the_record(scene: Scene) -> None:
    app = scene.app()
    seen: list[str] = []
    answers: dict[str, Any] = {
        "nothing": None,
        "one": Emit(OUT, "k1", {"is": "one"}),
        "list": [Emit(OUT, "k2", "text"), Emit(OUT, None, b"\x01", [("h", b"v")])],
        "warn": Warn("it is late"),
        "number": 42,
        "mixed": [Emit(OUT, "k", {}), 1],
    }

    @app.subscribe(SOURCE, group="g", tiers=TIER, value="json")
    async def handle(value: Any, ctx: Context) -> Any:
        seen.append(value)
        if value == "reject":
            ctx.emit(OUT, "never", {"dropped": True})
            raise Reject("can never work")
        return answers[value]

    scene.make_topics(app, OUT)
    for name in (*answers, "reject"):
        scene.publish(name, name)
    stats: list[Any] = []

    async def go() -> None:
        async with running(app, 2):
            await until_async("all", lambda: len(seen) >= 7)
            assert app.worker
            stats.append(app.worker.running[0].engine.stats)

    asyncio.run(go())
    assert sorted(seen) == sorted([*answers, "reject"]), "nothing is run twice"
    out = scene.read(scene.topic(OUT))
    assert {(m.key(), m.value()) for m in out} == {(b"k1", b'{"is":"one"}'), (b"k2", b"text"), (None, b"\x01")}
    assert next(m for m in out if m.value() == b"\x01").headers()[0] == ("h", b"v")
    assert all(dict(m.headers())[EVENT_ID].startswith(f"{scene.prefix}g:".encode()) for m in out)
    dead = {json.loads(m.value()): dict(m.headers()) for m in scene.dead()}
    assert sorted(dead) == ["mixed", "number", "reject"]
    for name in ("mixed", "number"):
        assert dead[name]["pl.error.class"] == b"UnexpectedReturn"
        for allowed in (b"None", b"Emit", b"Warn"):
            assert allowed in dead[name]["pl.error.message"], dead[name]["pl.error.message"]
    assert b"can never work" in dead["reject"]["pl.error.message"]
    assert stats[0].warnings == 1
    assert stats[0].processed == 4
    assert scene.settled()


def test_outputs_are_acknowledged_before_the_input_is_settled(scene: Scene) -> None:
    """The output's topic does not exist at first: the input must stay open, and end once the topic is there."""
    from pipeline.model.cluster import TopicSpec

    app = scene.app(client={"producer.topic.metadata.propagation.max.ms": "1000"})  # 30 s by default
    runs: list[int] = []

    @app.subscribe(SOURCE, group="g", tiers=TIER, value="json", concurrency=5)
    async def handle(value: Any, ctx: Context) -> None:
        runs.append(ctx.attempt)
        await ctx.emit(OUT, ctx.key, {"n": value})

    scene.make_topics(app)
    origin = scene.publish("k", 1)

    async def go() -> None:
        async with running(app, 2):
            assert app.worker
            engine = app.worker.running[0].engine
            await until_async("the handler ran", lambda: runs)
            await until_async("the write was refused", lambda: engine.stuck)
            assert engine.stats.processed == 0
            committed = scene.committed().get((scene.topic(), origin[0]))
            assert committed is None or committed.offset <= origin[1], committed
            scene.admin.create_topics([TopicSpec(scene.topic(OUT), 1)])
            await until_async("settled after the topic was made", lambda: engine.stats.processed == 1, 60)

    asyncio.run(go())
    assert runs == [1], "the handler must not run again for a write that was refused"
    assert [m.value() for m in scene.read(scene.topic(OUT))] == [b'{"n":1}']
    assert scene.settled()


def test_typed_outputs_are_encoded_for_their_own_topic(scene: Scene) -> None:
    app = scene.app()

    @app.subscribe(SOURCE, group="g", tiers=TIER)
    async def handle(event: RunStarted, ctx: Context) -> Emit:
        return Emit(OUT, event.run_id, event)

    scene.make_topics(app, OUT)
    started = event(RunStarted, "r", 0)
    publish_events(scene, started)
    asyncio.run(serve(app, "the output", lambda: scene.count(scene.topic(OUT)) + scene.count(scene.lane("dlq")) >= 1))
    assert [dict(m.headers()).get("pl.error.message") for m in scene.dead()] == []
    (message,) = scene.read(scene.topic(OUT))
    codec = scene.app().codec
    codec.prepare(scene.topic(OUT))
    assert codec.decode(scene.topic(OUT), message.value(), message.headers()) == started


def test_a_whole_batch_that_fails_fails_the_first_of_each_key_and_the_others_wait_behind_it(scene: Scene) -> None:
    app = scene.app()
    calls: list[list[tuple[str, int, int]]] = []

    @app.subscribe(SOURCE, group="g", tiers=TIER, attempts=2, value="json", batch=BatchPolicy(6, 200, whole=True))
    def handle(values: list[int], contexts: list[Context]) -> None:
        calls.append([(ctx.run_id, value, ctx.attempt) for value, ctx in zip(values, contexts, strict=True)])
        if len(calls) == 1:
            raise RuntimeError("the store is away")

    scene.make_topics(app)
    scene.publish_many([(key, n) for n in range(3) for key in "ab"], partition=0)
    asyncio.run(serve(app, "all ran", lambda: sum(map(len, calls)) >= 12))
    assert calls[0] == [(key, n, 1) for n in range(3) for key in "ab"]
    again = [entry for call in calls[1:] for entry in call]
    for key in "ab":
        assert [(value, attempt) for k, value, attempt in again if k == key] == [(0, 2), (1, 1), (2, 1)]
    assert scene.settled()


def test_whole_batches_are_full_of_one_key_and_wait_behind_one_that_can_not_be_read(scene: Scene) -> None:
    app = scene.app()
    calls: list[list[Any]] = []

    @app.subscribe(SOURCE, group="g", tiers=TIER, attempts=2, value="json", batch=BatchPolicy(10, 2_000, whole=True))
    async def handle(values: list[Any], contexts: list[Context]) -> None:
        calls.append(values)
        for value, ctx in zip(values, contexts, strict=True):
            ctx.emit(OUT, ctx.run_id, value)

    scene.make_topics(app, OUT)
    for n in range(40):
        scene.publish("k", b"{" if n == 17 else n, partition=0)
    asyncio.run(serve(app, "all ended", lambda: scene.count(scene.topic(OUT)) >= 39))
    assert [json.loads(m.value()) for m in scene.read(scene.topic(OUT))] == [n for n in range(40) if n != 17]
    assert [n for call in calls for n in call] == [n for n in range(40) if n != 17]
    assert max(map(len, calls)) == 10
    assert scene.count(scene.lane("dlq")) == 1
    assert scene.settled()


def test_a_whole_batch_has_no_outcomes_of_items(scene: Scene) -> None:
    app = scene.app()

    @app.subscribe(SOURCE, group="g", tiers=TIER, value="json", batch=BatchPolicy(2, 100, whole=True))
    async def handle(values: list[Any], contexts: list[Context]) -> list[None]:
        return [None] * len(values)

    scene.make_topics(app)
    scene.publish("k", 1)
    asyncio.run(serve(app, "it is dead", lambda: scene.count(scene.lane("dlq")) == 1))
    assert dict(scene.dead()[0].headers())["pl.error.class"] == b"UnexpectedReturn"


def test_one_busy_key_does_not_wait_for_each_of_its_batches(scene: Scene) -> None:
    """One record per key and batch: waiting half a second for others each time would take 20 s."""
    app = scene.app()
    seen: list[int] = []
    times: list[float] = []

    @app.subscribe(SOURCE, group="g", tiers=TIER, value="json", batch=BatchPolicy(10, 500))
    async def handle(values: list[int], contexts: list[Context]) -> None:
        seen.extend(values)
        times.append(time.monotonic())

    scene.make_topics(app)
    scene.publish_many([("k", n) for n in range(40)], partition=0)
    asyncio.run(serve(app, "all ran", lambda: len(seen) >= 40))
    assert times[-1] - times[0] < 12
    assert seen == list(range(40))


def test_batch_items_have_outcomes_of_their_own(scene: Scene) -> None:
    app = scene.app()
    seen: list[tuple[str, int]] = []

    @app.subscribe(
        SOURCE, group="g", tiers=TIER, attempts=2, value="json", batch=BatchPolicy(size=10, wait_ms=300),
        retries=Retries(terminal=(KeyError,)),
    )  # fmt: skip
    async def handle(values: list[str], contexts: list[Context]) -> list[Any]:
        seen.extend((value, ctx.attempt) for value, ctx in zip(values, contexts, strict=True))
        outcomes = {
            "fine": None, "warn": Warn("w"), "out": Emit(OUT, "k", {"x": 1}), "reject": Reject("no"), "key": KeyError("k"),
            "again": Retry("later"), "odd": 3,
        }  # fmt: skip
        return [None if ctx.attempt > 1 else outcomes[v] for v, ctx in zip(values, contexts, strict=True)]

    scene.make_topics(app, OUT)
    names = ["fine", "warn", "out", "reject", "key", "again", "odd"]
    scene.publish_many([(name, name) for name in names], partition=0)
    asyncio.run(serve(app, "all ended", lambda: len(seen) >= 8 and scene.count(scene.lane("dlq")) >= 3))
    assert sorted(seen) == sorted([*((name, 1) for name in names), ("again", 2)])
    dead = {json.loads(m.value()): dict(m.headers())["pl.error.class"] for m in scene.dead()}
    assert dead == {"reject": b"Reject", "key": b"KeyError", "odd": b"UnexpectedReturn"}
    assert len(scene.read(scene.topic(OUT))) == 1
    assert scene.settled()
