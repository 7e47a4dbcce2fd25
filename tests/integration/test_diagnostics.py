"""Failure diagnostics on real Kafka: from the first attempt through tiers and a change of owner to the dead letter and the alert."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import Backoff, Context, Message, Reject, Retries
from pipeline.model.alerts import Alert
from pipeline.model.cluster import TopicSpec
from pipeline.model.headers import decode
from pipeline.model.history import parse
from pipeline.worker.metrics import StatusServer
from pipeline.worker.webhook import signature
from tests.integration.harness import GROUP, SOURCE, Scene, running, until_async

TIERS = ("200ms", "600ms")
CONTENT = "My name is Jane Doe, card 4111111111111111, please help with the refund of my order"
TOKEN = "ghp_" + "a1B2" * 9


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


def message(event_id: str, run_id: str = "run-1", content: str = CONTENT) -> Message:
    return Message(
        event_id=event_id, run_id=run_id, sequence=0, occurred_at=1, agent="a", tenant="t", role="USER", content=content
    )


def publish(scene: Scene, *events: Message) -> None:
    codec = scene.client.codec
    codec.prepare(scene.topic())
    for event in events:
        scene.publish(
            event.run_id, codec.encode(event, topic=scene.topic()), [("pl.event_id", event.event_id.encode())]
        )


class Receiver:
    """A webhook's other end."""

    def __init__(self) -> None:
        self.status = 200
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def accepted(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["async", "def", "batch"])
def test_through_the_tiers_into_the_dead_letter_and_the_alert(scene: Scene, receiver: Receiver, kind: str) -> None:
    app = scene.app(alert_webhook=receiver.url, alert_secret="shared")
    heard: list[Alert] = []
    ran: list[str] = []
    app.on_dead_letter(heard.append)

    def work(event: Message, ctx: Context) -> None:
        ran.append(event.event_id)
        if event.event_id == "good" and ctx.attempt == 3:
            return
        ctx.log.info("charging", card=event.content, attempt_no=ctx.attempt)
        raise ConnectionError(f"attempt {ctx.attempt}: {event.content!r} refused for {TOKEN}")

    async def one(event: Message, ctx: Context) -> None:
        work(event, ctx)

    def plain(event: Message, ctx: Context) -> None:
        work(event, ctx)

    async def many(events: list[Message], contexts: Any) -> list[Any]:
        found: list[Any] = []
        for event, ctx in zip(events, contexts, strict=True):
            try:
                found.append(work(event, ctx))
            except ConnectionError as error:
                found.append(error)
        return found

    handler: Any = {"async": one, "def": plain, "batch": many}[kind]
    more: dict[str, Any] = {"batch": 10} if kind == "batch" else {}
    retries = Retries(backoff=Backoff(50, 3.0), jitter=0.0)
    app.subscribe(SOURCE, group=GROUP, tiers=TIERS, attempts=4, retries=retries, **more)(handler)
    scene.make_topics(app)
    publish(scene, message("good", "run-1"), message("bad", "run-2"))

    async def go() -> None:
        async with running(app):
            await until_async("the dead letter", lambda: scene.count(scene.lane("dlq")) == 1)
            await until_async("the alert", lambda: heard and receiver.got)
            await until_async("committed", scene.settled)
            await asyncio.sleep(0.5)

    asyncio.run(go())
    assert sorted(ran) == ["bad"] * 4 + ["good"] * 3
    (dead,) = scene.dead()
    delivery = decode(dead.headers())
    history = parse(delivery.history)
    assert [a.number for a in history.attempts] == [1, 2, 3, 4], "in memory, in the tiers, and the last one"
    assert history.complete
    assert [a.message for a in history.attempts] == [f"attempt {n}: '[pii]' refused for [secret]" for n in (1, 2, 3, 4)]
    assert all(0 < a.started_ms <= a.failed_ms for a in history.attempts)
    assert delivery.first_failed_ms == history.attempts[0].failed_ms
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} info charging card='\[pii\]' attempt_no=4", delivery.log)
    for name, value in dead.headers() or []:
        for word in (b"Jane", b"4111", b"refund", TOKEN[-8:].encode()):
            assert word not in (value or b""), name
    assert b"in work" in dict(dead.headers() or [])["pl.error.stack"]
    assert b"Jane" in (dead.value() or b""), "the record itself is as it was"
    ((headers, body),) = receiver.got
    assert hmac.compare_digest(headers["Pipeline-Signature"], signature("shared", headers["Pipeline-Timestamp"], body))
    said = json.loads(body)
    assert (said["event_id"], said["attempt"], said["attempts"]) == ("bad", 4, 4)
    assert said["dead_letter"] == {"topic": dead.topic(), "partition": dead.partition(), "offset": dead.offset()}
    assert len(said["history"]) == 4
    assert said["input"]["content"] == "[pii]"
    assert b"Jane" not in body
    assert len(heard) == 1
    assert heard[0].as_json() == said
    retry = [decode(each.headers()) for each in scene.read(scene.lane("retry.600ms"))]
    assert retry
    assert all(copy.log == "" for copy in retry), "the log goes with dead letters only"


def test_history_survives_owners_that_die(scene: Scene) -> None:
    """Each attempt at another process, killed as soon as its hand-off is in the tier."""
    spec = scene.spec(tiers=("2s",), attempts=3)
    from tests.integration.harness import make_app

    scene.make_topics(make_app(spec))
    process = scene.start_and_wait(spec)
    scene.publish("k", {"fails": 99})
    for hops in (1, 2):
        scene.until("handed to the tier", lambda hops=hops: scene.count(scene.lane("retry.2s")) >= hops)
        process.kill()
        process = scene.start_and_wait(spec)
    scene.until("the dead letter", lambda: scene.count(scene.lane("dlq")) >= 1)
    process.stop()
    for dead in scene.dead():
        history = parse(decode(dead.headers()).history)
        assert [a.number for a in history.attempts] == [1, 2, 3]
        assert {a.error_class for a in history.attempts} == {"Retry"}


def test_a_webhook_that_is_down_and_back_hears_once_and_processing_goes_on(scene: Scene, receiver: Receiver) -> None:
    receiver.status = 503
    app = scene.app(alert_webhook=receiver.url)
    done: list[str] = []

    @app.subscribe(SOURCE, group=GROUP, tiers=TIERS, attempts=1)
    async def handle(event: Message, ctx: Context) -> None:
        if event.event_id.startswith("bad"):
            raise Reject("no")
        done.append(event.event_id)

    scene.make_topics(app)
    publish(scene, message("bad-1"), *(message(f"good-{n}", f"run-{n}") for n in range(50)), message("bad-2"))

    async def go() -> None:
        async with running(app):
            await until_async("the others are done", lambda: len(done) == 50)
            await until_async("committed", scene.settled)
            await until_async("it was tried", lambda: receiver.got)
            tried = len(receiver.got)
            receiver.status = 200
            assert app.worker
            alerts = app.worker.alerts
            assert alerts
            await until_async("both got through", lambda: alerts.results.total() == 2)
            assert [json.loads(body)["event_id"] for _, body in receiver.got[-2:]] == ["bad-1", "bad-2"]
            assert tried >= 1
            server = StatusServer(app.worker, 0)
            server.start()
            try:
                import urllib.request

                url = f"http://127.0.0.1:{server.port}/metrics"
                page = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
            finally:
                server.stop()
            group = scene.prefix + GROUP
            assert f'pipeline_alerts_total{{group="{group}",result="delivered"}} 2.0' in page
            counted = re.search(rf'pipeline_handler_duration_seconds_count{{group="{re.escape(group)}"}} (\d+)', page)
            assert counted
            assert 1 <= int(counted[1]) <= 52

    asyncio.run(go())


def test_each_process_has_histograms_of_its_own(scene: Scene) -> None:
    spec = scene.spec(tiers=TIERS, attempts=2)
    from tests.integration.harness import make_app

    scene.make_topics(make_app(spec))
    both = [scene.start(spec), scene.start(spec)]
    scene.until("they share the partitions", lambda: sorted(len(p.partitions()) for p in both) == [1, 1], 40)
    scene.publish_many([(f"k{n}", {"sleep": 0.05}) for n in range(200)])
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 200, 60)
    totals = []
    for process in both:
        status, page = process.status("metrics")
        assert status == 200
        processed = float(re.search(r"^pipeline_records_processed_total\{.*\} (\S+)", page, re.M)[1])  # type: ignore[index]
        assert processed > 0
        for name in ("pipeline_handler_duration_seconds", "pipeline_latency_seconds"):
            count = float(re.search(rf"^{name}_count{{.*}} (\S+)", page, re.M)[1])  # type: ignore[index]
            total = float(re.search(rf"^{name}_sum{{.*}} (\S+)", page, re.M)[1])  # type: ignore[index]
            assert 1 <= count <= processed
            assert total / count >= 0.05
            infinite = float(re.search(rf'^{name}_bucket{{.*le="\+Inf"}} (\S+)', page, re.M)[1])  # type: ignore[index]
            assert infinite == count
        totals.append(processed)
    assert sum(totals) == 200
    for process in both:
        assert process.stop() == 0


def test_secrets_do_not_reach_kafka_and_personal_data_where_that_is_set(scene: Scene) -> None:
    scene.admin.create_topics([TopicSpec(scene.topic("agent.run.events"), 1)])
    for policy in ("", "pii,secret"):
        app = scene.app(scrub=policy)
        with app.recorder() as recorder, recorder.run(agent="a", tenant="t") as run:
            run.message("user", f"{CONTENT} with {TOKEN}")
            with run.tool_call("http", arguments={"password": "correct horse", "url": "https://x"}) as tool:
                tool.result("ok")
    scene.client.codec.prepare(scene.topic("agent.run.events"))
    values = b"\n".join(m.value() or b"" for m in scene.read(scene.topic("agent.run.events")))
    assert TOKEN.encode() not in values
    assert b"correct horse" not in values
    assert values.count(b"Jane Doe") == 1, "with the default personal data is recorded"
