"""`pipeline run` hands the supervisor what the command line says, and refuses before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.worker import supervisor

runner = CliRunner()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "run_command_app.py").write_text("from pipeline import Pipeline\napp = Pipeline('x')\nother = 1\n")
    monkeypatch.chdir(tmp_path)
    return "run_command_app:app"


def test_options_reach_the_supervisor_and_its_code_comes_back(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run(name: str, **options: Any) -> int:
        seen.update(options, target=name)
        return 2

    monkeypatch.setattr(supervisor, "run", run)
    shown = runner.invoke(
        app, ["run", target, "--processes", "3", "--group", "a", "--group", "b", "--metrics-port", "9100", "--json"]
    )
    assert shown.exit_code == 2
    assert json.loads(shown.stdout)["exit_code"] == 2
    assert seen == {"target": target, "processes": 3, "groups": ("a", "b"), "metrics_port": 9100, "host": "127.0.0.1"}


def test_a_wrong_target_starts_nothing(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "run", lambda *_, **__: pytest.fail("started"))
    shown = runner.invoke(app, ["run", target.replace(":app", ":other")])
    assert shown.exit_code == 2
    assert "not a Pipeline" in shown.stderr
    assert runner.invoke(app, ["run", target, "--processes", "0"]).exit_code == 2
