"""Policies that can't work are refused in one sentence that names the setting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.model.errors import ConfigurationError
from pipeline.model.policies import Backoff, RetryPolicy, check_retry, parse_tiers


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (RetryPolicy(attempts=0), "attempts=0"),
        (RetryPolicy(attempts=1_001), "attempts=1001"),
        (RetryPolicy(attempts=True), "attempts=True"),
        (RetryPolicy(tiers_ms=(10, 10)), "tiers="),
        (RetryPolicy(tiers_ms=(20, 10)), "tiers="),
        (RetryPolicy(tiers_ms=(0, 10)), "tiers"),
        (RetryPolicy(jitter=1.1), "jitter="),
        (RetryPolicy(backoff=Backoff(-1)), "backoff="),
        (RetryPolicy(backoff=Backoff(10, max_delay_ms=5)), "backoff="),
        (RetryPolicy(backoff=Backoff(10, factor=0.5)), "backoff="),
    ],
)
def test_refused(policy: RetryPolicy, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        check_retry(policy)


def test_accepted() -> None:
    policy = RetryPolicy(backoff=Backoff(100, 1.0))
    assert check_retry(policy) is policy
    assert check_retry(replace(policy, attempts=1, tiers_ms=())).tiers_ms == ()


def test_backoff_grows_to_its_bound() -> None:
    backoff = Backoff(100, 2.0, 1_000)
    assert [backoff.before_retry_ms(n) for n in range(1, 7)] == [100, 200, 400, 800, 1_000, 1_000]
    assert Backoff(10_000, 10.0, 60_000).before_retry_ms(999) == 60_000


def test_tiers() -> None:
    assert parse_tiers(("10s", "2m", 0.5)) == (10_000, 120_000, 500)
    with pytest.raises(ConfigurationError, match="sequence"):
        parse_tiers("10s")  # type: ignore[arg-type]
