"""Tests with real runs are never passed over silently: they say that they were not run, and in CI they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_runs import require_real_runs


def test_runs_that_are_there_are_used(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl.gz"
    path.touch()
    assert require_real_runs(path, {}) == require_real_runs(path, {"CI": "true"}) == path


@pytest.mark.parametrize("environment", [{}, {"CI": "false"}, {"CI": ""}])
def test_without_them_a_test_is_skipped_and_says_why(tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"NOT RUN, needs the real runs: .*none\.gz is not there"):
        require_real_runs(tmp_path / "none.gz", environment)


def test_without_them_a_test_fails_in_ci(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"CI lays them beside the checkout, and .*none\.gz is not there"):
        require_real_runs(tmp_path / "none.gz", {"CI": "true"})
