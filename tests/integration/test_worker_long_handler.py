"""Handlers of three real minutes with a max.poll.interval of ten seconds: no rebalance, done once, and the others are not held up.

The slowest test there is, and it only waits: marked `first`, so that it runs beside the others and not after them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.integration.harness import Scene, make_app, verdict

HANDLER_S = 180.0
MAX_POLL_INTERVAL_S = 10.0
CLOCK_S = 1.0
"""By how much the machine's clock, which the marks are read from, may be corrected during the sleep, which it does not measure."""


@pytest.mark.first
@pytest.mark.timeout(HANDLER_S + 180)
def test_three_minutes_inside_a_handler_are_no_reason_to_rebalance(kafka: str, topic_name: str, tmp_path: Path) -> None:
    """Each kind of handler and each group protocol in a process of its own, all at the same time."""
    kinds = [(kind, protocol) for kind in ("async", "def", "batch") for protocol in ("classic", "consumer")]
    with contextlib.ExitStack() as stack:
        scenes = []
        for kind, protocol in kinds:
            (folder := tmp_path / f"{kind}-{protocol}").mkdir()
            scene = stack.enter_context(Scene(kafka, f"{topic_name}.{kind}.{protocol}", folder))
            spec = scene.spec(
                kind,
                {"max_poll_interval_s": MAX_POLL_INTERVAL_S, "group_protocol": protocol},
                tiers=("1s",),
                timeout="10m",
            )
            scene.make_topics(make_app(spec))
            process = scene.start_and_wait(spec)
            scene.publish("long", {"sleep": HANDLER_S}, partition=0)
            scene.publish_many([("long", {"behind": 1}), ("long", {"behind": 2})], partition=0)
            scene.until("it is in its handler", lambda scene=scene: scene.ledger.marks("start"))
            scenes.append((scene, process))
        for scene, _ in scenes:
            scene.publish_many([(f"k{n}", {}) for n in range(50)], partition=1)
        for scene, _ in scenes:
            scene.until("the other partition goes on meanwhile", lambda scene=scene: len(scene.ledger.done()) >= 50)
            assert not [mark for mark in scene.ledger.marks("done") if mark.key == "long"]
        for scene, _ in scenes:
            scene.until("the long one is done", lambda scene=scene: len(scene.ledger.done()) == 53, HANDLER_S + 60)
            scene.until("all is committed", scene.settled)
        for (scene, process), kind in zip(scenes, kinds, strict=True):
            verdict(scene.ledger.marks(), scene.published).check()
            (start,) = [m for m in scene.ledger.marks("start") if m.key == "long" and m.offset == 0]
            (end,) = [m for m in scene.ledger.marks("done") if m.key == "long" and m.offset == 0]
            assert end.at - start.at >= HANDLER_S - CLOCK_S, "it was not as long as it should be"
            opened = process.said("partition open")
            assert sorted((line["partition"], line["epoch"]) for line in opened) == [(0, 1), (1, 1)], (kind, opened)
            assert not process.said("partition lost"), kind
            assert scene.dead() == []
            assert process.stop() == 0
