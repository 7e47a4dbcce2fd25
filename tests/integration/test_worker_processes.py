"""`executor="process"` on real Kafka: handlers that can't be cancelled, or take their process with them."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.headers import decode
from pipeline.model.history import parse
from tests.integration.harness import OUT, Process, Scene, make_app, verdict
from tests.patience import PATIENCE

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(kafka, topic_name, tmp_path, partitions=2) as scene:
        yield scene


def in_processes(scene: Scene, processes: int = 2, deaths: int = 3, **subscribe: Any) -> dict[str, Any]:
    isolation = {"processes": processes, "deaths": deaths, **subscribe.pop("isolation", {})}
    subscribe = {"tiers": ("300ms",), "attempts": 3, "executor": "process", "isolation": isolation, **subscribe}
    spec = scene.spec("def", **subscribe)
    scene.make_topics(make_app(spec), OUT)
    return spec


def children_of(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def metric(process: Process, name: str) -> float:
    _, body = process.status("metrics")
    return sum(float(line.rpartition(" ")[2]) for line in body.splitlines() if line.startswith(name + "{"))


def test_500_records_keep_their_keys_order_through_retries_and_outputs_arrive(scene: Scene) -> None:
    spec = in_processes(scene, tiers=("300ms", "600ms"))
    records = [(f"k{n % 25}", {"fails": 1 if n % 50 == 7 else 0, "emit": n % 5 == 0}) for n in range(500)]
    scene.publish_many(records)
    worker = scene.start(spec)
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 500, 60)
    scene.until("all are committed", scene.settled)
    marks = scene.ledger.marks()
    verdict(marks, scene.published, tier_s=0.3).check()
    ran_in = {mark.pid for mark in marks}
    assert worker.pid not in ran_in
    assert ran_in <= children_of(worker.pid), "nothing died, so nothing was replaced"
    outputs = scene.read(scene.topic(OUT))
    assert len(outputs) == 100
    assert all(dict(m.headers() or [])["pl.event_id"].endswith(b"#0") for m in outputs)
    assert worker.stop() == 0
    assert not any(map(lives, ran_in)), "a child outlived its worker"


def test_what_takes_its_process_with_it_is_dead_after_so_many_and_its_neighbours_are_done_once(scene: Scene) -> None:
    spec = in_processes(scene, deaths=2, isolation={"memory_bytes": 1 << 30})
    spec["decoder"] = "dies"
    killers = {"exit": "exit code 7", "segv": "SIGSEGV"}
    for how in killers:
        scene.publish_many([(f"of {how}", {"n": 1}), (f"of {how}", {"dies": how}), (f"of {how}", {"n": 2})])
    scene.publish("of hog", {"dies": "hog"})
    scene.publish_many([("of decoder", {"n": 1}), ("of decoder", b'{"kills": "the decoder"}'), ("of decoder", {})])
    scene.publish_many([(f"n{n}", {"n": n}) for n in range(100)])
    worker = scene.start(spec)
    scene.until("four are dead", lambda: len(scene.dead()) == 4, 60)
    scene.until("all are committed", scene.settled)
    dead = {(m.key() or b"").decode(): m for m in scene.dead()}
    for how, words in {**killers, "decoder": "SIGSEGV"}.items():
        letter = dead[f"of {how}"]
        told = decode(letter.headers())
        assert told.error.error_class == "ProcessDied"
        assert words in told.error.message
        assert "taken 2 with it" in told.error.message
        assert told.attempt == 2
        assert len(parse(told.history).attempts) == 2
    assert dead["of decoder"].value() == b'{"kills": "the decoder"}'
    assert dead["of segv"].value() == b'{"dies": "segv"}'
    assert "in die" in decode(dead["of segv"].headers()).error.stack, "where it was, by faulthandler"
    assert decode(dead["of hog"].headers()).error.error_class == "MemoryError"
    marks = scene.ledger.marks()
    killed = {(m.partition(), decode(m.headers()).origin_offset) for m in dead.values()}
    others = [mark for mark in marks if (mark.partition, mark.offset) not in killed]
    verdict(others, [origin for origin in scene.published if origin not in killed]).check()
    starts = Counter(mark.key for mark in marks if (mark.partition, mark.offset) in killed and mark.what == "start")
    assert starts == {"of exit": 2, "of segv": 2, "of hog": 3}, "the decoder's never reached the handler"
    assert metric(worker, "pipeline_process_deaths_total") == 6
    assert [line for line in worker.said("about to die") if line["key"] == "of exit"], "a child's log is the worker's"
    assert worker.stop() == 0


def test_a_deadline_kills_what_cant_be_cancelled_and_the_next_of_the_key_waits_for_its_retry(scene: Scene) -> None:
    spec = in_processes(scene, timeout=0.5, attempts=2)
    scene.publish_many([("k", {"gate": str(scene.folder / "never")}), ("k", {}), ("other", {})])
    worker = scene.start(spec)
    scene.until("it is dead and the others done", lambda: (len(scene.dead()), len(scene.ledger.done())) == (1, 2), 60)
    told = decode(scene.dead()[0].headers())
    assert (told.error.error_class, told.attempt) == ("Timeout", 2)
    assert "_obey_in_thread" in told.error.stack, "where it hung"
    marks = scene.ledger.marks()
    assert [m.offset for m in marks if m.key == "k"] == [scene.published[0][1]] * 2 + [scene.published[1][1]] * 2
    assert len({m.pid for m in marks if m.key == "k"}) >= 2
    assert metric(worker, "pipeline_process_deaths_total") == 0
    assert worker.stop() == 0


def test_children_end_with_a_worker_that_is_killed_and_their_records_run_again(scene: Scene) -> None:
    spec = in_processes(scene)
    gate = scene.folder / "gate"
    scene.publish_many([("a", {"gate": str(gate)}), ("b", {"gate": str(gate)})])
    worker = scene.start(spec)
    scene.until("both run", lambda: len(scene.ledger.marks("start")) == 2, 60)
    children = children_of(worker.pid)
    assert len(children) == 2
    worker.kill()
    scene.until("its children end", lambda: not any(map(lives, children)), 10)
    gate.touch()
    second = scene.start(spec)
    scene.until("both are done", lambda: len(set(scene.ledger.done())) == 2, 60)
    assert {mark.pid for mark in scene.ledger.marks("done")}.isdisjoint(children)
    assert second.stop() == 0


def test_an_application_without_a_name_is_refused_in_one_sentence(scene: Scene) -> None:
    spec = in_processes(scene)
    process = scene.start({**spec, "hidden_from_children": True})
    assert process.popen.wait(60 * PATIENCE) == 2
    said = process.log.read_text().splitlines()[-1]
    assert said.startswith("error: ")
    assert "obedient" in said


def test_sigterm_to_all_processes_at_once_lets_what_runs_finish(scene: Scene) -> None:
    """As a service manager sends it: to the worker and to its children."""
    spec = in_processes(scene)
    gate = scene.folder / "gate"
    scene.publish_many([("a", {"gate": str(gate)}), ("b", {"gate": str(gate)})])
    worker = scene.start(spec)
    scene.until("both run", lambda: len(scene.ledger.marks("start")) == 2, 60)
    for pid in (*children_of(worker.pid), worker.pid):
        os.kill(pid, signal.SIGTERM)
    scene.until("it is told to stop", lambda: worker.said("stopping"))
    gate.touch()
    assert worker.popen.wait(30 * PATIENCE) == 0
    assert len(scene.ledger.done()) == 2
    assert scene.settled()
