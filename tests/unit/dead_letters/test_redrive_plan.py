"""Order and choice of a redrive, by what the index knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.synthetic_letters import DLQ, GROUP, SOURCE
from pipeline.dead_letters import RedrivePolicy, redrive
from pipeline.dead_letters.query import Wanted
from pipeline.dead_letters.redrive_plan import Origin, choose_canary, group_of, inverted
from pipeline.dead_letters.states import id_of, position_of
from pipeline.inspect.appending import Entry, append
from pipeline.model.cluster import TopicSpec
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import HELD, HELD_CLASS, DeliveryHeaders, ErrorInfo, dead_letter_headers, encode
from tests.unit.dead_letters.test_actions import ANA, Place, now


def origin(
    partition: int, offset: int, key: str | None, of: int | None, error: int = 0, group: str | None = "g"
) -> Origin:
    return Origin(id_of(partition, offset), key, "t", of, error, 0, group)


LETTERS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "c", None]), st.integers(0, 30)), max_size=40
).map(lambda rows: [origin(p, i, key, of, error=of % 3) for i, (p, key, of) in enumerate(rows)])


@given(LETTERS)
def test_what_goes_out_is_in_the_order_of_origins(letters: list[Origin]) -> None:
    """The main pass without the inverted keys, then those, partition by partition: each key's origins ascend."""
    letters = sorted(letters, key=lambda x: x.number)
    last = inverted(letters)
    for partition in range(3):
        mine = {position_of(x.number)[1]: x for x in letters if position_of(x.number)[0] == partition}
        late = last.get(partition, ())
        sent = [offset for offset in mine if offset not in set(late)] + list(late)
        assert sorted(sent) == sorted(mine), "each once"
        for key in {x.key for x in mine.values()} - {None}:
            found = [mine[offset].origin_offset for offset in sent if mine[offset].key == key]
            assert found == sorted(found, key=int), (key, found)  # type: ignore[arg-type]


@given(LETTERS, st.integers(1, 12))
def test_a_canary_is_of_distinct_keys_and_no_letter_of_them_is_before_it(letters: list[Origin], many: int) -> None:
    chosen = choose_canary(letters, many)
    places = [(position_of(x.number)[0], x.key) for x in chosen]
    assert len(set(places)) == len(chosen) == min(many, len({(position_of(x.number)[0], x.key) for x in letters}))
    for letter in chosen:
        same = [x for x in letters if (position_of(x.number)[0], x.key) == (position_of(letter.number)[0], letter.key)]
        assert letter.origin_offset == min(x.origin_offset or 0 for x in same)


def test_a_canary_is_of_as_many_errors_as_there_are() -> None:
    letters = [origin(0, n, f"k{n}", n, error=0 if n < 97 else n) for n in range(100)]
    assert {x.error for x in choose_canary(letters, 5)} == {0, 97, 98, 99}


def test_letters_of_one_group_only() -> None:
    assert group_of([origin(0, 1, "a", 1), origin(0, 2, "b", 2)]) == "g"
    with pytest.raises(ConfigurationError, match="several groups"):
        group_of([origin(0, 1, "a", 1), origin(0, 2, "b", 2, group="h")])
    with pytest.raises(ConfigurationError, match="do not say whose"):
        group_of([origin(0, 1, "a", 1, group=None)])


@pytest.mark.parametrize(("fresh", "canary"), [(4, 3), (3, 0), (0, 0)])
def test_what_was_replayed_too_often_is_in_no_canary(fresh: int, canary: int) -> None:
    """It stays where it is, so that a canary with it never passed: and it has an error of its own, so that each canary had it."""
    place = Place()
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(f"{SOURCE}.{GROUP}.replay", 1)])
    letters = []
    for n in range(fresh + 1):
        error = ErrorInfo("terminal", f"Error{n}", "no")
        headers = DeliveryHeaders(1, 1, 1, SOURCE, 0, n, 1, GROUP, replay_count=0 if n else 5, error=error)
        letters.append(Entry(b"k%d" % n, b"{}", dead_letter_headers([], headers), 0))
    append(place.cluster, DLQ, letters)
    place.desk.refresh()
    prepared = redrive.prepare(place.desk, place.desk.matching(Wanted()), "ana", now(), RedrivePolicy(), canary=3)
    assert len(prepared.letters) == fresh + 1
    assert [x.number for x in prepared.canary] == list(range(1, canary + 1)), (
        "where all that can go fit in, they go at once"
    )


@pytest.mark.parametrize("canary", [0, 2])
def test_a_held_key_with_a_letter_that_was_replayed_too_often_stays_and_the_others_go(canary: int) -> None:
    """It ended all of it: the key was refused, before its canary or after."""
    place, lane = Place(), f"{SOURCE}.{GROUP}.replay"
    place.cluster.admin().create_topics([TopicSpec(SOURCE, 1), TopicSpec(lane, 1)])
    first = DeliveryHeaders(1, 1, 1, SOURCE, 0, 0, 1, GROUP, error=ErrorInfo("terminal", "ValueError", "no"))
    append(place.cluster, lane, [Entry(b"held", b"{}", encode([], replace(first, hold=HELD)), 0)])
    behind = replace(first, origin_offset=1, error=ErrorInfo(HELD_CLASS, "Held", "behind 0"))
    others = [(b"k%d" % n, replace(first, origin_offset=n)) for n in range(2, 6)]
    letters = [(b"held", replace(first, replay_count=5)), (b"held", behind), *others]
    append(place.cluster, DLQ, [Entry(key, b"{}", dead_letter_headers([], died), 0) for key, died in letters])
    place.desk.refresh()
    policy = RedrivePolicy()
    prepared = redrive.prepare(place.desk, place.desk.matching(Wanted()), "ana", now(), policy, canary)
    assert [x.number for x in prepared.letters] == [2, 3, 4, 5]
    assert [x.number for x in prepared.canary] == [2, 3][:canary]
    assert list(prepared.left_out.values()) == [2]
    done = redrive.run(place.desk, replace(prepared, canary=()), ANA, now(), policy)
    assert (done.end, done.counts) == ("finished", {"written": 4})
    assert place.states() == ["open", "open", *["redriven"] * 4]
