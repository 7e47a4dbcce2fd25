"""`pipeline groups lag` and `why` say what is about to be lost, and find dead letters under a name of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from pipeline import Context, Pipeline, Reject, Settings
from pipeline.cli import main
from pipeline.core.progress import Progress
from pipeline.inspect import collect
from pipeline.inspect.lag import EXPIRY_SHARE, GroupFacts, LagRow, rows, warnings
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import Position, TopicPartition, TopicSpec
from pipeline.model.topics import lane_topics
from pipeline.topology import Defaults, apply
from pipeline.topology.naming import Layout

NOW_MS = 10**12
DAY_MS = 86_400_000
TOPICS = lane_topics("events", "billing", ())
SOURCE, REPLAY = TopicPartition("events", 0), TopicPartition(TOPICS.replay, 0)
BROKER = "memory://lag"


def facts(*, state: str = "stable", kept: str = "-1", dead_letters: bool = True, **more: Any) -> GroupFacts:
    specs = {name: TopicSpec(name, 1) for name in (TOPICS.source, TOPICS.replay)}
    if dead_letters:
        specs[TOPICS.dead_letters] = TopicSpec(TOPICS.dead_letters, 1, configs={"retention.ms": kept})
    given: dict[str, Any] = {
        "progress": {SOURCE: Progress(5, 5), REPLAY: Progress(0, 0)},
        "beginnings": {SOURCE: 0, REPLAY: 0},
        "ends": {SOURCE: 5, REPLAY: 0},
        **more,
    }
    return GroupFacts(Layout("billing", TOPICS), state, specs, parked={}, oldest_ms={}, **given)


def told(found: GroupFacts, oldest_dead_ms: int | None = None) -> list[str]:
    return warnings(found, rows(found), oldest_dead_ms, NOW_MS)


def test_nothing_is_said_of_a_group_that_is_fine() -> None:
    assert told(facts(kept=str(30 * DAY_MS)), NOW_MS - DAY_MS) == []


def test_the_oldest_dead_letter_is_told_before_it_expires() -> None:
    kept_ms = 30 * DAY_MS
    young_ms = int(NOW_MS - kept_ms * EXPIRY_SHARE) + 1
    assert told(facts(kept=str(kept_ms)), young_ms) == []
    (text,) = told(facts(kept=str(kept_ms)), young_ms - 1)
    assert text.startswith(f"the oldest dead letter in {TOPICS.dead_letters} expires soon (retention.ms={kept_ms})")
    assert told(facts(kept="-1"), 1) == [], "kept for ever"
    assert told(facts(kept=str(kept_ms)), None) == [], "there is none, or ages were not read"


def test_what_else_is_told() -> None:
    (empty,) = told(facts(state="empty"))
    assert "has no members" in empty
    (lost,) = told(facts(beginnings={SOURCE: 7, REPLAY: 0}, ends={SOURCE: 9, REPLAY: 0}))
    assert "offsets 5 to 6 were deleted by retention" in lost
    (expired,) = told(facts(progress={SOURCE: Progress(5, 5)}, ends={SOURCE: 5, REPLAY: 3}))
    assert f"no committed offsets on {TOPICS.replay}" in expired
    (blind,) = told(facts(dead_letters=False))
    assert TOPICS.dead_letters in blind
    assert "--dead-letters" in blind


def test_lag_counts_what_is_not_settled() -> None:
    found = rows(facts(progress={SOURCE: Progress(2, 5, (2, 4))}, ends={SOURCE: 8, REPLAY: 0}))
    assert found == [
        LagRow("source", "events", 0, 2, 0, 8, 5, None, None),
        LagRow("replay", TOPICS.replay, 0, None, 0, 0, 0, 0, None),
    ]


# -- dead letters under a name of their own


@pytest.fixture
def graveyard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster where group billing has given up the record of run-7, into a topic called graveyard."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    monkeypatch.setenv("PIPELINE_BROKER", BROKER)
    app = Pipeline("billing", settings=Settings(broker=BROKER))

    @app.subscribe("events", group="billing", value="bytes", tiers=(), dead_letter_topic="graveyard")
    async def handle(_value: bytes, ctx: Context) -> None:
        raise Reject("no price")

    async def story(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("lag", clock=loop.clock, scheduler=loop.call_later_ms)
        memory.register(cluster)
        apply(cluster.admin(), app.subscriptions, Defaults(partitions=1))
        await app.start()
        cluster.producer("agent").send("events", b"run-7", b"v", partition=0)
        place = TopicPartition("graveyard", 0)
        async with asyncio.timeout(60):
            while not cluster.admin().end_offsets([place])[place]:
                await asyncio.sleep(0.1)
        await app.stop()

    run(story)
    yield
    memory.forget(BROKER)


def answer(*words: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main.app, [*words, "--json"])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


@pytest.mark.usefixtures("graveyard")
def test_why_finds_it_under_the_name_that_it_is_given() -> None:
    code, given = answer("why", "run-7", "--group", "billing", "--dead-letters", "graveyard")
    (found,) = given["found"]
    assert (code, found["state"], found["lane"], given["warnings"]) == (0, "dead letter", "graveyard", [])
    assert "no price" in found["error"]


@pytest.mark.usefixtures("graveyard")
def test_why_says_that_dead_letters_were_not_looked_at() -> None:
    """It would be done otherwise, and nothing would tell."""
    _, blind = answer("why", "run-7")
    assert [found["state"] for found in blind["found"]] == ["done"]
    (text,) = blind["warnings"]
    assert "events.billing.dlq does not exist" in text
    shown = CliRunner().invoke(main.app, ["why", "run-7"])
    assert "--dead-letters" in shown.stderr


@pytest.mark.usefixtures("graveyard")
def test_why_passes_over_a_group_whose_topics_go_while_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Pipeline("old", settings=Settings(broker=BROKER))

    @app.subscribe("gone", group="old", value="bytes", tiers=())
    async def handle(_value: bytes, _ctx: Context) -> None: ...

    admin = app.cluster.admin()
    apply(admin, app.subscriptions, Defaults(partitions=1))
    admin.set_group_positions("old", {TopicPartition("gone", 0): Position(0)})
    listed = collect.find_layouts

    def and_then_they_go(*given: Any) -> Any:
        found = listed(*given)
        admin.delete_topics(["gone", *found[-1].topics.lanes])
        return found

    monkeypatch.setattr(collect, "find_layouts", and_then_they_go)
    code, found = answer("why", "run-7")
    assert (code, [each["group"] for each in found["found"]]) == (0, ["billing"])
    assert [text for text in found["warnings"] if "group old was not looked at, a topic of it is gone" in text]


@pytest.mark.usefixtures("graveyard")
def test_lag_counts_them_under_the_name_that_it_is_given() -> None:
    _, given = answer("groups", "lag", "billing", "--dead-letters", "graveyard")
    assert given["dead_letters"] == 1
    assert not any("--dead-letters" in text for text in given["warnings"])
    _, blind = answer("groups", "lag", "billing")
    assert blind["dead_letters"] == 0
    assert any("--dead-letters" in text for text in blind["warnings"])


@pytest.mark.usefixtures("graveyard")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("why", "run-7", "--dead-letters", "graveyard"), "--group"),
        (("why", "run-7", "--group", "billing", "--dead-letters", "yard"), "'yard' does not exist"),
        (("groups", "lag", "billing", "--dead-letters", "yard"), "'yard' does not exist"),
    ],
)
def test_a_name_that_is_wrong_or_nobodys_is_refused(words: tuple[str, ...], named: str) -> None:
    done = CliRunner().invoke(main.app, list(words))
    assert done.exit_code == 2
    assert named in done.stderr
