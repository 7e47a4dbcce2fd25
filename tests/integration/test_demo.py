"""`pipeline demo` end to end: the last line, what it counts, what makes it fail, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.app import Pipeline
from pipeline.demo.feed import Load, simulated
from pipeline.emit.fleet import POISON_TOOL
from pipeline.kafka.cluster import connect
from pipeline.model.events import ToolCall
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pipeline.cli.main", "demo"]
SABOTAGED = """
import functools, sys
from pipeline.cli.main import run
from pipeline.demo import run as demo
demo.DemoOptions = functools.partial(demo.DemoOptions, worker_module="tests.integration.sabotaged_demo_worker", deadline_s=25.0)
run()
"""
SEED = 38
"""Forty runs of this seed hold at least two of everything: bytes that are no event, poison, calls that fail three times."""
BAD = ("lost", "duplicates", "out_of_order", "altered", "strays", "unsettled")
RUN_S = 180
pytestmark = [pytest.mark.first, pytest.mark.timeout(RUN_S + 60)]


@pytest.fixture(scope="module")
def embedded_run() -> subprocess.CompletedProcess[str]:
    """A small simulated run on a Kafka of its own, as a user starts it."""
    return _run([*COMMAND, "--runs", "40", "--seed", str(SEED), "--json"])


def _run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S * PATIENCE, check=False, **more
    )


def _last_line(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert run.stdout.strip(), f"no result (code {run.returncode}):\n{run.stderr}"
    found = json.loads(run.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def _fails(load: Load) -> list[int]:
    """How often billing fails on each readable record."""
    return [record.behaviour.fails for record in load.records if not isinstance(record.value, bytes)]


def test_small_run_accounts_for_every_record(embedded_run: subprocess.CompletedProcess[str]) -> None:
    assert embedded_run.returncode == 0, embedded_run.stderr
    result, load = _last_line(embedded_run), simulated(40, SEED, 0)
    assert result["published"] == len(load.records)
    assert result["processed"] + result["dead_lettered"] == 2 * len(load.records)
    assert {name: result[name] for name in BAD} == dict.fromkeys(BAD, 0)
    assert result["seconds"] > 0


def test_what_failed_was_retried_in_every_tier_and_what_is_poison_is_dead(
    embedded_run: subprocess.CompletedProcess[str],
) -> None:
    result, load = _last_line(embedded_run), simulated(40, SEED, 0)
    garbage = sum(isinstance(record.value, bytes) for record in load.records)
    rejected = sum(isinstance(r.value, ToolCall) and r.value.tool == POISON_TOOL for r in load.records)
    fails = _fails(load)
    assert garbage
    assert rejected
    billing, audit = result["groups"]["billing"], result["groups"]["audit"]
    expected = {tier: sum(count > n for count in fails) for n, tier in enumerate(("1s", "2s", "4s"))}
    assert billing["retried"] == expected
    assert billing["dead_lettered"] == garbage + sum(count >= 4 for count in fails)
    assert audit["dead_lettered"] == garbage + rejected


def test_a_worker_was_killed_in_the_middle_and_its_work_went_on(
    embedded_run: subprocess.CompletedProcess[str],
) -> None:
    killed = _last_line(embedded_run)["killed"]
    assert killed["partitions"] == 4
    assert killed["in_flight"] > 0
    assert 0 < killed["takeover_s"] <= 15 * PATIENCE
    assert f"SIGKILL to {killed['worker']}" in embedded_run.stderr


def test_all_real_transcripts_are_accounted_for_although_a_worker_is_killed(kafka: str, real_runs: Path) -> None:
    path = os.path.relpath(real_runs, ROOT)
    run = _run([*COMMAND, "--input", path, "--broker", kafka, "--json"])
    assert run.returncode == 0, run.stderr
    result = _last_line(run)
    assert result["runs"] == 200
    assert result["published"] > 200 * 10
    assert result["processed"] + result["dead_lettered"] == 2 * result["published"]
    assert {name: result[name] for name in BAD} == dict.fromkeys(BAD, 0)
    assert 0 < result["killed"]["takeover_s"] <= 15 * PATIENCE
    assert _topics_of_demos(kafka) == []


def test_bad_lines_of_the_input_are_named_and_the_rest_goes_on(kafka: str, tmp_path: Path) -> None:
    good = {"task_id": 1, "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]}
    lines = [json.dumps(good), "not json", json.dumps({"task_id": 2}), json.dumps(good | {"task_id": 3})]
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(lines))
    run = _run([*COMMAND, "--input", str(file), "--broker", kafka, "--json"])
    assert run.returncode == 0, run.stderr
    result = _last_line(run)
    assert (result["runs"], result["skipped"]) == (2, 2)
    assert "line 2: not JSON" in run.stderr
    assert "line 3" in run.stderr


def test_a_ledger_that_cheats_is_found_out(kafka: str) -> None:
    run = _run([sys.executable, "-c", SABOTAGED, "demo", "--runs", "40", "--broker", kafka, "--json"])
    result = _last_line(run)
    assert run.returncode == 1, run.stderr
    audit = result["groups"]["audit"]
    assert audit["lost"] == 1
    assert audit["duplicates"] >= 1
    assert audit["out_of_order"] >= 1
    assert result["lost"] == 1
    assert not result["ok"]
    assert any("audit: 1 records have no ending" in text for text in result["problems"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--input", "no-such-file.jsonl"], 2, "no-such-file.jsonl can't be read"),
        (["--input", "LICENSE"], 2, "has no run that could be imported"),
        (["--runs", "0"], 2, "--runs"),
        (["--broker", "127.0.0.1:1"], 3, "127.0.0.1:1"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], code: int, words: str) -> None:
    run = _run([*COMMAND, *arguments])
    assert run.returncode == code, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr


# -- nothing is left behind


@pytest.fixture
def started(kafka: str) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], list[psutil.Process]]]]:
    """Starts a demo and reads its lines until one matches; gives it and its worker processes."""
    running: list[subprocess.Popen[str]] = []

    def start(until: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        process = subprocess.Popen(
            [*COMMAND, "--runs", "200", "--broker", kafka],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if re.search(until, line):
                return process, psutil.Process(process.pid).children(recursive=True)
        raise AssertionError(f"{until!r} never came:\n{''.join(seen)}")

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_topic(
    number: signal.Signals, kafka: str, started: Callable[[str], tuple[subprocess.Popen[str], list[psutil.Process]]]
) -> None:
    demo, children = started("publishing")
    assert len(children) == 4
    demo.send_signal(number)
    output = demo.communicate(timeout=60 * PATIENCE)[0]
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert not [child for child in children if child.is_running()]
    assert _topics_of_demos(kafka) == []


def test_workers_end_when_the_demo_is_killed(
    kafka: str, started: Callable[[str], tuple[subprocess.Popen[str], list[psutil.Process]]]
) -> None:
    demo, children = started("publishing")
    demo.kill()
    demo.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    _remove_topics_of_demos(kafka)


def test_a_worker_that_dies_by_itself_ends_the_demo_with_a_sentence(
    started: Callable[[str], tuple[subprocess.Popen[str], list[psutil.Process]]],
) -> None:
    demo, children = started("publishing")
    children[0].kill()
    output = demo.communicate(timeout=60 * PATIENCE)[0]
    assert demo.returncode == 1, output
    assert re.search(r"worker demo-\w+-\d ended by itself with code -9", output)
    assert not [child for child in children if child.is_running()]


def _topics_of_demos(kafka: str) -> list[str]:
    """Topics whose removal has not been seen yet are waited for."""
    admin = connect(kafka).admin()
    deadline = time.monotonic() + 10 * PATIENCE
    while True:
        found = [name for name in admin.topic_names() if re.match(r"demo-[0-9a-f]{8}\.", name)]
        if not found or time.monotonic() > deadline:
            admin.close()
            return found
        time.sleep(0.1)


def _remove_topics_of_demos(kafka: str) -> None:
    admin = Pipeline("cleanup", broker=kafka).cluster.admin()
    admin.delete_topics([name for name in admin.topic_names() if re.match(r"demo-[0-9a-f]{8}\.", name)])
    admin.close()
