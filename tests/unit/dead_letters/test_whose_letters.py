"""Whose dead letters a command takes where groups share a topic, and which topics have none at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import Pipeline, Settings
from pipeline.cli.main import app as command
from pipeline.dead_letters import (
    Actor,
    Wanted,
    cancel_dead_letters,
    convert_dead_letter,
    dead_letter_stats,
    edit_dead_letter,
    list_dead_letters,
    purge_dead_letters,
    redrive_dead_letters,
)
from pipeline.inspect.appending import Entry, append
from pipeline.memory.cluster import forget
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers
from pipeline.replay.asking import Request
from pipeline.replay.planning import make_plan
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from pipeline.topology import Defaults, apply

ADDRESS = "memory://whose-letters"
ANA = Actor("ana@ops", "a test of hers")
OPEN = Wanted(states=("open",))


@pytest.fixture
def app() -> Iterator[Pipeline]:
    """Groups "a" and "b", whose dead letters lie in one topic: at 0 and 2 of "b", at 1 and 3 of "a"."""
    made = Pipeline("t", settings=Settings(broker=ADDRESS))
    for group in ("a", "b"):

        @made.subscribe("events", group=group, value="json", tiers=("1s",), dead_letter_topic="shared.dlq")
        async def handle(value: dict[str, Any], ctx: Any) -> None:
            """Never runs."""

    apply(made.cluster.admin(), made.subscriptions, Defaults(partitions=1))
    for origin, group in enumerate("baba"):
        die(made, "shared.dlq", group, origin)
    yield made
    forget(ADDRESS)


def die(app: Pipeline, topic: str, group: str, origin: int) -> None:
    error = ErrorInfo("terminal", "ValueError", "no")
    headers = dead_letter_headers([], DeliveryHeaders(1, 1, 1, "events", 0, origin, 1, group, error=error))
    append(app.cluster, topic, [Entry(b"k", b'{"n": 1}', headers, 0)])


def states(app: Pipeline, group: str) -> list[tuple[str, str]]:
    letters = list_dead_letters(app, topic="shared.dlq", wanted=Wanted(group=group)).letters
    return sorted((letter.position, letter.state) for letter in letters)


def beginning(app: Pipeline, topic: str) -> int:
    place = TopicPartition(topic, 0)
    return app.cluster.admin().beginning_offsets([place])[place]


def test_a_group_of_a_shared_topic_is_shown_its_own_letters(app: Pipeline) -> None:
    for where in ({"group": "a"}, {"group": "a", "topic": "shared.dlq"}):
        assert [letter.position for letter in list_dead_letters(app, **where).letters] == ["0:3", "0:1"]  # type: ignore[arg-type]
        assert dead_letter_stats(app, **where).states == {"open": 2}  # type: ignore[arg-type]
    assert len(list_dead_letters(app, topic="shared.dlq").letters) == 4


def test_nothing_that_is_done_for_a_group_takes_letters_of_another(app: Pipeline) -> None:
    assert redrive_dead_letters(app, OPEN, ANA, group="a", canary=0).counts == {"written": 2}
    lanes = [TopicPartition("events.a.replay", 0), TopicPartition("events.b.replay", 0)]
    assert list(app.cluster.admin().end_offsets(lanes).values()) == [2, 0]
    assert cancel_dead_letters(app, OPEN, ANA, group="a").counts == {"cancelled": 0}
    for act in (
        lambda: edit_dead_letter(app, (0, 0), lambda value: {**value, "n": 2}, ANA, group="a"),
        lambda: convert_dead_letter(app, (0, 0), ANA, assignee="ana", instruction="do it", group="a"),
    ):
        with pytest.raises(ConfigurationError, match=r"no dead letter 0:0 of group a in shared\.dlq"):
            act()
    assert states(app, "b") == [("0:0", "open"), ("0:2", "open")]


def test_a_purge_for_a_group_deletes_no_letter_of_another_that_lies_before_its_own(app: Pipeline) -> None:
    """Kafka deletes up to an offset: what is kept keeps what is behind it."""
    done = purge_dead_letters(app, Wanted(), ANA, group="a")
    assert (done.counts, done.details["deleted"]) == ({"purged": 2}, 0)
    assert states(app, "b") == [("0:0", "open"), ("0:2", "open")]
    assert purge_dead_letters(app, Wanted(positions=((0, 0),)), ANA, group="b").details["deleted"] == 2
    assert beginning(app, "shared.dlq") == 2, "the other one of group b is the first that is kept"
    assert states(app, "b") == [("0:2", "open")]


def test_what_no_worker_wrote_is_shown_in_a_topic_that_one_group_has_for_itself(app: Pipeline) -> None:
    """Asking each letter for its group costs time, and would hide what does not say one."""
    alone = Pipeline("t", settings=Settings(broker=ADDRESS))

    @alone.subscribe("events", group="c", value="json", tiers=("1s",))
    async def handle(value: dict[str, Any], ctx: Any) -> None:
        """Never runs."""

    apply(alone.cluster.admin(), alone.subscriptions, Defaults(partitions=1))
    die(alone, "events.c.dlq", "c", 0)
    append(alone.cluster, "events.c.dlq", [Entry(b"k", b"junk", [], 0)])
    assert len(list_dead_letters(alone, group="c").letters) == 2
    die(alone, "events.c.dlq", "a", 1)
    assert [letter.position for letter in list_dead_letters(alone, group="c").letters] == ["0:0"]


# -- topics that are no dead letters


@pytest.fixture
def forgotten(app: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The same, and a record in the source, in a tier and in the audit."""
    monkeypatch.setenv("PIPELINE_BROKER", ADDRESS)
    monkeypatch.setenv("PIPELINE_PREFIX", "")
    for topic in ("events", "events.a.retry.1s", "events.a.replay", "_pipeline.audit"):
        append(app.cluster, topic, [Entry(b"k", b'{"n": 1}', [], 0)])
    return app


@pytest.mark.parametrize(
    ("topic", "instead"),
    [
        ("events", "dead_letter_topic with --topic"),
        ("events.a.retry.1s", "dead_letter_topic with --topic"),
        ("events.a.replay", "dead_letter_topic with --topic"),
        ("_pipeline.audit", "pipeline tail _pipeline.audit"),
    ],
)
@pytest.mark.parametrize("group", [(), ("--group", "a")])
def test_a_topic_that_has_no_dead_letters_is_refused(
    forgotten: Pipeline, topic: str, instead: str, group: tuple[str, ...]
) -> None:
    """`.a.dlq` was forgotten: a purge emptied the source."""
    words = ["dlq", "purge", "--topic", topic, *group, "--all", "--yes", "--reason", "x"]
    done = CliRunner().invoke(command, words)
    assert (done.exit_code, beginning(forgotten, topic)) == (2, 0), done.output
    assert instead in done.output


def test_what_was_forgotten_is_said(app: Pipeline) -> None:
    app.cluster.admin().create_topics([TopicSpec("events.a.dlq", 1)])
    with pytest.raises(ConfigurationError, match=r"give --topic events\.a\.dlq$"):
        list_dead_letters(app, topic="events")


def test_dead_letters_that_a_group_handles_are_dead_letters_still(app: Pipeline) -> None:
    """The topic is a source then, too."""
    names = ["events.c.dlq", "events.c.replay", "events.c.dlq.medic.replay", "shared.dlq.medic.replay"]
    app.cluster.admin().create_topics([TopicSpec(name, 1) for name in names])
    for topic in ("events.c.dlq", "shared.dlq"):
        assert list_dead_letters(app, topic=topic) is not None


def test_dead_letters_under_a_name_of_their_own_that_a_group_reads_too(
    app: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For alerts, say. The commands know no subscription: its newest records tell, whatever else lies there."""
    monkeypatch.setenv("PIPELINE_BROKER", ADDRESS)
    monkeypatch.setenv("PIPELINE_PREFIX", "")
    app.cluster.admin().create_topics([TopicSpec("shared.dlq.watch.replay", 1), TopicSpec("shared.dlq.watch.dlq", 1)])
    append(app.cluster, "shared.dlq", [Entry(b"k", b"%d" % n, [], 0) for n in range(3)])
    for words in (["list"], ["redrive", "--group", "a", "--all", "--canary", "0", "--reason", "x", "--yes"]):
        done = CliRunner().invoke(command, ["dlq", *words, "--topic", "shared.dlq"])
        assert done.exit_code == 0, done.output
    assert states(app, "a") == [("0:1", "redriven"), ("0:3", "redriven")]


@pytest.mark.parametrize("topic", ["events.a.retry.1s", "events.a.replay", "_pipeline.audit"])
def test_a_lane_is_refused_whatever_lies_in_it(forgotten: Pipeline, topic: str) -> None:
    die(forgotten, topic, "a", 1)
    with pytest.raises(ConfigurationError, match=r"not dead letters|has no dead letters"):
        list_dead_letters(forgotten, topic=topic)


def test_what_a_replay_copied_to_a_source_makes_it_no_dead_letters(forgotten: Pipeline) -> None:
    place = Surroundings(forgotten.cluster)
    asked = Request("shared.dlq", "ana", to_topic="events", kind="dead_letters", allowed=frozenset({"events"}))
    plan = make_plan(forgotten.cluster, asked, None, 1)
    run_plan(place, plan, Reason("ana", "a test"), run_options(place, plan, "ana"))
    done = CliRunner().invoke(command, ["dlq", "purge", "--topic", "events", "--all", "--yes", "--reason", "x"])
    assert (done.exit_code, beginning(forgotten, "events")) == (2, 0), done.output


def test_a_purge_leaves_what_no_worker_wrote(app: Pipeline) -> None:
    """Another application's topic, say, that was named by mistake."""
    app.cluster.admin().create_topics([TopicSpec("orders", 1)])
    append(app.cluster, "orders", [Entry(b"k", b"%d" % n, [], 0) for n in range(3)])
    done = purge_dead_letters(app, OPEN, ANA, topic="orders")
    assert (done.counts, sum(done.left_out.values()), beginning(app, "orders")) == ({"purged": 0}, 3, 0)
    die(app, "orders", "a", 0)
    assert purge_dead_letters(app, OPEN, ANA, topic="orders").counts == {"purged": 1}
    assert beginning(app, "orders") == 0


# -- results that go before the letters


def test_it_is_told_where_what_was_done_to_letters_is_forgotten_before_them(forgotten: Pipeline) -> None:
    words = ["dlq", "list", "--topic", "shared.dlq"]
    assert "Warning" not in CliRunner().invoke(command, words).output
    forgotten.cluster.admin().set_configs("shared.dlq", {"retention.ms": str(90 * 86_400_000)})
    told = CliRunner().invoke(command, words).stderr
    assert "retention.ms=7776000000) for longer than _pipeline.replay.results" in told
    forgotten.cluster.admin().set_configs("_pipeline.replay.results", {"retention.ms": "-1"})
    assert "Warning" not in CliRunner().invoke(command, words).output
