"""The index and the filter language say the same: columns mean what fields mean, and SQL answers as the evaluator does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bench.synthetic_letters import (
    DLQ,
    RESULTS,
    SOURCE,
    START_MS,
    SyntheticCluster,
    registered,
    tool_call,
)
from pipeline.dead_letters.ingest import Ingest
from pipeline.dead_letters.query import Query, Wanted
from pipeline.dead_letters.states import id_of, position_of
from pipeline.dead_letters.store import Store
from pipeline.dead_letters.translate import _COLUMNS
from pipeline.dead_letters.values import Values
from pipeline.filters import MessageRow, compile_filter
from pipeline.filters.fields import FIELDS
from pipeline.memory.log import MemoryMessage
from pipeline.model.cluster import Headers

NOW = START_MS + 100_000
ROWS = 400
WORDS = [
    "",
    "a",
    "acme",
    "Acme",
    "a*b",
    "a?b",
    "[x]",
    "x\0y",
    "ü",
    "日本",
    "run-1",
    "run-10",
    "%",
    "_",
    "0xff",
    "ToolCall",
    "é" * 3,
    "\\",
]
NUMBERS = [0, 1, 2, 3, 5, 10, 1_000, START_MS, START_MS + 5, 2**63 - 1]
CODEC = registered()


def _header(chance: random.Random, name: str, values: list[bytes]) -> Headers:
    return [(name, chance.choice(values))] if chance.random() < 0.7 else []


def message_of(chance: random.Random, partition: int, offset: int) -> MemoryMessage:
    """As hostile as records get: headers missing, doubled, of the wrong kind; values of every kind."""
    texts = [word.encode() for word in WORDS] + [b"\xff\xfe", b"\x80"]
    numbers = [str(number).encode() for number in NUMBERS] + [b"-1", b"x", b"", b"99999999999999999999", b" 1"]
    headers: Headers = []
    for name in (
        "pl.event_id",
        "pl.group",
        "pl.origin.topic",
        "pl.replay.id",
        "pl.error.class",
        "pl.error.type",
        "ce_id",
    ):
        headers += _header(chance, name, texts)
    headers += _header(chance, "pl.error.message", [*texts, b"model call 7 of 'x' failed", b"a\0b*"])
    for name in (
        "pl.attempt", "pl.hop", "pl.origin.partition", "pl.origin.offset", "pl.origin.timestamp", "pl.replay.count", "pl.first_failed",
    ):  # fmt: skip
        headers += _header(chance, name, numbers)
    if chance.random() < 0.3:
        headers += _header(chance, "ce_type", [b"agent.run.ToolCall", b"other.Type", b"ToolCall", b""])
        for name in ("ce_tenant", "ce_agent", "ce_subject"):
            headers += _header(chance, name, texts)
    if chance.random() < 0.1:
        headers.append(("pl.attempt", None))
    chance.shuffle(headers)
    avro = tool_call(CODEC, chance.choice(["run-1", "run-10", "x"]), 1, chance.choice(["acme", "Acme", "ü"]))
    if chance.random() < 0.3:
        headers = [*headers, ("pl.schema", CODEC.fingerprint(SOURCE, avro).encode())]
        value: bytes | None = avro
    else:
        value = chance.choice(
            [
                None,
                b"",
                b"{}",
                b'{"tenant":"acme","run_id":"a","agent":3}',
                b'{"tenant":"x\\u0000y"}',
                b"text",
                b"\x80",
                b"[1]",
                b"\x00\x00\x00\x00\x09zz",
            ]
        )
    key = chance.choice([None, b"", *texts])
    return MemoryMessage(
        (DLQ, partition, offset), key, value, headers or None, chance.choice([START_MS, START_MS + offset, 1])
    )


def filled(seed: int) -> tuple[Store, list[MemoryMessage], Values]:
    chance = random.Random(seed)
    made = {(p, o): message_of(chance, p, o) for p in range(2) for o in range(ROWS // 2)}
    cluster = SyntheticCluster(lambda p, o: made[p, o], [ROWS // 2] * 2)
    store, values = Store(None), Values(CODEC)
    assert Ingest(store, cluster, DLQ, RESULTS, values).run().read == ROWS  # type: ignore[arg-type]
    return store, list(made.values()), values


def _term(chance: random.Random) -> str:
    name = chance.choice([*FIELDS, "header.pl.group", "header.pl.attempt", "value.tenant", "value.run_id"])
    if chance.random() < 0.15:
        return f"{name} is {chance.choice(['', 'not '])}null"
    kind = FIELDS[name].kind.name if name in FIELDS else "HEADER" if name.startswith("header") else "ANY"
    no = chance.choice(["", "", "not "])
    if kind in ("TEXT", "HEADER", "ANY"):
        word = '"' + chance.choice([w for w in WORDS if "\0" not in w]).replace("\\", "\\\\").replace('"', '\\"') + '"'
        if chance.random() < 0.2:
            return f'{name} {no}in ({word}, "acme", "b")'
        operator = chance.choice(["==", "!=", "<", ">=", "contains", "startswith", "endswith", "like"])
        if operator == "like":
            word = (
                '"'
                + chance.choice(
                    ["*", "a*", "*a*", "?", "a?b", "*[x]*", "\\\\*", "*run*", "*a*b*c*", "", "ToolCall", "x*y"]
                )
                + '"'
            )
        return f"{name} {no if operator in ('contains', 'startswith', 'endswith', 'like') else ''}{operator} {word}"
    operator = chance.choice(["==", "!=", "<", "<=", ">", ">="])
    if kind == "DURATION":
        return f"{name} {operator} {chance.choice(['1s', '99s', '100s', '2h', '0ms'])}"
    if kind == "TIME":
        return f"{name} {operator} {chance.choice(['1', str(START_MS), str(START_MS + 50)])}"
    if chance.random() < 0.2:
        return f"{name} {no}in (1, 2, 3.5)"
    return f"{name} {operator} {chance.choice(['0', '1', '3', '2.5', str(2**63 - 1), '1000'])}"


def _filter(chance: random.Random, depth: int = 2) -> str:
    if depth == 0 or chance.random() < 0.3:
        return _term(chance)
    kind = chance.choice(["and", "or", "not"])
    if kind == "not":
        return f"not ({_filter(chance, depth - 1)})"
    return f" {kind} ".join(f"({_filter(chance, depth - 1)})" for _ in range(chance.randint(2, 3)))


def _by_evaluator(text: str, messages: list[MemoryMessage], values: Values) -> set[tuple[int, int]]:
    matches = compile_filter(text, NOW).matches
    return {(m.partition(), m.offset()) for m in messages if matches(MessageRow(m, values.show))}  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_sql_says_what_the_evaluator_says(seed: int) -> None:
    store, messages, values = filled(seed)
    chance = random.Random(seed)
    exact = some = 0
    for _ in range(250):
        text = _filter(chance)
        query = Query(store.db, DLQ, Wanted(where=compile_filter(text, NOW)))
        found = {position_of(number) for number in query.ids()}
        wanted = _by_evaluator(text, messages, values)
        if query.exact:
            assert found == wanted, f"seed {seed}: {text}: {sorted(found ^ wanted)[:5]}"
            exact += 1
            some += bool(wanted) and len(wanted) < ROWS
        else:
            assert wanted <= found, f"seed {seed}: {text} loses {sorted(wanted - found)[:5]}"
    assert exact > 100
    assert some > 50, "most of the filters say nothing: the test proves little"


@pytest.mark.parametrize("name", sorted(set(FIELDS) - {"topic", "age"}))
def test_every_field_of_the_language_is_a_column_that_means_the_same(name: str) -> None:
    store, messages, values = filled(11)
    column = _COLUMNS.get(name, "t.name")
    statement = f"SELECT l.id, {column} FROM letters l JOIN errors e ON e.id = l.error JOIN types t ON t.id = l.type"
    found: dict[int, Any] = dict(store.db.execute(statement).fetchall())
    for message in messages:
        meant = FIELDS[name].get(MessageRow(message, values.show))  # type: ignore[arg-type]
        if isinstance(meant, int):
            meant = min(meant, 2**63 - 1)
        assert found[id_of(message.partition(), message.offset())] == meant, (name, message.headers(), message.value())


@pytest.mark.parametrize("few", [1, 7, 10_000])
def test_pages_hold_what_matches_whether_it_is_much_or_little(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dead_letters.query.FEW", few)
    store, messages, values = filled(5)
    chance = random.Random(5)
    for _ in range(60):
        text = _filter(chance)
        query = Query(store.db, DLQ, Wanted(where=compile_filter(text, NOW)))
        if not query.exact:
            continue
        found, cursor = [], ""
        while True:
            page = query.page(9, cursor)
            found += [(letter.died_ms, letter.partition, letter.offset) for letter in page.letters]
            cursor = page.cursor
            if not cursor:
                break
        assert found == sorted(found, reverse=True), text
        assert {place[1:] for place in found} == _by_evaluator(text, messages, values), text
        assert len(found) == len(set(found)), text


def test_what_only_records_say_narrows_and_what_the_index_says_does_not_need_them() -> None:
    store, _, _ = filled(3)

    def exact(text: str) -> bool:
        return Query(store.db, DLQ, Wanted(where=compile_filter(text, NOW))).exact

    assert exact('error.class == "x" and attempt >= 3')
    assert not exact('value.tenant == "acme"')
    assert not exact("header.traceparent is null or attempt > 1")
    query = Query(store.db, DLQ, Wanted(where=compile_filter('value.tenant == "acme" and attempt == 3', NOW)))
    assert 0 < query.count() < ROWS, "the index narrows what the records are asked for"


def test_a_filter_of_many_terms_is_no_deeper_than_sqlite_reads() -> None:
    store, messages, values = filled(3)
    for word, sign in (("or", "=="), ("and", "!=")):
        text = f" {word} ".join(f"hop {sign} {n}" for n in range(3, 2_500))
        query = Query(store.db, DLQ, Wanted(where=compile_filter(text, NOW)))
        assert {position_of(n) for n in query.ids()} == _by_evaluator(text, messages, values)


@pytest.mark.parametrize(
    "asked",
    [{"text": "\udcff"}, {"keys": ("\udcff",)}, {"error": "\udcff"}, {"group": "\udcff"}, {"tenants": ("a\udcff",)}],
)
def test_text_that_the_shell_could_not_read_is_in_no_letter(asked: dict[str, Any]) -> None:
    store, _, _ = filled(3)
    assert Query(store.db, DLQ, Wanted(**asked)).count() == 0
    mixed = Query(store.db, DLQ, Wanted(event_ids=("e\udcff", *_some_ids(store))))
    assert mixed.count() >= 1


def _some_ids(store: Store) -> list[str]:
    return [store.db.execute("SELECT event_id FROM letters WHERE event_id IS NOT NULL").fetchone()[0]]


def test_a_position_that_can_not_be_is_no_letter_of_another_partition() -> None:
    store, _, _ = filled(3)
    there = (1, 5)
    beyond = (0, (1 << 48) + 5)
    assert Query(store.db, DLQ, Wanted(positions=(beyond, (10**9, 0), (0, -1)))).count() == 0
    assert Query(store.db, DLQ, Wanted(positions=(beyond, there))).count() == 1
