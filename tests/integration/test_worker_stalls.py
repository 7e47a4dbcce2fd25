"""A `def` handler that hangs, on real Kafka: its key waits, it is told, and nothing of it runs twice at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import GROUP, Scene, make_app

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path, partitions=1) as scene:
        yield scene


@pytest.mark.parametrize("kind", ["def", "def batch"])
def test_a_thread_past_its_deadline_keeps_its_key_and_is_told_with_its_stack(scene: Scene, kind: str) -> None:
    spec = scene.spec(kind, tiers=("300ms",), attempts=2, timeout=0.5)
    scene.make_topics(make_app(spec))
    gate = scene.folder / "gate"
    head, *_ = scene.publish_many([("k", {"gate": str(gate)}), ("k", {"n": 1})])
    worker = scene.start(spec)

    def health() -> dict[str, Any]:
        status, body = worker.status()
        return dict(json.loads(body).get(scene.prefix + GROUP, {})) if status else {}

    scene.until("it is stalled", lambda: health().get("stalled"), 60)
    assert health()["stalled"][0]["offset"] == head[1]
    (line,) = worker.said("a handler is past its deadline and can't be stopped: its key waits until it returns")
    assert "_obey_in_thread" in line["stack"]
    assert 'pipeline_stalled{group="' in worker.status("metrics")[1]
    assert len(scene.ledger.marks("start")) == 1, "no second execution beside the one that hangs"
    gate.touch()
    scene.until("both are done", lambda: len(set(scene.ledger.done())) == 2, 60)
    assert [mark.attempt for mark in scene.ledger.marks("done") if mark.offset == head[1]] == [1, 2], (
        "late, so it counts as timed out"
    )
    scene.until("it is stalled no more", lambda: health().get("stalled") == [])
    assert worker.stop() == 0
