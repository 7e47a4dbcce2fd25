"""Times and ages as people write them."""

from __future__ import annotations

import pytest

from pipeline.model.errors import ConfigurationError
from pipeline.replay.moments import parse_age_ms, parse_moment_ms
from pipeline.replay.reset import check_partitions, parse_offsets

NOON = 1_795_348_800_000  # 2026-11-22T12:00:00Z


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2026-11-22T12:00:00", NOON),
        ("2026-11-22T12:00:00Z", NOON),
        ("2026-11-22 12:00", NOON),
        ("2026-11-22T13:30:00+01:30", NOON),
        ("2026-11-22T11:59:59.250", NOON - 750),
        ("2026-11-22T11:59:59.9999", NOON - 1),
        ("2026-11-22", NOON - 12 * 3_600_000),
    ],
)
def test_moments(text: str, at_ms: int) -> None:
    assert parse_moment_ms(text, "--from-time", NOON) == at_ms


@pytest.mark.parametrize(
    ("text", "words"), [("2026-11-22T12:00:01Z", "in the future"), ("noon", "ISO 8601"), ("", "ISO 8601")]
)
def test_no_moments(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--from-time.*{words}"):
        parse_moment_ms(text, "--from-time", NOON)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("2h", 7_200_000), ("PT2H", 7_200_000), ("P1DT2H30M1.5S", 95_401_500), ("P7D", 604_800_000), ("90s", 90_000)],
)
def test_ages(text: str, ms: int) -> None:
    assert parse_age_ms(text, "--last") == ms


@pytest.mark.parametrize("text", ["P", "PT", "2 weeks", "-2h", "P1DT", ""])
def test_no_ages(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--last"):
        parse_age_ms(text, "--last")


def test_offsets_for_all_and_for_one() -> None:
    assert parse_offsets(["100", "3:7", "0:0"], "--to-offset") == (100, {3: 7, 0: 0})
    assert parse_offsets([], "--to-offset") == (None, {})
    for text in ("x", "1:", ":1", "1:2:3", "-1", "\u0661"):
        with pytest.raises(ConfigurationError, match="--to-offset"):
            parse_offsets([text], "--to-offset")


def test_partitions_that_are_not_there() -> None:
    check_partitions("t", range(3), [0, 2])
    with pytest.raises(ConfigurationError, match=r"partition 3 of topic t .* there is 0 to 2"):
        check_partitions("t", range(3), [3])
    with pytest.raises(ConfigurationError, match=r"there is \[0, 2\]"):
        check_partitions("t", (0, 2), [1])
