"""Which records are chosen, what is decoded for it, and what a census counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters import FilterError
from pipeline.model.cluster import Headers
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers
from pipeline.replay.census import KEYS_MAX, Census
from pipeline.replay.flow import Flow
from pipeline.replay.pacing import Pace
from pipeline.replay.plan import Selection, Source, Span, Target
from pipeline.replay.progress import Done, done_of
from pipeline.replay.selecting import Selector, filter_text
from tests.unit.replay.test_copying import Record

SOURCE = Source("topic", "T", 6, {3: Span(0, 100)})
LANE = Target("lane", "g", {"T": "T.g.replay"})


class Away:
    """A codec whose registry does not answer."""

    def decode_dict(self, topic: str, data: bytes | None, headers: Headers | None = None) -> tuple[str, object]:
        raise SchemaUnavailable("schema 7 is not known", 7)

    def fetch(self, topic: str, schema_id: int) -> None:
        raise SchemaUnavailable("the registry did not answer")


def chosen(
    select: Selection, records: list[Record], source: Source = SOURCE, codec: Any = None
) -> tuple[list[int], int]:
    selector = Selector(source, select, LANE, 1_000_000, codec)
    return [m.offset() for m in selector.choose(records)], selector.decoded


RECORDS = [
    Record(n, b"k%d" % (n % 3), b'{"n": %d}' % n, [("ce_type", b"agent.run.ToolCall")], 100 + n) for n in range(30)
]


def test_keys_times_and_positions_decode_nothing() -> None:
    assert chosen(Selection(), RECORDS) == (list(range(30)), 0)
    assert chosen(Selection(keys=(b"k1",)), RECORDS) == (list(range(1, 30, 3)), 0)
    assert chosen(Selection(from_ms=110, to_ms=120), RECORDS) == (list(range(10, 20)), 0)
    assert chosen(Selection(positions={3: (2, 7), 4: (9,)}), RECORDS) == ([2, 7], 0)
    assert chosen(Selection(types=("ToolCall",), keys=(b"k0",), to_ms=110), RECORDS) == ([0, 3, 6, 9], 0)


def test_a_filter_over_headers_decodes_nothing_and_one_over_values_only_what_is_left() -> None:
    assert chosen(Selection(where='replay.count == 0 and key == "k2"'), RECORDS) == (list(range(2, 30, 3)), 0)
    assert chosen(Selection(where="value.n >= 20", keys=(b"k0",)), RECORDS) == ([21, 24, 27], 10)


def test_a_registry_that_is_away_is_raised_not_taken_for_no() -> None:
    framed = [Record(0, b"k", b"\x00\x00\x00\x00\x07abc", None, 5)]
    assert chosen(Selection(where='key == "k"'), framed, codec=Away()) == ([0], 0)
    with pytest.raises(SchemaUnavailable, match="did not answer"):
        chosen(Selection(where="value.n == 1"), framed, codec=Away())


def test_types_and_tenants_and_the_text_are_one_filter() -> None:
    select = Selection(types=("A", 'B"'), tenants=("t",), where="age > 2h or attempt > 1")
    assert filter_text(select) == 'type in ("A", "B\\"") and tenant in ("t") and (age > 2h or attempt > 1)'
    with pytest.raises(FilterError, match="\\^"):
        chosen(replace(select, where="age >"), RECORDS)


def letter(offset: int, origin: int, group: str = "g", key: bytes = b"k") -> Record:
    delivery = DeliveryHeaders(3, 2, 1, "T", 3, origin, 5, group, error=ErrorInfo("C", "E"))
    return Record(offset, key, b"{}", dead_letter_headers([], delivery), 60_000 * offset)


def test_of_a_shared_dead_letter_topic_only_the_group_s_own_go_back() -> None:
    letters = [letter(0, 5), letter(1, 6, "other"), Record(2, b"k", b"", None, 5)]
    assert chosen(Selection(), letters, replace(SOURCE, kind="dead_letters"))[0] == [0]


def test_a_census_counts_and_finds_keys_out_of_order() -> None:
    census = Census(5, 1, dead_letters=True)
    census.add([letter(0, 5), letter(1, 9), letter(2, 7), letter(3, 1, key=b"other")])
    assert census.inverted == {(3, b"k")}
    assert census.selected == 4
    assert dict(census.errors) == {"C: E": 4}
    assert [n for _, _, n in census.histogram()] == [1, 1, 1, 1]
    assert sum(n for _, _, n in census.histogram(2)) == 4


def test_a_census_is_bounded() -> None:
    census = Census(5, 10, dead_letters=False)
    for first in range(0, 4 * KEYS_MAX, 50_000):
        census.add([Record(n, b"%d" % n, b"", None, n * 3_600_000) for n in range(first, first + 50_000)])
    assert len(census.keys) <= KEYS_MAX
    assert census.keys_forgotten
    assert len(census.samples) <= 6_000
    assert census.selected == sum(n for _, _, n in census.histogram()) == 4 * KEYS_MAX


def test_types_come_from_headers_or_schema_ids() -> None:
    census = Census(5, 1, dead_letters=False)
    framed = b"\x00\x00\x00\x00\x07abc"
    census.add(
        [RECORDS[0], Record(1, None, framed, None, 5), Record(2, None, None, None, 5), Record(3, None, b"{", None, 5)]
    )
    census.name_types({})
    assert dict(census.types) == {"ToolCall": 1, "schema 7": 1, "null": 1, "other": 1}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=30))
def test_a_flow_takes_every_record_of_its_span_once(fetches: list[tuple[int, int]]) -> None:
    """Whatever comes again after a seek."""
    flow = Flow(3, Span(5, 40), (), Done(5))
    taken: list[int] = []
    at = 0
    for back, count in fetches:
        first = max(0, at - back)
        flow.take([Record(n, None, None, None, 5) for n in range(first, first + count)])
        at = max(at, first + count)
        while flow.pending:
            messages, end = flow.pending.popleft()
            taken += [m.offset() for m in messages]
            assert end <= 40
    assert taken == list(range(5, min(at, 40)))


def test_a_pace_lets_so_many_through_in_the_long_run_and_few_at_once() -> None:
    pace, now, sent = Pace(100.0, 0.0), 0.0, 0
    for _ in range(1_000):
        now += 0.01
        while pace.allowed(now) > 0:
            pace.spent(7)
            sent += 7
    assert 980 <= sent <= 1_030
    pace.allowed(now + 60)
    assert pace.allowed(now + 60) <= 25
    assert Pace(0.0, 0.0).allowed(1.0) > 10**6


def test_progress_travels_in_the_commit() -> None:
    done = Done(7, 3, 99, 12)
    done.counts.update({"written": 5, "failed": 1})
    assert done_of(done.position(), 0) == done
    assert len(done.position().metadata) < 300
    assert done_of(None, 4) == Done(4)
    assert done_of(replace(done.position(), metadata="not ours"), 0) == Done(7)
    assert done_of(replace(done.position(), metadata="[1]"), 0) == Done(7)
