"""What people do to dead letters, when something is in the way: two at once, half-done before, hostile values, brokers that refuse."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from bench.synthetic_letters import DLQ, GROUP, RESULTS, SOURCE, maker, registered
from pipeline.codec.schema import AvroSchema, parse
from pipeline.codec.writer import compile_writer
from pipeline.dead_letters import RedrivePolicy, converting, editing, marking, redrive
from pipeline.dead_letters.acting import Actor
from pipeline.dead_letters.desk import Desk, Topics
from pipeline.dead_letters.details import details
from pipeline.dead_letters.exporting import plain_of
from pipeline.dead_letters.pointing import PointsAt
from pipeline.dead_letters.query import Wanted
from pipeline.dead_letters.states import id_of
from pipeline.dead_letters.stats import stats
from pipeline.dead_letters.values import remembered_as
from pipeline.memory.admin import MemoryAdmin
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import Headers, TopicPartition, TopicSpec
from pipeline.model.errors import ClusterError, ClusterUnavailable, ConfigurationError, EncodeError
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, Pointer, dead_letter_headers
from pipeline.model.topics import AUDIT_TOPIC, TASKS_TOPIC

ANA = Actor("ana@ops", "a test of hers")
CODEC = registered()


class Place:
    """A dead-letter topic in memory, and a desk over it."""

    def __init__(self, records: int = 0) -> None:
        self.cluster = MemoryCluster("actions")
        specs = [TopicSpec(DLQ, 1), TopicSpec(RESULTS, 3), TopicSpec(AUDIT_TOPIC, 1), TopicSpec(TASKS_TOPIC, 1)]
        self.cluster.admin().create_topics(specs)
        make = maker(CODEC)
        for offset in range(records):
            m = make(0, offset)
            self.die(m.value(), m.headers())
        self.desk = self.another()

    def another(self) -> Desk:
        desk = Desk(self.cluster, CODEC, Topics(DLQ), None)
        desk.refresh()
        return desk

    def die(self, value: bytes | None, headers: Headers | None = None) -> None:
        producer = self.cluster.producer()
        producer.send(DLQ, b"k", value, headers or [("pl.origin.topic", SOURCE.encode())], partition=0)
        producer.flush(10)
        producer.close(1.0)

    def states(self) -> list[str]:
        desk = self.another()
        numbers = desk.matching(Wanted())
        return [desk.states(numbers)[n] for n in numbers]

    def records(self, topic: str) -> list[Any]:
        from pipeline.inspect.scan import read_to_end

        admin = self.cluster.admin()
        places = [TopicPartition(topic, 0)]
        found = read_to_end(self.cluster, admin.beginning_offsets(places), admin.end_offsets(places), 10.0)
        return [(m.key(), json.loads(m.value() or b"null")) for m in found]


def now() -> int:
    return int(time.time() * 1000)


def test_one_letter_is_shown_without_a_look_at_all_others() -> None:
    """An export asked for each letter what took its place, and the index went through all of them each time."""
    place, looks = Place(1_000), list[int]()
    (message,) = place.desk.fetch([500])
    place.desk.store.db.set_progress_handler(lambda: looks.append(1), 100)  # once in a hundred steps of SQLite
    details(place.desk, message)
    assert len(looks) < 10


# -- purge


def test_a_purge_deletes_nothing_that_died_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(3)
    deleting = MemoryAdmin.delete_records

    def slow(self: Any, before: Any, timeout_s: float = 30.0) -> None:
        place.die(b"{}")
        deleting(self, before, timeout_s)

    monkeypatch.setattr(MemoryAdmin, "delete_records", slow)
    done = marking.purge(place.desk, place.desk.matching(Wanted()), ANA, now())
    assert done.details["deleted"] == 3
    assert place.states() == ["open"]


@pytest.mark.parametrize("problem", [ClusterUnavailable("nobody answers"), ClusterError("policy violation")])
def test_a_purge_whose_deleting_fails_is_told_as_it_is_and_the_next_deletes(
    monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    place = Place(3)

    def refused(self: Any, before: Any, timeout_s: float = 30.0) -> None:
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(MemoryAdmin, "delete_records", refused)
        done = marking.purge(place.desk, [0, 1], ANA, now())
    assert done.counts == {"purged": 2}
    assert done.details["deleted"] == 0
    assert "2 dead letters are marked" in done.details["problem"]
    assert str(problem) in done.details["problem"]
    assert place.states() == ["purged", "purged", "open"]
    assert marking.purge(place.desk, [2], ANA, now()).details == {"deleted": 3, "problem": ""}


def test_a_purge_sees_one_state_of_the_index_also_while_another_command_builds_it_anew(tmp_path: Path) -> None:
    place = Place(3)
    desk = Desk(place.cluster, CODEC, Topics(DLQ), tmp_path / "index.sqlite")
    desk.refresh()
    other = Desk(place.cluster, CODEC, Topics(DLQ), tmp_path / "index.sqlite")
    real = desk.store.db

    class Racing:
        """Another process throws the index away just before a question about letters, and has it back just after."""

        def execute(self, statement: str, *given: Any) -> Any:
            if "state <> ?" not in statement:
                return real.execute(statement, *given)
            other.store.clear()
            found = real.execute(statement, *given).fetchall()
            other.refresh()
            return _Rows(found)

    desk.store.db = Racing()  # type: ignore[assignment]
    assert marking.purged_heads(desk) == {}, "all of them are open"
    desk.store.db = real
    desk.close()
    other.close()


class _Rows:
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None


# -- two at once


def test_who_cancels_what_was_just_redriven_does_not_bring_it_back() -> None:
    place = Place(1)
    late = place.another()
    from pipeline.dead_letters.acting import record

    record(place.desk, ANA, "rp-1", "redrive", {0: ("written", 0, 0)}, now())
    marking.cancel(late, [0], ANA, now())
    assert place.states() == ["redriven"]


def test_a_task_that_is_filed_twice_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the task and its result, the letter is open still, and converted again."""
    place = Place(2)
    with monkeypatch.context() as patch:
        patch.setattr(converting, "record", _killed)
        with pytest.raises(KeyboardInterrupt):
            converting.convert(place.desk, [0, 1], ANA, "ana", "do it", now())
    done = converting.convert(place.another(), [0, 1], ANA, "ana", "do it", now())
    filed = place.records(TASKS_TOPIC)
    assert len(filed) == 4
    assert [key for key, _ in filed[:2]] == [key for key, _ in filed[2:]], "one key for one dead letter"
    assert [value["task"] for _, value in filed[2:]] == done.details["tasks"]
    assert len({key for key, _ in filed}) == 2


def test_a_task_of_a_very_large_value_fits_into_a_record() -> None:
    place = Place()
    place.die(json.dumps({"text": "\u20ac" * 300_000}, ensure_ascii=False).encode())
    place.desk.refresh()
    assert converting.convert(place.desk, [0], ANA, "ana", "do it", now()).counts == {"converted": 1}
    ((_, task),) = place.records(TASKS_TOPIC)
    assert len(json.dumps(task)) < 1_000_000
    assert task["dead_letter"]["position"] == "0:0"
    assert "dlq show 0:0" in task["dead_letter"]["problem"]


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


# -- redrive


def test_letters_that_no_worker_wrote_are_left_out_and_said_to_be() -> None:
    """Records of others in the dead-letter topic: no origin, no group. They must not stop the rest, or look as if they were sent."""
    place = Place(2)
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(f"{SOURCE}.{GROUP}.replay", 1)])
    place.die(b"junk")
    place.die(b"{}", [("pl.origin.topic", SOURCE.encode()), ("pl.group", GROUP.encode())])
    place.desk.refresh()
    every = place.desk.matching(Wanted())
    found = redrive.prepare(place.desk, every, "ana", now(), RedrivePolicy())
    assert [letter.number for letter in found.letters] == [0, 1]
    assert list(found.left_out.values()) == [2]
    done = redrive.run(place.desk, found, ANA, now(), RedrivePolicy())
    assert (done.end, done.counts, done.left) == ("finished", {"written": 2}, 0)
    alone = redrive.prepare(place.desk, every[2:], "ana", now(), RedrivePolicy())
    assert alone.letters == ()


def test_a_pointer_is_shown_with_where_its_bytes_are_and_is_not_redriven() -> None:
    place = Place(1)
    admin = place.cluster.admin()
    admin.create_topics(
        [TopicSpec(SOURCE, 1, configs={"retention.ms": "86400000"}), TopicSpec(f"{SOURCE}.{GROUP}.replay", 1)]
    )
    failure = ErrorInfo("UnreadableBatch", "bad_batch", "offsets 0 to 34 of it can't be read")
    given = DeliveryHeaders(0, 1, 1, SOURCE, 0, 0, 0, GROUP, error=failure, pointer=Pointer("bad_batch", 34))
    place.die(None, dead_letter_headers([], given))
    place.desk.refresh()
    every = place.desk.matching(Wanted())
    known = next(iter(place.desk.letters(every[-1:]).values()))
    assert (known.type, known.message) == ("pointer", failure.message)
    (message,) = place.desk.fetch(every[-1:])
    shown = details(place.desk, message)
    assert shown.points_at == PointsAt(SOURCE, 0, 0, 34, "bad_batch", 86_400_000, True)
    assert (
        shown.points_at.sentence
        == f"offsets 0 to 34 of {SOURCE}[0], which keeps records for 1 days (retention.ms=86400000)"
    )
    assert plain_of(shown)["points_at"]["last"] == 34
    found = redrive.prepare(place.desk, every, "ana", now(), RedrivePolicy())
    assert [letter.number for letter in found.letters] == [0]
    assert found.left_out == {"without a value, as they only point at offsets that no client can read": 1}
    admin.delete_topics([SOURCE])
    gone = details(place.desk, message).points_at
    assert gone is not None
    assert "does not have any more" in gone.sentence


@pytest.mark.parametrize("gone", ["replay", "everything"])
def test_a_redrive_to_lanes_that_are_gone_sends_nothing(gone: str) -> None:
    place = Place(2)
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1)])
    if gone == "everything":
        place.cluster.admin().delete_topics([SOURCE])
    with pytest.raises(ConfigurationError, match=r"topics apply"):
        redrive.prepare(place.desk, [0, 1], "ana", now(), RedrivePolicy())
    assert place.states() == ["open", "open"]


@pytest.mark.parametrize("action", ["redrive", "purge", "cancel", "convert"])
def test_letters_of_a_topic_that_was_made_anew_meanwhile_are_not_taken_for_those_that_were_chosen(action: str) -> None:
    """With exactly as many letters as before, so that nothing is new."""
    place = Place(3)
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(f"{SOURCE}.{GROUP}.replay", 1)])
    prepared = redrive.prepare(place.desk, [0, 1], "ana", now(), RedrivePolicy())
    place.cluster.admin().delete_topics([DLQ])
    place.cluster.admin().create_topics([TopicSpec(DLQ, 1)])
    make = maker(CODEC, salt=5)
    for offset in range(3):
        m = make(0, offset)
        place.die(m.value(), m.headers())
    act = {
        "redrive": lambda: redrive.run(place.desk, prepared, ANA, now(), RedrivePolicy()),
        "convert": lambda: converting.convert(place.desk, [0], ANA, "ana", "do it", now()),
        "purge": lambda: marking.purge(place.desk, [0], ANA, now()),
        "cancel": lambda: marking.cancel(place.desk, [0], ANA, now()),
    }[action]
    with pytest.raises(ConfigurationError, match=r"made anew.*nothing was done"):
        act()
    assert place.states() == ["open"] * 3
    assert place.records(AUDIT_TOPIC) == []


def test_a_plan_of_a_redrive_knows_its_topic_again() -> None:
    place = Place(3)
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(f"{SOURCE}.{GROUP}.replay", 1)])
    plan = redrive.prepare(place.desk, [0, 1], "ana", now(), RedrivePolicy()).plan
    assert plan is not None
    assert plan.source.spans[0].last_ms == place.desk.letters([1])[1].died_ms > 0


# -- edit


def edited(place: Place, text: str, number: int = 0) -> editing.Edited:
    return editing.check_edit(editing.open_for_edit(place.desk, number), text)


def test_json_of_others_that_looks_like_our_marks_stays_as_it_is() -> None:
    value = {"$bytes": "zz", "n": [{"$record": "x", "value": 1}, {"$bytes": "00"}]}
    place = Place()
    place.die(json.dumps(value).encode())
    place.desk.refresh()
    editable = editing.open_for_edit(place.desk, 0)
    assert json.loads(editable.text) == value
    made = editing.check_edit(editable, json.dumps({**value, "more": True}))
    assert json.loads(made.value) == {**value, "more": True}


@pytest.mark.parametrize(
    "arguments", [{"$bytes": 5}, {"$bytes": "zz"}, {"$bytes": None}, {"$record": 5, "value": 1}, "\ud800", 10**30, [1]]
)
def test_a_value_that_does_not_fit_is_one_sentence(arguments: object) -> None:
    place = Place(1)
    value = json.loads(editing.open_for_edit(place.desk, 0).text)
    with pytest.raises(EncodeError):
        edited(place, json.dumps({**value, "arguments": arguments, "sequence": arguments}))


def test_bytes_have_one_form_where_they_are_shown_and_where_they_are_edited_and_an_error_says_it() -> None:
    schema = parse(
        '{"type": "record", "name": "Blob", "namespace": "shop", "fields": [{"name": "raw", "type": ["null", "bytes"]}]}'
    )
    place = Place()
    place.die(
        compile_writer(schema)({"raw": b"\x00\xff"}, b"\x00\x00\x00\x00\x63"),
        [("pl.origin.topic", SOURCE.encode()), ("pl.schema", schema.fingerprint.encode())],
    )
    place.desk.values.texts[remembered_as(schema.fingerprint, b"\x00\x00\x00\x00\x63")] = schema.text
    place.desk.refresh()
    (message,) = place.desk.fetch([0])
    shown = json.loads(json.dumps(plain_of(details(place.desk, message, reveal=True))["value"]))
    assert shown == {"raw": {"$bytes": "00ff"}}
    assert not edited(place, json.dumps(shown)).difference
    for given in ({"base64": "AP8="}, "text", 5):
        with pytest.raises(
            EncodeError, match=r'Blob\.raw is .* null or bytes: write bytes as \{"\$bytes": "hex digits"\}'
        ):
            edited(place, json.dumps({"raw": given}))
    with pytest.raises(EncodeError, match=r"Blob\.raw does not fit: write bytes as"):
        edited(place, json.dumps({"raw": {"$bytes": "zz"}}))


@pytest.mark.parametrize("value", [b"just text", b'{"a": 1}'])
def test_text_that_is_no_unicode_is_one_sentence(value: bytes) -> None:
    place = Place()
    place.die(value)
    place.desk.refresh()
    with pytest.raises(EncodeError):
        edited(place, json.dumps("\ud800" if value[:1] == b"j" else {"a": "\ud800"}))


@pytest.mark.parametrize("value", [None, b"\xff\xfe"])
def test_what_has_no_json_form_says_what_can_be_done(value: bytes | None) -> None:
    place = Place()
    place.die(value)
    place.desk.refresh()
    from pipeline.model.errors import UndecodableError

    with pytest.raises(UndecodableError, match=r"cancel|convert|purge"):
        editing.open_for_edit(place.desk, 0)


def newer() -> AvroSchema:
    """This build's ToolCall and a field that it does not know yet."""
    node = json.loads(CODEC.catalogue.present["agent.run.ToolCall"].text)
    node["fields"].append({"name": "colour", "type": "string", "default": ""})
    return parse(json.dumps(node))


def test_an_edit_keeps_what_a_newer_producer_wrote() -> None:
    """Its field is not in this build's contract; it must not be lost, whatever else is edited."""
    place, schema = Place(1), newer()
    value = json.loads(editing.open_for_edit(place.desk, 0).text)
    old = compile_writer(schema)({**value, "colour": "red"}, b"\x00\x00\x00\x00\x63")
    place.die(old, [("pl.origin.topic", SOURCE.encode()), ("pl.schema", schema.fingerprint.encode())])
    place.desk.values.texts[remembered_as(schema.fingerprint, b"\x00\x00\x00\x00\x63")] = schema.text
    place.desk.refresh()
    editable = editing.open_for_edit(place.desk, id_of(0, 1))
    found = json.loads(editable.text)
    assert found["colour"] == "red"
    made = editing.check_edit(editable, json.dumps({**found, "tenant": "beta"}))
    assert made.value == compile_writer(schema)({**value, "colour": "red", "tenant": "beta"}, b"\x00\x00\x00\x00\x63")
    assert dict(made.headers)["pl.schema"] == schema.fingerprint.encode()
    assert dataclasses.replace(editable).shown.problem == ""


def test_states_of_a_shared_topic_are_counted_for_the_group_that_is_asked_for() -> None:
    place = Place(3)
    place.die(b"{}", [("pl.origin.topic", SOURCE.encode()), ("pl.group", b"other")])
    desk = Desk(place.cluster, CODEC, Topics(DLQ, group=GROUP), None)
    desk.refresh()
    wanted = Wanted(states=("open",))
    for query in (desk.query(wanted), desk.chosen(desk.matching(wanted), Wanted())):
        found = stats(desk.store.db, query, now())
        assert (found.total, found.states) == (3, {"open": 3})
    everything = place.another()
    assert stats(everything.store.db, everything.query(Wanted()), now()).states == {"open": 4}
