"""Workers whose clocks are an hour wrong, on real Kafka: retries run when they are due, whoever wrote them and whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Scene, make_app, verdict

HOUR_MS = 3_600_000
LATE_S = 20.0
"""Far below the hour; a moved partition and a slow machine are in it."""


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path) as scene:
        yield scene


@pytest.mark.parametrize(("writer_ms", "runner_ms"), [(HOUR_MS, -HOUR_MS), (-HOUR_MS, HOUR_MS)])
def test_a_retry_written_by_one_wrong_clock_and_run_by_another_is_in_time(
    scene: Scene, writer_ms: int, runner_ms: int
) -> None:
    """Killed while its retries wait: another one, two hours away by its clock, takes them over."""
    spec: dict[str, Any] = {**scene.spec(tiers=("5s",), attempts=3), "app": "tests.fault.workload:app"}
    scene.make_topics(make_app(spec))
    writer = scene.start_and_wait({**spec, "skew_ms": writer_ms})
    assert writer.said("this machine's clock is not the cluster's: corrected here")
    scene.publish_many([(f"k{n}", {"fails": 1}) for n in range(20)])
    scene.until("they wait in the tier", lambda: scene.count(scene.lane("retry.5s")) >= 20)
    writer.kill()
    runner = scene.start({**spec, "skew_ms": runner_ms})
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 20, 5 + LATE_S)
    verdict(scene.ledger.marks(), scene.published, tier_s=5.0).check()
    assert runner.stop() == 0
