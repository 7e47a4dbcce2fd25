"""The index on disk: a SQLite file per dead-letter topic that can be thrown away at any time.

Tables: `letters` (a row per dead letter, its position as the row id), `errors` and `types` (texts that many share), `results`
(what actions did to a letter), `progress` (offsets read so far, in the same transaction as what was read), `schemas`, `meta`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from pipeline.dead_letters.letter import COLUMNS
from pipeline.inspect import read_model
from pipeline.inspect.read_model import Design, IndexBusy, IndexUnusable, ReadModel, damaged

__all__ = ["DESIGN", "IndexBusy", "IndexUnusable", "Store", "damaged", "index_path", "unusable"]

VERSION: Final = 1
_TEXTS = frozenset(
    {"key", "tenant", "agent", "run_id", "event_id", "grp", "origin_topic", "replay_id", "schema", "message"}
)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS progress(topic TEXT, partition INTEGER, beginning INTEGER NOT NULL, next INTEGER NOT NULL,
    mark INTEGER, PRIMARY KEY(topic, partition));
CREATE TABLE IF NOT EXISTS letters(id INTEGER PRIMARY KEY, state INTEGER NOT NULL DEFAULT 0, type INTEGER NOT NULL,
    error INTEGER NOT NULL, {", ".join(f"{name} {'TEXT' if name in _TEXTS else 'INTEGER'}" for name in COLUMNS if name != "id")});
CREATE TABLE IF NOT EXISTS errors(id INTEGER PRIMARY KEY, class TEXT, type TEXT, folded TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS errors_once ON errors(ifnull(class, x'00'), ifnull(type, x'00'), folded);
CREATE TABLE IF NOT EXISTS types(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS results(letter INTEGER, number INTEGER, plan TEXT NOT NULL, action TEXT NOT NULL, outcome TEXT NOT NULL,
    who TEXT NOT NULL, at_ms INTEGER NOT NULL, target_partition INTEGER NOT NULL, target_offset INTEGER NOT NULL,
    error TEXT, PRIMARY KEY(letter, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS schemas(fingerprint TEXT PRIMARY KEY, text TEXT NOT NULL);
"""
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS letters_by_state ON letters(state, ts)",
    "CREATE INDEX IF NOT EXISTS letters_by_time ON letters(ts)",
    "CREATE INDEX IF NOT EXISTS letters_by_group ON letters(state, error, type, tenant, ts)",
    "CREATE INDEX IF NOT EXISTS letters_by_owner ON letters(grp)",
    "CREATE INDEX IF NOT EXISTS letters_edited ON letters(edited_from) WHERE edited_from IS NOT NULL",
)
DESIGN: Final = Design(
    VERSION,
    _SCHEMA,
    ("meta", "progress", "letters", "errors", "types", "results"),  # not the schemas: they can't always be read again
    _INDEXES,
    "dead letters",
    "pipeline dlq list --rebuild",
)


def unusable(path: Path | None, error: Exception) -> IndexUnusable:
    return read_model.unusable(path, error, DESIGN)


def index_path(directory: Path, address: str, topic: str) -> Path:
    return read_model.index_path(directory, address, topic, "dead-letters")


class Store(ReadModel):
    """The index of one dead-letter topic."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, DESIGN)

    def schemas(self) -> dict[str, str]:
        """Fingerprint and id (`values.remembered_as`) -> schema, as registries said while they answered."""
        try:
            return dict(self.db.execute("SELECT fingerprint, text FROM schemas").fetchall())
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
            self.renew()
            return {}
