"""Topics that were deleted and made again under a group's commits: what tools say of them is what workers do with them."""

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
from pipeline.memory.cluster import forget
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.headers import DeliveryHeaders
from pipeline.model.headers import encode as headers_of
from pipeline.topology import Defaults, apply

ADDRESS = "memory://made-anew"


@pytest.fixture
def app() -> Iterator[Pipeline]:
    app = Pipeline("t", settings=Settings(broker=ADDRESS))

    @app.subscribe("events", group="g", value="json", tiers=("1h",))
    async def handle(value: dict[str, object], ctx: object) -> None:
        """Never runs."""

    apply(app.cluster.admin(), app.subscriptions, Defaults(partitions=1))
    yield app
    forget(ADDRESS)


def committed(app: Pipeline, **offsets: int) -> None:
    names = {"source": "events", "tier": "events.g.retry.1h", "replay": "events.g.replay"}
    found = {
        TopicPartition(names[lane], 0): Position(offset, encode(Progress(offset, offset, epoch=lane == "source")))
        for lane, offset in offsets.items()
    }
    app.cluster.admin().set_group_positions("g", found)


def said(*words: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(command, [*words, "--broker", ADDRESS, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_what_waits_in_a_lane_that_was_made_anew_is_counted_and_found(app: Pipeline) -> None:
    """A worker reads such a lane from its beginning."""
    append(app.cluster, "events", [Entry(b"k", b"{}", partition=0)])
    delivery = DeliveryHeaders(1, 1, 1, "events", 0, 0, 1, "g", due_ms=1 << 42)
    append(app.cluster, "events.g.retry.1h", [Entry(b"k", b"{}", headers_of([], delivery), 0)])
    committed(app, source=1, tier=70, replay=0)
    _, lag = said("groups", "lag", "g")
    assert (lag["lag"], lag["waiting"]) == (0, 1)
    assert [row["parked_keys"] for row in lag["rows"] if row["lane"] == "1h"] == [1]
    _, found = said("why", "k", "--group", "g")
    assert "parked" in json.dumps(found)


def test_a_group_that_stands_past_the_end_of_its_source_is_not_told_to_be_fine(app: Pipeline) -> None:
    """Its workers refuse the partition."""
    append(app.cluster, "events", [Entry(b"k", b"{}", partition=0)] * 3)
    committed(app, source=70, tier=0, replay=0)
    code, lag = said("groups", "lag", "g")
    assert (code, lag["lag"]) == (1, 3)
    assert "events partition 0" in str(lag["warnings"])
    assert "groups reset" in str(lag["warnings"])
