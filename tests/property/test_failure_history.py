"""The history of failed attempts: within its cap, first and newest kept, whatever failed and whoever wrote it before."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.copies import copy_headers, history_of, note_failure
from pipeline.core.delivery import Delivery
from pipeline.model.headers import LOG_BYTES, DeliveryHeaders, dead_letter_headers, decode, encode, producer_headers
from pipeline.model.history import ENTRY_BYTES, HISTORY_BYTES, MESSAGE_BYTES, Attempt, append, parse
from pipeline.model.outcome import Failure, FailureKind
from pipeline.topology.rules import LANE_OVERHEAD_BYTES

texts = st.text(max_size=30) | st.text(st.sampled_from('\x00\x1b"\\é\U0001f600x'), min_size=0, max_size=2_000)
times = st.integers(0, 10**13)
attempts = st.builds(
    Attempt,
    number=st.integers(1, 1_000),
    failed_ms=times,
    error_class=texts,
    error_type=texts,
    message=texts,
    started_ms=times,
)


def same(one: Attempt, other: Attempt) -> bool:
    """But for what was clipped."""
    return (one.number, one.failed_ms, one.started_ms) == (other.number, other.failed_ms, other.started_ms)


@settings(deadline=None)
@given(st.lists(attempts, min_size=1, max_size=40))
@example([Attempt(n, n, "c" * 500, "t" * 500, "\x01" * 5_000, n) for n in range(1, 1_000)])
def test_any_sequence_stays_within_the_cap_and_keeps_first_and_newest(failures: list[Attempt]) -> None:
    raw = b""
    for count, failure in enumerate(failures, start=1):
        raw = append(raw, failure)
        assert len(raw) <= HISTORY_BYTES
        past = parse(raw)
        assert len(past.attempts) + past.dropped == count, "every attempt is there or counted"
        assert same(past.attempts[0], failures[0])
        assert same(past.attempts[-1], failure)
        kept = len(past.attempts) - 1
        assert all(map(same, past.attempts[1:], failures[count - kept : count])), "of the others the newest"
        json.loads(raw)


def test_short_texts_come_back_and_long_ones_keep_both_ends() -> None:
    short = Attempt(1, 20, "RateLimit", "RateLimitError", "slow down, é", 10)
    assert parse(append(b"", short)).attempts == (short,)
    (long,) = parse(append(b"", Attempt(1, 2, "c", "t", "begin" + "x" * 9_999 + "end"))).attempts
    assert long.message.startswith("begin")
    assert long.message.endswith("end")
    assert len(long.message) <= MESSAGE_BYTES


def test_much_is_kept_before_anything_is_dropped() -> None:
    raw = b""
    for n in range(1, 31):
        raw = append(
            raw, Attempt(n, 1_767_225_600_000 + n, "RateLimit", "RateLimitError", "slow down", 1_767_225_600_000)
        )
    assert parse(raw).dropped == 0, "thirty ordinary failures fit"
    assert parse(raw).complete


@given(
    st.binary(max_size=200)
    | st.sampled_from([b"[]", b"{}", b"null", b"[1]", b'[{"n":}]', b'[{"n":1}]', b"[" * 9_999, b'[{"n":true}]']),
    attempts,
)
def test_what_others_wrote_is_passed_over(raw: bytes, failure: Attempt) -> None:
    after = append(raw, failure)
    assert len(after) <= HISTORY_BYTES
    assert same(parse(after).attempts[-1], failure)


@given(st.lists(attempts, max_size=20), st.binary(max_size=9_000))
def test_a_history_that_is_too_long_is_cut_down(failures: list[Attempt], junk: bytes) -> None:
    entries = [{"n": f.number, "at": f.failed_ms, "c": "", "t": "", "m": "m" * 900} for f in failures]
    raw = append(json.dumps([*entries, junk.hex()]).encode(), Attempt(5, 6, "c", "t", "m"))
    assert len(raw) <= HISTORY_BYTES
    past = parse(raw)
    assert same(past.attempts[-1], Attempt(5, 6))
    assert not failures or past.attempts[0].number == failures[0].number


def test_an_older_worker_in_between_leaves_a_gap_that_is_seen() -> None:
    first = append(b"", Attempt(1, 1, "c", "t", "m"))
    assert parse(first).complete
    assert not parse(append(b"", Attempt(3, 1, "c", "t", "m"))).complete
    replayed = append(append(first, Attempt(2, 1, "c", "t", "m")), Attempt(1, 9, "c", "t", "m"))
    assert parse(replayed).complete, "after a replay the numbers begin again"


class _Message:
    def headers(self) -> list[tuple[str, bytes]]:
        return []

    def timestamp(self) -> tuple[int, int]:
        return 1, 1


def _failure(message: str, **more: object) -> Failure:
    return Failure(FailureKind.RETRYABLE, "RateLimit", "RateLimitError", message, "stack " * 5_000, **more)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=25), texts)
def test_headers_of_copies_carry_it_and_all_texts_fit_a_lane(messages: list[str], log: str) -> None:
    """Through retries in memory and copies in lanes alike."""
    before = DeliveryHeaders(0, 0, 1, "t", 0, 0, 1, "g", log="of the dead letter that was replayed")
    delivery = Delivery(_Unit(), 1, 5, b"k", _Message())  # type: ignore[arg-type]
    delivery.headers = before
    for n, message in enumerate(messages, start=1):
        delivery.attempt = n
        note_failure(delivery, _failure(message, started_ms=n), 1_000 + n)
        if n % 2:  # a copy of it goes through a lane; else it is tried again in memory
            wire = encode([], copy_headers(delivery, 1_000 + n, _failure(message)))
            assert producer_headers(wire) == []
            again = Delivery(_Unit(), 1, 5, b"k", _Message())  # type: ignore[arg-type]
            again.headers = decode(wire)
            assert again.headers.log == ""
            delivery = again
    past = parse(history_of(delivery))
    assert len(past.attempts) + past.dropped == len(messages)
    assert past.attempts[0].number == 1
    clipped = log.encode("utf-8", "replace")[:2_048].decode("utf-8", "ignore")
    final = copy_headers(delivery, 9_999, _failure(messages[-1]), log=clipped)
    assert final.log == clipped
    total = sum(len(name) + len(value or b"") for name, value in dead_letter_headers([], final))
    assert total < LANE_OVERHEAD_BYTES - 768, "or a record of the largest size could not become a dead letter"


def test_a_full_history_a_full_log_and_a_long_stack_fit_beside_each_other() -> None:
    delivery = Delivery(_Unit(), 1, 5, b"k", _Message())  # type: ignore[arg-type]
    delivery.headers = DeliveryHeaders(0, 0, 1, "t" * 249, 0, 0, 1, "g" * 249)
    for n in range(1, 50):
        delivery.attempt = n
        note_failure(delivery, _failure("m" * 5_000), n)
    headers = dead_letter_headers([], copy_headers(delivery, 9, _failure("m" * 5_000), log="l" * LOG_BYTES))
    assert len(history_of(delivery)) > HISTORY_BYTES - 600
    assert 0 < LANE_OVERHEAD_BYTES - sum(len(name) + len(value or b"") for name, value in headers) < 4_096


class _Unit:
    epoch = 1


assert ENTRY_BYTES * 3 < HISTORY_BYTES
