"""Records that take the worker itself with them, on real Kafka: found out by the commits alone, run alone, given up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.headers import decode
from tests.integration.harness import ROOT, Process, Scene, make_app, verdict
from tests.integration.obedient import APP_NAME, KILLING_BYTES
from tests.patience import PATIENCE

pytestmark = [pytest.mark.first, pytest.mark.timeout(240)]


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path, partitions=2) as scene:
        yield scene


def crash_spec(scene: Scene, kind: str, **subscribe: Any) -> dict[str, Any]:
    spec = scene.spec(kind, **{"tiers": ("300ms",), "attempts": 3, "concurrency": 20, **subscribe})
    scene.make_topics(make_app(spec))
    return spec


class Restarting:
    """Starts a worker again whenever it dies, as any service manager does: no more than that is needed. `when`: not before that."""

    def __init__(
        self, scene: Scene, spec: dict[str, Any], limit: int = 8, when: Callable[[], bool] = lambda: True
    ) -> None:
        self.codes: list[int] = []
        self._when = when
        self._scene, self._spec, self._limit = scene, spec, limit
        self._stop = threading.Event()
        self.process = scene.start(spec)
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.05) and len(self.codes) < self._limit:
            code = self.process.popen.poll()
            if code is not None and self._when():
                self.codes.append(code)
                self.process = self._scene.start(self._spec)

    def __enter__(self) -> Restarting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def judge(scene: Scene, killers: set[str]) -> None:
    """Killers are dead letters with their bytes; every neighbour was done, and after the killers' deaths once, in order."""
    dead = {(m.partition(), decode(m.headers()).origin_offset): m for m in scene.dead()}
    assert {(m.key() or b"").decode() for m in dead.values()} == killers
    for letter in dead.values():
        told = decode(letter.headers())
        assert told.error.error_class == "ProcessDied"
        assert "the record has taken 3 with it" in told.error.message
    others = [origin for origin in scene.published if origin not in dead]
    marks = [mark for mark in scene.ledger.marks() if (mark.partition, mark.offset) not in dead]
    verdict(marks, others, tier_s=0.3).check("duplicates")
    done = Counter((mark.partition, mark.offset) for mark in marks if mark.what == "done")
    assert set(done) == set(others)


@pytest.mark.parametrize("kind", ["async", "def"])
def test_a_handler_that_kills_the_worker_is_found_out_and_its_neighbours_go_on(scene: Scene, kind: str) -> None:
    how = {"async": "exit", "def": "segv"}[kind]
    spec = crash_spec(scene, kind)
    scene.publish_many([(f"n{n % 30}", {"n": n}) for n in range(60)])
    scene.publish_many([("killer", {"n": 0}), ("killer", {"dies": how}), ("killer", {"n": 2})])
    scene.publish_many([(f"n{n % 30}", {"n": n, "fails": n % 20 == 3}) for n in range(60, 120)])
    with Restarting(scene, spec) as workers:
        scene.until("the killer is dead", scene.dead, 150)
        scene.until("all others are done", lambda: len(set(scene.ledger.done())) == 122, 60)
        scene.until("all are committed", scene.settled, 60)
        scene.until("it is healthy again", lambda: workers.process.said("a partition is healthy again"), 60)
        assert workers.codes == [{"exit": 7, "segv": -signal.SIGSEGV}[how]] * 2, "two workers died"
        judge(scene, {"killer"})
        assert workers.process.stop() == 0
    assert {scene.progress(p).marks["unclean"] for p in range(2)} == {0}


def test_bytes_that_kill_the_decoder_between_two_independent_workers(scene: Scene) -> None:
    """After a death the partition goes to whoever the group gives it to: to the other, which nobody starts again, or to the same anew."""
    spec = {**crash_spec(scene, "async"), "decoder": "dies"}
    one = scene.start_and_wait(spec)

    def moved() -> bool:
        """A worker that starts fast is back before its death is noticed, and then its partition stays with it."""
        return one.popen.poll() is not None or len(one.partitions()) == 2

    with Restarting(scene, spec, when=moved) as two:
        scene.until("they share", lambda: (len(one.partitions()), len(two.process.partitions())) == (1, 1), 60)
        scene.publish_many([(f"n{n}", {"n": n}) for n in range(50)])
        scene.publish("bad", KILLING_BYTES)
        scene.publish_many([("bad", {"n": 1}), *((f"n{n}", {"n": n}) for n in range(50))])
        scene.until("the killer is dead", scene.dead, 150)
        scene.until("all others are done", lambda: len(set(scene.ledger.done())) == 101, 60)
        judge(scene, {"bad"})
        assert scene.dead()[0].value() == KILLING_BYTES


def test_a_copy_in_a_retry_tier_that_kills_is_found_out_under_a_supervisor(scene: Scene) -> None:
    """`pipeline run --processes 2`: it fails once, and kills when it comes back from its tier."""
    spec = crash_spec(scene, "batch", batch=20)
    records = [
        ("killer", {"fails": 1, "dies_later": "oom"}),
        *((f"n{n}", {"n": n}) for n in range(40)),
        ("killer", {"n": 1}),
    ]
    scene.publish_many(records)
    log = scene.folder / "supervisor.log"
    with supervised(scene, spec, log) as supervisor:
        scene.until("the killer is dead", scene.dead, 180)
        scene.until("all others are done", lambda: len(set(scene.ledger.done())) == 41, 60)
        judge(scene, {"killer"})
        said = log.read_text()
        assert said.count("killed by SIGKILL") >= 3, "two workers and a child"
        supervisor.terminate()
        assert supervisor.wait(60 * PATIENCE) == 0


@contextlib.contextmanager
def supervised(scene: Scene, spec: dict[str, Any], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    import json

    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from pipeline.worker.supervisor import run; raise SystemExit(run({APP_NAME!r}, processes=2))"],
            env={**os.environ, "HARNESS_SPEC": json.dumps(spec)}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60 * PATIENCE)
        print(log.read_text()[-6000:])


def test_a_worker_killed_twice_from_outside_gives_up_nothing(scene: Scene) -> None:
    """Wrongly suspected: the suspects run alone for a while, and each of them is simply done."""
    spec = crash_spec(scene, "async")
    gate = scene.folder / "gate"
    scene.publish_many([(f"k{n}", {"gate": str(gate)}) for n in range(10)])
    for times in (1, 2):
        worker: Process = scene.start_and_wait(spec)
        scene.until("they run", lambda times=times: len(scene.ledger.marks("start")) == 10 * times, 60)
        worker.kill()
    assert {scene.progress(p).marks["unclean"] for p in range(2)} == {2}
    third = scene.start_and_wait(spec)
    scene.until(
        "the suspects are counted",
        lambda: "suspects" in third.status()[1] and '"suspects": {}' not in third.status()[1],
        60,
    )
    started = len(scene.ledger.marks("start"))
    fresh = scene.publish_many([(f"fresh{n}", {"n": n}) for n in range(20)])
    scene.until("fresh ones are not held up by the suspects", lambda: set(fresh) <= set(scene.ledger.done()), 60)
    assert len(scene.ledger.marks("start")) <= started + 20 + 1, "suspects run one at a time"
    gate.touch()
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 30, 60)
    pids = {mark.pid for mark in scene.ledger.marks("done") if mark.key.startswith("k")}
    assert third.pid not in pids, "they ran in a child"
    assert scene.dead() == []
    assert third.stop() == 0
