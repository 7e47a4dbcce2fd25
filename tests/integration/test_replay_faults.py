"""What may go wrong around a replay on real Kafka: open transactions, a registry that stops, a process that wakes late, clocks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.codec import AvroCodec, product_catalogue
from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy
from pipeline.codec.verdict import register
from pipeline.inspect.control import write_switch
from pipeline.kafka.embedded import EmbeddedRegistry
from pipeline.model.cluster import TopicPartition
from pipeline.model.control import Replay
from pipeline.model.errors import ConfigurationError, SchemaUnavailable
from pipeline.model.events import ToolCall
from pipeline.replay.asking import Request
from pipeline.replay.fetching import FETCH
from pipeline.replay.plan import PlanError, ReplayPlan, Selection
from pipeline.replay.planning import make_plan
from pipeline.replay.running import Reason, run_options, run_plan
from pipeline.replay.status import status_of
from tests.integration.harness import GROUP, Scene, make_app, until
from tests.integration.replays import Replays, check_history, origins

WINDOW = 500
OPEN_S = 240
"""How long the broker leaves a transaction open."""


@pytest.fixture
def replays(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Replays]:
    with Scene(kafka, topic_name, tmp_path, partitions=3) as scene:
        yield Replays(scene)


@pytest.fixture
def transaction(replays: Replays) -> Iterator[Any]:
    """A producer with a transaction that is begun; it is ended with the test."""
    from confluent_kafka import KafkaException, Producer

    producer = Producer(
        {
            "bootstrap.servers": replays.scene.bootstrap,
            "transactional.id": replays.scene.prefix + "tx",
            "transaction.timeout.ms": OPEN_S * 1_000,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    yield producer
    try:
        producer.abort_transaction(30)
    except KafkaException:
        producer.purge()  # the test ended it


def test_an_open_transaction_at_the_end_holds_nothing_up(replays: Replays, transaction: Any) -> None:
    """Behind its first record nothing can be read: the plan ends before it, and also means no more once it is committed."""
    scene = replays.scene
    replays.prepare(90)
    before = scene.admin.end_offsets([TopicPartition(scene.topic(), p) for p in range(3)])
    for partition in range(3):
        transaction.produce(scene.topic(), b'{"n": 1000}', b"k1", partition)
    assert transaction.flush(30) == 0
    began = time.monotonic()
    plans = [
        replays.plan(to_topic=scene.topic()),
        replays.plan(to_topic=scene.topic(), keys=(b"k1",), limit=1_000),
        replays.plan(to_file=str(scene.folder / "all.avro")),
    ]
    assert time.monotonic() - began < OPEN_S / 2, "nothing waited for the end of the transaction"
    for plan in plans:
        assert {p: span.end for p, span in plan.source.spans.items()} == {tp.partition: n for tp, n in before.items()}
    assert replays.run(plans[2]).done == 90
    transaction.commit_transaction(30)
    assert replays.run(plans[0]).done == 90
    assert set(replays.results(plans[0])) == origins(scene)


def test_a_plan_ends_with_the_last_record_it_saw(replays: Replays, transaction: Any) -> None:
    """Not with the markers of transactions behind it, for which a run would wait."""
    scene = replays.scene
    replays.prepare(90)
    before = scene.admin.end_offsets([TopicPartition(scene.topic(), p) for p in range(3)])
    for partition in range(3):
        transaction.produce(scene.topic(), b"{}", b"k", partition)
    assert transaction.flush(30) == 0, "or the abort drops them, and nothing is in the log"
    transaction.abort_transaction(30)
    plan = replays.plan(to_topic=scene.topic())
    assert {p: span.end for p, span in plan.source.spans.items()} == {tp.partition: n for tp, n in before.items()}


# -- a registry that stops


def test_a_registry_that_is_gone_ends_a_plan_and_a_run_that_need_values(
    replays: Replays, registry_server: EmbeddedRegistry
) -> None:
    """A real one, stopped: nothing is passed over, nothing half done, and the same plan goes on when it is back."""
    scene, cluster = replays.scene, replays.scene.client.cluster
    replays.prepare(0)
    registry_server.start()
    policy = RegistryPolicy(registry_server.url, timeout_s=2)
    writing = AvroCodec(ConfluentRegistry(policy))
    register(product_catalogue(), ConfluentRegistry(policy), scene.topic(), ["agent.run.ToolCall"])
    writing.prepare(scene.topic(), ["agent.run.ToolCall"])
    producer = cluster.producer()
    for n in range(60):
        event = ToolCall(
            event_id=f"e{n}", run_id="r", sequence=n, occurred_at=5, agent="a", tenant="t",
            tool="pay" if n % 2 else "search", call_id="c", arguments="{}",
        )  # fmt: skip
        producer.send(scene.topic(), b"r", writing.encode(event, topic=scene.topic()), partition=n % 3)
    assert producer.flush(30) == 0
    producer.close(1.0)
    replays.all_processed()
    select = Selection(where='value.tool == "pay"')
    request = Request(scene.topic(), "ann", group=scene.prefix + GROUP, select=select)

    def cold() -> AvroCodec:
        return AvroCodec(ConfluentRegistry(policy))

    def planned() -> ReplayPlan:
        return make_plan(cluster, request, cold(), int(time.time() * 1000))

    def run(plan: ReplayPlan) -> Any:
        options = run_options(replays.surroundings, plan, "ann", session_timeout_ms=3_000)
        return run_plan(replays.surroundings, plan, Reason("ann", "a test"), options, cold())

    plan = planned()
    registry_server.stop()
    try:
        with pytest.raises(SchemaUnavailable, match="did not answer"):
            planned()
        with pytest.raises(SchemaUnavailable, match="did not answer"):
            run(plan)
        assert replays.copies() == []
        assert replays.results(plan) == {}
        without = make_plan(
            cluster, Request(scene.topic(), "ann", group=scene.prefix + GROUP), cold(), int(time.time() * 1000)
        )
        assert (without.preview or {})["selected"] == 60, "what needs no values does not need it"
    finally:
        registry_server.start()
    assert run(plan).done == 30
    assert len(replays.copies()) == 30


# -- processes and clocks


def test_a_process_that_was_stopped_and_wakes_late_writes_at_most_a_window(replays: Replays) -> None:
    replays.prepare(6_000)
    plan = replays.plan(rate=2_000.0)
    sleeper = replays.start(plan, announce=str(replays.scene.folder / "first"), window=WINDOW)
    until("the first sends", (replays.scene.folder / "first").exists)
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        group = replays.surroundings.group(plan.plan_id)
        until("it is given up", lambda: not replays.scene.admin.describe_group(group).members)
        other = replays.start(plan, announce=str(replays.scene.folder / "second"), window=WINDOW)
        until("the second sends", (replays.scene.folder / "second").exists)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    assert replays.finish(other) == {"state": "finished", "counts": {"written": 6_000}}
    assert replays.finish(sleeper)["state"] == "finished", "it takes part again, or sees that all is done"
    check_history(replays, plan, origins(replays.scene), 2 * (WINDOW + FETCH))


def test_results_of_a_machine_whose_clock_is_behind_are_found(replays: Replays) -> None:
    scene = replays.scene
    scene.partitions = 1
    replays.prepare(1_500, keys=3)
    request = Request(scene.topic(), "ann", group=scene.prefix + GROUP)
    ahead_ms = int(time.time() * 1000) + 600_000
    plan = make_plan(scene.client.cluster, request, scene.client.codec, ahead_ms)
    replays.dies(plan, die_at="recorded", die_after=1)
    written, with_result = len(replays.copies()), len(replays.results(plan))
    assert 0 < with_result <= written
    replays.run(plan)
    assert check_history(replays, plan, origins(scene), 1_500) == written - with_result


def test_a_killed_run_blocks_the_next_for_its_session_and_says_how_long(replays: Replays) -> None:
    replays.prepare(3_000)
    plan = replays.plan(rate=500.0)
    process = replays.start(plan, announce=str(replays.scene.folder / "sent"))
    until("it sends", (replays.scene.folder / "sent").exists)
    process.kill()
    process.communicate()
    with pytest.raises(
        ConfigurationError, match=r"taken for alive until 3 s after its last sign of life, so try again then"
    ):
        replays.run(plan)


def test_a_topic_that_was_made_anew_with_other_records_is_told(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(300)
    plan = replays.plan()
    scene.admin.delete_topics([scene.topic()])
    until("the topic is gone", lambda: scene.topic() not in scene.admin.topic_names())
    scene.make_topics(make_app(scene.spec()))
    scene.publish_many((f"k{n % 10}", {"n": n}) for n in range(600))
    with pytest.raises(PlanError, match=r"was made anew since plan"):
        replays.run(plan)
    assert replays.copies() == []


def test_a_replay_to_a_file_hears_pause_and_cancel(replays: Replays) -> None:
    replays.prepare(6_000)
    path = replays.scene.folder / "kept.avro"
    plan = replays.plan(to_file=str(path))
    cluster, control = replays.scene.client.cluster, replays.surroundings.control
    states: list[str] = []

    def progress(tally: Any) -> None:
        states.append(tally.state)
        if len(states) == 1:
            write_switch(cluster, control, Replay(plan.plan_id, "paused"), True)
            time.sleep(1.0)  # until the run may have heard of it
        elif states.count("paused") == 3:
            write_switch(cluster, control, Replay(plan.plan_id, "cancelled", who="bob"), True)

    assert replays.run(plan, progress=progress).state == "cancelled"
    assert not path.exists()
    assert status_of(replays.surroundings, plan).state == "cancelled"
