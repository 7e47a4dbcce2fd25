"""Headers, topic names and durations: there and back for any text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.model.cluster import Headers
from pipeline.model.durations import format_duration, parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import (
    ERROR_TEXT_BYTES,
    DeliveryHeaders,
    ErrorInfo,
    HeaderError,
    clip_error,
    dead_letter_headers,
    decode,
    encode,
    producer_headers,
    replay_count_of,
    spelled_out,
    standing_of,
)
from pipeline.model.topics import MAX_TOPIC_LENGTH, escape, lane_topics

numbers = st.integers(0, 2**62)
any_text = st.text(max_size=50)
clean_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=50)
errors = st.builds(ErrorInfo, clean_text, clean_text, clean_text, clean_text)
topics = st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True)
deliveries = st.builds(
    DeliveryHeaders,
    attempt=numbers,
    hop=numbers,
    epoch=numbers,
    origin_topic=topics,
    origin_partition=numbers,
    origin_offset=numbers,
    origin_timestamp_ms=numbers,
    group=clean_text,
    due_ms=numbers,
    not_before_ms=numbers,
    first_failed_ms=numbers,
    replay_id=clean_text,
    replay_count=numbers,
    schema=clean_text,
    error=errors,
)
names = st.sampled_from(
    [
        "pl.event_id",
        "pl.hop",
        "pl.due",
        "pl.v",
        "pl.d",
        "traceparent",
        "ce_id",
        "__dlq.errors.topic",
        "x",
        "pl.replay.count",
    ]
)
foreign: st.SearchStrategy[Headers] = st.lists(st.tuples(names, st.none() | st.binary(max_size=20)), max_size=12)


@given(foreign, deliveries)
def test_headers_come_back(given_headers: Headers, delivery: DeliveryHeaders) -> None:
    kept = producer_headers(given_headers)
    wire = encode(kept, delivery)
    assert decode(wire) == delivery
    assert producer_headers(wire) == kept
    assert replay_count_of(wire) == (replay_count_of(kept) or delivery.replay_count)
    assert decode(encode(producer_headers(wire), replace(delivery, hop=7))) == replace(delivery, hop=7)
    dead = dead_letter_headers(kept, delivery)
    assert decode(dead) == replace(delivery, due_ms=0, not_before_ms=0)
    assert producer_headers(dead) == kept


@given(foreign)
def test_a_producers_headers_do_not_pretend_to_be_deliveries(given_headers: Headers) -> None:
    assert not [
        name
        for name, _ in producer_headers(given_headers)
        if name.startswith(("pl.", "__dlq")) and name != "pl.event_id"
    ]
    assert replay_count_of(given_headers) >= 0


def test_of_two_headers_that_tell_of_replays_the_higher_counts() -> None:
    """A forged one that nobody can read must not hide the other, or a loop has no end."""
    count, copy = ("pl.replay.count", b"3"), ("pl.d", b"forged")
    assert replay_count_of([copy, count]) == replay_count_of([count, copy]) == 3
    assert replay_count_of([("pl.replay.count", b"x"), count]) == 3


BAD_NUMBERS = [b"", b"-1", b"+1", b"1_0", b"x", b"\xff", b"9" * 20, "٣".encode()]


@given(deliveries, st.data())
def test_a_missing_or_malformed_number_of_a_dead_letter_is_named(
    delivery: DeliveryHeaders, data: st.DataObject
) -> None:
    wire = dead_letter_headers([], delivery)
    names = ("pl.v", "pl.attempt", "pl.hop", "pl.epoch", "pl.origin.offset")
    at = data.draw(st.sampled_from([i for i, (name, _) in enumerate(wire) if name in names]))
    name = wire[at][0]
    with pytest.raises(HeaderError, match=re.escape("pl.d" if name == "pl.v" else name)):
        decode(wire[:at] + wire[at + 1 :])
    bad = data.draw(st.sampled_from([*BAD_NUMBERS, b" 1"]))
    with pytest.raises(HeaderError, match=re.escape(name)):
        decode([*wire[:at], (name, bad), *wire[at + 1 :]])


@given(deliveries, st.integers(0, 10), st.sampled_from(BAD_NUMBERS))
def test_a_malformed_delivery_of_a_copy_is_named(delivery: DeliveryHeaders, at: int, bad: bytes) -> None:
    wire = encode([], delivery)
    (packed,) = [value for name, value in wire if name == "pl.d"]
    assert packed is not None
    parts = packed.split(b" ")
    for wrong in (b" ".join([*parts[:at], bad, *parts[at + 1 :]]), b" ".join(parts[:at]), b""):
        with pytest.raises(HeaderError, match=re.escape("header pl.d is not a delivery")):
            decode([("pl.d", wrong)])
    with pytest.raises(HeaderError, match=re.escape("header pl.d is missing")):
        decode([header for header in wire if header[0] != "pl.d"])


@given(deliveries)
def test_a_copy_spelled_out_reads_like_a_dead_letter(delivery: DeliveryHeaders) -> None:
    copy = spelled_out(dict(encode([], delivery)))
    dead = dict(dead_letter_headers([], delivery))
    same = [name for name in dead if name.startswith("pl.")]
    assert {name: copy.get(name) for name in same} == {name: dead[name] for name in same}
    assert spelled_out({"pl.d": b"x", "a": b"b"}) == {"pl.d": b"x", "a": b"b"}


long_text = st.text(max_size=30).flatmap(lambda part: st.integers(0, 2_000).map(lambda times: part * times))


@given(long_text, long_text, long_text, long_text)
def test_error_texts_fit_and_keep_both_ends(a: str, b: str, c: str, d: str) -> None:
    error = clip_error(ErrorInfo(a, b, c, d))
    parts = (error.error_class, error.error_type, error.message, error.stack)
    assert sum(len(part.encode()) for part in parts) <= ERROR_TEXT_BYTES
    for before, after in zip((a, b, c, d), parts, strict=True):
        whole = before.encode("utf-8", "replace").decode()
        if after != whole:
            first, mark, last = after.partition(" ... ")
            assert mark
            assert whole.startswith(first)
            assert whole.endswith(last)
            assert len(first) > 20
            assert len(last) > 20
    assert clip_error(error) == error


@given(any_text, any_text)
def test_escaped_groups_differ_when_groups_do(one: str, two: str) -> None:
    assume(min(one + two, default="a") >= "\ud800" or all(not "\ud800" <= c <= "\udfff" for c in one + two))
    assert re.fullmatch(r"[a-zA-Z0-9._-]*", escape(one))
    assert (escape(one) == escape(two)) == (one == two)


@given(clean_text.filter(bool), st.lists(st.integers(1, 10**9), unique=True, max_size=5).map(sorted))
def test_lanes_of_a_subscription_are_legal_and_distinct(group: str, delays: list[int]) -> None:
    if len(f"agent.run.events.{escape(group)}.retry.1000000000ms") > MAX_TOPIC_LENGTH:
        return  # its refusal is tested in unit/test_topics.py
    found = lane_topics("agent.run.events", group, tuple(delays))
    every = [found.source, *found.lanes, found.dead_letters]
    assert len(set(every)) == len(every)
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) and len(name) <= MAX_TOPIC_LENGTH for name in every)


@given(
    st.integers(0, 100_000).flatmap(
        lambda n: st.sampled_from((n, n * 1_000, n * 60_000, n * 3_600_000, n * 86_400_000))
    )
)
def test_durations_come_back(ms: int) -> None:
    text = format_duration(ms)
    assert parse_duration_ms(text) == ms


@given(st.one_of(any_text, st.floats(), st.integers()))
def test_a_duration_is_milliseconds_or_a_sentence(text: str | float) -> None:
    try:
        found = parse_duration_ms(text, "timeout")
    except ConfigurationError as error:
        found = str(error).index("timeout=")
    assert found >= 0


mangled = st.sampled_from(
    [b"", b"x", b"1 2 3", b"1 " * 11 + b"t g", b"9" * 20 + b" 1" * 10 + b" t g", b"-1" + b" 1" * 10 + b" t g"]
)


@given(foreign, deliveries, st.sampled_from(["", "held", "open/1", "behind/7"]), st.booleans(), st.none() | mangled)
def test_a_standing_is_what_decode_says(
    given_headers: Headers, delivery: DeliveryHeaders, hold: str, spelled: bool, bad: bytes | None
) -> None:
    """The same answer or the same error, for tier copies, for dead letters, and for what is neither."""
    made = replace(delivery, hold=hold)
    kept = producer_headers(given_headers)
    headers = dead_letter_headers(kept, made) if spelled else encode(kept, made)
    if bad is not None:
        headers = [(name, bad if name in ("pl.d", "pl.hop") else value) for name, value in headers]
    more = [("pl.hold", None), ("pl.replay.id", None), ("pl.replay.id", b"last"), ("pl.d", None)]
    for each in (headers, given_headers, None, *([*headers, one] for one in more)):
        try:
            wanted = decode(each)
        except HeaderError as error:
            with pytest.raises(HeaderError, match=re.escape(str(error))):
                standing_of(each)
            continue
        found = standing_of(each)
        assert found == tuple(getattr(wanted, name) for name in found._fields)
