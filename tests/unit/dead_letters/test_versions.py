"""Several dead letters of one record: edited ones, what a killed worker wrote twice, those of a later death. One of them runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench.synthetic_letters import DLQ, GROUP, SOURCE
from pipeline.codec.container import ContainerWriter
from pipeline.dead_letters import RedrivePolicy, editing, redrive
from pipeline.dead_letters.acting import record
from pipeline.dead_letters.query import Wanted
from pipeline.dead_letters.redrive_plan import Origin, origins
from pipeline.dead_letters.states import id_of
from pipeline.dead_letters.versions import one_version_each
from pipeline.inspect.appending import Entry, append
from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import HELD, HELD_CLASS, DeliveryHeaders, ErrorInfo, dead_letter_headers, encode
from pipeline.replay.asking import Request
from pipeline.replay.plan import Selection
from pipeline.replay.planning import make_plan
from tests.unit.dead_letters.test_actions import ANA, Place, now

LANE = f"{SOURCE}.{GROUP}.replay"
FIRST = DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, error=ErrorInfo("terminal", "ValueError", "no"))


def place() -> Place:
    found = Place()
    found.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(LANE, 1)])
    return found


def die(where: Place, **other: Any) -> None:
    where.die(b'{"amount": -1}', dead_letter_headers([], dataclasses.replace(FIRST, **other)))
    where.desk.refresh()


def edit(where: Place, number: int) -> None:
    editable = editing.open_for_edit(where.desk, number)
    editing.apply_edit(where.desk, editable, editing.check_edit(editable, '{"amount": 5}'), ANA, now())


def redriven(
    where: Place, policy: RedrivePolicy | None = None, states: Any = ("open",)
) -> tuple[list[bytes | None], list[int]]:
    """(values in the lane, how many were left out)."""
    policy = policy or RedrivePolicy()
    prepared = redrive.prepare(where.desk, where.desk.matching(Wanted(states=states)), "ana", now(), policy)
    done = redrive.run(where.desk, prepared, ANA, now(), policy)
    return sent(where), list(done.left_out.values())


def sent(where: Place) -> list[bytes | None]:
    ends = where.cluster.admin().end_offsets([TopicPartition(LANE, 0)])
    found = read_to_end(where.cluster, {TopicPartition(LANE, 0): 0}, ends)
    return [m.value() for m in found if not dict(m.headers() or ()).get("pl.hold")]


OLD, NEW = b'{"amount": -1}', b'{"amount":5}'


@pytest.mark.parametrize("late", [False, True])
def test_a_twin_of_an_edited_letter_is_not_sent_in_its_place(late: bool) -> None:
    """A worker that was killed before its commit writes its dead letter once more, maybe after the first was edited."""
    where = place()
    die(where)
    if not late:
        die(where)
    edit(where, 0)
    if late:
        die(where)
    assert redriven(where) == ([NEW], [1])
    assert sorted(where.states()) == ["edited", "open", "redriven"]
    assert redriven(where) == ([NEW], [1]), "nor later on: it is as old as the one that was edited"


def test_an_edit_that_is_made_while_somebody_is_asked_takes_the_place_of_its_twin_too() -> None:
    where = place()
    die(where)
    die(where)
    prepared = redrive.prepare(where.desk, [0, 1], "ana", now(), RedrivePolicy())
    edit(where, 0)
    done = redrive.run(where.desk, prepared, ANA, now(), RedrivePolicy())
    assert (done.end, sent(where)) == ("nothing to do", [])


def test_what_was_redriven_and_died_again_is_sent_again_as_it_was_edited() -> None:
    where = place()
    die(where)
    record(where.desk, ANA, "rp-1", "redrive", {0: ("written", 0, 0)}, now())
    die(where, replay_id="rp-1", replay_count=1)
    edit(where, 1)
    again = RedrivePolicy(again=True)
    assert redriven(where, again, ("open", "redriven")) == ([NEW], [1])
    assert where.states() == ["redriven", "edited", "redriven"]


def test_twins_that_nobody_edited_go_together_and_both_are_dealt_with() -> None:
    where = place()
    die(where)
    die(where)
    assert redriven(where) == ([OLD, OLD], [])
    assert where.states() == ["redriven", "redriven"]


def test_edited_letters_are_found_without_a_look_at_all_of_the_group() -> None:
    where, looks = Place(2_000), list[int]()
    die(where, origin_offset=5_000)
    edit(where, 2_000)
    where.desk.refresh()
    (letter,) = origins(where.desk, [0])
    where.desk.store.db.set_progress_handler(lambda: looks.append(1), 100)  # once in a hundred steps of SQLite
    assert one_version_each(where.desk, GROUP, [letter]) == [letter]
    assert len(looks) < 10


def test_another_group_s_letter_of_the_same_record_is_another_record_s() -> None:
    where = place()
    die(where)
    die(where, group="other")
    edit(where, 1)
    prepared = redrive.prepare(where.desk, [0], "ana", now(), RedrivePolicy())
    assert [letter.number for letter in prepared.letters] == [0]


@pytest.mark.parametrize("command", ["redrive", "release"])
def test_what_follows_a_held_record_goes_as_it_was_edited(command: str) -> None:
    where = place()
    die(where)
    for _ in range(2):
        die(where, origin_offset=1, error=ErrorInfo(HELD_CLASS, "Held", "behind 0"))
    append(where.cluster, LANE, [Entry(b"k", OLD, encode([], dataclasses.replace(FIRST, hold=HELD)), 0)])
    edit(where, 1)
    if command == "redrive":
        prepared = redrive.prepare(where.desk, [0], "ana", now(), RedrivePolicy())
        done = redrive.run(where.desk, prepared, ANA, now(), RedrivePolicy())
    else:
        done = redrive.release(where.desk, GROUP, (), ANA, now(), RedrivePolicy())
    assert (done.end, done.held) == ("finished", ())
    assert sent(where) == ([OLD, NEW] if command == "redrive" else [NEW])


# -- which of them counts


def letter(
    offset: int, state: Any = "open", died_in: str | None = None, count: int = 0, edited: bool = False
) -> Origin:
    return Origin(id_of(0, offset), "k", "t", 7, 0, count, "g", state, died_in, edited)


A, TWIN = letter(0), letter(5)
A_EDITED, SENT_EDITED = letter(1, edited=True), letter(1, "redriven", edited=True)
B, B_EDITED = letter(2, died_in="rp-1", count=1), letter(3, died_in="rp-1", count=1, edited=True)


@pytest.mark.parametrize(
    ("letters", "kept"),
    [
        ([A, A_EDITED], [A_EDITED]),
        ([A_EDITED, TWIN], [A_EDITED]),
        ([A_EDITED, B], [A_EDITED]),
        ([SENT_EDITED, B], [B]),
        ([B, TWIN], [B]),
        ([A_EDITED, B, B_EDITED], [B_EDITED]),
        ([A, TWIN], [A, TWIN]),
        ([A_EDITED, letter(4, edited=True)], [letter(4, edited=True)]),
    ],
)
def test_the_edited_one_counts_else_that_of_the_last_death(letters: list[Origin], kept: list[Origin]) -> None:
    from pipeline.dead_letters.versions import newest

    assert newest(letters, set()) == kept


# -- a plan, which knows no states


def planned(where: Place, source: str = DLQ, **asked: Any) -> Any:
    return make_plan(where.cluster, Request(source, "ana", **asked), None, now()).preview


def test_a_plan_to_a_lane_with_two_versions_of_a_record_is_refused(tmp_path: Path) -> None:
    where = place()
    die(where)
    die(where, origin_offset=3)
    assert planned(where, group=GROUP)["selected"] == 2
    edit(where, 0)
    with pytest.raises(
        ConfigurationError, match=r"0:0 and 0:2 are versions of one record, one of them edited.*dlq redrive"
    ):
        planned(where, group=GROUP)
    assert planned(where, group=GROUP, from_offsets={0: 1})["selected"] == 2, "the edited one alone is what is wanted"
    assert planned(where, to_file=str(tmp_path / "backup.avro"))["selected"] == 3


def test_so_is_a_plan_from_a_file_that_has_both(tmp_path: Path) -> None:
    where = place()
    die(where)
    edit(where, 0)
    ends = {TopicPartition(DLQ, 0): 2}
    both, edited = tmp_path / "both.avro", tmp_path / "edited.avro"
    for path, start in ((both, 0), (edited, 1)):
        with ContainerWriter(path) as writer:
            writer.add(list(read_to_end(where.cluster, {TopicPartition(DLQ, 0): start}, ends)))
    with pytest.raises(ConfigurationError, match="versions of one record"):
        planned(where, str(both), group=GROUP, kind="file")
    assert planned(where, str(edited), group=GROUP, kind="file", select=Selection(keys=(b"k",)))["selected"] == 1
