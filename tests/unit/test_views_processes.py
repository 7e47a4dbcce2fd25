"""Policies, topology checks and the parent of views processes, with stand-in commands in place of Faust."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from pipeline.model.errors import ConfigurationError, TopologyError
from pipeline.views import processes, topology
from pipeline.views.policy import ViewsPolicy

QUICK = processes.RestartPolicy(first_s=0.01, max_s=0.05, limit=3, steady_s=60, stop_s=5)


def test_topics_of_a_prefix_stay_under_it() -> None:
    topics = ViewsPolicy("b:1", prefix="dev.").topics
    assert topics.source == "dev.agent.run.events"
    assert topics.dead_letters == "dev.agent.run.events.dev.views.dlq"
    assert ViewsPolicy("b:1").topics.dead_letters == "agent.run.events.views.dlq"


def test_a_policy_survives_the_way_to_its_process() -> None:
    policy = ViewsPolicy("b:1", prefix="p.", store="rocksdb", data_dir="/data", web_port=9_000)
    assert ViewsPolicy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"store": "disk"}, "store"),
        ({"store": "rocksdb"}, "data_dir"),
        ({"batch_records": 0}, "batch_records"),
        ({"web_port": 70_000}, "web_port"),
    ],
)
def test_a_wrong_setting_is_named(setting: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        ViewsPolicy("b:1", **setting)  # type: ignore[arg-type]


def test_every_topic_has_the_partitions_of_the_source() -> None:
    policy = ViewsPolicy("b:1")
    wanted = topology.specs(policy, 6)
    assert {spec.partitions for spec in wanted} == {6}
    assert {"views-state-changelog", "views-totals-changelog"} <= {spec.name for spec in wanted}
    there = {spec.name: 6 for spec in wanted[:3]}
    assert topology.missing(wanted, there) == wanted[3:]
    with pytest.raises(TopologyError, match=r"views-state-changelog has 4 partitions .* 6"):
        topology.missing(wanted, there | {"views-state-changelog": 4})


def test_processes_share_neither_port_nor_folder() -> None:
    first, second = processes.policies(ViewsPolicy("b:1", store="rocksdb", data_dir="d", web_port=9_000), 2)
    assert (first.web_port, second.web_port) == (9_000, 9_001)
    assert first.data_dir != second.data_dir
    assert [each.web_port for each in processes.policies(ViewsPolicy("b:1"), 2)] == [0, 0]


def test_waits_grow_and_are_bounded() -> None:
    assert [processes.RestartPolicy().wait_s(n) for n in (1, 2, 3, 10)] == [1, 2, 4, 30]


@pytest.mark.parametrize(("code", "answer"), [(2, 2), (3, 3), (1, 1)])
def test_what_a_crew_that_never_runs_amounts_to(monkeypatch: pytest.MonkeyPatch, code: int, answer: int) -> None:
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", f"raise SystemExit({code})"))
    began_s = time.monotonic()
    assert processes.run(ViewsPolicy("b:1"), 1, threading.Event(), QUICK) == answer
    assert time.monotonic() - began_s < 20


def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.stdin.read()"
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", script))
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    stubborn = processes.RestartPolicy(stop_s=0.5)
    assert processes.run(ViewsPolicy("b:1"), 2, stop, stubborn) == 1


def test_importing_the_package_imports_neither_faust_nor_mode() -> None:
    code = (
        "import sys, pipeline.views, pipeline.cli.views, pipeline.views.processes, pipeline.views.summaries;"
        "assert not {'faust', 'mode', 'aiokafka'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
