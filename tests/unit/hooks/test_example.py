"""examples/agent_frameworks.py, run as it stands on a cluster in memory."""

from __future__ import annotations

import asyncio
import importlib.util

import pytest

from pipeline import RunCompleted, RunStarted
from tests.unit.docs_reader import ROOT
from tests.unit.hooks.harness import Recording


def test_the_example_records_a_run_of_each_framework_and_queues_a_job_after_it(
    rec: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("agent_frameworks", ROOT / "examples" / "agent_frameworks.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    asyncio.run(example.main(rec.app))
    runs = rec.runs()
    for events in runs.values():
        started, ended = events[0], events[-1]
        assert isinstance(started, RunStarted)
        assert started.agent == "support"
        assert isinstance(ended, RunCompleted)
        assert ended.output == "It was sent on Monday."
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in printed] == ["evaluate"] * 3
    assert all(any(run_id in line for line in printed) for run_id in runs)
