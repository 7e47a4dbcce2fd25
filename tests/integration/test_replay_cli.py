"""`pipeline replay` as people and scripts use it: exit codes, JSON, several processes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.inspect.control import write_switch
from pipeline.model.control import Replay
from pipeline.replay.audit import read_audit
from pipeline.replay.plan import from_text
from pipeline.replay.results import read_results
from tests.integration.harness import ROOT, Scene, until
from tests.integration.replays import Replays, check_history, origins
from tests.patience import PATIENCE


@pytest.fixture
def replays(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Replays]:
    with Scene(kafka, topic_name, tmp_path, partitions=3) as scene:
        yield Replays(scene)


def start(scene: Scene, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PIPELINE_BROKER": scene.bootstrap, "PIPELINE_PREFIX": scene.prefix}
    environment |= {"PIPELINE_SESSION_TIMEOUT_S": "3", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "replay", *words],
        cwd=scene.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(scene: Scene, *words: str, code: int = 0) -> tuple[str, str]:
    process = start(scene, *words)
    out, error = process.communicate(timeout=90 * PATIENCE)
    assert process.returncode == code, (process.returncode, out, error)
    assert "Traceback" not in error
    return out, error


def as_json(scene: Scene, *words: str, code: int = 0) -> Any:
    return json.loads(run(scene, *words, "--json", code=code)[0].strip().splitlines()[-1])


def test_plan_run_status_list(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(1_000)
    shown, _ = run(scene, "plan", "--topic", "events", "--group", "g", "--key", "k1", "--key", "k2", "-o", "p.json")
    assert "200 of 1,000 records are chosen" in shown
    assert "replay run p.json" in shown
    made = as_json(scene, "plan", "--topic", "events", "--group", "g", "--where", "value.n < 500")
    assert made["preview"]["selected"] == 500
    assert (scene.folder / made["file"]).is_file()
    _, error = run(scene, "run", "p.json", code=2)
    assert "--yes" in error
    _, error = run(scene, "run", "p.json", "--yes", code=2)
    assert "--reason" in error
    assert replays.copies() == []
    done = as_json(scene, "run", "p.json", "--yes", "--reason", "a test", "--who", "ann")
    assert (done["state"], done["counts"]) == ("finished", {"written": 200})
    assert as_json(scene, "status", done["plan"])["state"] == "finished"
    assert "200 of 200 records (200 written)" in run(scene, "status", "p.json")[0]
    ((listed),) = [row for row in as_json(scene, "list") if row["plan"] == done["plan"]]
    assert (listed["who"], listed["why"], listed["records"]) == ("ann", "a test", 200)
    _, error = run(scene, "pause", "p.json", "--reason", "late", code=1)
    assert "finished already" in error
    assert (
        as_json(scene, "plan", "--topic", "events", "--group", "g", "--key", "nobody", code=1)["preview"]["selected"]
        == 0
    )


def test_bad_input_is_one_sentence_and_exit_code_2(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(20)
    for words, said in (
        (("plan", "--topic", "nothing", "--group", "g"), "does not exist"),
        (("plan", "--topic", "events", "--group", "g", "--from-time", "2999-01-01"), "is in the future"),
        (("plan", "--topic", "events", "--group", "g", "--from-offset", "0:99999"), "is out of range"),
        (("plan", "--topic", "events", "--group", "g", "--where", "attempt >> 3"), "^"),
        (("plan", "--topic", "events", "--to-topic", "elsewhere"), "not in the declared topology"),
        (("plan", "--group", "g"), "--topic TOPIC or --from-file FILE"),
        (("run", "none.json", "--yes", "--reason", "x"), "there is no plan file"),
        (("status", "rp-000000000000"), "is not on record"),
    ):
        out, error = run(scene, *words, code=2)
        assert said in error, (words, error)
        assert out == ""
    (scene.folder / "bad.json").write_text("{}")
    assert "is not a replay plan" in run(scene, "run", "bad.json", "--yes", "--reason", "x", code=2)[1]


def test_no_broker_is_exit_code_3(replays: Replays, monkeypatch: pytest.MonkeyPatch) -> None:
    _, error = run(replays.scene, "status", "rp-000000000000", "--broker", "127.0.0.1:1", code=3)
    assert "reachable" in error or "reach" in error


def test_several_processes_share_the_work_and_leave_together(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(3_000)
    run(scene, "plan", "--topic", "events", "--group", "g", "--rate", "300", "-o", "p.json")
    plan = from_text((scene.folder / "p.json").read_text())
    process = start(scene, "run", "p.json", "--yes", "--reason", "x", "--processes", "2", "--who", "ann", "--json")
    group = replays.surroundings.group(plan.plan_id)
    until("two are at work", lambda: len([m for m in scene.admin.describe_group(group).members if m.partitions]) == 2)
    out, error = process.communicate(timeout=90 * PATIENCE)
    assert process.returncode == 0, error
    assert json.loads(out.strip().splitlines()[-1])["counts"] == {"written": 3_000}
    assert scene.admin.describe_group(group).members == ()
    check_history(replays, plan, origins(scene), 0)
    entries = list(read_audit(scene.client.cluster, replays.surroundings.audit, plan.plan_id))
    assert len(entries) == 1
    found = read_results(scene.client.cluster, replays.surroundings.results, plan=plan.plan_id)
    assert {batch.who for batch in found} == {"ann"}, "also what the second process wrote"


def test_ctrl_c_is_safe_and_says_how_to_go_on(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(2_000)
    run(scene, "plan", "--topic", "events", "--group", "g", "--rate", "300", "-o", "p.json")
    plan = from_text((scene.folder / "p.json").read_text())
    process = start(scene, "run", "p.json", "--yes", "--reason", "x")
    until("it sends", lambda: scene.count(scene.lane("replay")) > 0)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 130, (out, error)
    assert "to go on: pipeline replay run p.json" in error
    assert 0 < len(replays.copies()) < 2_000
    assert as_json(scene, "status", "p.json")["state"] == "interrupted"
    assert as_json(scene, "run", "p.json", "--yes", "--reason", "go on")["done"] == 2_000
    check_history(replays, plan, origins(scene), 0)


def test_pause_resume_cancel(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(3_000)
    run(scene, "plan", "--topic", "events", "--group", "g", "--rate", "50", "-o", "p.json")
    process = start(scene, "run", "p.json", "--yes", "--reason", "x", "--json")
    until("it sends", lambda: scene.count(scene.lane("replay")) > 0)
    assert (
        "who runs it hears of it within a second and holds it." in run(scene, "pause", "p.json", "--reason", "slow")[0]
    )
    status = as_json(scene, "status", "p.json")
    assert status["state"] == "paused"
    assert "slow" in status["switched"]
    resumed = as_json(scene, "resume", "p.json", "--reason", "well")
    assert (resumed["was"], resumed["members"]) == ("paused", 1)
    assert as_json(scene, "cancel", "p.json", "--reason", "wrong")["done"] == "cancel"
    out, _ = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 1
    assert json.loads(out.strip().splitlines()[-1])["state"] == "cancelled"
    plan = from_text((scene.folder / "p.json").read_text())
    entries = read_audit(scene.client.cluster, replays.surroundings.audit, plan.plan_id)
    assert [entry.action for _, entry in entries] == ["replay", "replay.pause", "replay.resume", "replay.cancel"]
    assert "was cancelled" in run(scene, "run", "p.json", "--yes", "--reason", "x", code=2)[1]


def test_a_run_of_a_paused_plan_says_why_nothing_moves(replays: Replays) -> None:
    scene = replays.scene
    replays.prepare(500)
    run(scene, "plan", "--topic", "events", "--group", "g", "-o", "p.json")
    plan = from_text((scene.folder / "p.json").read_text())
    switch = Replay(plan.plan_id, "paused", who="bob")
    write_switch(scene.client.cluster, replays.surroundings.control, switch, True)
    process = start(scene, "run", "p.json", "--yes", "--reason", "x")
    try:
        assert process.stderr is not None
        assert f"{plan.plan_id} is paused: it waits here for `pipeline replay resume" in process.stderr.readline()
        assert replays.copies() == []
        run(scene, "resume", "p.json", "--reason", "go")
        process.communicate(timeout=60 * PATIENCE)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    check_history(replays, plan, origins(scene), 0)
