"""Copies: bytes as they were, headers that a worker reads back as the record's own origin; loops end; another topic's partitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.model.cluster import Headers
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers, decode, encode, replay_count_of
from pipeline.model.partitioner import partition_of
from pipeline.replay.census import Census
from pipeline.replay.copying import Copies, copier_of
from pipeline.replay.plan import ReplayPlan, Selection, Source, SourceKind, Span, Target, TargetKind


class Record:
    """A fetched record."""

    def __init__(
        self, offset: int, key: bytes | None, value: bytes | None, headers: Headers | None, time_ms: int
    ) -> None:
        self._all: tuple[Any, ...] = (offset, key, value, headers, time_ms)

    def topic(self) -> str:
        return "T"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return int(self._all[0])

    def key(self) -> bytes | None:
        found: bytes | None = self._all[1]
        return found

    def value(self) -> bytes | None:
        found: bytes | None = self._all[2]
        return found

    def headers(self) -> Headers | None:
        found: Headers | None = self._all[3]
        return found

    def timestamp(self) -> tuple[int, int]:
        return 1, int(self._all[4])


def plan(kind: TargetKind, source_kind: SourceKind = "topic", **more: Any) -> ReplayPlan:
    topics = {"T": "T.g.replay"} if kind == "lane" else {"": "U"}
    source = Source(source_kind, "T", 6, {3: Span(0, 100)})
    target = Target(kind, "g 100%", topics)
    return replace(ReplayPlan("rp-1", 5, "ann", source, Selection(), target), **more)


def only(copies: Copies) -> tuple[bytes | None, bytes | None, Headers]:
    (out,) = copies.outgoing
    assert len(out.records) == 1
    return out.records[0]


def test_a_dead_letter_whose_headers_name_no_partition_of_the_lane_fails_alone() -> None:
    """Sent, it would be refused, and end each run of the plan at the same place."""
    lying = DeliveryHeaders(2, 1, 3, "T", 9, 41, 1_234, "g 100%")
    true = DeliveryHeaders(2, 1, 3, "T", 5, 42, 1_234, "g 100%")
    records = [Record(n, b"k", b"v", encode([], each), 1) for n, each in enumerate((lying, true))]
    copies = copier_of(plan("lane", "dead_letters"), {"T.g.replay": 6})(3, records)
    assert [(out.partition, out.sources) for out in copies.outgoing] == [(5, [1])]
    assert [(result.offset, result.outcome) for result in copies.kept] == [(0, "failed")]
    assert "partition 9" in copies.errors[0]


HEADERS: Headers = [("pl.event_id", b"e1"), ("traceparent", b"00-x"), ("pl.attempt", b"7"), ("x", None)]


def test_a_lane_copy_is_what_a_worker_reads_as_a_replay_of_this_origin() -> None:
    copies = copier_of(plan("lane"), {"T.g.replay": 6})(3, [Record(41, b"k", b"v", HEADERS, 1_234)])
    key, value, headers = only(copies)
    assert (key, value) == (b"k", b"v")
    assert copies.outgoing[0].partition == 3
    assert copies.outgoing[0].sources == [41]
    wanted = DeliveryHeaders(0, 0, 0, "T", 3, 41, 1_234, "g 100%", replay_id="rp-1", replay_count=1)
    kept: Headers = [HEADERS[0], HEADERS[1], HEADERS[3]]
    assert headers == encode(kept, wanted)
    assert decode(headers) == wanted


@pytest.mark.parametrize("time_ms", [-1, 0])
def test_a_record_without_a_time_has_none_in_its_copy(time_ms: int) -> None:
    record = Record(0, None, None, None, time_ms)
    _, _, headers = only(copier_of(plan("lane"), {"T.g.replay": 6})(3, [record]))
    assert decode(headers).origin_timestamp_ms == 0


def test_every_record_of_many_has_its_own_offset_and_count() -> None:
    records = [Record(n, b"k", b"%d" % n, [("pl.replay.count", b"%d" % (n % 4))], n) for n in range(50)]
    copies = copier_of(plan("lane", replays_max=3), {"T.g.replay": 6})(3, records)
    (out,) = copies.outgoing
    assert [result.offset for result in copies.kept] == [n for n in range(50) if n % 4 == 3]
    assert {result.outcome for result in copies.kept} == {"loop_capped"}
    found = [decode(headers) for _, _, headers in out.records]
    assert [d.origin_offset for d in found] == out.sources == [n for n in range(50) if n % 4 != 3]
    assert [d.replay_count for d in found] == [n % 4 + 1 for n in out.sources]
    assert [value for _, value, _ in out.records] == [b"%d" % n for n in out.sources]


def test_on_a_topic_the_copy_says_how_often_it_was_replayed_so_that_a_loop_ends() -> None:
    headers: Headers = [("a", b"b")]
    rounds = 0
    while True:
        copies = copier_of(plan("topic"), {"U": 6})(3, [Record(9, b"k", b"v", headers, 5)])
        if not copies.outgoing[0].records:
            break
        _, _, headers = only(copies)
        rounds += 1
        assert replay_count_of(headers) == rounds
        assert decode(headers).origin_offset == 9
        assert headers[0] == ("a", b"b")
    assert rounds == 5


def test_another_number_of_partitions_places_by_key_and_keeps_the_order_of_each() -> None:
    records = [Record(n, None if n % 5 == 0 else b"k%d" % (n % 7), b"", None, 5) for n in range(70)]
    copies = copier_of(plan("topic"), {"U": 4})(3, records)
    assert sorted(source for out in copies.outgoing for source in out.sources) == list(range(70))
    for out in copies.outgoing:
        assert out.sources == sorted(out.sources)
        for key, _, _ in out.records:
            assert out.partition == (3 % 4 if key is None else partition_of(key, 4))


DEAD = DeliveryHeaders(
    5, 7, 9, "T", 2, 41, 1_234, "g 100%", first_failed_ms=8, replay_count=1, error=ErrorInfo("C", "E", "m", "s"), history=b"[1]", log="l"
)  # fmt: skip


def test_a_dead_letter_goes_back_with_its_error_and_history_and_a_new_life() -> None:
    record = Record(6, b"k", b"v", dead_letter_headers([("pl.event_id", b"e")], DEAD), 99)
    copies = copier_of(plan("lane", "dead_letters"), {"T.g.replay": 6})(3, [record])
    _, _, headers = only(copies)
    assert copies.outgoing[0].partition == 2, "where its origin is"
    assert decode(headers) == replace(DEAD, attempt=0, hop=0, epoch=0, log="", replay_id="rp-1", replay_count=2)
    assert headers[0] == ("pl.event_id", b"e")
    assert not [name for name, _ in headers if name.startswith("__dlq")]


def test_dead_letters_that_can_not_go_back_have_their_result() -> None:
    foreign = Record(1, b"k", b"v", [("a", b"b")], 5)
    other = Record(2, b"k", b"v", dead_letter_headers([], replace(DEAD, origin_topic="other")), 5)
    often = Record(3, b"k", b"v", dead_letter_headers([], replace(DEAD, replay_count=5)), 5)
    copies = copier_of(plan("lane", "dead_letters"), {"T.g.replay": 6})(3, [foreign, other, often])
    assert copies.outgoing == []
    assert [(r.offset, r.outcome) for r in copies.kept] == [(1, "failed"), (2, "failed"), (3, "loop_capped")]
    assert "other" in copies.errors[2]


def test_on_a_topic_a_dead_letter_leaves_its_failures_behind() -> None:
    record = Record(6, b"k", b"v", dead_letter_headers([], DEAD), 99)
    copies = copier_of(plan("topic", "dead_letters"), {"U": 4})(3, [record])
    found = decode(only(copies)[2])
    assert (found.error, found.history, found.origin_offset) == (ErrorInfo(), b"", 41)
    assert replay_count_of(only(copies)[2]) == 2


def test_a_preview_counts_a_capped_record_once_however_many_headers_tell_of_it() -> None:
    """A copy made before its count was in `pl.d` alone has both."""
    _, _, headers = only(copier_of(plan("topic"), {"U": 6})(3, [Record(9, b"k", b"v", [], 5)]))
    census = Census(replays_max=1, stride=1, dead_letters=False)
    census._look_at_headers([Record(0, b"k", b"v", [*headers, ("pl.replay.count", b"1")], 5)])
    assert census.loop_capped == 1
