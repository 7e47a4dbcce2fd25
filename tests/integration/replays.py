"""Replays under test: plans over a scene's topics, processes that carry them out, and what is on the target afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.model.cluster import Message, Position, TopicPartition
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.headers import DeliveryHeaders, decode
from pipeline.replay.asking import Request
from pipeline.replay.options import Tally
from pipeline.replay.plan import ReplayPlan, Selection, to_text
from pipeline.replay.planning import make_plan
from pipeline.replay.results import Result, read_results
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from tests.integration.harness import GROUP, ROOT, SOURCE, Scene, make_app, until
from tests.patience import PATIENCE

RUN_S = 60.0 * PATIENCE


class Replays:
    """Of one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.surroundings = Surroundings(scene.client.cluster, scene.prefix)

    def prepare(self, records: int, keys: int = 10, **subscribe: Any) -> None:
        """Topics, records, and a group that has processed them all (by its commits)."""
        scene = self.scene
        scene.make_topics(make_app(scene.spec(**subscribe)))
        scene.publish_many((f"k{n % keys}", {"n": n}) for n in range(records))
        self.all_processed()

    def all_processed(self) -> None:
        scene = self.scene
        places = [TopicPartition(scene.topic(), p) for p in range(scene.partitions)]
        ends = scene.admin.end_offsets(places)
        positions = {place: Position(end) for place, end in ends.items()}

        def stored() -> bool:
            try:
                scene.admin.set_group_positions(scene.prefix + GROUP, positions)
            except ClusterUnavailable:
                return False  # the coordinator is still loading
            return True

        until("the commits are stored", stored)

    def plan(self, topic: str = "", **asked: Any) -> ReplayPlan:
        scene = self.scene
        if not asked.keys() & {"to_topic", "to_file", "group"}:
            asked["group"] = scene.prefix + GROUP
        select = {name: asked.pop(name) for name in Selection.__dataclass_fields__ if name in asked}
        request = Request(topic or scene.topic(), "ann", select=Selection(**select), **asked)
        return make_plan(scene.client.cluster, request, scene.client.codec, int(time.time() * 1000))

    def run(self, plan: ReplayPlan, **chosen: Any) -> Tally:
        """In this process."""
        started = chosen.pop("started", lambda _executor: None)
        options = run_options(self.surroundings, plan, "ann", session_timeout_ms=3_000, **chosen)
        codec = self.scene.client.codec
        return run_plan(self.surroundings, plan, Reason("ann", "a test"), options, codec, started)

    def start(self, plan: ReplayPlan, **wanted: Any) -> subprocess.Popen[bytes]:
        path = self.scene.folder / f"{plan.plan_id}.json"
        path.write_text(to_text(plan))
        arguments = [self.scene.bootstrap, self.scene.prefix, str(path), json.dumps(wanted)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.replay_process", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """What a process said at its end. Fails with its error output when it did not end well."""
        out, error = process.communicate(timeout=RUN_S)
        assert process.returncode == 0, error.decode()[-2_000:]
        found: dict[str, Any] = json.loads(out.decode().strip().splitlines()[-1])
        return found

    def dies(self, plan: ReplayPlan, **wanted: Any) -> None:
        process = self.start(plan, **wanted)
        _, error = process.communicate(timeout=RUN_S)
        assert process.returncode == -9, (process.returncode, error.decode()[-2_000:])
        group = self.surroundings.group(plan.plan_id)
        until("the dead member is gone", lambda: not self.scene.admin.describe_group(group).members)

    # -- what is there

    def copies(self, topic: str = "") -> list[tuple[Message, DeliveryHeaders]]:
        """Records of the replay lane (or another topic), with what their headers say."""
        return [(m, decode(m.headers())) for m in self.scene.read(topic or self.scene.lane("replay"))]

    def results(self, plan: ReplayPlan) -> dict[tuple[int, int], list[Result]]:
        """By (partition, offset), every result of the plan."""
        found: dict[tuple[int, int], list[Result]] = defaultdict(list)
        for batch in read_results(self.scene.client.cluster, self.surroundings.results, plan=plan.plan_id):
            assert batch.topic == plan.source.topic
            for result in batch.results:
                found[batch.partition, result.offset].append(result)
        return found


def check_history(
    replays: Replays, plan: ReplayPlan, wanted: set[tuple[int, int]], duplicates_max: int, topic: str = ""
) -> int:
    """Nothing lost, nothing that was not asked for, order of each key in first copies, results true; how many came twice."""
    first: dict[bytes | None, list[int]] = defaultdict(list)
    seen: set[tuple[int, int]] = set()
    written: Mapping[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    twice = 0
    for message, delivery in replays.copies(topic):
        if delivery.replay_id != plan.plan_id:
            continue
        origin = (delivery.origin_partition, delivery.origin_offset)
        written[origin].add((message.partition(), message.offset()))
        if origin in seen:
            twice += 1
            continue
        seen.add(origin)
        first[message.key()].append(delivery.origin_offset)
    assert seen == wanted, (len(wanted - seen), "lost", len(seen - wanted), "too many")
    for key, origins in first.items():
        assert origins == sorted(origins), (key, origins[:20])
    assert twice <= duplicates_max, twice
    results = replays.results(plan)
    assert set(results) == wanted
    for origin, found in results.items():
        assert {r.outcome for r in found} == {"written"}
        assert {(r.target_partition, r.target_offset) for r in found} <= written[origin], (
            origin,
            found,
            written[origin],
        )
    return twice


def read_container(path: Path) -> list[dict[str, Any]]:
    import fastavro

    with path.open("rb") as file:
        return [dict(record) for record in fastavro.reader(file) if isinstance(record, dict)]


def origins(scene: Scene) -> set[tuple[int, int]]:
    return set(scene.published)


__all__ = ["SOURCE", "Replays", "check_history", "origins", "read_container"]
