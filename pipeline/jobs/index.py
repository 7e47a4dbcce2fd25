"""The index of a queue: a SQLite file built from its store, of which only what is new is read.

Tables: `jobs` (a row per job or duplicate that the store holds), `schedules`, `endings` (what ended, by minute, type, outcome and class
of its latency: also of jobs that are forgotten by now), `progress` (offsets read so far, in the transaction of what was read).

Everything is read anew when the topic is another one than before, or when nobody looked for so long that tombstones may be gone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from pipeline.inspect.read_model import Design, ReadModel, index_path, unusable
from pipeline.inspect.scan import read_batches
from pipeline.jobs.counting import Counting
from pipeline.jobs.rows import COLUMNS, TEXTS, JobRow, ScheduleRow, kind_of, row_of, schedule_row, values_of
from pipeline.jobs.topics import QueueTopics
from pipeline.model.cluster import Cluster, Message, TopicPartition
from pipeline.model.errors import CodecError, SchemaUnavailable
from pipeline.model.headers import epoch_of, headers_in, is_again
from pipeline.model.jobs import JobDuplicate, JobEntry, JobRecord, ScheduleRecord
from pipeline.model.store_keys import JOB

BULK_ROWS = 20_000
STALE_MS = 12 * 3_600_000
"""Kafka keeps tombstones for a day (delete.retention.ms): an index that is older than half of it may have missed some."""
_SCHEDULE_COLUMNS: Final = tuple(field.name for field in fields(ScheduleRow))
_CHUNK = 500

DESIGN: Final = Design(
    1,
    f"""
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS progress(partition INTEGER PRIMARY KEY, beginning INTEGER NOT NULL, next INTEGER NOT NULL, mark INTEGER,
    epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS jobs({", ".join(f"{c} {'TEXT' if c in TEXTS else 'INTEGER'}" for c in COLUMNS)}, PRIMARY KEY(id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS schedules({", ".join(_SCHEDULE_COLUMNS)}, PRIMARY KEY(name, partition)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS endings(minute INTEGER, type TEXT, outcome TEXT, class INTEGER, count INTEGER, latency_ms INTEGER,
    PRIMARY KEY(minute, type, outcome, class)) WITHOUT ROWID;
""",
    ("meta", "progress", "jobs", "schedules", "endings"),
    (
        "CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs(created_ms, id)",
        "CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs(state, type, created_ms)",
        "CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs(key)",
    ),
    "jobs",
    "pipeline jobs list --rebuild",
)
_PUT = f"INSERT OR REPLACE INTO jobs VALUES ({', '.join('?' * len(COLUMNS))})"
_PUT_SCHEDULE = f"INSERT OR REPLACE INTO schedules VALUES ({', '.join('?' * len(_SCHEDULE_COLUMNS))})"

Progress = Callable[[int, int], None]
"""(records read, records to read)"""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What bringing it up to date took. `rebuilt`: why everything was read anew, "" if not. `unreadable`: entries that no queue wrote."""

    read: int
    rebuilt: str = ""
    unreadable: int = 0


class _AnotherTopic(Exception):
    pass


class JobIndex:
    """One connection. `unpack` decodes an entry by its key and value; it may ask the registry, and raises CodecError."""

    def __init__(
        self, path: Path | None, cluster: Cluster, topics: QueueTopics, unpack: Callable[[bytes, bytes], JobEntry]
    ) -> None:
        self.model = ReadModel(path, DESIGN)
        self._cluster = cluster
        self._topics = topics
        self._unpack = unpack
        self._unreadable = 0

    @property
    def db(self) -> sqlite3.Connection:
        return self.model.db

    def close(self) -> None:
        self.model.close()

    def refresh(self, progress: Progress | None = None, rebuild: bool = False) -> Refreshed:
        """May wait. Raises ConfigurationError when there is no such queue, IndexBusy, ClusterUnavailable, and SchemaUnavailable while the
        registry does not answer: what can't be read yet is not passed over, or it would be wrong here for good."""
        try:
            with self.model.locked():
                return self._refresh(progress, rebuild)
        except sqlite3.Error as error:
            raise unusable(self.model.path, error, DESIGN) from error

    def _refresh(self, progress: Progress | None, rebuild: bool) -> Refreshed:
        places = self._topics.places(self._cluster)
        admin = self._cluster.admin()
        try:
            begins, ends = admin.beginning_offsets(places), admin.end_offsets(places)
        finally:
            admin.close()
        now_ms = int(time.time() * 1000)
        why = "asked for" if rebuild else self._changed(begins, ends, now_ms)
        if why:
            self.model.renew()
        try:
            read = self._read(begins, ends, progress)
        except _AnotherTopic:
            why = f"topic {self._topics.state} was made anew"
            self.model.clear()
            read = self._read(begins, ends, progress)
        self.model.make_indexes()
        self.model.stamp()
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('read_ms', ?)", (str(now_ms),))
        return Refreshed(read, why, self._unreadable)

    # -- where things are

    def _known(self) -> dict[TopicPartition, tuple[int, int, int | None, int]]:
        rows = self.db.execute("SELECT partition, beginning, next, mark, epoch FROM progress")
        return {TopicPartition(self._topics.state, row[0]): row[1:] for row in rows}

    def _changed(self, begins: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int], now_ms: int) -> str:
        known = self._known()
        for place, (beginning, following, _, _) in known.items():
            if place not in ends or following > ends[place] or beginning > begins[place]:
                return f"topic {self._topics.state} was made anew"
        row = self.db.execute("SELECT value FROM meta WHERE name = 'read_ms'").fetchone()
        if known and (row is None or not 0 <= now_ms - int(row[0]) < STALE_MS):
            return "nobody has looked for half a day"
        return ""

    # -- reading

    def _read(
        self,
        begins: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        progress: Progress | None,
    ) -> int:
        known = self._known()
        starts: dict[TopicPartition, int] = {}
        marks: dict[TopicPartition, tuple[int, int]] = {}
        epochs: dict[TopicPartition, int] = {}
        wanted = 0
        for place, end in ends.items():
            _, following, mark, epochs[place] = known.get(place, (0, begins[place], None, 0))
            start = max(following, begins[place])
            wanted += max(0, end - start)
            if mark is not None and start < end and following - 1 >= begins[place]:
                start, marks[place] = (
                    following - 1,
                    (following - 1, mark),
                )  # the last one known is read again: is it still the same?
            starts[place] = start
        if wanted >= BULK_ROWS and not known:
            self.model.drop_indexes()
        read = 0
        for batch in read_batches(self._cluster, starts, ends, None, stop_at_open=True):
            self._take(_without_marks(batch, marks), begins, epochs)
            read += len(batch)
            if progress is not None:
                progress(min(read, wanted), wanted)
        self._stand_at(begins)
        return read

    def _take(
        self, batch: Sequence[Message], begins: Mapping[TopicPartition, int], epochs: dict[TopicPartition, int]
    ) -> None:
        """One batch, in one transaction."""
        last: dict[TopicPartition, Message] = {}
        with self.model.writing() as db:
            changes = _Changes(db)
            changes.load([name for message in batch for kind, name in [kind_of(message.key())] if kind == JOB])
            for message in batch:
                place = TopicPartition(message.topic(), message.partition())
                last[place] = message
                epoch = epoch_of(headers_in(message))
                if epoch >= epochs[place]:  # else it is of a worker that was taken for dead
                    epochs[place] = epoch
                    self._entry(changes, message)
            changes.write()
            rows = [
                (place.partition, begins[place], message.offset() + 1, mark_of(message), epochs[place])
                for place, message in last.items()
            ]
            db.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, ?)", rows)

    def _stand_at(self, begins: Mapping[TopicPartition, int]) -> None:
        """Partitions that have no record are known too: they are not read anew each time."""
        rows = [(place.partition, begin, begin) for place, begin in begins.items()]
        self.db.executemany("INSERT OR IGNORE INTO progress VALUES (?, ?, ?, NULL, 0)", rows)

    def _entry(self, changes: _Changes, message: Message) -> None:
        key, value = message.key(), message.value()
        kind, name = kind_of(key)
        if key is None or not kind:
            return
        if value is None:
            changes.gone(kind, name, message.partition())
            return
        try:
            entry = self._unpack(key, value)
        except SchemaUnavailable:
            raise
        except CodecError:
            self._unreadable += 1
            return
        if isinstance(entry, JobRecord | JobDuplicate):
            written_ms = None if is_again(headers_in(message)) else message.timestamp()[1]
            changes.job(row_of(entry, message.partition(), message.offset()), written_ms)
        elif isinstance(entry, ScheduleRecord):
            changes.schedule(schedule_row(entry, message.partition()))


class _Changes:
    """What one batch changes: the last word on each job counts, every ending on the way is counted."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._jobs: dict[str, JobRow | None] = {}
        self._before: dict[str, tuple[str, int, int]] = {}
        self._schedules: dict[tuple[str, int], ScheduleRow | None] = {}
        self._counting = Counting()

    def load(self, ids: Sequence[str]) -> None:
        for at in range(0, len(ids), _CHUNK):
            some = ids[at : at + _CHUNK]
            question = f"SELECT id, state, version, stalls FROM jobs WHERE id IN ({', '.join('?' * len(some))})"
            for row in self._db.execute(question, some):
                self._before[row[0]] = (row[1], row[2], row[3])

    def job(self, row: JobRow, written_ms: int | None) -> None:
        self._counting.count(row, self._before.get(row.id), written_ms)
        self._before[row.id] = (row.state, row.version, row.stalls)
        self._jobs[row.id] = row

    def schedule(self, row: ScheduleRow) -> None:
        self._schedules[row.name, row.partition] = row

    def gone(self, kind: str, name: str, partition: int) -> None:
        if kind == JOB:
            self._before.pop(name, None)
            self._jobs[name] = None
        else:
            self._schedules[name, partition] = None

    def write(self) -> None:
        db = self._db
        gone = [(name,) for name, row in self._jobs.items() if row is None]
        db.executemany("DELETE FROM jobs WHERE id = ?", gone)
        db.executemany(_PUT, [values_of(row) for row in self._jobs.values() if row is not None])
        for (name, partition), row in self._schedules.items():
            db.execute("DELETE FROM schedules WHERE name = ? AND partition = ?", (name, partition))
            if row is not None:
                db.execute(_PUT_SCHEDULE, [getattr(row, column) for column in _SCHEDULE_COLUMNS])
        self._counting.write(db)


def _without_marks(batch: Sequence[Message], marks: dict[TopicPartition, tuple[int, int]]) -> Sequence[Message]:
    """Without the records that were read before, which are looked at only: are they still the same? (Or compacted away by now.)"""
    if not marks:
        return batch
    found = []
    for message in batch:
        offset, mark = marks.pop(TopicPartition(message.topic(), message.partition()), (-1, 0))
        if message.offset() != offset:
            found.append(message)
        elif mark != mark_of(message):
            raise _AnotherTopic
    return found


def mark_of(message: Message) -> int:
    """A checksum of a record: another record at the same position means that the topic was made anew."""
    return crc32(b"\0".join((message.key() or b"", message.value() or b"", b"%d" % message.timestamp()[1])))


def path_of(settings: Any, state: str) -> Path | None:
    """Where the index of a store is; None for a cluster in memory, which ends with its process."""
    address = str(settings.broker)
    if address.startswith("memory://") and not settings.state_dir:
        return None
    return index_path(settings.state_directory(), address, state, "jobs")
