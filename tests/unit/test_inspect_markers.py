"""Partitions that end in offsets that hold no record (markers of transactions): nobody can be behind on those."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import Pipeline, Settings
from pipeline.cli.main import app as command
from pipeline.core.progress import Progress, encode
from pipeline.inspect.appending import Entry, append
from pipeline.inspect.positions import unsettled_in_retired_tiers
from pipeline.memory.cluster import forget
from pipeline.model.cluster import Position, TopicPartition, TopicSpec
from pipeline.replay.attach import Watch
from pipeline.topology import Defaults, apply

ADDRESS = "memory://markers"
SOURCE, LANE = TopicPartition("events", 0), TopicPartition("events.g.replay", 0)


@pytest.fixture
def app() -> Iterator[Pipeline]:
    """Group "g" has processed ten records, written in transactions, and one that came by its lane."""
    app = Pipeline("t", settings=Settings(broker=ADDRESS))

    @app.subscribe("events", group="g", value="json", tiers=())
    async def handle(value: dict[str, object], ctx: object) -> None:
        """Never runs."""

    apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
    for place, count in ((SOURCE, 10), (LANE, 1)):
        append(app.cluster, place.topic, [Entry(b"k", b"{}", partition=0)] * count)
        app.cluster.log(place).skip(2)  # type: ignore[attr-defined]
    stored = {SOURCE: Progress(10, 10, epoch=1), LANE: Progress(1, 1)}
    app.cluster.admin().set_group_positions("g", {tp: Position(p.offset, encode(p)) for tp, p in stored.items()})
    yield app
    forget(ADDRESS)


def lag(*more: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(command, ["groups", "lag", "g", "--broker", ADDRESS, "--json", "--max", "0", *more])
    return done.exit_code, json.loads(done.stdout)


def test_nothing_is_behind_that_is_no_record(app: Pipeline) -> None:
    code, found = lag()
    assert (code, found["lag"], found["waiting"]) == (0, 0, 0)
    append(app.cluster, "events", [Entry(b"k", b"{}", partition=0)])
    code, found = lag()
    assert (code, found["lag"]) == (1, 3), "what lies between is not told apart"
    with Watch(app.cluster, "g", "events") as watch:
        assert watch.look().lag == 3


def test_the_age_of_what_waits_behind_a_marker_is_told(app: Pipeline) -> None:
    """The group stands at the marker, and its first record comes behind it."""
    assert all(row["oldest_ms"] is None for row in lag("--all")[1]["rows"] if row["lane"] == "source")
    append(app.cluster, "events", [Entry(b"k", b"{}", partition=0)] * 3)
    (row,) = [row for row in lag()[1]["rows"] if row["lane"] == "source"]
    assert row["oldest_ms"] > 0


def test_who_waits_for_a_group_to_be_live_does_not_wait_for_markers(app: Pipeline) -> None:
    with Watch(app.cluster, "g", "events") as watch:
        assert watch.look().lag == 0


def test_offsets_alone_do_not_tell(app: Pipeline) -> None:
    assert lag("--fast")[1]["lag"] == 2


def test_a_retired_tier_that_holds_markers_only_is_empty(app: Pipeline) -> None:
    tier = TopicPartition("events.g.retry.5s", 0)
    app.cluster.admin().create_topics([TopicSpec(tier.topic, 1)])
    append(app.cluster, tier.topic, [Entry(b"k", b"{}", partition=0)])
    app.cluster.log(tier).skip(2)  # type: ignore[attr-defined]
    assert unsettled_in_retired_tiers(app.cluster, app.subscriptions) == {tier.topic: 1}
    app.cluster.admin().set_group_positions("g", {tier: Position(1, encode(Progress(1, 1)))})
    assert unsettled_in_retired_tiers(app.cluster, app.subscriptions) == {tier.topic: 0}
