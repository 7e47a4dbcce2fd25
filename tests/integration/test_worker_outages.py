"""What fails around a worker, on real Kafka: the registry, the broker, and topics that are not as they must be."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Context
from pipeline.codec.catalogue import product_catalogue
from pipeline.codec.verdict import register
from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker, EmbeddedRegistry
from pipeline.kafka.embedded.ports import free_ports
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import ConfigurationError, TopologyError
from pipeline.model.events import EVENT_TYPES, RunEvent, RunStarted, ToolCall
from pipeline.topology import Defaults, apply
from tests.integration.harness import GROUP, SOURCE, Scene, make_app, running, until_async, verdict

pytestmark = pytest.mark.first

TIERS = ("300ms",)
DAY_MS = 86_400_000


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


# -- the registry


@pytest.mark.parametrize("handler_kind", ["async", "def", "batch"])
def test_without_the_registry_known_ids_go_on_and_cold_ones_wait(
    scene: Scene, registry_server: EmbeddedRegistry, handler_kind: str
) -> None:
    registry_server.start()
    app = scene.app(registry=registry_server.url)
    seen: list[str] = []

    if handler_kind == "async":

        @app.subscribe(SOURCE, group="g", tiers=TIERS, attempts=2)
        async def handle(event: RunEvent, ctx: Context) -> None:
            seen.append(event.event_id)
    elif handler_kind == "def":

        @app.subscribe(SOURCE, group="g", tiers=TIERS, attempts=2)
        def plain(event: RunEvent, ctx: Context) -> None:
            seen.append(event.event_id)
    else:

        @app.subscribe(SOURCE, group="g", tiers=TIERS, attempts=2, batch=10)
        async def batch(events: list[RunEvent], contexts: list[Context]) -> None:
            seen.extend(event.event_id for event in events)

    scene.make_topics(app)
    source = scene.topic()
    early = [kind for kind in EVENT_TYPES if not kind.endswith("ToolCall")]
    from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy

    registry = ConfluentRegistry(RegistryPolicy(registry_server.url))
    register(product_catalogue(), registry, source, early)
    writer = scene.app(registry=registry_server.url).codec
    common: dict[str, Any] = {"sequence": 0, "occurred_at": 1, "agent": "a", "tenant": "t"}

    def started(name: str) -> RunStarted:
        return RunStarted(event_id=name, run_id=name, **common)

    async def go() -> None:
        async with running(app, 2):
            assert app.worker
            engine = app.worker.running[0].engine
            # The id of ToolCall comes up after the worker looked, so it is cold for it.
            register(product_catalogue(), registry, source, EVENT_TYPES)
            writer.prepare(source)
            cold = ToolCall(event_id="cold", run_id="c", tool="t", call_id="1", arguments="{}", **common)
            data = writer.encode(cold, topic=source)
            registry_server.stop()
            await asyncio.to_thread(scene.publish, "c", data, None, 0)
            await asyncio.to_thread(scene.publish, "c", writer.encode(started("behind"), topic=source), None, 0)
            for partition in (0, 1):
                names = [f"known-{partition}-{n}" for n in range(5)]
                records = [(name, writer.encode(started(name), topic=source)) for name in names]
                await asyncio.to_thread(scene.publish_many, records, None, partition)
            await until_async("known ids go on", lambda: len(seen) == 10, 15)
            assert not {"cold", "behind"} & set(seen)
            assert engine.stats.failures == {}, "an outage is no failed attempt"
            registry_server.start()
            await until_async("it goes on after the start", lambda: len(seen) == 12, 30)
            await until_async("committed", scene.settled)

    try:
        asyncio.run(go())
    finally:
        registry_server.start()
    assert seen[-2:] == ["cold", "behind"]
    assert scene.count(scene.lane("dlq")) == 0
    assert scene.count(scene.lane("retry.300ms")) == 0


# -- the broker


def test_a_worker_waits_for_a_broker_that_is_away_at_the_start(topic_name: str, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    broker = EmbeddedBroker(BrokerSpec(port=port), mirror=os.environ.get("PIPELINE_MAVEN_MIRROR"))
    with Scene(f"127.0.0.1:{port}", topic_name, tmp_path) as scene:
        spec = scene.spec(tiers=TIERS)
        process = scene.start(spec)
        scene.until("it says that it waits", lambda: process.said("waiting for the cluster"))
        log = process.log.read_text()
        assert f"127.0.0.1:{port}" in log
        assert "Traceback" not in log
        with broker:
            # Its topics are missing at first: a broker that is there and says so is no reason to wait.
            scene.until("it ended with words", lambda: process.popen.poll() is not None)
            assert process.popen.returncode == 2
            assert "run `pipeline topics apply`" in process.log.read_text()
            scene.make_topics(make_app(spec))
            second = scene.start_and_wait(spec)
            scene.publish("k", {})
            scene.until("it works", lambda: len(scene.ledger.done()) == 1)
            assert second.stop() == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_broker_killed_and_restarted_in_the_middle_loses_nothing(
    topic_name: str, tmp_path: Path, protocol: str
) -> None:
    with (
        EmbeddedBroker(BrokerSpec(), mirror=os.environ.get("PIPELINE_MAVEN_MIRROR")) as broker,
        Scene(broker.bootstrap, topic_name, tmp_path) as scene,
    ):
        spec = scene.spec(settings={"group_protocol": protocol}, tiers=("300ms", "600ms"), attempts=6, concurrency=20)
        scene.make_topics(make_app(spec))
        workers = [scene.start(spec), scene.start(spec)]
        scene.until("they share", lambda: [len(w.partitions()) for w in workers] == [1, 1])
        records = [(f"k{n % 30}", {"sleep": 0.02, "fails": 1 + n % 2 if n % 29 == 0 else 0}) for n in range(1500)]
        scene.publish_many(records)
        scene.until("half is done", lambda: len(scene.ledger.marks("done")) > 500)
        broker.kill_node(1)
        down_at = time.time()
        time.sleep(2)  # how long it is away
        broker.start_node(1)
        up_at = time.time()
        scene.until("all are done", lambda: len(set(scene.ledger.done())) == 1500, 90)
        scene.until("all are committed", scene.settled, 30)
        marks = scene.ledger.marks()
        verdict(marks, scene.published, tier_s=0.3).check("duplicates")
        doubled = [m for m in marks if m.what == "start" and m.attempt == 1 and m.at > up_at]
        assert doubled, "nothing was left to do after the restart: the test shows nothing"
        firsts: dict[tuple[int, int], float] = {}
        for mark in marks:
            if mark.what == "done":
                before = firsts.setdefault((mark.partition, mark.offset), mark.at)
                assert before == mark.at or before > down_at - 3, f"{mark} was done long before the broker went away"
        assert scene.dead() == []
        assert [w.stop() for w in workers] == [0, 0]


# -- topics


def test_a_worker_refuses_topics_that_would_lose_data_and_names_the_setting(scene: Scene) -> None:
    spec = scene.spec(tiers=("300ms", "600ms"))
    app = make_app(spec)

    def refused(*words: str) -> None:
        again = make_app(spec)

        async def go() -> None:
            with pytest.raises(TopologyError) as error:
                await again.start()
            for word in words:
                assert word in str(error.value), str(error.value)

        asyncio.run(go())

    refused(scene.topic(), "does not exist")
    scene.admin.create_topics([TopicSpec(scene.topic(), 2)])
    refused("does not exist", "pipeline topics apply")
    scene.make_topics(app)
    scene.publish("k", {})
    tier = scene.lane("retry.600ms")
    scene.admin.set_configs(tier, {"retention.ms": str(3 * DAY_MS)})
    scene.until(
        "the setting is known", lambda: scene.admin.topics([tier])[tier].configs["retention.ms"] == str(3 * DAY_MS)
    )
    refused(tier, "retention.ms", str(3 * DAY_MS))
    apply(scene.admin, app.subscriptions, Defaults(), scene.prefix)
    scene.admin.set_configs(tier, {"cleanup.policy": "compact"})
    scene.until("the setting is known", lambda: scene.admin.topics([tier])[tier].configs["cleanup.policy"] == "compact")
    refused(tier, "cleanup.policy")
    apply(scene.admin, app.subscriptions, Defaults(), scene.prefix)
    scene.admin.add_partitions(scene.topic(), 3)
    refused("partitions", "3")
    apply(scene.admin, app.subscriptions, Defaults(), scene.prefix)
    scene.admin.delete_topics([scene.lane("replay")])
    scene.until("it is gone", lambda: scene.lane("replay") not in scene.admin.topic_names())
    refused(scene.lane("replay"), "does not exist")
    assert scene.ledger.marks() == [], "nothing was consumed"
    assert scene.committed() == {}
    apply(scene.admin, app.subscriptions, Defaults(), scene.prefix)

    async def works() -> None:
        async with running(app):
            await until_async("it is done", lambda: len(scene.ledger.done()) == 1)

    asyncio.run(works())


def test_declarations_that_can_not_work_say_so_at_once(scene: Scene) -> None:
    app = scene.app()

    async def handle(value: Any, ctx: Context) -> None: ...

    wrong: list[tuple[str, dict[str, Any]]] = [
        ("attempts", {"attempts": 0}), ("tiers", {"tiers": ("2s", "1s")}), ("tiers", {"tiers": ("soon",)}),
        ("order", {"order": "random"}), ("value", {"value": "xml"}), ("concurrency", {"concurrency": 0}),
        ("timeout", {"timeout": 0}), ("start", {"start": "yesterday"}), ("topic", {"topic": "a b"}),
        ("dead_letter_topic", {"dead_letter_topic": SOURCE}),
    ]  # fmt: skip
    for name, arguments in wrong:
        with pytest.raises(ConfigurationError, match=name):
            app.subscribe(**{"topic": SOURCE, "group": "g", **arguments})(handle)
    app.subscribe(SOURCE, group="g")(handle)
    with pytest.raises(ConfigurationError, match="group"):
        app.subscribe("another", group="g")(handle)


# -- looking in


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_metrics_and_health_tell_what_the_worker_does(scene: Scene, protocol: str) -> None:
    spec = scene.spec(settings={"group_protocol": protocol}, tiers=TIERS, attempts=2)
    scene.make_topics(make_app(spec))
    process = scene.start_and_wait(spec)
    scene.publish_many([("a", {"fails": 1}), ("a", {}), ("b", {"fails": 9}), ("c", {"reject": True}), ("d", {})])
    scene.until("all have ended", lambda: scene.settled() and scene.count(scene.lane("dlq")) == 2)
    status, text = process.status("metrics")
    assert status == 200
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}
    group = f'group="{scene.prefix}{GROUP}"'
    expected = {
        f"pipeline_records_processed_total{{{group}}}": 3, f"pipeline_partitions{{{group}}}": 2,
        f'pipeline_attempts_failed_total{{{group},kind="retryable"}}': 3, f"pipeline_consuming{{{group}}}": 1,
        f'pipeline_attempts_failed_total{{{group},kind="terminal"}}': 1,
        f'pipeline_handoffs_total{{cause="retry",{group},lane="300ms"}}': 2,
        f'pipeline_handoffs_total{{cause="wait",{group},lane="300ms"}}': 1,
        f'pipeline_dead_letters_total{{error_class="Reject",{group}}}': 1,
        f'pipeline_dead_letters_total{{error_class="Retry",{group}}}': 1,
        f"pipeline_parked_records{{{group}}}": 0, f"pipeline_running{{{group}}}": 0, f"pipeline_buffered{{{group}}}": 0,
    }  # fmt: skip
    assert {name: values.get(name) for name in expected} == expected
    assert process.status()[0] == 200


def test_health_says_that_the_source_was_deleted_and_recovers_when_it_is_back(scene: Scene) -> None:
    """Classic protocol: with KIP-848 the coordinator takes the partitions away without a word, as from an idle spare."""
    spec = scene.spec(tiers=TIERS)
    scene.make_topics(make_app(spec))
    process = scene.start_and_wait(spec)
    scene.admin.delete_topics([scene.topic()])
    scene.until("not consuming without its source", lambda: process.status()[0] == 503, 40)
    assert scene.topic() in process.status()[1], process.status()
    scene.admin.create_topics([TopicSpec(scene.topic(), 2)])
    scene.until("it has its partitions again", lambda: len(process.partitions()) == 2, 40)
    scene.until("it is healthy", lambda: process.status()[0] == 200)
    scene.publish("k", {})
    scene.until("it works", lambda: len(scene.ledger.done()) == 1)


def test_an_idle_spare_is_healthy_and_takes_over(scene: Scene) -> None:
    """An idle spare is healthy: it is in the group, and it says that it owns no partition."""
    scene.partitions = 1
    spec = scene.spec(tiers=TIERS)
    scene.make_topics(make_app(spec))
    first = scene.start_and_wait(spec)
    second = scene.start(spec)
    scene.until("the spare serves its status", lambda: second.status()[0] == 200)
    assert second.partitions() == []
    assert first.stop() == 0
    scene.until("the spare takes over", lambda: second.partitions() == [0])
    assert TopicPartition(scene.topic(), 0) in scene.committed()
