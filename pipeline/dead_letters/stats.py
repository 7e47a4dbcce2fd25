"""What the dead letters have in common: counted by normalised error, type, tenant and age; and which of them expire soon."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.dead_letters.query import FROM, Query
from pipeline.dead_letters.states import STATES, State, position_of
from pipeline.model.durations import format_duration

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
AGES: tuple[tuple[str, int], ...] = (
    ("under 10 minutes", 10 * MINUTE),
    ("under 1 hour", HOUR),
    ("under 6 hours", 6 * HOUR),
    ("under 1 day", DAY),
    ("under 3 days", 3 * DAY),
    ("under 7 days", 7 * DAY),
    ("under 14 days", 14 * DAY),
)
OLDER = "14 days and older"
EXPIRY_SHARE = 0.8
"""Of the retention: from then on the dead letters that are still open are an alarm."""
EXPIRY_NOTICE_MS = 2 * DAY
"""The alarm comes so long before the end at least, where retention is longer than twice that."""


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters with something in common. `sample` is the newest of them; times are milliseconds, -1 where not known."""

    name: str
    count: int
    oldest_ms: int
    newest_ms: int
    sample: str
    error_class: str | None = None
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """`total` and the groups count what was asked for; `states` everything in the index (of the group, when one is asked for)."""

    total: int
    states: dict[State, int]
    errors: tuple[Group, ...]
    types: tuple[Group, ...]
    tenants: tuple[Group, ...]
    ages: tuple[Group, ...]
    oldest_ms: int | None
    newest_ms: int | None


def stats(db: sqlite3.Connection, query: Query, now_ms: int, top: int = 20) -> Stats:
    """The most frequent `top` of each kind. The query must be exact.

    Everything is read twice, once along each index: by what the groups have in common, which is then added up, and by time.
    """
    condition, parameters, source = query.condition.text, query.condition.parameters, _source(query)
    db.execute("DROP TABLE IF EXISTS temp.counted")
    db.execute(
        "CREATE TEMP TABLE counted AS SELECT l.error, l.type, l.tenant, count(*) n, min(l.ts) oldest, max(l.ts) newest, max(l.id) last "
        f"FROM {source} WHERE {condition} GROUP BY 1, 2, 3",
        parameters,
    )

    def grouped(what: str) -> list[tuple[object, int, int, int, int]]:
        statement = (
            f"SELECT {what}, sum(n) n, min(oldest), max(newest), max(last) FROM counted "
            "GROUP BY 1 ORDER BY n DESC, 1 LIMIT ?"
        )
        return list(db.execute(statement, (top,)))

    group = query.wanted.group
    mine, of = ("WHERE grp = ?", (group,)) if group else ("", ())
    rows = db.execute(f"SELECT state, count(*) FROM letters {mine} GROUP BY state", of)
    states = {STATES[n]: count for n, count in rows}
    total, oldest, newest = db.execute("SELECT total(n), min(oldest), max(newest) FROM counted").fetchone()
    names = dict(db.execute("SELECT id, name FROM types").fetchall())
    return Stats(
        total=int(total),
        states=states,
        errors=tuple(_error(db, row) for row in grouped("error")),
        types=_groups(grouped("type"), lambda n: names.get(n, "?")),
        tenants=_groups(grouped("tenant"), lambda tenant: "(none)" if tenant is None else str(tenant)),
        ages=_by_age(db, query, now_ms),
        oldest_ms=oldest,
        newest_ms=newest,
    )


def _place(number: int) -> str:
    return "{}:{}".format(*position_of(number))


def _groups(rows: Sequence[tuple[object, int, int, int, int]], name: Callable[[object], str]) -> tuple[Group, ...]:
    return tuple(Group(name(row[0]), row[1], row[2], row[3], _place(row[4])) for row in rows)


def _error(db: sqlite3.Connection, row: tuple[object, int, int, int, int]) -> Group:
    found = db.execute("SELECT class, type, folded FROM errors WHERE id = ?", (row[0],)).fetchone()
    error_class, error_type, folded = found or (None, None, "")
    return Group(folded or "(no message)", row[1], row[2], row[3], _place(row[4]), error_class, error_type)


def _source(query: Query) -> str:
    """SQLite joins what a count does not need, for every row of it: only what the condition names is joined."""
    return FROM if re.search(r"\b[et]\.", query.condition.text) else "letters l"


def _by_age(db: sqlite3.Connection, query: Query, now_ms: int) -> tuple[Group, ...]:
    """One range of the index by time after the other: grouping by an expression would sort every row."""
    edges = [None, *(now_ms - limit for _, limit in AGES), None]
    parts: list[str] = []
    parameters: list[object] = []
    for index, (before, after) in enumerate(pairwise(edges)):
        within = [f"l.ts <= {before}"] * (before is not None) + [f"l.ts > {after}"] * (after is not None)
        parts.append(
            f"SELECT {index} age, count(*) n, min(l.ts), max(l.ts), max(l.id) FROM {_source(query)} "
            f"WHERE {' AND '.join([query.condition.text, *within])}"
        )
        parameters += query.condition.parameters
    rows = [row for row in db.execute(" UNION ALL ".join(parts), parameters) if row[1]]
    return tuple(
        Group(AGES[row[0]][0] if row[0] < len(AGES) else OLDER, row[1], row[2], row[3], _place(row[4])) for row in rows
    )


@dataclass(frozen=True, slots=True)
class Expiry:
    """Open dead letters that retention deletes soon. `left_ms`: until the oldest goes; below zero it may be gone any moment."""

    topic: str
    soon: int
    left_ms: int
    retention_ms: int

    @property
    def sentence(self) -> str:
        when = f"in {format_duration(max(1_000, self.left_ms // 1_000 * 1_000))}" if self.left_ms > 0 else "any moment"
        return (
            f"{self.soon} open dead letters in {self.topic} are near the end of their retention "
            f"(retention.ms={self.retention_ms}); the oldest is deleted {when}: redrive or export them, or raise retention.ms "
            "(also that of _pipeline.replay.results, which says what was done to them)"
        )


def expiry(db: sqlite3.Connection, topic: str, retention_ms: int, now_ms: int) -> Expiry | None:
    """The alarm, when open dead letters come near their end; None where there is none, or nothing is ever deleted."""
    if retention_ms < 0:
        return None
    notice = int(retention_ms * (1 - EXPIRY_SHARE))
    if retention_ms > 2 * EXPIRY_NOTICE_MS:
        notice = max(notice, EXPIRY_NOTICE_MS)
    before = now_ms - retention_ms + notice
    statement = "SELECT count(*), min(ts) FROM letters WHERE state = 0 AND ts >= 0 AND ts < ?"
    count, oldest = db.execute(statement, (before,)).fetchone()
    return Expiry(topic, count, oldest + retention_ms - now_ms, retention_ms) if count else None
