"""What a failure leaves behind, on a cluster in memory and in virtual time: history, log tail, scrubbed texts, alerts, histograms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pipeline import Backoff, BatchPolicy, Context, Emit, Message, Pipeline, Reject, Retries, Settings
from pipeline.core.unit import SKIPPED
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.alerts import Alert, DeadLetterAlert
from pipeline.model.cluster import TopicPartition
from pipeline.model.headers import LOG_BYTES, DeliveryHeaders, decode
from pipeline.model.history import parse
from pipeline.topology import Defaults, apply
from pipeline.worker.histograms import DURATION_BOUNDS_S, Histogram
from pipeline.worker.log_tail import LINES_MAX, LogTail, TailLogger

TOPIC = "events"
CONTENT = "My name is Jane Doe and I live at 5 Elm Street; ring twice, please"
KEY = "sk-proj-" + "a1B2" * 8


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def application() -> Pipeline:
    return Pipeline("app", settings=Settings(broker="memory://diagnostics"))


def message(content: str = CONTENT, event_id: str = "e-1") -> Message:
    return Message(
        event_id=event_id,
        run_id="run-1",
        sequence=0,
        occurred_at=1,
        agent="a",
        tenant="t",
        role="USER",
        content=content,
        name="Jane",
    )


class Stage:
    """The cluster and its clock."""

    def __init__(self, app: Pipeline, loop: VirtualClockLoop, cluster: MemoryCluster) -> None:
        self.app, self.loop, self.cluster = app, loop, cluster

    def publish(self, *events: Message) -> None:
        self.app.codec.prepare(TOPIC)
        producer = self.cluster.producer("agents")
        for event in events:
            producer.send(
                TOPIC,
                event.run_id.encode(),
                self.app.codec.encode(event, topic=TOPIC),
                [("pl.event_id", event.event_id.encode())],
            )

    def read(self, topic: str) -> list[Any]:
        reader = self.cluster.reader("look")
        reader.assign({TopicPartition(topic, 0): 0})
        return list(reader.poll(1_000, 0))

    async def dead(self, count: int, group: str = "g") -> list[DeliveryHeaders]:
        topic = f"{TOPIC}.{group}.dlq"
        async with asyncio.timeout(100_000):
            while len(found := self.read(topic)) < count:
                await asyncio.sleep(0.5)
        return [decode(each.headers()) for each in found]


def play(app: Pipeline, story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("diagnostics", clock=loop.clock, scheduler=loop.call_later_ms)
        memory.register(cluster)
        try:
            apply(cluster.admin(), app.subscriptions, Defaults(partitions=1))
            await app.start()
            await story(Stage(app, loop, cluster))
            await app.stop()
        finally:
            memory.forget(cluster.address)

    run(main)


def texts_of(dead: DeliveryHeaders) -> str:
    error = dead.error
    return "\n".join((error.error_class, error.error_type, error.message, error.stack, dead.history.decode(), dead.log))


def test_history_counts_tiers_and_memory_and_goes_with_the_dead_letter() -> None:
    app = application()
    attempts = []

    @app.subscribe(
        TOPIC, group="g", tiers=("10s",), attempts=5, retries=Retries(backoff=Backoff(2_000, 4.0), jitter=0.0)
    )
    async def handle(event: Message, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        await asyncio.sleep(1)
        raise RuntimeError(f"failure {ctx.attempt}")

    async def story(stage: Stage) -> None:
        stage.publish(message())
        (dead,) = await stage.dead(1)
        history = parse(dead.history)
        assert attempts == [1, 2, 3, 4, 5]
        assert [a.number for a in history.attempts] == attempts, "two waits in memory, two in the tier"
        assert history.complete
        assert [a.message for a in history.attempts] == [f"failure {n}" for n in attempts]
        for attempt in history.attempts:
            assert 999 <= attempt.failed_ms - attempt.started_ms <= 1_600, (
                "started when the worker last looked at its clock"
            )
        assert history.attempts[0].failed_ms == dead.first_failed_ms
        waits = [b.started_ms - a.failed_ms for a, b in zip(history.attempts, history.attempts[1:], strict=False)]
        assert waits[:2] == [2_000, 8_000]
        assert min(waits[2:]) > 30_000, waits

    play(app, story)


def test_a_record_that_waits_for_order_keeps_its_history() -> None:
    """Hops for order and drains hand it on without an attempt."""
    app = application()

    @app.subscribe(TOPIC, group="g", tiers=("10s", "1m"), attempts=3)
    async def handle(event: Message, ctx: Context) -> None:
        raise RuntimeError(f"{event.event_id} {ctx.attempt}")

    async def story(stage: Stage) -> None:
        stage.publish(*(message(event_id=f"e-{n}") for n in range(4)))
        found = await stage.dead(4)
        for number, dead in enumerate(found):
            assert [a.message for a in parse(dead.history).attempts] == [f"e-{number} {n}" for n in (1, 2, 3)]

    play(app, story)


def test_the_log_tail_is_that_of_the_last_attempt() -> None:
    app = application()

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=2, retries=Retries(backoff=Backoff(100)))
    async def handle(event: Message, ctx: Context) -> None:
        if ctx.attempt == 1 or event.event_id == "loud":
            ctx.log.info("looking up", attempt_is=ctx.attempt, who=event.content)
            ctx.log.bind(step="two").warning("still %s", "looking")
        raise RuntimeError("no")

    async def story(stage: Stage) -> None:
        stage.publish(message(), message(event_id="loud"))
        quiet, loud = await stage.dead(2)
        assert quiet.log == "", "the first attempt's lines are not the last one's"
        first, second = loud.log.splitlines()
        assert "info looking up attempt_is=2" in first
        assert "warning still looking step='two'" in second
        assert "Jane" not in loud.log
        assert "who='[pii]'" in first

    play(app, story)


def test_of_many_and_long_lines_the_newest_are_kept() -> None:
    tail = LogTail()
    log = TailLogger(structlog.get_logger(), tail)
    for number in range(100):
        log.info("line", number=number)
    lines = tail.text().splitlines()
    assert len(lines) == LINES_MAX
    assert lines[-1].endswith("number=99")
    for number in range(20):
        log.error("é" * 390, number=number)
    log.error("x" * 10_000)
    assert len(tail.text().encode()) <= LOG_BYTES
    assert "xxx" in tail.text().splitlines()[-1]

    class Bad:
        def __repr__(self) -> str:
            raise ValueError

    log.info("bad", value=Bad())
    assert "can't be put into words" in tail.text()


def test_the_tail_writes_what_the_logger_writes() -> None:
    with capture_logs() as written:
        tail = LogTail()
        log = TailLogger(structlog.get_logger().bind(a=1), tail)
        log.bind(b=2).info("hello", c=3)
        log.bind(b=2).unbind("b").try_unbind("zz").new(d=4).error("bye")
        log.debug("no arguments")
        assert log.info(event="by name") is None
    assert written == [
        {"a": 1, "b": 2, "c": 3, "event": "hello", "log_level": "info"}, {"d": 4, "event": "bye", "log_level": "error"},
        {"a": 1, "event": "no arguments", "log_level": "debug"}, {"a": 1, "event": "by name", "log_level": "info"},
    ]  # fmt: skip
    assert [line.split(" ", 1)[1] for line in tail.text().splitlines()] == [
        "info hello b=2 c=3",
        "error bye d=4",
        "debug no arguments",
        "info by name",
    ]


@pytest.mark.parametrize("annotation", [Message, dict])
def test_error_texts_quote_no_tagged_field_and_no_secret(annotation: type) -> None:
    app = application()

    async def handle(event: Any, ctx: Context) -> None:
        content = event["content"] if annotation is dict else event.content
        try:
            raise KeyError(content)
        except KeyError as cause:
            raise ValueError(f"can't work with {content!r}: key {KEY}") from cause

    handle.__annotations__["event"] = annotation
    app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=2)(handle)

    async def story(stage: Stage) -> None:
        with capture_logs() as lines:
            stage.publish(message())
            (dead,) = await stage.dead(1)
        assert dead.error.message == "can't work with '[pii]': key [secret]"
        assert "in handle" in dead.error.stack
        everything = texts_of(dead) + json.dumps(lines, default=str)
        for word in ("Jane", "Elm", "twice", KEY[-8:]):
            assert word not in everything
        assert any(line["event"] == "attempt failed" for line in lines)

    play(app, story)


def test_a_whole_batch_that_fails_quotes_none_of_its_records() -> None:
    app = application()
    others = [f"secret plan number {n} of someone" for n in range(5)]

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=1, batch=BatchPolicy(size=5, wait_ms=100))
    async def handle(events: list[Message], contexts: Sequence[Context]) -> None:
        contexts[0].log.info("batch", of=len(events))
        raise ValueError(f"can't take {[event.content for event in events]}")

    @app.subscribe(TOPIC, group="items", tiers=("10s",), attempts=1, batch=BatchPolicy(size=5, wait_ms=100))
    async def each(events: list[Message], contexts: Sequence[Context]) -> list[Any]:
        contexts[1].log.info("only the second")
        return [Reject(f"not {event.content}") for event in events]

    async def story(stage: Stage) -> None:
        stage.publish(*(message(text).model_copy(update={"run_id": f"r{n}"}) for n, text in enumerate(others)))
        found = await stage.dead(5)
        for dead in found:
            assert dead.error.message == "can't take ['[pii]', '[pii]', '[pii]', '[pii]', '[pii]']"
            assert "someone" not in texts_of(dead)
            assert parse(dead.history).attempts[0].started_ms > 0
        assert [bool(dead.log) for dead in found] == [True] + [False] * 4
        items = await stage.dead(5, "items")
        assert {dead.error.message for dead in items} == {"not [pii]"}
        assert sum("only the second" in dead.log for dead in items) == 1

    play(app, story)


def test_what_can_not_be_scrubbed_is_left_out_and_the_worker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    app = application()

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=2)
    async def handle(event: Message, ctx: Context) -> None:
        raise ValueError(f"no: {event.content}")

    @app.subscribe(TOPIC, group="many", tiers=("10s",), attempts=1, batch=2)
    async def many(events: list[Message], contexts: Sequence[Context]) -> None:
        raise ValueError(f"no: {events[0].content}")

    def broken(*_: object) -> None:
        raise MemoryError("Jane")

    monkeypatch.setattr("pipeline.worker.diagnosing.tagged_texts", broken)

    async def story(stage: Stage) -> None:
        stage.publish(message())
        for group in ("g", "many"):
            (dead,) = await stage.dead(1, group)
            assert dead.error.error_type == "ValueError"
            assert dead.error.message == "(left out: scrubbing it failed with MemoryError)"
            assert "Jane" not in texts_of(dead)

    play(app, story)


def test_json_values_have_no_tags_but_names_and_shapes() -> None:
    app = application()

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=1, value="json")
    async def handle(value: dict[str, Any], ctx: Context) -> None:
        raise ValueError(f"login of {value['user']} with {value['auth']['password']} and {KEY} failed")

    async def story(stage: Stage) -> None:
        producer = stage.cluster.producer("agents")
        producer.send(TOPIC, b"k", json.dumps({"user": "bob", "auth": {"password": "correct horse"}}).encode())
        producer.send(TOPIC, b"k", b"\xff not json")
        dead, undecodable = await stage.dead(2)
        assert dead.error.message == "login of bob with [secret] and [secret] failed"
        assert undecodable.error.error_class == "Undecodable"

    play(app, story)


# -- alerts


def test_an_alert_tells_of_the_final_failure_only_and_after_the_dead_letter_is_written() -> None:
    app = application()
    heard: list[tuple[Alert, int]] = []
    seen: list[Alert] = []

    @app.on_dead_letter
    def hook(alert: Alert) -> None:
        heard.append((alert, len(stages[0].read(f"{TOPIC}.g.dlq"))))

    async def own(alert: Alert) -> None:
        seen.append(alert)

    stages: list[Stage] = []

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=3, on_dead_letter=own)
    async def handle(event: Message, ctx: Context) -> None:
        ctx.log.info("trying")
        if event.event_id == "bad" or ctx.attempt < 3:
            raise RuntimeError(f"no: {event.content}")

    async def story(stage: Stage) -> None:
        stages.append(stage)
        stage.publish(message(event_id="good"), message(event_id="bad"))
        await stage.dead(1)
        await asyncio.sleep(30)
        ((alert, written),) = heard
        assert written == 1
        assert seen == [alert]
        assert isinstance(alert, DeadLetterAlert)
        said = json.loads(json.dumps(alert.as_json()))
        assert (said["event_id"], said["group"], said["attempt"], said["attempts"]) == ("bad", "g", 3, 3)
        assert said["dead_letter"] == {"topic": f"{TOPIC}.g.dlq", "partition": 0, "offset": 0}
        assert said["origin"] == {"topic": TOPIC, "partition": 0, "offset": 1}
        assert said["look"].startswith("pipeline dlq show")
        assert said["error"]["message"] == "no: [pii]"
        assert [a["attempt"] for a in said["history"]] == [1, 2, 3]
        assert said["started_ms"] <= said["failed_ms"]
        assert "trying" in said["log"][0]
        assert (said["type"], said["input"]["content"], said["input"]["event_id"]) == (
            "agent.run.Message",
            "[pii]",
            "bad",
        )
        assert said["handler"].endswith("handle")
        assert "Jane" not in json.dumps(said)
        assert stage.app.worker
        assert stage.app.worker.alerts
        assert stage.app.worker.alerts.results == {("g", "delivered"): 2}

    play(app, story)


def test_values_without_a_contract_stay_out_of_alerts() -> None:
    app = application()
    heard: list[Any] = []
    app.on_dead_letter(heard.append)

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=1, value="json")
    async def handle(value: Any, ctx: Context) -> None:
        raise Reject("no")

    async def story(stage: Stage) -> None:
        stage.cluster.producer("agents").send(TOPIC, b"k", b'{"who": "Jane"}')
        stage.cluster.producer("agents").send(TOPIC, b"k", b"\xff")
        await stage.dead(2)
        await asyncio.sleep(1)
        assert [alert.input for alert in heard] == [None, None]
        assert [alert.error.error_class for alert in heard] == ["Reject", "Undecodable"]

    play(app, story)


def test_a_hook_that_fails_or_hangs_delays_nothing() -> None:
    app = application()
    tries: list[str] = []
    done: list[str] = []

    @app.on_dead_letter
    async def hangs(alert: Alert) -> None:
        tries.append("hangs")
        await asyncio.sleep(10_000)

    @app.on_dead_letter
    def fails(alert: Alert) -> None:
        tries.append("fails")
        raise OSError("the pager is down")

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=1)
    async def handle(event: Message, ctx: Context) -> None:
        if event.event_id == "bad":
            raise Reject("no")
        done.append(event.event_id)

    async def story(stage: Stage) -> None:
        stage.publish(message(event_id="bad"), *(message(event_id=str(n)) for n in range(50)))
        began = stage.loop.time()
        while len(done) < 50:
            await asyncio.sleep(0.1)
        assert stage.loop.time() - began < 5
        await asyncio.sleep(200)
        assert tries == ["hangs"] * 3 + ["fails"] * 3
        assert stage.app.worker
        assert stage.app.worker.alerts
        assert stage.app.worker.alerts.results == {("g", "failed"): 2}

    play(app, story)


def test_a_flood_is_ten_alerts_and_one_summary() -> None:
    app = application()
    heard: list[Any] = []
    app.on_dead_letter(heard.append)

    @app.subscribe(TOPIC, group="g", tiers=("10s",), attempts=1)
    async def handle(event: Message, ctx: Context) -> None:
        raise Reject("no") if event.event_id.endswith("0") else ConnectionError("down")

    async def story(stage: Stage) -> None:
        stage.publish(*(message(event_id=str(n)) for n in range(200)))
        await stage.dead(200)
        await asyncio.sleep(70)
        assert [alert.kind for alert in heard] == ["dead_letter"] * 10 + ["flood"]
        flood = heard[-1].as_json()
        assert flood["count"] == 190
        assert flood["by_class"] == {"ConnectionError": 171, "Reject": 19}
        assert flood["until_ms"] - flood["since_ms"] == 60_000
        heard.clear()
        stage.publish(message(event_id="x"))
        await asyncio.sleep(1)
        assert heard == [], "while the flood's last window lasts, only counted"
        await asyncio.sleep(130)
        assert [alert.kind for alert in heard] == ["flood"]
        heard.clear()
        stage.publish(message(event_id="y"))
        await asyncio.sleep(1)
        assert [alert.kind for alert in heard] == ["dead_letter"], "after a quiet window one by one again"

    play(app, story)


def test_what_an_operator_skips_is_no_news() -> None:
    from pipeline.worker.alerting import Alerts

    class Effect:
        failure = SKIPPED

    alerts = Alerts({"g": (print,)}, None, lambda: 0, structlog.get_logger())
    alerts.dead_letter = None  # type: ignore[assignment, method-assign]
    alerts.of("g", "t", lambda *_: pytest.fail("told"))(Effect(), 5)  # type: ignore[arg-type]


# -- histograms


def test_histograms_count_by_upper_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0):
        histogram.observe(seconds)
    assert histogram.cumulative() == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum_s == pytest.approx(3.65)
    assert list(DURATION_BOUNDS_S) == sorted(DURATION_BOUNDS_S)


@pytest.mark.parametrize("kind", ["async", "outputs", "batch"])
def test_durations_and_latencies_are_sampled(kind: str) -> None:
    app = application()
    done: list[object] = []

    async def one(event: Message, ctx: Context) -> Any:
        await asyncio.sleep(0.2)
        done.append(event)
        if event.event_id == "0" and ctx.attempt == 1:
            raise RuntimeError("again")
        return Emit("out", b"k", b"v") if kind == "outputs" else None

    async def many(events: list[Message], contexts: Sequence[Context]) -> None:
        await asyncio.sleep(0.2)
        done.extend(events)

    if kind == "batch":
        app.subscribe(TOPIC, group="g", batch=20)(many)
    else:
        app.subscribe(TOPIC, group="g", tiers=("10s",), order="none")(one)

    async def story(stage: Stage) -> None:
        from pipeline.model.cluster import TopicSpec

        stage.cluster.admin().create_topics([TopicSpec("out", 1)])
        stage.publish(*(message(event_id=str(n)) for n in range(64)))
        await asyncio.sleep(60)
        assert len(done) >= 64
        assert stage.app.worker
        stats = stage.app.worker.running[0].engine.stats
        assert stats.processed == 64
        count = sum(stats.durations.counts)
        assert 1 <= count <= len(done)
        assert stats.durations.sum_s / count == pytest.approx(0.2, rel=0.5)
        latencies = sum(stats.latencies.counts)
        assert 1 <= latencies <= 64
        if kind == "outputs":
            assert latencies == 4, "every sixteenth"

    play(app, story)


def test_skipped_events_are_not_timed() -> None:
    app = application()

    @app.subscribe(TOPIC, group="g")
    async def handle(event: Message, ctx: Context) -> None:
        pass

    from pipeline.model.events import RunStarted

    async def story(stage: Stage) -> None:
        stage.app.codec.prepare(TOPIC)
        started = RunStarted(event_id="s", run_id="r", sequence=0, occurred_at=1, agent="a", tenant="t")
        for _ in range(5):
            stage.cluster.producer("agents").send(TOPIC, b"r", stage.app.codec.encode(started, topic=TOPIC))
        await asyncio.sleep(5)
        assert stage.app.worker
        stats = stage.app.worker.running[0].engine.stats
        assert (stats.processed, sum(stats.durations.counts)) == (5, 0)

    play(app, story)
