"""The commands beside a worker that runs: what `why` says is what the worker does, and switches are obeyed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import Context, Pipeline, Retry
from pipeline.cli.main import app as command_line
from pipeline.settings import Settings
from pipeline.topology import Defaults, apply
from tests.patience import PATIENCE

KEY = b"run-7"


async def until(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(30 * PATIENCE):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.1)


def test_why_pause_and_skip_beside_a_worker(kafka: str, topic_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_BROKER", kafka)
    group = f"g-{topic_name[-10:]}"
    app = Pipeline("cli-live", settings=Settings(broker=kafka))
    ran: list[int] = []

    @app.subscribe(topic_name, group=group, tiers=("4s",), attempts=1_000, value="json")
    async def handle(event: dict[str, Any], ctx: Context) -> None:
        ran.append(event["n"])
        if event["n"] == 0:
            raise Retry("not yet")

    def run(*arguments: str) -> Any:
        shown = CliRunner().invoke(command_line, [*arguments, "--json"])
        assert shown.exit_code in (0, 1), shown.output
        # The worker of this process logs to the same stream.
        return json.loads(next(text for text in shown.stdout.splitlines() if text.startswith("{")))

    def states() -> list[tuple[int, str]]:
        return [(e["origin_offset"], e["state"]) for e in run("why", KEY.decode(), "--group", group)["found"]]

    async def story() -> None:
        apply(app.cluster.admin(), app.subscriptions, Defaults(1))
        producer = app.cluster.producer()
        await app.start()
        try:
            for n in (0, 1):
                producer.send(topic_name, KEY, json.dumps({"n": n}).encode())
            await until(lambda: states() == [(0, "parked"), (1, "blocked")], "the head is parked, its successor waits")
            assert set(ran) == {0}
            found = (await asyncio.to_thread(run, "why", KEY.decode(), "--group", group))["found"]
            assert found[0]["owner"] is not None
            assert found[1]["blocked_by"]["origin_offset"] == 0

            await asyncio.to_thread(run, "keys", "skip", group, KEY.decode(), "--why", "test")
            await until(lambda: 1 in ran, "the successor runs")
            await until(lambda: states() == [(0, "dead letter"), (1, "done")], "the head is a dead letter")
            assert ran[-1] == 1
            assert ran.count(1) == 1
        finally:
            await app.stop()
            producer.close(5.0)

    asyncio.run(story())
