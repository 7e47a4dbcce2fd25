"""Real agent runs, for tests: tau-bench transcripts that lie beside the checkout and are not part of the project."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

REAL_RUNS = Path(__file__).resolve().parents[2] / "shared" / "data" / "tau-bench-airline.jsonl.gz"


def require_real_runs(path: Path = REAL_RUNS, environment: Mapping[str, str] = os.environ) -> Path:
    """Where they are. Without them a test is skipped, and says so; in CI, which lays them there, it fails."""
    if path.is_file():
        return path
    if environment.get("CI") == "true":
        pytest.fail(
            f"the real runs are missing: CI lays them beside the checkout, and {path} is not there; tests with real runs would not run",
            pytrace=False,
        )
    pytest.skip(f"NOT RUN, needs the real runs: {path} is not there (they are not part of the project)")
