"""Entries on their way to the store: what is done is a beginning of what was given, also when writes fail in between."""

from __future__ import annotations

from pipeline.core.jobs.entries import Entry, Settle
from pipeline.model.cluster import DeliveryCallback, Headers
from pipeline.model.errors import BufferFull, ClusterError
from pipeline.worker.jobs.writing import Place, StoreWriter, Written
from pipeline.worker.sending import RESEND_MS

REFUSED = ClusterError("refused")


class Producer:
    """Answers when it is told to. `sent` are keys in the order they came."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.values: list[bytes | None] = []
        self.waiting: list[DeliveryCallback] = []
        self.full = False
        self.end = 0

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        delivered: DeliveryCallback | None = None,
    ) -> None:
        if self.full:
            raise BufferFull("full")
        assert key is not None
        assert delivered is not None
        self.sent.append(key)
        self.values.append(value)
        self.waiting.append(delivered)

    def answer(self, *errors: ClusterError | None) -> None:
        for error in errors:
            offset = -1 if error else self.end
            self.end += not error
            self.waiting.pop(0)(error, offset)


def writer(producer: Producer) -> StoreWriter:
    return StoreWriter(producer, Place(0, "s", "d", [], lambda _letter: (b"", b"", [])), lambda: None, 0)


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


def test_an_answer_that_comes_twice_says_nothing() -> None:
    producer = Producer()
    store = writer(producer)
    store.write(given := entries("ab"), 0)
    first, second = producer.waiting
    first(None, 0)
    first(None, 0)
    second(REFUSED, -1)
    assert store.hear(0) == given[:1]
    assert store.resend_due(RESEND_MS[0]) is None
    second(REFUSED, -1)
    producer.waiting[2](None, 1)
    assert store.hear(0) == given[1:]
    assert not store.troubled


def test_a_full_buffer_is_waited_out() -> None:
    producer = Producer()
    store = writer(producer)
    store.write(given := entries("a"), 0)
    producer.full = True
    store.write(more := entries("bc"), 0)
    producer.answer(None)
    assert store.hear(0) == given
    assert store.resend_due(RESEND_MS[0]) == RESEND_MS[0] + RESEND_MS[1]
    producer.full = False
    assert store.resend_due(10_000) is None
    assert producer.sent == [b"a", b"b", b"c"]
    producer.answer(None, None)
    assert store.hear(0) == more


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
