"""What others do to dead letters while somebody edits one, or waits for a canary."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from bench.synthetic_letters import DLQ, GROUP, SOURCE
from pipeline.dead_letters import RedrivePolicy, converting, editing, marking, redrive, releasing
from pipeline.dead_letters.acting import record
from pipeline.dead_letters.canary import Outcomes
from pipeline.dead_letters.desk import Desk, Topics
from pipeline.dead_letters.holds import find_holds
from pipeline.dead_letters.query import Wanted
from pipeline.dead_letters.releasing import LEFT_BEHIND
from pipeline.inspect.appending import Entry, append
from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import (
    CLOSES,
    HELD,
    HELD_CLASS,
    DeliveryHeaders,
    ErrorInfo,
    dead_letter_headers,
    decode,
    encode,
)
from pipeline.model.topics import CONTROL_TOPIC, TASKS_TOPIC
from pipeline.replay.asking import Request
from pipeline.replay.planning import make_plan
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from tests.unit.dead_letters.test_actions import ANA, CODEC, Place, now


@pytest.mark.parametrize("outcome", ["written", "edited", "purged", "converted"])
def test_an_edit_of_a_letter_that_something_else_was_done_about_meanwhile_appends_nothing(outcome: str) -> None:
    """An editor may be open for long. What was sent back meanwhile would go out twice, once as it was and once as it was edited."""
    place = Place(1)
    editable = editing.open_for_edit(place.desk, 0)
    value = json.loads(editable.text)
    edited = editing.check_edit(editable, json.dumps({**value, "tenant": "beta"}))
    record(place.another(), ANA, "rp-1", "redrive", {0: (outcome, 0, 0)}, now())
    with pytest.raises(ConfigurationError, match="0:0 can't be edited"):
        editing.apply_edit(place.desk, editable, edited, ANA, now())
    assert len(place.states()) == 1


def test_what_was_redriven_meanwhile_is_no_task_for_somebody_and_not_told_as_cancelled() -> None:
    """While somebody was asked whether to go on."""
    place = Place(2)
    late = place.another()
    record(place.desk, ANA, "rp-1", "redrive", {0: ("written", 0, 0)}, now())
    done = converting.convert(late, [0], ANA, "ana", "book it by hand", now())
    assert (done.counts, done.left_out) == ({"converted": 0}, {"redriven already": 1})
    assert place.records(TASKS_TOPIC) == []
    record(place.desk, ANA, "rp-2", "redrive", {1: ("written", 0, 0)}, now())
    done = marking.cancel(late, [1], ANA, now())
    assert (done.counts, done.left_out) == ({"cancelled": 0}, {"redriven already": 1})


def test_what_others_did_during_a_canary_is_not_undone_by_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(60)
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(f"{SOURCE}.{GROUP}.replay", 1)])
    prepared = redrive.prepare(place.desk, place.desk.matching(Wanted()), "ana", now(), RedrivePolicy(), canary=2)
    prepared = dataclasses.replace(prepared, workers=1)
    others = [letter.number for letter in prepared.letters if letter not in prepared.canary]

    def meanwhile(desk: Any, plan: Any, sent: Any, *_: Any) -> Outcomes:
        marking.cancel(place.another(), others[:1], ANA, now())
        marking.purge(place.another(), others[1:2], ANA, now())
        return Outcomes(len(sent), (), ())

    monkeypatch.setattr(redrive, "wait_for_outcome", meanwhile)
    done = redrive.run(place.desk, prepared, ANA, now(), RedrivePolicy())
    states = dict(enumerate(place.states()))
    assert (states[others[0]], states[others[1]]) == ("cancelled", "purged")
    assert (done.end, done.counts, done.left) == ("finished", {"written": 58}, 0)
    assert done.left_out == {"cancelled already": 1, "purged already": 1}


@pytest.mark.parametrize("given_up", [True, False])
def test_what_follows_a_held_record_does_not_go_without_it(given_up: bool) -> None:
    """Its dead letter was cancelled while somebody was asked: then the key is held, as if that had been before."""
    place = Place()
    lane = f"{SOURCE}.{GROUP}.replay"
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(lane, 1)])
    error = ErrorInfo("terminal", "ValueError", "no")
    head = DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, error=error)
    place.die(b"{}", dead_letter_headers([], head))
    behind = dataclasses.replace(head, origin_offset=1, error=ErrorInfo(HELD_CLASS, "Held", "behind 0"))
    place.die(b"{}", dead_letter_headers([], behind))
    append(place.cluster, lane, [Entry(b"k", b"{}", encode([], dataclasses.replace(head, hold=HELD)), 0)])
    place.desk.refresh()
    prepared = redrive.prepare(place.desk, [0], "ana", now(), RedrivePolicy())
    assert [letter.number for letter in prepared.letters] == [0, 1]
    if given_up:
        marking.cancel(place.another(), [0], ANA, now())
    done = redrive.run(place.desk, prepared, ANA, now(), RedrivePolicy())
    if given_up:
        assert (done.end, place.states()) == ("nothing to do", ["cancelled", "open"])
        assert done.left_out == {"cancelled already": 1, LEFT_BEHIND: 1}
        assert [hold.release for hold in find_holds(place.desk, GROUP)] == [""], "it is held still"
    else:
        assert (done.end, place.states()) == ("finished", ["redriven", "redriven"])


@pytest.mark.parametrize("command", ["redrive", "release"])
def test_a_held_key_is_not_let_go_past_a_letter_that_its_lane_refuses(command: str) -> None:
    place = Place()
    lane = f"{SOURCE}.{GROUP}.replay"
    admin = place.cluster.admin()
    admin.create_topics([TopicSpec(SOURCE, 1), TopicSpec(lane, 1, configs={"max.message.bytes": "1000000"})])
    admin.set_configs(DLQ, {"max.message.bytes": "4000000"})
    for number, key in enumerate((b"k", b"other")):
        head = DeliveryHeaders(
            1, 1, 1, SOURCE, 0, 2 * number, 1, GROUP, error=ErrorInfo("terminal", "ValueError", "no")
        )
        behind = dataclasses.replace(
            head, origin_offset=2 * number + 1, error=ErrorInfo(HELD_CLASS, "Held", f"behind {2 * number}")
        )
        large = b"x" * 1_500_000 if key == b"k" else b"{}"
        letters = [
            Entry(key, b"{}", dead_letter_headers([], head), 0),
            Entry(key, large, dead_letter_headers([], behind), 0),
        ]
        append(place.cluster, DLQ, letters)
        append(place.cluster, lane, [Entry(key, b"{}", encode([], dataclasses.replace(head, hold=HELD)), 0)])
    place.desk.refresh()
    if command == "redrive":
        prepared = redrive.prepare(place.desk, place.desk.matching(Wanted()), "ana", now(), RedrivePolicy())
        done = redrive.run(place.desk, prepared, ANA, now(), RedrivePolicy())
    else:
        done = redrive.release(place.desk, GROUP, (), ANA, now(), RedrivePolicy())
    assert done.counts["failed"] == 1
    assert done.held == ("k",)
    ends = admin.end_offsets([TopicPartition(lane, 0)])
    found = read_to_end(place.cluster, {TopicPartition(lane, 0): 0}, ends)
    assert [m.key() for m in found if decode(m.headers()).hold.startswith(CLOSES)] == [b"other"]
    assert place.states()[1] == "open"
    if command == "release":
        assert place.states()[0] == "open", "what holds the key still is not given up"


def test_what_was_given_up_while_the_owner_takes_up_a_release_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take a minute until the worker does."""
    place = Place()
    lane = f"{SOURCE}.{GROUP}.replay"
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(lane, 1)])
    head = DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, error=ErrorInfo("terminal", "ValueError", "no"))
    place.die(b"{}", dead_letter_headers([], head))
    for offset in (1, 2):
        behind = dataclasses.replace(head, origin_offset=offset, error=ErrorInfo(HELD_CLASS, "Held", "behind 0"))
        place.die(b"{}", dead_letter_headers([], behind))
    append(place.cluster, lane, [Entry(b"k", b"{}", encode([], dataclasses.replace(head, hold=HELD)), 0)])
    place.desk.refresh()
    opening = releasing.open_holds

    def slow(*arguments: Any) -> Any:
        marking.cancel(place.another(), [1], ANA, now())
        return opening(*arguments)

    monkeypatch.setattr(releasing, "open_holds", slow)
    done = redrive.release(place.desk, GROUP, (), ANA, now(), RedrivePolicy())
    assert (done.end, done.counts, done.left) == ("finished", {"written": 1, "cancelled": 1}, 0)
    assert place.states() == ["cancelled", "cancelled", "redriven"]


def test_a_redrive_of_which_nothing_is_left_by_then_says_how_the_key_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place()
    lane = f"{SOURCE}.{GROUP}.replay"
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(lane, 1)])
    head = DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, error=ErrorInfo("terminal", "ValueError", "no"))
    place.die(b"{}", dead_letter_headers([], head))
    append(place.cluster, lane, [Entry(b"k", b"{}", encode([], dataclasses.replace(head, hold=HELD)), 0)])
    place.desk.refresh()
    opening = releasing.open_holds

    def slow(*arguments: Any) -> Any:
        marking.cancel(place.another(), [0], ANA, now())
        return opening(*arguments)

    monkeypatch.setattr(releasing, "open_holds", slow)
    prepared = redrive.prepare(place.desk, [0], "ana", now(), RedrivePolicy())
    with pytest.raises(ConfigurationError, match="nothing was sent: `pipeline dlq release`"):
        redrive.run(place.desk, prepared, ANA, now(), RedrivePolicy())
    assert redrive.release(place.desk, GROUP, (), ANA, now(), RedrivePolicy()).end == "finished"


@pytest.mark.parametrize("to", ["file", "topic", "lane"])
def test_only_a_copy_in_the_replay_lane_makes_a_letter_redriven(to: str, tmp_path: Path) -> None:
    """A backup made all of them look as if they had been sent back."""
    place = Place(5)
    lane = f"{SOURCE}.{GROUP}.replay"
    place.cluster.admin().create_topics([TopicSpec(name, 1) for name in (SOURCE, lane, CONTROL_TOPIC, "elsewhere")])
    targets: dict[str, dict[str, Any]] = {
        "file": {"to_file": str(tmp_path / "backup.avro")},
        "topic": {"to_topic": "elsewhere", "allowed": frozenset({"elsewhere"})},
        "lane": {"group": GROUP},
    }
    plan = make_plan(place.cluster, Request(DLQ, "ana", kind="dead_letters", **targets[to]), None, now())
    surroundings = Surroundings(place.cluster)
    tally = run_plan(surroundings, plan, Reason("ana", "a copy"), run_options(surroundings, plan, "ana"))
    assert (tally.state, tally.counts) == ("finished", {"written": 5})
    assert place.states() == ["redriven" if to == "lane" else "open"] * 5
    done = place.another().store.db.execute("SELECT action, outcome FROM results").fetchall()
    assert done == [("redrive" if to == "lane" else "replay", "written")] * 5, "it is on record whatever it was"


@pytest.mark.parametrize("sent", [1, 3])
@pytest.mark.parametrize("command", ["redrive", "release"])
def test_an_interrupted_redrive_of_a_held_key_goes_on_with_what_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, sent: int
) -> None:
    """Its head was sent, so it is not chosen any more; a plan that is taken up by itself never lets the key go."""
    place = Place()
    lane = f"{SOURCE}.{GROUP}.replay"
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(lane, 1)])
    head = DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, error=ErrorInfo("terminal", "ValueError", "no"))
    place.die(b"{}", dead_letter_headers([], head))
    for offset in (1, 2, 3):
        behind = dataclasses.replace(head, origin_offset=offset, error=ErrorInfo(HELD_CLASS, "Held", "behind 0"))
        place.die(b"{}", dead_letter_headers([], behind))
    append(place.cluster, lane, [Entry(b"k", b"{}", encode([], dataclasses.replace(head, hold=HELD)), 0)])
    desk = Desk(place.cluster, CODEC, Topics(DLQ), tmp_path / "index.sqlite")
    desk.refresh()

    def all_open() -> redrive.Prepared:
        return redrive.prepare(desk, desk.matching(Wanted(states=("open",))), "ana", now(), RedrivePolicy())

    with monkeypatch.context() as patch:
        patch.setattr(redrive, "run_options", functools.partial(redrive.run_options, stop_after=sent))
        done = redrive.run(desk, all_open(), ANA, now(), RedrivePolicy())
    assert (done.end, done.counts, done.held, done.plan_file) == ("stopped", {"written": sent}, ("k",), None)
    if command == "redrive":
        prepared = all_open()
        assert (prepared.left_out, prepared.unfinished) == ({}, ())
        done = redrive.run(desk, prepared, ANA, now(), RedrivePolicy())
    else:
        done = redrive.release(desk, GROUP, (), ANA, now(), RedrivePolicy())
    assert (done.end, done.counts["written"], done.held) == ("finished", 4 - sent, ())
    assert place.states() == ["redriven"] * 4
    ends = place.cluster.admin().end_offsets([TopicPartition(lane, 0)])
    *_, mark = [decode(m.headers()).hold for m in read_to_end(place.cluster, {TopicPartition(lane, 0): 0}, ends)]
    assert mark.startswith(CLOSES), "the key goes on"
