"""A filter as SQL over the index: exactly where its columns know the fields, else as much as narrows, and the rest is asked per row.

Each condition is two-valued as in the language: a field that is null makes it false, whatever the operator.
"""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from pipeline.filters.fields import Field, Kind
from pipeline.filters.glob import glob
from pipeline.filters.tree import All, Any_, Compare, IsNull, Node, Not, Value, Within

_COLUMNS: Final = {
    "partition": "(l.id >> 48)",
    "offset": "(l.id & 281474976710655)",
    "timestamp": "nullif(l.ts, -1)",
    "size": "l.size",
    "key": "l.key",
    "tenant": "l.tenant",
    "agent": "l.agent",
    "run_id": "l.run_id",
    "event_id": "l.event_id",
    "attempt": "l.attempt",
    "hop": "l.hop",
    "group": "+l.grp",  # +: not by its index, which has no order by time
    "origin.topic": "l.origin_topic",
    "origin.partition": "l.origin_partition",
    "origin.offset": "l.origin_offset",
    "origin.timestamp": "l.origin_ts",
    "replay.id": "l.replay_id",
    "replay.count": "l.replay_count",
    "error.class": "e.class",
    "error.type": "e.type",
    "error.message": "l.message",
    "first_failed": "l.first_failed",
}
_SIGNS: Final = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_IN_PYTHON: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "contains": operator.contains,
    "startswith": str.startswith,
    "endswith": str.endswith,
    "like": lambda text, pattern: glob(pattern)(text),
}
INTEGER_MAX = 2**63 - 1
STARS_MAX = 2
TYPES_MAX = 10_000
CHAIN_MAX = 16
TERMS_MAX = 500
"""A list longer than this is asked per row: SQLite bounds the number of its parameters."""


class Sql(NamedTuple):
    """A condition on `letters l JOIN errors e`. `exact`: it says what the filter says; else it lets through all that match, and more."""

    text: str
    parameters: tuple[Value | None, ...] = ()
    exact: bool = True


ALL = Sql("1")
_EVERYTHING = Sql("1", (), exact=False)


class Translator:
    """For one index: it knows the types in it. `topic` is the dead-letter topic, `now_ms` what `age` counts from."""

    def __init__(self, db: sqlite3.Connection, topic: str, now_ms: int) -> None:
        self._topic = topic
        self._now_ms = now_ms
        self._types = [(int(number), str(name)) for number, name in db.execute("SELECT id, name FROM types")]
        db.create_function("pl_like", 2, _like, deterministic=True)

    def sql(self, node: Node) -> Sql:
        if isinstance(node, All):
            return self._all([self.sql(term) for term in node.terms])
        if isinstance(node, Any_):
            return _any([self.sql(term) for term in node.terms])
        if isinstance(node, Not):
            inner = self.sql(node.term)
            return Sql(f"NOT ({inner.text})", inner.parameters) if inner.exact else _EVERYTHING
        if isinstance(node, IsNull):
            return self._null(node)
        return self._within(node) if isinstance(node, Within) else self._compare(node)

    @staticmethod
    def _all(terms: Sequence[Sql]) -> Sql:
        kept = [term for term in terms if term.text != "1" or term.exact]
        text = joined([term.text for term in kept], "AND") or "1"
        return Sql(text, tuple(p for term in kept for p in term.parameters), all(term.exact for term in terms))

    def _null(self, node: IsNull) -> Sql:
        name = node.field.name
        if name in ("topic", "type"):
            return Sql("1" if node.negated else "0")
        column = _COLUMNS.get("timestamp" if name == "age" else name)
        if column is None or node.field.kind in (Kind.HEADER, Kind.ANY):
            return _EVERYTHING
        return Sql(f"{column} IS {'NOT ' if node.negated else ''}NULL")

    def _compare(self, node: Compare) -> Sql:
        positive = self._positive(node.field, node.op, node.value)
        if positive is None:
            return _EVERYTHING
        return self._negative(node.field, positive) if node.negated else positive

    def _within(self, node: Within) -> Sql:
        if len(node.values) > TERMS_MAX:
            return _EVERYTHING
        terms = [self._positive(node.field, "==", value) for value in node.values]
        if any(term is None for term in terms):
            return _EVERYTHING
        found = _any([term for term in terms if term is not None])
        return self._negative(node.field, found) if node.negated else found

    def _negative(self, field: Field, positive: Sql) -> Sql:
        if field.name in ("topic", "type"):
            return Sql(f"NOT ({positive.text})", positive.parameters)
        column = _COLUMNS["timestamp" if field.name == "age" else field.name]
        return Sql(f"NOT ({positive.text}) AND {column} IS NOT NULL", positive.parameters)

    def _positive(self, field: Field, op: str, value: Value) -> Sql | None:
        """Two-valued; None where the index can't say."""
        name = field.name
        if field.kind in (Kind.HEADER, Kind.ANY) or _beyond(value):
            return None
        if name == "topic":
            return Sql("1" if _IN_PYTHON[op](self._topic, value) else "0")
        if name == "type":
            return self._type(op, str(value))
        if name == "age":
            shifted = f"(? - {_COLUMNS['timestamp']})"
            return Sql(f"ifnull({shifted} {_SIGNS[op]} ?, 0)", (self._now_ms, value)) if op in _SIGNS else None
        column = _COLUMNS.get(name)
        if column is None:
            return None
        if op in _SIGNS:
            return Sql(f"{column} IS NOT NULL AND {column} {_SIGNS[op]} ?", (value,))
        return _of_text(column, op, str(value))

    def _type(self, op: str, value: str) -> Sql | None:
        """There are few types (unless somebody makes them up): which of them fit is decided here."""
        test, short = _IN_PYTHON[op], "." not in value
        fitting = [n for n, name in self._types if test(name.rpartition(".")[2] if short else name, value)]
        return Sql(f"l.type IN ({', '.join(map(str, fitting))})") if len(fitting) <= TYPES_MAX else None


def joined(texts: Sequence[str], word: str) -> str:
    """All of them with AND or OR between, in halves of halves: SQLite bounds how deep an expression is, not how long."""
    if len(texts) <= CHAIN_MAX:
        return f" {word} ".join(f"({text})" for text in texts)
    half = len(texts) // 2
    return f"({joined(texts[:half], word)}) {word} ({joined(texts[half:], word)})"


def _any(terms: Sequence[Sql]) -> Sql:
    if not all(term.exact for term in terms) and any(term.text == "1" for term in terms):
        return _EVERYTHING
    text = joined([term.text for term in terms], "OR") or "0"
    return Sql(text, tuple(p for term in terms for p in term.parameters), all(term.exact for term in terms))


def _beyond(value: Value) -> bool:
    """A number that SQLite does not hold, or text that it does not take."""
    if isinstance(value, str):
        return not value.isascii() and value.encode("utf-8", "replace").decode() != value
    return isinstance(value, int) and abs(value) > INTEGER_MAX


def _like(text: str | None, pattern: str) -> bool:
    return text is not None and glob(pattern)(text)


def _of_pattern(column: str, pattern: str) -> Sql:
    """SQLite's GLOB is many times quicker than a call for each row, but tries again and again for each star, and ends at a NUL."""
    translated, stars = _glob(pattern)
    if stars > STARS_MAX:
        return Sql(f"pl_like({column}, ?)", (pattern,))
    quick = f"CASE WHEN instr({column}, char(0)) > 0 THEN pl_like({column}, ?) ELSE {column} GLOB ? END"
    return Sql(f"ifnull({quick}, 0)", (pattern, translated))


def _glob(pattern: str) -> tuple[str, int]:
    """(the pattern as GLOB has it, how many stars)."""
    made, stars = [], 0
    characters = iter(pattern)
    for char in characters:
        if char in "*?":
            made.append(char)
            stars += char == "*"
            continue
        plain = next(characters, char) if char == "\\" else char
        made.append(f"[{plain}]" if plain in "*?[" else plain)
    return "".join(made), stars


def _of_text(column: str, op: str, value: str) -> Sql:
    """Text with a NUL in it is cut short by some of SQLite's functions: those are not used here."""
    if op == "like":
        return _of_pattern(column, value)
    if not value:
        return Sql(f"{column} IS NOT NULL")
    if op == "contains":
        return Sql(f"ifnull(instr({column}, ?), 0) > 0", (value,))
    if op == "startswith":
        return Sql(f"ifnull(instr({column}, ?), 0) = 1", (value,))
    size = len(value.encode())
    return Sql(f"ifnull(substr(CAST({column} AS BLOB), {-size}) = CAST(? AS BLOB), 0)", (value,))
