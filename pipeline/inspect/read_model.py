"""A SQLite file that tools build from topics and can throw away at any time: opened, locked, and made anew when it is damaged."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.model.errors import ConfigurationError, PipelineError

LOCK_WAIT_S = 600.0
_LOCK_PAUSE_S = 0.05
_NAME_CHARACTERS_MAX = 200
OPEN_S = 15.0


class IndexUnusable(ConfigurationError):
    """The index can't be kept where it should be."""


class IndexBusy(PipelineError):
    """Another command has been building the index for longer than anyone waits."""


@dataclass(frozen=True, slots=True)
class Design:
    """`schema` makes the tables, of which `dropped` are thrown away to build it anew; one of another `version` is. `indexes`: made last.

    `what` it is about, and the command that builds it `anew`: for people.
    """

    version: int
    schema: str
    dropped: tuple[str, ...]
    indexes: tuple[str, ...]
    what: str
    anew: str


def damaged(error: BaseException | None) -> bool:
    """Whether SQLite says that the file is not what it was (and not that it is busy, full or not writable)."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def unusable(path: Path | None, error: Exception, design: Design) -> IndexUnusable:
    what = f"the index of {design.what} at {path}"
    if damaged(error):
        return IndexUnusable(f"{what} is damaged ({error}): build it anew with `{design.anew}`")
    return IndexUnusable(
        f"the index of {design.what} can't be kept at {path} ({error}): make room there, or set PIPELINE_STATE_DIR to another folder"
    )


def index_path(directory: Path, address: str, topic: str, folder: str) -> Path:
    """Where the index of a topic of a cluster is."""
    place = re.sub(r"[^A-Za-z0-9.-]+", "_", address)[:60]
    mark = hashlib.sha256(address.encode()).hexdigest()[:8]
    name = topic
    if len(topic) > _NAME_CHARACTERS_MAX:  # with what SQLite and the locks append, a file name could be too long
        name = f"{topic[:_NAME_CHARACTERS_MAX]}-{hashlib.sha256(topic.encode()).hexdigest()[:16]}"
    return directory / folder / f"{place}-{mark}" / f"{name}.sqlite"


def _write_ahead(db: sqlite3.Connection) -> None:
    """Two that open a new index at once: SQLite does not wait for the lock that this change needs, whatever its timeout."""
    until = time.monotonic() + OPEN_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


class ReadModel:
    """One connection to an index. `path` None: in memory, for clusters in memory. Close it."""

    def __init__(self, path: Path | None, design: Design) -> None:
        self.path = path
        self.design = design
        self.waiting: Callable[[], None] = lambda: None
        """Called once when a lock is another command's and has to be waited for."""
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.db = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise unusable(path, error, design) from None
        if self._version() not in (None, str(design.version)):
            self.clear()

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.DatabaseError as error:
            if self.path is None or not damaged(error):
                raise
            self._remove()  # not a database, or a damaged one: it is built anew
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        if self.path is not None:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(
            self.path or ":memory:", timeout=60.0, isolation_level=None, check_same_thread=False
        )  # whoever uses it from several threads takes turns
        try:
            _write_ahead(db)
            for pragma in ("synchronous=NORMAL", "temp_store=MEMORY", "cache_size=-65536", "mmap_size=2147483648"):
                db.execute(f"PRAGMA {pragma}")
            db.executescript(self.design.schema)
        except BaseException:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        if self.path is not None:
            for tail in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + tail).unlink(missing_ok=True)

    def _version(self) -> str | None:
        row = self.db.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
        return None if row is None else str(row[0])

    def renew(self) -> None:
        """Forget everything that can be read again, also when the file is damaged."""
        try:
            self.clear()
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
            self.db.close()
            self._remove()
            self.db = self._opened()

    def clear(self) -> None:
        """Forget everything that can be read again."""
        drop = "".join(f"DROP TABLE IF EXISTS {name};" for name in self.design.dropped)
        self.db.executescript(f"BEGIN IMMEDIATE; {drop} COMMIT;")
        self.db.executescript(self.design.schema)

    def stamp(self) -> None:
        """Say which version made this."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('version', ?)", (str(self.design.version),))

    def make_indexes(self) -> None:
        for statement in self.design.indexes:
            self.db.execute(statement)

    def drop_indexes(self) -> None:
        """Before very many rows: making them once afterwards is cheaper than keeping them."""
        for statement in self.design.indexes:
            self.db.execute(f"DROP INDEX IF EXISTS {statement.split()[5]}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; nothing of it stays when it fails."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state for several questions: another command may be building the index anew."""
        self.db.execute("BEGIN")
        try:
            yield self.db
        finally:
            self.db.execute("COMMIT")

    @contextlib.contextmanager
    def locked(self, wait_s: float = LOCK_WAIT_S, what: str = "lock") -> Iterator[None]:
        """Only one at a time on this machine brings the index up to date (or does another thing, `what`); the lock of one that is
        killed is free at once."""
        if self.path is None:
            yield
            return
        with self.path.with_name(f"{self.path.name}.{what}").open("a") as file:
            until, told = time.monotonic() + wait_s, False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise IndexBusy(
                            f"another command on this machine is at work on these {self.design.what} (for {wait_s:g} s at least): "
                            "wait for it, or end it"
                        ) from None
                    if not told:
                        self.waiting()
                        told = True
                    time.sleep(_LOCK_PAUSE_S)
            yield

    def close(self) -> None:
        self.db.close()
