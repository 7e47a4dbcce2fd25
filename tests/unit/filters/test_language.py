"""The language by examples: every field, every operator, null, and what is read for an answer."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters import Filter, MessageRow, Needs, compile_filter, quoted
from pipeline.filters.fields import FIELDS
from pipeline.filters.tree import All, Compare, IsNull, Within
from pipeline.inspect.decoding import Shown, show
from pipeline.memory.log import MemoryMessage
from pipeline.model.cluster import Headers
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers

NOW_MS = 1_770_000_000_000  # 2026-02-02T02:40:00Z
VALUE = {
    "tenant": "acme",
    "agent": "planner",
    "run_id": "run-1",
    "tool": "search",
    "ok": True,
    "one": 1,
    "cost": 0.25,
    "tags": ["a", 2, True, None, {"x": 1}],
    "labels": {"team": "red", "odd name": "yes", "0": "zero"},
    "steps": [{"name": "first"}, {"name": "second"}],
    "nothing": None,
    "text": "line one\nline two",
}
DELIVERY = DeliveryHeaders(
    attempt=3,
    hop=2,
    epoch=9,
    origin_topic="agent.run.events",
    origin_partition=4,
    origin_offset=55,
    origin_timestamp_ms=NOW_MS - 7_200_000,
    group="billing",
    first_failed_ms=NOW_MS - 600_000,
    replay_id="rp-0123",
    replay_count=1,
    error=ErrorInfo("RateLimit", "openai.RateLimitError", "429: slow down"),
)
PRODUCER: Headers = [
    ("pl.event_id", b"event-7"),
    ("x-request", b"42"),
    ("twice", b"1"),
    ("twice", b"2"),
    ("void", None),
]
TYPED = partial(Shown, "agent.run.ToolCall")


def dead_letter(**changes: object) -> MessageRow[Shown]:
    given = {
        "key": b"run-1",
        "value": json.dumps(VALUE).encode(),
        "headers": dead_letter_headers(PRODUCER, DELIVERY),
        "time_ms": NOW_MS - 3_600_000,
    } | changes
    where = ("agent.run.events.billing.dlq", 4, 1_000)
    message = MemoryMessage(where, given["key"], given["value"], given["headers"], given["time_ms"])  # type: ignore[arg-type]
    return MessageRow(message, lambda m: TYPED(json.loads(m.value() or b"null")))


def plain(value: bytes | None, headers: Headers | None = None, key: bytes | None = None) -> MessageRow[Shown]:
    return MessageRow(MemoryMessage(("t", 0, 0), key, value, headers, NOW_MS), partial(show, None))


def matches(text: str, row: MessageRow[Shown]) -> bool:
    return compile_filter(text, NOW_MS).matches(row)


TRUE = """
topic == "agent.run.events.billing.dlq"
topic endswith ".dlq"
partition == 4
offset >= 1000
offset < 1000.5
timestamp == "2026-02-02T01:40:00Z"
timestamp == "2026-02-02T02:40:00+01:00"
timestamp == "2026-02-02 01:40"
timestamp > "2026-02-02" and timestamp < "2026-02-03"
timestamp > "2026-02-02T01:39:59.999Z" and timestamp <= 1769996400000
age == 1h
age > 59m and age < 3601s and age >= 3600000ms and age <= 0.5d
age in (30m, 1h)
size > 100
key == "run-1"
key != "run-2"
key in ("run-0", "run-1")
key not in ("run-0", "run-2")
key startswith "run" and key endswith "-1" and key contains "un-"
key like "run-*"
key like "r?n-1"
key not like "walk-*"
not key like "walk-*"
key < "run-2"
type == "ToolCall"
type == "agent.run.ToolCall"
type in ("RunFailed", "ToolCall")
type in ("other.ToolCall", "agent.run.ToolCall")
type in ("other.ToolCall", "ToolCall")
type like "Tool*"
type like "agent.run.*"
type contains "Call"
type != "RunFailed"
tenant == "acme"
agent == "planner"
run_id == "run-1"
event_id == "event-7"
attempt == 3
attempt >= 3 and error.class == "RateLimit"
attempt in (1, 2, 3)
attempt not in (4, 5)
hop == 2
group == "billing"
origin.topic == "agent.run.events"
origin.partition == 4
origin.offset == 55
origin.timestamp < "2026-02-02T00:40:00.001Z"
replay.id == "rp-0123"
replay.count == 1
error.class == "RateLimit"
error.type endswith "RateLimitError"
error.message like "429*"
first_failed == "2026-02-02T02:30:00Z"
header.x-request == "42"
header.x-request == 42
header.x-request > 41.5
header.x-request in (1, "42")
header.pl.attempt == "3"
header.twice == "2"
header.void is null
header.absent is null
header.__dlq.errors.offset == 55
value.tool == "search"
value.ok == true
value.ok != false
value.one == 1
value.one == 1.0
value.cost == 0.25
value.cost < 1
value.one in ("1", 1)
value.tags contains "a"
value.tags contains 2
value.tags.0 == "a"
value.tags.4.x == 1
value.labels.team == "red"
value.labels."odd name" == "yes"
value.labels.0 == "zero"
value.steps.1.name == "second"
value.nothing is null
value.absent is null
value.steps is not null
value.labels != "red"
value.text like "*one*two"
value.text contains "\\n"
value.cost == 250ms or value.cost < 1s
NOT (key == "x") AND (attempt == 3 OR partition == 0) Or key IS Null
""".strip().splitlines()


@pytest.mark.parametrize("text", TRUE)
def test_a_dead_letter_matches(text: str) -> None:
    assert matches(text, dead_letter())
    assert not matches(f"not ({text})", dead_letter())


FALSE = """
partition != 4
age > 1h
age < 0s
key == "RUN-1"
key == ""
key like "run"
key like "?run-1"
key contains "run-11"
type == "other.ToolCall"
type == "Tool"
type like "other.*"
type in ("other.ToolCall", "agent.ToolCall")
tenant != "acme"
attempt not in (1, 2, 3)
header.x-request == "42.0"
header.twice == 1
header.void != "x"
header.absent != "x"
header.absent not in ("x")
header.absent not like "x"
header.traceparent > 1
value.ok == 1
value.one == true
value.one == "1"
value.tags contains 1
value.tags contains "b"
value.tags.9 == "a"
value.tags.5 is not null
value.nothing == 0
value.nothing != 0
value.absent not in (1, 2)
value.tool > 1
value.tool.x is not null
value.labels contains "team"
value.labels == "red"
value.labels.1 is not null
value.tool contains 1
""".strip().splitlines()


@pytest.mark.parametrize("text", FALSE)
def test_a_dead_letter_does_not_match(text: str) -> None:
    assert not matches(text, dead_letter())
    assert matches(f"not ({text})", dead_letter())


def test_every_field_has_an_example() -> None:
    for name in FIELDS:
        assert any(text.startswith((f"{name} ", f"not {name} ")) for text in TRUE), name


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name].headers and name not in ("type",)])
def test_fields_of_headers_are_null_without_them_and_with_broken_ones(name: str) -> None:
    absent = "replay.count == 0" if name == "replay.count" else f"{name} is null"
    assert matches(absent, plain(b"not json"))
    broken = [(header, b"x" * 30) for header in ("pl.attempt", "pl.hop", "pl.origin.offset", "pl.origin.partition")]
    broken += [(header, b"-1") for header in ("pl.replay.count", "pl.first_failed", "pl.origin.timestamp")]
    assert matches(absent, plain(b"not json", broken))


def test_null_keys_values_and_bytes_that_are_no_text() -> None:
    assert matches("key is null and value is null and type == 'null'", plain(None))
    assert matches("key is not null and key == '' and value == ''", plain(b"", key=b""))
    assert matches("key == '0xff00' and value == '0xfe'", plain(b"\xfe", key=b"\xff\x00"))
    assert matches("value == 'some text' and value contains 'me te' and value.x is null", plain(b"some text"))
    assert matches("value > 1 and value.x is null", plain(b"2"))
    assert matches("value.0.x == 1", plain(b'[{"x": 1}]'))
    assert matches("header.bad == '\ufffd'", plain(None, [("bad", b"\xff")]))
    without_time = MessageRow(NoTime(("t", 0, 0), None, None, None, 5), partial(show, None))
    assert matches("timestamp is null and age is null and not age > 0s", without_time)


class NoTime(MemoryMessage):
    def timestamp(self) -> tuple[int, int]:
        return (0, -1)


def test_cloud_events_headers_answer_for_the_value_and_spare_the_decoding() -> None:
    ours: Headers = [
        ("ce_type", b"agent.run.RunFailed"),
        ("ce_subject", b"run-9"),
        ("ce_tenant", b"t"),
        ("ce_id", b"e"),
    ]
    row: MessageRow[Shown] = MessageRow(MemoryMessage(("t", 0, 0), None, b"x", ours, 1), _never)
    assert matches('type == "RunFailed" and run_id == "run-9" and tenant == "t" and event_id == "e"', row)
    foreign: Headers = [("ce_type", b"com.example.thing"), ("ce_subject", b"a subject is anything there")]
    assert matches('type == "thing" and run_id is null', plain(b"{}", foreign))
    assert matches('type == "thing" and run_id == "r"', plain(b'{"run_id": "r"}', foreign))
    assert matches("run_id is null", plain(b'{"run_id": 5}')), "a run id is text"


def _never(message: object) -> Shown:
    raise AssertionError("the value was decoded")


@pytest.mark.parametrize(
    ("text", "headers", "value"),
    [
        ('key == "x" and partition == 1 and offset > 5 and age > 1h and size < 9 and topic == "t"', False, False),
        ('attempt > 1 or error.class == "x" or header.a == "b"', True, False),
        ("value.x == 1", False, True),
        ("not (key is null or value.x == 1)", False, True),
        ('type == "x"', True, True),
        ("replay.count > 0", True, False),
    ],
)
def test_needs_says_what_a_filter_may_look_at(text: str, headers: bool, value: bool) -> None:
    assert compile_filter(text, 0).needs == Needs(headers=headers, value=value)


class Watched(MemoryMessage):
    """Counts what is asked of it."""

    def __init__(self, *record: object) -> None:
        super().__init__(*record)  # type: ignore[arg-type]
        self.asked: list[str] = []

    def headers(self) -> Headers | None:
        self.asked.append("headers")
        return super().headers()


def test_headers_and_value_are_read_once_at_most_and_only_when_the_answer_needs_them() -> None:
    message = Watched(("t", 3, 9), b"k", b'{"x": 1}', PRODUCER, NOW_MS)
    decoded: list[object] = []

    def watch(message: object) -> Shown:
        decoded.append(message)
        return Shown("json", {"x": 1, "y": 2})

    row = MessageRow(message, watch)
    assert not matches('value.x == 1 and header.a == "x" and key == "other"', row), "the cheapest is asked first"
    assert matches('value.x == 2 or header.a == "x" or partition == 3', row)
    assert (message.asked, decoded) == ([], [])
    assert not matches('value.x == 1 and header.twice == "x"', row)
    assert (message.asked, decoded) == (["headers"], [])
    assert not matches('value.x == 2 and type == "x"', row)
    assert matches('value.x == 1 and value.y == 2 and header.twice == "2"', row)
    assert (message.asked, decoded) == (["headers"], [message])
    assert row.decoded == Shown("json", {"x": 1, "y": 2})
    assert decoded == [message]


def test_and_binds_before_or_and_not_before_both() -> None:
    row = plain(None, key=b"k")
    assert matches('key == "k" or key == "x" and key == "y"', row)
    assert not matches('(key == "k" or key == "x") and key == "y"', row)
    assert not matches('not key == "k" and key == "k" and key == "k"', row)
    assert matches('not key == "k" or key == "k" or key == "x"', row)
    assert matches('not (key == "x" and key == "k")', row)


def test_a_filter_is_a_value() -> None:
    one, same = compile_filter("age > 1h", 5), compile_filter("age > 1h", 5)
    assert one == same
    assert hash(one) == hash(same)
    assert one != compile_filter("age > 1h", 6)
    assert isinstance(one, Filter)
    assert (one.text, one.now_ms) == ("age > 1h", 5)
    assert "age > 1h" in repr(one)


def test_the_tree_can_be_translated() -> None:
    tree = compile_filter('timestamp > "1970-01-01T00:00:01Z" and key not in ("a", "b") and hop is not null', 0).tree
    assert tree == All(
        (
            Compare(FIELDS["timestamp"], ">", 1_000),
            Within(FIELDS["key"], ("a", "b"), negated=True),
            IsNull(FIELDS["hop"], negated=True),
        )
    )


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", "", "a"),
        ("*", "any\nthing", None),
        ("a?c", "a\nc", "ac"),
        ("a*bc*c", "abcc", "aXbc"),  # the end may not be used twice
        ("ab*ba", "abba", "aba"),
        ("*b*b*", "bb", "b"),
        ("a\\*c", "a*c", "abc"),
        ("a\\?c", "a?c", "abc"),
        ("a\\\\*", "a\\bc", "abc"),
        ("[a-z].+", "[a-z].+", "ab"),
    ],
)
def test_like_means_the_whole_text(pattern: str, yes: str, no: str | None) -> None:
    written = pattern.replace("\\", "\\\\")
    for text, wanted in ((yes, True), (no, False)):
        if text is not None:
            assert matches(f'key like "{written}"', plain(None, key=text.encode())) is wanted


def test_escapes_of_text_in_quotes() -> None:
    assert matches(r"""key == 'it\'s\n\t\\ "x"' """, plain(None, key=b'it\'s\n\t\\ "x"'))
    assert matches(r"""key == "it's\n\t\\ \"x\"" """, plain(None, key=b'it\'s\n\t\\ "x"'))


@given(st.text(max_size=20))
def test_any_text_can_be_quoted_and_any_json_string_is_a_literal(text: str) -> None:
    row = MessageRow(MemoryMessage(("t", 0, 0), None, None, None, 1), lambda message: Shown("text", text))
    for literal in (quoted(text), json.dumps(text)):
        assert matches(f"value == {literal}", row)
