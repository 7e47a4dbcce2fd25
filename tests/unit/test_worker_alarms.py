"""What a worker warns of: many records behind one key, and a session timeout of the broker that is long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry
from structlog.testing import capture_logs

from pipeline import Context, FlowPolicy, Pipeline, Settings
from pipeline.memory.admin import MemoryAdmin
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop
from pipeline.worker.metrics import WorkerCollector
from pipeline.worker.worker import BROKER_SESSION_TIMEOUT, Worker
from tests.unit.test_worker_review import GROUP, TOPIC, application, play, publish, until


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


@pytest.mark.parametrize("in_memory", [True, False], ids=["all at once", "one after the other"])
def test_many_records_behind_one_key_raise_an_alarm_for_each_so_many(in_memory: bool) -> None:
    """Also where they stood in memory while the first one ran: they are handed on together when it fails."""
    done: list[bytes] = []
    fails, failed = asyncio.Event(), asyncio.Event()

    @application(tiers=("10s",), attempts=3, flow=FlowPolicy(amplification_alarm=5))
    async def handle(value: bytes, ctx: Context) -> None:
        if value == b"0" and ctx.attempt == 1:
            await fails.wait()
            failed.set()
            raise ConnectionError("not now")
        done.append(value)

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        (running,) = worker.running
        producer = cluster.producer("agents")
        if not in_memory:
            fails.set()
        for number in range(12):
            producer.send(TOPIC, b"run-7", b"%d" % number, partition=0)
            if number == 0 and not in_memory:
                await failed.wait()
        producer.send(TOPIC, b"other", b"other", partition=0)
        await until(lambda: b"other" in done)  # so all before it have been looked at
        fails.set()
        await until(lambda: running.engine.stats.hops["10s", "wait"] == 11)
        assert running.engine.stats.amplification_alarms == 2
        registry = CollectorRegistry()
        registry.register(WorkerCollector(worker))
        lines = generate_latest(registry).decode().splitlines()
        assert f'pipeline_amplification_alarms_total{{group="{GROUP}"}} 2.0' in lines
        assert f'pipeline_handoff_amplification{{group="{GROUP}"}} 11.0' in lines
        await until(lambda: len(done) == 13)

    with capture_logs() as logs:
        play(handle, story)
    alarms = [each for each in logs if each["event"].startswith("many records wait behind one key")]
    assert [(each["log_level"], each["key"], each["waiting"]) for each in alarms] == [
        ("error", "run-7", 5), ("error", "run-7", 10),
    ]  # fmt: skip
    assert done == [b"other", *(b"%d" % number for number in range(12))]


@pytest.mark.parametrize(
    ("protocol", "setting", "said"),
    [
        ("consumer", "45000", "45000"),
        ("consumer", None, "not visible; 45000 by default"),
        ("consumer", "10000", None),
        ("classic", "45000", None),
    ],
)
def test_a_session_timeout_of_the_broker_longer_than_ours_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, protocol: str, setting: str | None, said: str | None
) -> None:
    """With KIP-848 the setting of ours (10 s) has no effect: a killed worker's partitions stand still for the broker's."""
    asked: list[str] = []

    def broker_setting(_admin: MemoryAdmin, name: str, timeout_s: float = 10.0) -> str | None:
        asked.append(name)
        return setting

    monkeypatch.setattr(MemoryAdmin, "broker_setting", broker_setting)
    settings: dict[str, Any] = {"broker": "memory://review", "group_protocol": protocol}
    app = Pipeline("app", settings=Settings(**settings))

    @app.subscribe(TOPIC, group=GROUP, value="bytes")
    async def handle(value: bytes, ctx: Context) -> None: ...

    async def story(_loop: VirtualClockLoop, cluster: MemoryCluster, _worker: Worker) -> None:
        publish(cluster, b"k")

    with capture_logs() as logs:
        play(app, story)
    warned = [each for each in logs if each["event"].startswith("a killed worker's partitions stand still")]
    assert [(each["log_level"], each["setting"], each["value_ms"]) for each in warned] == (
        [] if said is None else [("warning", BROKER_SESSION_TIMEOUT, said)]
    )
    assert set(asked) == ({BROKER_SESSION_TIMEOUT} if protocol == "consumer" else set())
