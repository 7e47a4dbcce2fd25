"""A new group over past runs (A3), on real Kafka: 200 real runs that are there already, then what comes live, each event once."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline import Pipeline
from pipeline.cli.main import app as command
from pipeline.model.cluster import TopicPartition
from pipeline.model.topics import AUDIT_TOPIC
from pipeline.replay.audit import read_audit
from pipeline.topology import Defaults, apply
from tests.integration.harness import GROUP, ROOT, Scene, make_app, running, until

PARTITIONS = 4
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path, PARTITIONS) as scene:
        monkeypatch.setenv("PIPELINE_BROKER", scene.bootstrap)
        monkeypatch.setenv("PIPELINE_PREFIX", scene.prefix)
        yield scene


def cli(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == code, result.output
    return result


def watching(*arguments: str) -> subprocess.Popen[str]:
    """A `pipeline` command in a process of its own, as on somebody's terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        cwd=ROOT, env=dict(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_new_group_takes_all_past_runs_and_goes_on_with_live_ones(scene: Scene, real_runs: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    app = Pipeline("late", settings=scene.settings())

    @app.subscribe("agent.run.events", group="audit", start="latest")
    async def take(event: Any, ctx: Any) -> None:
        seen.append((ctx.partition, ctx.offset, ctx.event_id))

    apply(scene.admin, app.subscriptions, Defaults(partitions=PARTITIONS), scene.prefix)
    imported = json.loads(cli("import", "openai-chat", str(real_runs), "--json").stdout)
    assert imported["runs"] == 200
    topic = scene.topic("agent.run.events")
    places = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    past = sum(scene.admin.end_offsets(places).values())
    assert past == imported["events"] > 4_000

    common = ("groups", "attach", "audit", "--topic", "agent.run.events")
    dry = json.loads(cli(*common, "--from", "earliest", "--dry-run", "--json").stdout)
    assert (dry["attached"], dry["past"]) == (False, past)
    watch = watching(*common, "--last", "7d", "--watch", "--timeout", "3m", "--reason", "a new audit of all runs")
    until("the start is committed", lambda: len(scene.admin.group_positions(scene.prefix + "audit")) >= PARTITIONS)
    assert "groups reset" in cli(*common, "--reason", "again", code=2).stderr
    assert watch.poll() is None, "it waits for a worker"

    stop = threading.Event()
    live: list[str] = []

    def keep_coming() -> None:
        """Real runs again under other names, so that there are events that came after the start."""
        with_name = 0
        while not stop.wait(0.2):
            with_name += 1
            made = cli(
                "import", "openai-chat", str(real_runs), "--runs", "1", "--source", f"live-{with_name}", "--json"
            )
            live.append(made.stdout)

    async def session() -> None:
        thread = threading.Thread(target=keep_coming)
        async with running(app, PARTITIONS):
            thread.start()
            try:
                code = await asyncio.to_thread(watch.wait, 120)
                assert code == 0, watch.communicate()
                came = await asyncio.to_thread(until, "five live imports", lambda: len(live) >= 5, 60)
                assert came
            finally:
                stop.set()
                await asyncio.to_thread(thread.join, 30)
            ends = scene.admin.end_offsets(places)
            total = sum(ends.values())
            assert total > past
            await asyncio.to_thread(until, "all of it is processed", lambda: len(seen) >= total, 60)

    asyncio.run(session())
    out, err = watch.communicate()
    assert out.splitlines()[-1] == "live"
    assert f"of {past} past records" in err or "no worker has joined" in err
    ends = scene.admin.end_offsets(places)
    runs = Counter((partition, offset) for partition, offset, _ in seen)
    assert set(runs) == {(tp.partition, offset) for tp in places for offset in range(ends[tp])}
    assert max(runs.values()) == 1, "each once"
    assert max(Counter(event for *_, event in seen).values()) == 1
    ((_, entry),) = read_audit(scene.client.cluster, scene.prefix + AUDIT_TOPIC)
    assert (entry.action, entry.why, entry.counts["past"]) == ("attach", "a new audit of all runs", past)


def test_where_a_new_group_starts(scene: Scene) -> None:
    scene.make_topics(make_app(scene.spec()))
    for partition in range(PARTITIONS):
        scene.publish_many([(None, {}) for _ in range(3)], partition=partition)
    time.sleep(0.05)  # a gap between the times of records
    between = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}"
    scene.publish_many([(None, {})], partition=1)
    for number, (arguments, starts) in enumerate(
        (
            ((), [0, 0, 0, 0]),
            (("--from", "latest"), [3, 4, 3, 3]),
            (("--from-time", between), [3, 3, 3, 3]),
            (("--last", "PT1H"), [0, 0, 0, 0]),
            (("--from-offset", "2"), [2, 2, 2, 2]),
            (("--from", "latest", "--from-offset", "1:2"), [3, 2, 3, 3]),
        )
    ):
        group = f"new-{number}"
        told = json.loads(
            cli("groups", "attach", group, "--topic", "events", *arguments, "--reason", "x", "--json").stdout
        )
        assert [row["start"] for row in told["rows"]] == starts
        held = scene.admin.group_positions(scene.prefix + group)
        assert [held[TopicPartition(scene.topic(), p)].offset for p in range(PARTITIONS)] == starts, arguments
    for arguments, words in (
        (("--from", "earliest", "--last", "1h"), "not --from and --last"),
        (("--from", "noon"), "must be earliest or latest"),
        (("--from-offset", "1:2"), "says nothing of partition 0"),
        (("--from-offset", "9"), "takes 0 to 3"),
        (("--from-offset", "9:1", "--from", "earliest"), "partition 9"),
        (("--from-time", "2999-01-01"), "in the future"),
    ):
        found = cli("groups", "attach", "none", "--topic", "events", *arguments, "--reason", "x", code=2)
        assert words in found.stderr, found.stderr
        assert found.stderr.count("\n") == 1
    assert "--reason" in cli("groups", "attach", "none", "--topic", "events", code=2).stderr
    assert scene.admin.group_positions(scene.prefix + "none") == {}


def test_watching_ends_by_its_timeout_when_nobody_works(scene: Scene) -> None:
    scene.make_topics(make_app(scene.spec()))
    scene.publish("k", {})
    given = ("groups", "attach", GROUP, "--topic", "events", "--reason", "x", "--watch", "--timeout", "1s")
    shown = cli(*given, code=1)
    assert "no worker has joined" in shown.stdout
    told = json.loads(cli("groups", "lag", GROUP, "--until-live", "--timeout", "1s", "--json", code=1).stdout)
    assert (told["live"], told["lag"], told["members"]) == (False, 1, 0)


def test_lag_until_live_ends_when_the_worker_has_caught_up(scene: Scene) -> None:
    spec = scene.spec(concurrency=1, order="none")
    scene.make_topics(make_app(spec))
    scene.publish_many([(None, {"sleep": 0.02}) for _ in range(100)])
    process = scene.start_and_wait(spec)
    told = json.loads(cli("groups", "lag", GROUP, "--until-live", "--timeout", "1m", "--json").stdout)
    assert (told["live"], told["lag"]) == (True, 0)
    assert told["done"] == told["total"]
    assert len(scene.ledger.done()) == 100
    assert process.stop() == 0
