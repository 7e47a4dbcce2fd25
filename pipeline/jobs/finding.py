"""Asking the index of a queue: which jobs, newest first, a page at a time; one of them; the schedules."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from pipeline.jobs.rows import COLUMNS, DUPLICATE, TAG_MARK, JobRow, ScheduleRow
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_states import TERMINAL, JobState

PAGE_MAX = 10_000
STATES = (*(state.value for state in JobState), DUPLICATE)
UNFINISHED = tuple(state.value for state in JobState if state not in TERMINAL)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM jobs"
_MARK = "."


@dataclass(frozen=True, slots=True)
class WantedJobs:
    """Which jobs; empty fields ask for all. Several fields: all of them hold; several values of one: any of them.

    Times are milliseconds: from_ms <= created < to_ms. `text` is looked for in id, key, error and reason.
    """

    states: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    workflows: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    error_classes: tuple[str, ...] = ()
    from_ms: int | None = None
    to_ms: int | None = None
    text: str = ""

    def conditions(self) -> tuple[list[str], list[object]]:
        """In SQL, and the values for it. Raises ConfigurationError for a state that there is not."""
        for state in self.states:
            if state not in STATES:
                raise ConfigurationError(f"state={state!r:.40} must be one of {', '.join(STATES)}")
        parts: list[str] = []
        values: list[object] = []
        for column, wanted in (
            ("state", self.states), ("type", self.types), ("tenant", self.tenants), ("key", self.keys),
            ("workflow_id", self.workflows), ("schedule", self.schedules), ("error_class", self.error_classes),
        ):  # fmt: skip
            if wanted:
                parts.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += wanted
        for tag in self.tags:
            parts.append("instr(tags, ?)")
            values.append(TAG_MARK + tag + TAG_MARK)
        for comparison, at_ms in ((">=", self.from_ms), ("<", self.to_ms)):
            if at_ms is not None:
                parts.append(f"created_ms {comparison} ?")
                values.append(at_ms)
        if self.text:
            columns = ("id", "key", "message", "reason")
            parts.append(f"({' OR '.join(f'instr({column}, ?)' for column in columns)})")
            values += [self.text] * len(columns)
        return parts, values


@dataclass(frozen=True, slots=True)
class JobPage:
    """`cursor`: what the next page begins after, "" when this was the last."""

    jobs: tuple[JobRow, ...]
    cursor: str


def page(db: sqlite3.Connection, wanted: WantedJobs, limit: int = 50, after: str = "") -> JobPage:
    """Newest first. Raises ConfigurationError."""
    if not 1 <= limit <= PAGE_MAX:
        raise ConfigurationError(f"limit={limit} must be from 1 to {PAGE_MAX}")
    parts, values = wanted.conditions()
    if after:
        created, _, job_id = after.partition(_MARK)
        if not (created.isascii() and created.isdigit() and len(created) < 19 and job_id):
            raise ConfigurationError(f"after={after!r:.80} is no cursor: give the one that the last page ended with")
        parts.append("(created_ms, id) < (?, ?)")
        values += [int(created), job_id]
    where = f" WHERE {' AND '.join(parts)}" if parts else ""
    question = f"{_SELECT}{where} ORDER BY created_ms DESC, id DESC LIMIT ?"
    found = [_row(row) for row in db.execute(question, [*values, limit + 1])]
    shown = tuple(found[:limit])
    return JobPage(shown, f"{shown[-1].created_ms}{_MARK}{shown[-1].id}" if len(found) > limit else "")


def count(db: sqlite3.Connection, wanted: WantedJobs) -> int:
    parts, values = wanted.conditions()
    where = f" WHERE {' AND '.join(parts)}" if parts else ""
    return int(db.execute(f"SELECT count(*) FROM jobs{where}", values).fetchone()[0])


def job(db: sqlite3.Connection, job_id: str) -> JobRow | None:
    found = db.execute(f"{_SELECT} WHERE id = ?", (job_id,)).fetchone()
    return None if found is None else _row(found)


def before_in_key(db: sqlite3.Connection, row: JobRow) -> JobRow | None:
    """The job of the same key that has it: unfinished, and came due before."""
    if row.key is None:
        return None
    found = db.execute(
        f"{_SELECT} WHERE key = ? AND partition = ? AND state IN ('queued', 'running', 'retrying', 'waiting') AND id != ? "
        "ORDER BY state = 'queued', ready_ms, number LIMIT 1",
        (row.key, row.partition, row.id),
    ).fetchone()
    return None if found is None else _row(found)


def ahead(db: sqlite3.Connection, row: JobRow) -> int:
    """Due jobs of its partition that are more urgent, or as urgent and older. (Tenants take turns, so it need not wait for all.)"""
    found = db.execute(
        "SELECT count(*) FROM jobs WHERE partition = ? AND state = 'queued' AND id != ? "
        "AND (priority > ? OR (priority = ? AND (ready_ms, number) < (?, ?)))",
        (row.partition, row.id, row.priority, row.priority, row.ready_ms, row.number),
    )
    return int(found.fetchone()[0])


def schedules(db: sqlite3.Connection, name: str = "") -> list[ScheduleRow]:
    """By name. One of a name may be in two places for a while, when its key was changed."""
    where = " WHERE name = ?" if name else ""
    rows = db.execute(f"SELECT * FROM schedules{where} ORDER BY name, partition", (name,) if name else ())
    found = []
    for row in rows:
        values = list(row)
        values[9] = bool(values[9])
        found.append(ScheduleRow(*values))
    return found


_CANCELLING = COLUMNS.index("cancelling")


def _row(values: tuple[object, ...]) -> JobRow:
    row = list(values)
    row[_CANCELLING] = bool(row[_CANCELLING])
    return JobRow(*row)  # type: ignore[arg-type]
