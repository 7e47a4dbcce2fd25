"""`pipeline why` and `pipeline keys` about dead letters and keys, on a cluster in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import Pipeline, Settings
from pipeline.cli.main import app as command
from pipeline.dead_letters import Actor, RedrivePolicy, Wanted, cancel_dead_letters, redrive_dead_letters
from pipeline.inspect.appending import Entry, append
from pipeline.memory.cluster import forget
from pipeline.model.cluster import Position, TopicPartition, TopicSpec
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers, encode
from pipeline.replay.asking import Request
from pipeline.replay.planning import make_plan
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from pipeline.topology import Defaults, apply

ADDRESS = "memory://since"
ANA = Actor("ana@ops", "a test of hers")
BINARY = b"\xff\x01"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """Two records that died, of the key "k" and of one that is no text; the group's position is behind both."""
    made = Pipeline("t", settings=Settings(broker=ADDRESS))

    @made.subscribe("events", group="g", value="json", tiers=("1s",))
    async def handle(value: dict[str, Any], ctx: Any) -> None:
        """Never runs."""

    apply(made.cluster.admin(), made.subscriptions, Defaults(partitions=1))
    for origin, key in enumerate((b"k", BINARY)):
        error = ErrorInfo("terminal", "ValueError", "no")
        headers = DeliveryHeaders(1, 1, 1, "events", 0, origin, 1, "g", error=error)
        append(made.cluster, "events", [Entry(key, b"{}", [], 0)])
        append(made.cluster, "events.g.dlq", [Entry(key, b"{}", dead_letter_headers([], headers), 0)])
    commit(made, "events", 2)
    monkeypatch.setenv("PIPELINE_BROKER", ADDRESS)
    monkeypatch.setenv("PIPELINE_PREFIX", "")
    yield made
    forget(ADDRESS)


def commit(app: Pipeline, topic: str, offset: int) -> None:
    app.cluster.admin().set_group_positions("g", {TopicPartition(topic, 0): Position(offset, "")})


def why(key: str) -> list[tuple[str, str | None]]:
    done = CliRunner().invoke(command, ["why", key, "--group", "g", "--json"])
    return [(each["state"], each.get("since")) for each in json.loads(done.stdout)["found"]]


def test_a_record_whose_redrive_was_done_is_done(app: Pipeline) -> None:
    assert why("k") == [("dead letter", None)]
    (plan,) = redrive_dead_letters(app, Wanted(keys=("k",)), ANA, group="g", canary=0).plans
    assert why("k") == [("dead letter", f"redriven by {plan}"), ("due", None)]
    commit(app, "events.g.replay", 1)
    assert why("k") == [("done", f"redriven by {plan}")]
    told = CliRunner().invoke(command, ["why", "k", "--group", "g"]).output
    assert f"group g: done, redriven by {plan}" in told
    error = ErrorInfo("terminal", "ValueError", "no")
    again = DeliveryHeaders(1, 1, 1, "events", 0, 0, 1, "g", error=error, replay_id=plan, replay_count=1)
    append(app.cluster, "events.g.dlq", [Entry(b"k", b"{}", dead_letter_headers([], again), 0)])
    assert why("k") == [("dead letter", f"redriven by {plan}"), ("dead letter", None)], "it died again"


def copy(app: Pipeline) -> str:
    """The dead letters, copied to another topic; the plan's id."""
    app.cluster.admin().create_topics([TopicSpec("copies", 1)])
    asked = Request("events.g.dlq", "ana", to_topic="copies", kind="dead_letters", allowed=frozenset({"copies"}))
    place = Surroundings(app.cluster)
    plan = make_plan(app.cluster, asked, None, 1)
    run_plan(place, plan, Reason("ana", "a test"), run_options(place, plan, "ana"))
    return plan.plan_id


def test_a_letter_that_was_sent_to_another_topic_is_not_done(app: Pipeline) -> None:
    copy(app)
    assert why("k") == [("dead letter", None)], "as `dlq list` says"
    (plan,) = redrive_dead_letters(app, Wanted(keys=("k",)), ANA, group="g", canary=0).plans
    commit(app, "events.g.replay", 1)
    assert why("k") == [("done", f"redriven by {plan}")]


def test_a_redrive_after_a_copy_that_was_called_one_is_what_counts(
    app: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results of before copies to files and topics had a name of their own."""
    with monkeypatch.context() as before:
        before.setattr("pipeline.replay.recording.action_of", lambda _plan: "redrive")
        first = copy(app)
    assert why("k") == [("dead letter", f"redriven by {first}")]
    again = Wanted(keys=("k",), states=("redriven",))
    policy = RedrivePolicy(again=True)
    (plan,) = redrive_dead_letters(app, again, ANA, group="g", canary=0, policy=policy).plans
    assert why("k") == [("dead letter", f"redriven by {plan}"), ("due", None)]
    commit(app, "events.g.replay", 1)
    assert why("k") == [("done", f"redriven by {plan}")]


def test_a_dead_letter_that_was_given_up_says_so(app: Pipeline) -> None:
    action = cancel_dead_letters(app, Wanted(keys=("k",)), ANA, group="g").action_id
    assert why("k") == [("dead letter", f"cancelled by {action}")]
    assert f", cancelled by {action}" in CliRunner().invoke(command, ["why", "k", "--group", "g"]).output


def test_a_key_is_found_as_tables_show_it(app: Pipeline) -> None:
    assert why("0xff01") == why("\udcff\x01") == [("dead letter", None)]
    waiting = DeliveryHeaders(1, 1, 1, "events", 0, 2, 1, "g", due_ms=2**45)
    append(app.cluster, "events.g.retry.1s", [Entry(BINARY, b"{}", encode([], waiting), 0)])
    done = CliRunner().invoke(command, ["keys", "release", "g", "0xff01", "--json"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["waiting"], told["key_text"]) == (0, 1, "0xff01")
