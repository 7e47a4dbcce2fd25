"""Names of a subscription's topics."""

from __future__ import annotations

import pytest

from pipeline.model.errors import ConfigurationError
from pipeline.model.topics import check_topic, escape, lane_topics


def test_lanes_stand_under_one_prefix() -> None:
    found = lane_topics("agent.run.events", "billing", (10_000, 90_000, 600_000))
    assert found.tiers == tuple(f"agent.run.events.billing.retry.{d}" for d in ("10s", "90s", "10m"))
    assert found.lanes == (*found.tiers, "agent.run.events.billing.replay")
    assert found.dead_letters == "agent.run.events.billing.dlq"
    assert lane_topics("t", "g", (), "errors").dead_letters == "errors"


def test_letters_that_kafka_refuses_are_escaped() -> None:
    assert escape("büro 1_a") == "b_c3_bcro_201_5fa"
    assert escape("a.b-C9") == "a.b-C9"


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a\n", "ä", "a/b"])
def test_illegal_topics_are_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match="legal"):
        check_topic(name)


def test_length_is_checked_with_the_number() -> None:
    assert check_topic("a" * 249)
    with pytest.raises(ConfigurationError, match="250"):
        check_topic("a" * 250)
    with pytest.raises(ConfigurationError, match="249"):
        lane_topics("t" * 200, "g" * 45, (10_000,))
