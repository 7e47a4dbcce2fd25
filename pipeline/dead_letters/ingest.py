"""Brings an index up to date: reads what its dead-letter topic and the results topic have beyond the offsets it knows.

Offsets are stored in the transaction of what was read, so a killed reader goes on where it was. When the topic is not the one
that was read before (fewer offsets, an earlier beginning, another record at a known place), everything is read anew.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dead_letters.folding import fold
from pipeline.dead_letters.letter import COLUMNS, columns_of, mark_of, storable
from pipeline.dead_letters.states import STATES, id_of, is_position, number_of, state_after
from pipeline.dead_letters.store import Store
from pipeline.dead_letters.values import Values
from pipeline.inspect.scan import read_batches
from pipeline.model.cluster import Cluster, Message, TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.replay.results import ResultBatch, ResultRecordError
from pipeline.replay.results import decode as decode_results

BULK_ROWS = 20_000
"""From so many new rows on, the SQLite indexes are made afterwards."""
CACHED_TEXTS_MAX = 50_000
CLOCKS_APART_MS = 300_000
"""A result so much older than its letter is of another one: of an earlier topic of that name, whose results are still kept."""
_INTEGER_MAX = 2**63 - 1
_INSERT = (
    f"INSERT OR REPLACE INTO letters(type, error, {', '.join(COLUMNS)}) VALUES ({', '.join('?' * (len(COLUMNS) + 2))})"
)

_EDITED_FROM = COLUMNS.index("edited_from") + 2

Progress = Callable[[int, int], None]
"""(records read, records to read)"""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What bringing it up to date took. `rebuilt`: why everything was read anew, "" if not. `unknown`: values without a schema."""

    read: int
    rebuilt: str = ""
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class _Topic:
    name: str
    beginnings: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]


class Ingest:
    """One bringing up to date of one store."""

    def __init__(self, store: Store, cluster: Cluster, topic: str, results_topic: str, values: Values) -> None:
        self._store = store
        self._cluster = cluster
        self._topic = topic
        self._results_topic = results_topic
        self._values = values
        self._errors: dict[tuple[str | None, str | None, str], int] = {}
        self._types: dict[str, int] = {}

    def run(self, progress: Progress | None = None, verify: bool = False) -> Refreshed:
        """`verify`: see whether the topic is still the one that is known also when nothing is new (who deletes must know).

        Raises `ConfigurationError` when the topic does not exist, `IndexBusy` when another process does not finish."""
        with self._store.locked():
            results = self._look_up(
                self._results_topic
            )  # before the letters' ends: every letter they name is below those
            letters = self._look_up(self._topic)
            if letters is None:
                raise ConfigurationError(
                    f"topic {self._topic} does not exist: `pipeline topics list --all` shows those that do"
                )
            rebuilt = self._changed(letters, results)
            if rebuilt:
                self._store.clear()
            try:
                read = self._read_letters(letters, progress, verify)
            except _AnotherTopic:
                rebuilt = f"topic {self._topic} was made anew"
                self._store.clear()
                self._errors.clear()
                self._types.clear()
                read = self._read_letters(letters, progress)
            if results is not None:
                self._read_results(results)
            self._forget_expired(letters)
            self._store.make_indexes()
            self._store.stamp()
        return Refreshed(read, rebuilt, self._values.unknown)

    # -- where things are

    def _look_up(self, topic: str) -> _Topic | None:
        admin = self._cluster.admin()
        try:
            spec = admin.topics([topic]).get(topic)
            if spec is None:
                return None
            places = [TopicPartition(topic, p) for p in range(spec.partitions)]
            return _Topic(topic, admin.beginning_offsets(places), admin.end_offsets(places))
        finally:
            admin.close()

    def _known(self, topic: str) -> dict[TopicPartition, tuple[int, int, int | None]]:
        rows = self._store.db.execute("SELECT partition, beginning, next, mark FROM progress WHERE topic = ?", (topic,))
        return {TopicPartition(topic, row[0]): (row[1], row[2], row[3]) for row in rows}

    def _changed(self, letters: _Topic, results: _Topic | None) -> str:
        for topic in (letters, results):
            if topic is None:
                continue
            for place, (beginning, following, _) in self._known(topic.name).items():
                end = topic.ends.get(place)
                if end is None or following > end or beginning > topic.beginnings[place]:
                    return f"topic {topic.name} was made anew"
        if results is None and self._known(self._results_topic):
            return f"topic {self._results_topic} is gone"
        return ""

    # -- dead letters

    def _read_letters(self, topic: _Topic, progress: Progress | None, verify: bool = False) -> int:
        known = self._known(topic.name)
        starts, marks, wanted = {}, {}, 0
        for place, end in topic.ends.items():
            beginning = topic.beginnings[place]
            _, following, mark = known.get(place, (0, 0, None))
            start = max(beginning, following)
            wanted += max(0, end - start)
            if mark is not None and (start < end or verify) and following - 1 >= beginning:
                start, marks[place] = following - 1, mark  # the last one known is read again: is it still the same?
            starts[place] = start
        read = 0
        with _bulk(self._store) if wanted >= BULK_ROWS else contextlib.nullcontext():
            for batch in read_batches(self._cluster, starts, topic.ends, None, stop_at_open=True):
                read += self._take(batch, marks, topic.beginnings)
                if progress is not None:
                    progress(min(read, wanted), wanted)
        return read

    def _take(
        self, batch: Sequence[Message], marks: dict[TopicPartition, int], beginnings: Mapping[TopicPartition, int]
    ) -> int:
        """One batch, in one transaction."""
        last: dict[tuple[str, int], Message] = {}
        rows: list[tuple[Any, ...]] = []
        overlap = 0
        with self._store.writing() as db:
            for message in batch:
                place = (message.topic(), message.partition())
                if marks and place not in last:
                    mark = marks.pop(place, None)  # type: ignore[call-overload]
                    if mark is not None:
                        if mark != mark_of(message):
                            raise _AnotherTopic
                        overlap += 1
                        last[place] = message
                        continue  # it is in the index already, with what was done to it
                last[place] = message
                columns, kind, error = columns_of(message, self._values)
                rows.append((self._type(kind), self._error(*error), *columns))
            db.executemany(_INSERT, rows)
            edited = [(row[_EDITED_FROM],) for row in rows if row[_EDITED_FROM] is not None]
            db.executemany("UPDATE letters SET state = 2 WHERE id = ? AND state = 0", edited)
            for (name, partition), message in last.items():
                where = TopicPartition(name, partition)
                row = (name, partition, beginnings[where], message.offset() + 1, mark_of(message))
                db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, ?)", row)
            texts = list(self._values.texts.items())
            db.executemany("INSERT OR IGNORE INTO schemas VALUES (?, ?)", texts)
        return len(batch) - overlap

    def _type(self, name: str) -> int:
        found = self._types.get(name)
        if found is None:
            db = self._store.db
            db.execute("INSERT OR IGNORE INTO types(name) VALUES (?)", (name,))
            found = int(db.execute("SELECT id FROM types WHERE name = ?", (name,)).fetchone()[0])
            if len(self._types) < CACHED_TEXTS_MAX:
                self._types[name] = found
        return found

    def _error(self, error_class: str | None, error_type: str | None, message: str) -> int:
        folded = fold(message)
        key = (error_class, error_type, folded)
        found = self._errors.get(key)
        if found is None:
            db = self._store.db
            db.execute("INSERT OR IGNORE INTO errors(class, type, folded) VALUES (?, ?, ?)", key)
            where = (
                "ifnull(class, x'00') IS ifnull(?, x'00') AND ifnull(type, x'00') IS ifnull(?, x'00') AND folded = ?"
            )
            found = int(db.execute(f"SELECT id FROM errors WHERE {where}", key).fetchone()[0])
            if len(self._errors) >= CACHED_TEXTS_MAX:
                self._errors.clear()
            self._errors[key] = found
        return found

    # -- results

    def _read_results(self, topic: _Topic) -> None:
        known = self._known(topic.name)
        starts = {place: max(begin, known.get(place, (0, 0))[1]) for place, begin in topic.beginnings.items()}
        mine = f"{self._topic}/".encode()
        for messages in read_batches(self._cluster, starts, topic.ends, None, stop_at_open=True):
            with self._store.writing() as db:
                for message in messages:
                    if (message.key() or b"").startswith(mine):
                        try:
                            batch = decode_results(message.value())
                        except (ResultRecordError, OverflowError):  # JSON's Infinity is no integer
                            continue
                        if batch.topic == self._topic:
                            self._apply(batch, message.partition(), message.offset())
                for message in messages:
                    where = TopicPartition(message.topic(), message.partition())
                    row = (where.topic, where.partition, topic.beginnings[where], message.offset() + 1)
                    db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, NULL)", row)

    def _apply(self, batch: ResultBatch, partition: int, offset: int) -> None:
        db = self._store.db
        number = id_of(partition, offset)  # in order, and the same whenever it is read again
        if not -_INTEGER_MAX <= batch.at_ms <= _INTEGER_MAX:
            return
        for result in batch.results:
            places = (result.target_partition, result.target_offset)
            if not is_position(batch.partition, result.offset) or not all(-1 <= n <= _INTEGER_MAX for n in places):
                continue
            letter = id_of(batch.partition, result.offset)
            row = db.execute("SELECT state, ts FROM letters WHERE id = ?", (letter,)).fetchone()
            if row is None or row[1] > batch.at_ms + CLOCKS_APART_MS:
                continue
            state = number_of(state_after(result.outcome, STATES[row[0]]))
            if state != row[0] and batch.action != "replay":  # that was a copy to a file or another topic
                db.execute("UPDATE letters SET state = ? WHERE id = ?", (state, letter))
            db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    letter, number, batch.plan, batch.action, result.outcome, storable(batch.who), batch.at_ms,
                    result.target_partition, result.target_offset, storable(batch.errors.get(result.offset)),
                ),
            )  # fmt: skip

    def _forget_expired(self, topic: _Topic) -> None:
        """What retention or a purge deleted is gone from the index too."""
        known = self._known(topic.name)

        def stale(place: TopicPartition, beginning: int) -> bool:
            """Asks the letters: those that were read since have brought the known beginning forward."""
            span = (id_of(place.partition, 0), id_of(place.partition, beginning))
            some = self._store.db.execute("SELECT 1 FROM letters WHERE id >= ? AND id < ? LIMIT 1", span).fetchone()
            return some is not None or (place in known and known[place][0] < beginning)

        moved = {place: beginning for place, beginning in topic.beginnings.items() if stale(place, beginning)}
        if not moved:
            return
        with self._store.writing() as db:
            for (_, partition), beginning in moved.items():
                span = (id_of(partition, 0), id_of(partition, beginning))
                db.execute("DELETE FROM letters WHERE id >= ? AND id < ?", span)
                db.execute("DELETE FROM results WHERE letter >= ? AND letter < ?", span)
                db.execute(
                    "UPDATE progress SET beginning = ?, next = max(next, ?) WHERE topic = ? AND partition = ?",
                    (beginning, beginning, topic.name, partition),
                )


@contextlib.contextmanager
def _bulk(store: Store) -> Iterator[None]:
    """For very many rows: SQLite's indexes are made afterwards, and Python's collector, which would find nothing, does not look."""
    store.drop_indexes()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _AnotherTopic(Exception):
    """A record that was read before is another one now."""
