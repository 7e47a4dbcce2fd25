"""`pipeline broker start / status / stop` as a user or a script runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from tests.integration.processes import ended
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from pipeline.cli.main import run; run()", "broker"]
CODE_NO, CODE_USAGE = 1, 2


def pipeline_broker(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200 * PATIENCE, check=False)


def as_json(*arguments: str | Path) -> dict[str, Any]:
    done = pipeline_broker(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def wait_gone(*pids: int) -> None:
    deadline = time.monotonic() + 20 * PATIENCE
    while not all(ended(pid) for pid in pids):
        assert time.monotonic() < deadline, f"some of {pids} still run"
        time.sleep(0.05)


@pytest.fixture
def detached(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Starts a detached broker in `tmp_path`, which is stopped whatever the test does."""
    yield lambda *options: as_json("start", "--detach", "--data-dir", tmp_path, *options)
    pipeline_broker("stop", "--data-dir", tmp_path)


def test_detached_start_status_stop(detached: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    started = detached()
    admin = AdminClient({"bootstrap.servers": started["bootstrap"]})
    assert len(admin.list_topics(timeout=10).brokers) == 1
    assert as_json("status", "--data-dir", tmp_path) == started
    second = pipeline_broker("start", "--data-dir", tmp_path)
    assert second.returncode == CODE_USAGE
    assert "already runs" in second.stderr
    assert as_json("stop", "--data-dir", tmp_path) == {"stopped": started["bootstrap"], "clean": True}
    wait_gone(started["pid"], *started["node_pids"].values())
    assert pipeline_broker("status", "--data-dir", tmp_path).returncode == CODE_NO
    assert pipeline_broker("stop", "--data-dir", tmp_path).returncode == CODE_NO


def test_a_killed_owner_is_not_shown_as_running(detached: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    started = detached()
    os.kill(started["pid"], signal.SIGKILL)
    wait_gone(started["pid"], *started["node_pids"].values())
    assert (tmp_path / "broker.json").exists()
    assert pipeline_broker("status", "--data-dir", tmp_path).returncode == CODE_NO
    assert detached()["bootstrap"] == started["bootstrap"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_stops_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    command = [*COMMAND, "start", "--json", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        started = json.loads(owner.stdout.readline())
        owner.send_signal(number)
        assert owner.wait(30 * PATIENCE) == 0
    wait_gone(*started["node_pids"].values())
    assert not (tmp_path / "broker.json").exists()


def test_bad_usage_is_one_sentence() -> None:
    done = pipeline_broker("start", "--nodes", "2")
    assert done.returncode == CODE_USAGE
    assert done.stderr.startswith("Error: nodes=2 is not possible")
    assert len(done.stderr.splitlines()) == 1


def test_why_a_detached_start_failed_is_told(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{]")
    done = pipeline_broker("start", "--detach", "--data-dir", tmp_path)
    assert done.returncode != 0
    assert "cluster.json can't be read" in done.stderr
