"""Entries on their way to the store: what is done is a beginning of what was given, also when writes fail in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.entries import Entry, Letter, Settle
from pipeline.core.store_scan import Floor
from pipeline.model.cluster import Acknowledgements, Headers, OutRecord
from pipeline.model.errors import ClusterError
from pipeline.model.job_policies import QueuePolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRecord, JobRequest
from pipeline.worker.jobs.host import Host
from pipeline.worker.jobs.writing import Place, StoreWriter, Written
from pipeline.worker.sending import RESEND_MS
from tests.property.board_world import Pickled

REFUSED = ClusterError("refused")
LETTER = Letter(JobRecord(JobRequest("a", "t"), JobState.DEAD_LETTER))


class Producer:
    """Answers when it is told to. `sent` are keys in the order they came; it has room for `room` more; `closed` ones raise."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.values: list[bytes | None] = []
        self.headers: list[Headers] = []
        self.batches: list[tuple[str, int]] = []
        self.waiting: deque[Acknowledgements] = deque()
        self.room = 1_000
        self.closed = False
        self.end = 0

    def send_many(self, topic: str, partition: int, records: Sequence[OutRecord], into: Acknowledgements) -> int:
        if self.closed:
            raise ClusterError("closed")
        taken = records[: self.room]
        self.room -= len(taken)
        self.batches.append((topic, len(taken)))
        for key, value, headers in taken:
            assert key is not None
            self.sent.append(key)
            self.values.append(value)
            self.headers.append(headers)
            self.waiting.append(into)
        return len(taken)

    def answer(self, *errors: ClusterError | None) -> None:
        for error in errors:
            offset = -1 if error else self.end
            self.end += not error
            self.waiting.popleft().add(error, offset)


def writer(producer: Producer, woken: list[int] | None = None) -> StoreWriter:
    place = Place(0, "s", "d", [], [("again", b"")], lambda _letter: (b"letter", b"", []))
    return StoreWriter(producer, place, lambda: None if woken is None else woken.append(len(producer.waiting)), 0)


def entries(text: str) -> list[Written]:
    return [Settle(number) if each == "_" else Entry(each.encode(), b"") for number, each in enumerate(text)]


def test_what_is_done_is_told_in_order() -> None:
    producer = Producer()
    store = writer(producer)
    store.write(given := entries("_a_b"), 0)
    assert store.hear(0) == given[:1]
    producer.answer(None)
    assert store.hear(0) == given[1:3]
    producer.answer(None)
    assert store.hear(0) == given[3:]
    assert len(store) == 0
    assert store.resend_due(0) is None


def test_an_entry_that_the_store_has_says_so_and_what_is_done_of_all_is_known() -> None:
    producer = Producer()
    store = writer(producer)
    store.write([Entry(b"j/a", b"1"), Entry(b"j/b", b"1", again=True), Settle(1)], 0)
    assert producer.headers == [[], [("again", b"")]]
    assert (store.issued, store.acknowledged) == (3, 0)
    producer.answer(None)
    store.hear(0)
    assert (store.issued, store.acknowledged) == (3, 1)
    producer.answer(None)
    store.hear(0)
    assert (store.issued, store.acknowledged) == (3, 3)


def test_a_floor_rises_when_all_that_was_given_out_before_it_is_acknowledged() -> None:
    producer, unit = Producer(), SimpleNamespace(epoch=4, floor=Floor())
    store = writer(producer)
    host = Host(unit, Board(QueuePolicy(), {}, Pickled()), store, 3)  # type: ignore[arg-type]
    store.write(entries("ab"), 0)
    host.swept(7)
    store.write(entries("c"), 0)
    assert not host.sweeps, "one after the other"
    producer.answer(None)
    store.hear(0)
    assert not host.raise_floor()
    assert (unit.floor, host.sweep.floor) == (Floor(), 3)
    producer.answer(None)
    store.hear(0)
    assert host.raise_floor()
    assert (unit.floor, host.sweep.floor) == (Floor(7, 4), 7)
    assert host.sweeps
    assert not host.raise_floor()


def test_from_a_failed_one_on_everything_is_written_again_in_order() -> None:
    producer = Producer()
    store = writer(producer)
    store.write(given := entries("abc"), 0)
    producer.answer(None, REFUSED)
    assert store.hear(0) == given[:1]
    assert store.troubled
    store.write(more := entries("d"), 0)
    assert producer.sent == [b"a", b"b", b"c"], "nothing passes what failed"
    assert store.resend_due(RESEND_MS[0]) == RESEND_MS[0] + 1, "c is not answered yet"
    producer.answer(None)
    assert store.hear(0) == []
    assert store.resend_due(RESEND_MS[0] - 1) == RESEND_MS[0]
    assert store.resend_due(RESEND_MS[0]) is None
    assert producer.sent == [b"a", b"b", b"c", b"b", b"c", b"d"]
    producer.answer(None, None, None)
    assert store.hear(0) == [*given[1:], *more]
    assert not store.troubled


def test_what_is_written_again_of_a_job_is_its_newest_entry() -> None:
    """It may be there already: a job that has its ending must not seem to run again, should its owner die now."""
    producer = Producer()
    store = writer(producer)
    store.write([Entry(b"j/a", b"1", 7), Entry(b"d/x", b"1"), Entry(b"j/a", b"2"), Entry(b"d/x", b"2")], 0)
    producer.answer(REFUSED, None, None, None)
    store.hear(0)
    assert store.resend_due(RESEND_MS[0]) is None
    assert producer.values[4:] == [b"2", b"1", b"2", b"2"]
    producer.answer(None, None, None, None)
    assert [done.settles for done in store.hear(0) if isinstance(done, Entry)] == [7, -1, -1, -1]


def test_a_job_that_is_forgotten_by_then_has_its_ending_written_first() -> None:
    """Nobody had seen it, and its caller was told that the job is missing."""
    producer = Producer()
    store = writer(producer)
    store.write([Entry(b"j/a", b"1"), Entry(b"j/a", b"2")], 0)
    producer.answer(REFUSED, REFUSED)
    store.hear(0)
    store.write([Entry(b"j/a", None), Entry(b"j/b", b"1"), Entry(b"j/a", b"new"), Entry(b"j/a", b"newer")], 0)
    assert store.resend_due(RESEND_MS[0]) is None
    assert producer.values[2:] == [b"2", b"2", None, b"1", b"newer", b"newer"]


def test_a_schedule_s_entry_waits_for_those_before_it() -> None:
    """Landed behind a tick's job that was refused, it would lose that tick for an owner that comes just then."""
    producer = Producer()
    store = writer(producer)
    store.write(given := [Entry(b"j/s@1", b""), Entry(b"s/s", b""), Entry(b"j/a", b"")], 0)
    assert producer.sent == [b"j/s@1"]
    producer.answer(REFUSED)
    assert store.hear(0) == []
    assert store.resend_due(RESEND_MS[0]) is None
    assert producer.sent == [b"j/s@1"] * 2
    producer.answer(None)
    assert store.hear(0) == given[:1]
    assert producer.sent[2:] == [b"s/s", b"j/a"]
    producer.answer(None, None)
    assert store.hear(0) == given[1:]


def test_schedules_of_one_instant_go_out_together_behind_their_ticks() -> None:
    """One by one, each was a round trip, and the endings of jobs stood behind all of them."""
    producer = Producer()
    store = writer(producer)
    ticks = [Entry(b"j/%d@1" % number, b"") for number in range(100)]
    schedules = [Entry(b"s/%d" % number, b"") for number in range(100)]
    store.write(given := [*ticks, *schedules, Entry(b"j/a", b"")], 0)
    producer.answer(*[None] * 99)
    store.hear(0)
    assert producer.batches == [("s", 100)], "the last tick's job is not there"
    producer.answer(None)
    store.hear(0)
    assert producer.batches[1:] == [("s", 100), ("s", 1)]
    producer.answer(*[None] * 50, REFUSED, *[None] * 50)
    assert store.hear(0) == given[100:150]
    assert store.resend_due(RESEND_MS[0]) is None
    assert producer.sent[201:] == [entry.key for entry in (*schedules[50:], given[-1])]
    producer.answer(*[None] * 51)
    assert store.hear(0) == given[150:]


def test_what_is_given_at_once_goes_out_at_once_and_the_last_answer_wakes() -> None:
    producer, woken = Producer(), list[int]()
    store = writer(producer, woken)
    store.write(given := [*entries("ab"), LETTER, *entries("c"), Entry(b"s/s", b""), *entries("d")], 0)
    assert producer.batches == [("s", 2), ("d", 1), ("s", 1)]
    producer.answer(None)
    assert woken == []
    assert store.hear(0) == given[:1], "all the same, when it is looked at"
    producer.answer(None, None, None)
    assert woken == [2, 1, 0]
    assert store.hear(0) == [given[1], replace(LETTER, offset=2), given[3]]
    assert producer.batches[3:] == [("s", 1), ("s", 1)], "the schedule alone, and what stands behind it"
    producer.answer(None, None)
    assert store.hear(0) == given[4:]
    assert producer.sent == [b"a", b"b", b"letter", b"c", b"s/s", b"d"]


def test_a_letter_that_is_refused_comes_again_with_all_behind_it() -> None:
    producer = Producer()
    store = writer(producer)
    store.write(given := [*entries("a"), LETTER, *entries("b")], 0)
    producer.answer(None, REFUSED, None)
    assert store.hear(0) == given[:1]
    assert store.resend_due(RESEND_MS[0]) is None
    assert producer.sent[3:] == [b"letter", b"b"]
    producer.answer(None, None)
    assert store.hear(0) == [replace(LETTER, offset=2), given[2]], "it says where it is"


def test_a_full_buffer_is_waited_out() -> None:
    producer = Producer()
    store = writer(producer)
    store.write(given := entries("a"), 0)
    producer.room = 1
    store.write(more := entries("bcd"), 0)
    assert producer.sent == [b"a", b"b"], "as many as there was room for"
    assert store.troubled
    producer.answer(None, None)
    assert store.hear(0) == [*given, *more[:1]]
    assert store.resend_due(RESEND_MS[0]) == RESEND_MS[0] + RESEND_MS[1]
    producer.room = 1_000
    assert store.resend_due(10_000) is None
    assert producer.sent == [b"a", b"b", b"c", b"d"]
    producer.answer(None, None)
    assert store.hear(0) == more[1:]


def test_a_closed_producer_is_told_and_nothing_is_done() -> None:
    producer = Producer()
    producer.closed = True
    store = writer(producer)
    store.write(entries("a"), 0)
    assert store.hear(0) == []
    assert store.troubled
    assert str(store.last_error) == "closed"


def test_offsets_between_our_own_are_told() -> None:
    producer = Producer()
    producer.end = 3
    store = writer(producer)
    store.write(entries("ab"), 0)
    producer.answer(None)
    producer.end += 2
    producer.answer(None)
    store.hear(0)
    assert list(store.gaps) == [(0, 3), (4, 6)], "since it became ours"
    assert store.seen == 7
    store.write(entries("cd"), 0)
    producer.answer(REFUSED)
    producer.end += 1  # it is there
    producer.answer(None)
    store.hear(0)
    store.resend_due(RESEND_MS[0])
    producer.answer(None, None)
    store.hear(0)
    assert list(store.gaps)[2:] == [(7, 8)], "whose it is is found when it is read"
