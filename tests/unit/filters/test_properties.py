"""Any filter over any record agrees with a naive evaluator that knows nothing of text, closures or laziness."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters import MessageRow, compile_filter
from pipeline.filters.glob import glob
from pipeline.inspect.decoding import Shown
from pipeline.memory.log import MemoryMessage
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, encode

NOW_MS = 1_800_000_000_000
TEXTS = (
    "",
    "a",
    "ab",
    "RateLimit",
    "Rate*",
    "x?y",
    "é",
    "日本",
    "a\\b",
    'q"uote',
    "it's",
    "new\nline",
    "12",
    "2.5",
    "-0",
)
NUMBERS = (-1, 0, 1, 2, 3, 12, 2.5, 10**15)
TYPES = ("ToolCall", "agent.run.ToolCall", "other.ToolCall", "json", "null")

texts = st.sampled_from(TEXTS)
numbers = st.sampled_from(NUMBERS)
times = st.sampled_from([NOW_MS - ago_ms for ago_ms in (0, 1, 60_000, 7_200_000, 86_400_000)])
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.one_of(
    scalars,
    st.fixed_dictionaries(
        {},
        optional={
            "s": texts,
            "n": numbers,
            "b": st.booleans(),
            "list": st.lists(scalars, max_size=3),
            "deep": st.fixed_dictionaries({}, optional={"x": scalars, "1": scalars}),
            "odd name": scalars,
            "tenant": st.one_of(texts, st.integers()),
            "agent": texts,
            "run_id": texts,
        },
    ),
)


@dataclass
class Record:
    """A record and, by field name, what it holds: written down while it is built, not read back."""

    message: MemoryMessage
    shown: Shown
    truth: dict[str, Any]


@st.composite
def records(draw: Callable[[Any], Any]) -> Record:
    truth: dict[str, Any] = {
        "topic": draw(texts),
        "partition": draw(st.integers(0, 3)),
        "offset": draw(st.sampled_from([0, 1, 12, 10**15])),
        "timestamp": draw(times),
    }
    key = draw(st.one_of(st.none(), texts))
    truth["key"] = key
    headers: list[tuple[str, bytes | None]] = []
    for name in ("x", "odd name", "pl.event_id"):
        text = draw(st.one_of(st.none(), texts))
        if text is not None:
            headers.append((name, text.encode()))
        truth[f"header.{name}"] = text
    truth["event_id"] = truth["header.pl.event_id"] or None
    if draw(st.booleans()):
        delivery = DeliveryHeaders(
            attempt=draw(st.integers(0, 4)),
            hop=draw(st.integers(0, 4)),
            epoch=1,
            origin_topic=draw(texts),
            origin_partition=draw(st.integers(0, 3)),
            origin_offset=draw(st.sampled_from([0, 1, 12])),
            origin_timestamp_ms=draw(times),
            group=draw(texts),
            first_failed_ms=draw(times),
            replay_id=draw(texts),
            replay_count=draw(st.integers(0, 2)),
            error=ErrorInfo(draw(texts), draw(texts), draw(texts)),
        )
        headers = encode(headers, delivery)
        truth |= {"attempt": delivery.attempt, "hop": delivery.hop, "group": delivery.group}
        truth |= {"origin.topic": delivery.origin_topic, "origin.partition": delivery.origin_partition}
        truth |= {"origin.offset": delivery.origin_offset, "origin.timestamp": delivery.origin_timestamp_ms}
        truth |= {"first_failed": delivery.first_failed_ms, "replay.id": delivery.replay_id or None}
        truth["replay.count"] = delivery.replay_count
        error = delivery.error
        truth |= {"error.class": error.error_class or None, "error.type": error.error_type or None}
        truth["error.message"] = error.message or None
    truth.setdefault("replay.count", 0)
    value = draw(values)
    shown = Shown(draw(st.sampled_from(TYPES)), value)
    truth |= {"type": shown.type, "value": value}
    for name in ("tenant", "agent", "run_id"):
        found = value.get(name) if isinstance(value, dict) else None
        truth[name] = found if isinstance(found, str) else None
    raw = b"v" * draw(st.integers(0, 4))
    truth["size"] = len(raw) + len((key or "").encode())
    where = (truth["topic"], truth["partition"], truth["offset"])
    raw_key = None if key is None else key.encode()
    return Record(MemoryMessage(where, raw_key, raw, headers, truth["timestamp"]), shown, truth)


TEXT_FIELDS = ("topic", "key", "type", "tenant", "agent", "run_id", "event_id", "group", "origin.topic", "replay.id")
TEXT_FIELDS += ("error.class", "error.type", "error.message")
NUMBER_FIELDS = ("partition", "offset", "size", "attempt", "hop", "origin.partition", "origin.offset", "replay.count")
TIME_FIELDS = ("timestamp", "origin.timestamp", "first_failed")
HEADERS = ("header.x", 'header."odd name"', "header.absent", "header.pl.event_id", "header.pl.attempt")
PATHS = ("value", "value.s", "value.n", "value.b", "value.list", "value.list.0", "value.list.7", "value.deep.x")
PATHS += ("value.deep.1", 'value."odd name"', "value.s.x", "value.absent", "value.deep")

ORDER = ("<", "<=", ">", ">=")
WORDS = ("contains", "startswith", "endswith", "like")


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f'"{escaped}"' if "'" in text or len(text) % 2 else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    )


def written(kind: str, value: Any) -> str:
    """A literal of the language."""
    if kind == "time":
        seconds, ms = divmod(value, 1_000)
        return f'"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"'
    if kind == "duration":
        return f"{value}ms" if value % 1_000 or not value else f"{value // 1_000}s"
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else str(value)


Node = tuple[Any, ...]


@st.composite
def conditions(draw: Callable[[Any], Any]) -> Node:
    kind = draw(st.sampled_from(["text", "number", "time", "duration", "header", "any", "null", "null"]))
    if kind == "null":
        return (
            "null",
            draw(st.sampled_from(TEXT_FIELDS + NUMBER_FIELDS + TIME_FIELDS + HEADERS + PATHS)),
            draw(st.booleans()),
        )
    fields = {"text": TEXT_FIELDS, "number": NUMBER_FIELDS, "time": TIME_FIELDS, "duration": ("age",)}
    field = draw(st.sampled_from(fields.get(kind, HEADERS if kind == "header" else PATHS)))
    of_kind = {
        "text": st.sampled_from(TYPES) if field == "type" else texts,
        "number": numbers,
        "time": times,
        "duration": st.sampled_from([0, 1, 60_000, 7_200_000]),
        "header": st.one_of(texts, numbers),
        "any": st.one_of(texts, numbers, st.booleans()),
    }
    operators = ["==", "!=", "in", "not in", *ORDER]
    if kind in ("text", "header", "any"):
        operators += [*WORDS, *(f"not {word}" for word in WORDS)]
    op = draw(st.sampled_from(operators))
    plain = op.removeprefix("not ")
    if plain == "in":
        return (op, field, kind, tuple(draw(st.lists(of_kind[kind], min_size=1, max_size=4))))
    if plain in WORDS and not (plain == "contains" and kind == "any"):
        return (op, field, kind, draw(of_kind["text"] if kind == "text" else texts))
    literal = draw(of_kind[kind])
    if op in ORDER and isinstance(literal, bool):
        return ("==", field, kind, literal)
    return (op, field, kind, literal)


trees = st.recursive(
    conditions(),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=4)),
    ),
    max_leaves=8,
)


def render(tree: Node, loose: bool = False) -> str:
    """`loose`: parentheses where the order of `not`, `and`, `or` does not ask for any."""
    op = tree[0]
    if op == "not" and len(tree) == 2:
        inner = render(tree[1], loose)
        return f"not {inner}" if tree[1][0] == "not" and not loose else f"NOT({inner})"
    if op in ("and", "or"):
        parts = []
        for term in tree[1]:
            text = render(term, loose)
            needed = term[0] == "or" if op == "and" else False
            parts.append(f"( {text} )" if needed or loose else text)
        return f" {op} ".join(parts)
    if op == "null":
        return f"{tree[1]} is not null" if tree[2] else f"{tree[1]} is  null"
    _, field, kind, literal = tree
    if op in ("in", "not in"):
        return f"{field} {op} ({','.join(written(kind, each) for each in literal)})"
    symbol = not op[0].isalpha()
    return f"{field}{op}{written(kind, literal)}" if symbol and loose else f"{field} {op} {written(kind, literal)}"


def look_up(record: Record, field: str, literal: Any) -> Any:
    truth = record.truth
    if field == "age":
        return NOW_MS - truth["timestamp"]
    if field == "type" and isinstance(literal, str) and "." not in literal:
        return truth["type"].split(".")[-1]
    if field.startswith("header."):
        name = field.removeprefix("header.").strip('"')
        text = str(truth["attempt"]) if name == "pl.attempt" and "attempt" in truth else truth.get(f"header.{name}")
        if text is not None and isinstance(literal, (int, float)):
            return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None
        return text
    if field.startswith("value"):
        found = truth["value"]
        for part in [part.strip('"') for part in field.split(".")[1:]]:
            if isinstance(found, dict):
                found = found.get(part)
            elif isinstance(found, list) and part.isdigit():
                found = found[int(part)] if int(part) < len(found) else None
            else:
                return None
        return found
    return truth.get(field)


def same_sort(a: Any, b: Any) -> bool:
    sort = {bool: "bool", int: "number", float: "number", str: "text"}
    return sort.get(type(a), "other") == sort[type(b)]


def like(pattern: str, text: str) -> bool:
    """By definition, one character after the other."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(like(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    if not text:
        return False
    if pattern[0] == "\\" and len(pattern) > 1:
        return text[0] == pattern[1] and like(pattern[2:], text[1:])
    return pattern[0] in ("?", text[0]) and like(pattern[1:], text[1:])


def positive(op: str, found: Any, literal: Any) -> bool:
    if op == "contains" and isinstance(found, list):
        return any(same_sort(item, literal) and item == literal for item in found)
    if found is None or not same_sort(found, literal):
        return False
    return {
        "==": lambda: found == literal,
        "<": lambda: found < literal,
        "<=": lambda: found <= literal,
        ">": lambda: found > literal,
        ">=": lambda: found >= literal,
        "contains": lambda: isinstance(found, str) and literal in found,
        "startswith": lambda: found.startswith(literal),
        "endswith": lambda: found.endswith(literal),
        "like": lambda: like(literal, found),
    }[op]()


def naive(tree: Node, record: Record) -> bool:
    op = tree[0]
    if op == "not" and len(tree) == 2:
        return not naive(tree[1], record)
    if op in ("and", "or"):
        return (all if op == "and" else any)([naive(term, record) for term in tree[1]])
    if op == "null":
        return (look_up(record, tree[1], None) is None) is not tree[2]
    _, field, _, literal = tree
    there = look_up(record, field, None) is not None
    if op == "!=":
        return there and not positive("==", look_up(record, field, literal), literal)
    plain = op.removeprefix("not ")
    if plain == "in":
        holds = any(positive("==", look_up(record, field, each), each) for each in literal)
    else:
        holds = positive(plain, look_up(record, field, literal), literal)
    return holds if plain == op else there and not holds


@settings(max_examples=800, deadline=None)
@given(trees, st.booleans(), st.lists(records(), min_size=1, max_size=4))
def test_a_filter_agrees_with_the_naive_evaluator(tree: Node, loose: bool, some: list[Record]) -> None:
    text = render(tree, loose)
    compiled = compile_filter(text, NOW_MS)
    for record in some:
        read: list[str] = []

        def show(message: object, shown: Shown = record.shown, read: list[str] = read) -> Shown:
            read.append("value")
            return shown

        row = MessageRow(record.message, show)
        wanted = naive(tree, record)
        assert compiled.matches(row) is wanted, f"{text!r} on {record.truth}"
        assert compiled.matches(row) is wanted, "the second time is as the first"
        assert len(read) <= 1, "decoded once at most"
        assert compiled.needs.value or not read, "needs said that nothing is decoded"


@settings(max_examples=600, deadline=None)
@given(st.text("ab\n*?\\", max_size=7), st.text("ab\n*?\\", max_size=9))
def test_like_is_what_its_definition_says(pattern: str, text: str) -> None:
    assert glob(pattern)(text) == like(pattern, text)
