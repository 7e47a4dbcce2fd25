"""Asking an index: which dead letters, newest first, a page at a time. A cursor stays good while others come and go."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any

from pipeline.dead_letters.letter import storable
from pipeline.dead_letters.states import STATES, State, id_of, is_position, number_of, position_of
from pipeline.dead_letters.translate import ALL, Sql, Translator, joined
from pipeline.filters import Filter
from pipeline.model.errors import ConfigurationError

PAGE_MAX = 10_000
FEW = 2_000
_CHUNK = 400
"""Values in one IN list."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters; empty fields ask for all. Times are milliseconds: from_ms <= died < to_ms. `text` is looked for in the
    error message, the key and the ids. Several fields: all of them hold; several values of one: any of them.
    """

    states: tuple[State, ...] = ()
    group: str = ""
    positions: tuple[tuple[int, int], ...] = ()
    event_ids: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    run_ids: tuple[str, ...] = ()
    error_classes: tuple[str, ...] = ()
    error_types: tuple[str, ...] = ()
    error: str = ""
    """A folded error text, as `stats` shows it."""
    from_ms: int | None = None
    to_ms: int | None = None
    text: str = ""
    where: Filter | None = None

    @property
    def everything(self) -> bool:
        """Nothing is asked for but a state and a group."""
        empty = Wanted(states=self.states, group=self.group)
        return all(getattr(self, f.name) == getattr(empty, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as the index knows it. Times are milliseconds since the epoch; -1 or None: not known."""

    partition: int
    offset: int
    state: State
    died_ms: int
    key: str | None
    type: str
    tenant: str | None
    agent: str | None
    run_id: str | None
    event_id: str | None
    attempt: int | None
    error_class: str | None
    error_type: str | None
    message: str | None
    folded: str
    group: str | None
    origin_topic: str | None
    origin_partition: int | None
    origin_offset: int | None
    first_failed_ms: int | None
    replay_id: str | None
    replay_count: int
    edited_from: tuple[int, int] | None
    size_bytes: int

    @property
    def position(self) -> str:
        return f"{self.partition}:{self.offset}"


_SELECT = (
    "l.id, l.state, l.ts, l.key, t.name, l.tenant, l.agent, l.run_id, l.event_id, l.attempt, e.class, e.type, l.message, "
    "e.folded, l.grp, l.origin_topic, l.origin_partition, l.origin_offset, l.first_failed, l.replay_id, l.replay_count, "
    "l.edited_from, l.size"
)
_FROM = "letters l LEFT JOIN errors e ON e.id = l.error LEFT JOIN types t ON t.id = l.type"


@dataclass(frozen=True, slots=True)
class Page:
    """`cursor`: what the next page begins after, "" when this was the last."""

    letters: tuple[Letter, ...]
    cursor: str


def _letter(row: tuple[Any, ...]) -> Letter:
    partition, offset = position_of(row[0])
    edited = None if row[21] is None else position_of(row[21])
    return Letter(*(partition, offset, STATES[row[1]], *row[2:21], edited, row[22]))


class Query:
    """One question to one index. `exact`: SQL alone answers it; else `rows` are candidates for `wanted.where`."""

    def __init__(self, db: sqlite3.Connection, topic: str, wanted: Wanted, only: str = "1") -> None:
        """`only`: one more condition, in SQL."""
        self._db = db
        self.wanted = wanted
        where = ALL
        if wanted.where is not None:
            where = Translator(db, topic, wanted.where.now_ms).sql(wanted.where.tree)
        self.exact = where.exact
        self._where = _conjunction([*_conditions(wanted, self._types(wanted.types)), where, Sql(only)])

    def _types(self, names: Collection[str]) -> list[int]:
        """Numbers of the types that are asked for, by their full or their last name."""
        rows = self._db.execute("SELECT id, name FROM types").fetchall() if names else []
        return [number for number, name in rows if name in names or name.rpartition(".")[2] in names]

    def page(self, limit: int, cursor: str = "") -> Page:
        """Newest first; only when `exact`. Raises `ConfigurationError` for a cursor that is none of ours."""
        rows = list(self._newest(limit + 1, cursor))
        more = len(rows) > limit
        letters = tuple(_letter(row) for row in rows[:limit])
        return Page(letters, cursor_of(letters[-1]) if more and letters else "")

    def chunk(self, limit: int, cursor: str = "") -> list[Letter]:
        """The next candidates, newest first."""
        return [_letter(row) for row in self._newest(limit, cursor)]

    def _newest(self, limit: int, cursor: str) -> Iterator[tuple[Any, ...]]:
        text, parameters = self._where.text, list(self._where.parameters)
        if cursor:
            ts, number = parse_cursor(cursor)
            text, parameters = f"{text} AND (l.ts, l.id) < (?, ?)", [*parameters, ts, number]
        few = None if self.wanted.everything else self._few(text, parameters, limit)
        if few is not None:
            text, parameters = f"l.id IN ({', '.join(map(str, few))})", []
        statement = f"SELECT {_SELECT} FROM {_FROM} WHERE {text} ORDER BY l.ts DESC, l.id DESC LIMIT ?"
        return self._db.execute(statement, (*parameters, limit))

    def _few(self, text: str, parameters: list[Any], limit: int) -> list[int] | None:
        """All that match, when they are few; None when they are many.

        A walk in the order of time is quick when many match. When few do, it looks at everything, at four times the cost of
        a walk in the order of the table: so that is tried first.
        """
        many = max(FEW, limit)
        table = _FROM.replace("letters l", "letters l NOT INDEXED", 1)
        rows = self._db.execute(f"SELECT l.id FROM {table} WHERE {text} LIMIT ?", (*parameters, many))
        found = [row[0] for row in rows]
        return found if len(found) < many else None

    def ids(self) -> Iterator[int]:
        """Positions as numbers, by partition and offset."""
        statement = f"SELECT l.id FROM {_FROM} WHERE {self._where.text} ORDER BY l.id"
        for (number,) in self._db.execute(statement, self._where.parameters):
            yield number

    def count(self) -> int:
        statement = f"SELECT count(*) FROM {_FROM} WHERE {self._where.text}"
        return int(self._db.execute(statement, self._where.parameters).fetchone()[0])

    @property
    def condition(self) -> Sql:
        """For statements of others over `FROM`."""
        return self._where


FROM = _FROM


def letters_at(db: sqlite3.Connection, numbers: Collection[int]) -> dict[int, Letter]:
    """The letters at these positions, as far as they are known."""
    found: dict[int, Letter] = {}
    every = list(numbers)
    for at in range(0, len(every), _CHUNK):
        part = every[at : at + _CHUNK]
        statement = f"SELECT {_SELECT} FROM {_FROM} WHERE l.id IN ({', '.join('?' * len(part))})"
        found |= {row[0]: _letter(row) for row in db.execute(statement, part)}
    return found


def cursor_of(letter: Letter) -> str:
    """Where a page that ends with this letter ends."""
    return f"{letter.died_ms}-{letter.partition}-{letter.offset}" if letter.died_ms >= 0 else f"x-{letter.position}"


def parse_cursor(cursor: str) -> tuple[int, int]:
    """(time, position as a number)."""
    parts = cursor.removeprefix("x-").replace(":", "-").split("-")
    if cursor.startswith("x-"):
        parts.insert(0, "0")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise ConfigurationError(f"--after {cursor[:60]!r} is no cursor: take it from the end of the page before")
    time_ms, partition, offset = map(int, parts)
    return (-1 if cursor.startswith("x-") else time_ms), id_of(partition, offset) & (2**63 - 1)


def _conditions(wanted: Wanted, types: Collection[int]) -> Iterator[Sql]:
    if wanted.states:
        numbers = ", ".join(str(number_of(state)) for state in wanted.states)
        yield Sql(f"l.state IN ({numbers})")
    if wanted.group:
        yield Sql("+l.grp = ?", (_asked(wanted.group),))  # + : not by its index, which has no order by time
    if wanted.positions:
        numbers = ", ".join(str(id_of(*position)) for position in wanted.positions if is_position(*position))
        yield Sql(f"l.id IN ({numbers})")
    if wanted.types:
        yield Sql(f"l.type IN ({', '.join(map(str, types))})")
    for column, values in (
        ("l.event_id", wanted.event_ids),
        ("l.key", wanted.keys),
        ("l.tenant", wanted.tenants),
        ("l.run_id", wanted.run_ids),
        ("e.class", wanted.error_classes),
        ("e.type", wanted.error_types),
    ):
        if values:
            yield Sql(f"{column} IN ({', '.join('?' * len(values))})", tuple(map(_asked, values)))
    if wanted.error:
        yield Sql("e.folded = ?", (_asked(wanted.error),))
    if wanted.from_ms is not None:
        yield Sql("l.ts >= ?", (wanted.from_ms,))
    if wanted.to_ms is not None:
        yield Sql("l.ts < ?", (wanted.to_ms,))
    if wanted.text:
        columns = ("l.message", "l.key", "l.event_id", "l.run_id", "e.type", "e.class")
        either = " OR ".join(f"instr({column}, ?) > 0" for column in columns)
        yield Sql(either, (_asked(wanted.text),) * len(columns))


def _asked(text: str) -> str | None:
    """What somebody asks for, as SQLite takes it. None, which nothing equals: it is no text, so no letter has it."""
    return text if storable(text) == text else None


def _conjunction(terms: Collection[Sql]) -> Sql:
    text = joined([term.text for term in terms if term.text != "1"], "AND") or "1"
    return Sql(text, tuple(value for term in terms for value in term.parameters))
