"""One dead-letter topic at hand: its index brought up to date, its records, and the topics that actions on it need."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pipeline.dead_letters.ingest import Ingest, Progress, Refreshed
from pipeline.dead_letters.query import Letter, Page, Query, Wanted, cursor_of, letters_at
from pipeline.dead_letters.reading import ends_with_letters, fetch
from pipeline.dead_letters.states import STATES, State, id_of
from pipeline.dead_letters.stats import Expiry, expiry
from pipeline.dead_letters.store import Store, index_path, unusable
from pipeline.dead_letters.values import Registered, Values
from pipeline.filters import MessageRow
from pipeline.inspect.collect import find_layouts
from pipeline.model.cluster import Cluster, ClusterAdmin, Message
from pipeline.model.errors import ConfigurationError
from pipeline.model.topics import AUDIT_TOPIC, RESULTS_TOPIC, TASKS_TOPIC
from pipeline.topology.naming import bases_of

CHUNK = 2_000
"""Candidates that are read at once when a filter needs more than the index has."""


class Application(Protocol):
    """What of an application (`Pipeline`) is needed."""

    @property
    def cluster(self) -> Cluster: ...
    @property
    def codec(self) -> Any: ...
    @property
    def settings(self) -> Any: ...
    def layouts(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Topics:
    """Real names: the dead letters, and where actions on them are written down. `group`: only its letters, where groups share it."""

    dead_letters: str
    prefix: str = ""
    group: str = ""

    @property
    def results(self) -> str:
        return self.prefix + RESULTS_TOPIC

    @property
    def audit(self) -> str:
        return self.prefix + AUDIT_TOPIC

    @property
    def tasks(self) -> str:
        return self.prefix + TASKS_TOPIC


def dead_letter_topics(names: list[str], prefix: str = "") -> list[str]:
    """Those of this environment that have the default name: beside the group's replay lane."""
    known = {name for name in names if name.startswith(prefix)}
    return sorted(name for name in known if name.endswith(".dlq") and name.removesuffix("dlq") + "replay" in known)


def locate(app: Application, group: str | None, topic: str | None) -> Topics:
    """The one dead-letter topic that is meant. Raises `ConfigurationError` that says which there are when it is not one."""
    prefix = str(app.settings.prefix)

    def real(name: str) -> str:
        return name if name.startswith(prefix) else prefix + name

    admin = app.cluster.admin()
    try:
        if topic is not None:
            found = next((name for name in (topic, real(topic)) if admin.topics([name])), None)
            if found is None:
                raise ConfigurationError(
                    f"topic {topic!r} does not exist: `pipeline topics list --all` shows those that do"
                )
            _refuse_no_dead_letters(app, admin, found, prefix)
            return Topics(found, prefix, real(group) if group else "")
        candidates = _of_group(app, admin, real(group)) if group else dead_letter_topics(admin.topic_names(), prefix)
    finally:
        admin.close()
    if len(candidates) == 1:
        return Topics(candidates[0], prefix, real(group) if group else "")
    where = f"of group {group}" if group else "on this cluster"
    if not candidates:
        raise ConfigurationError(f"there is no dead-letter topic {where}: name it with --topic")
    more = f" and {len(candidates) - 5} more" if len(candidates) > 5 else ""
    raise ConfigurationError(
        f"there are {len(candidates)} dead-letter topics {where}: choose one with --group or --topic: {', '.join(candidates[:5])}{more}"
    )


def _refuse_no_dead_letters(app: Application, admin: ClusterAdmin, topic: str, prefix: str) -> None:
    """Raises `ConfigurationError` for what is no dead-letter topic: its records would be shown, edited and purged as if they were.

    A group may read dead letters too (for alerts, say): a source whose newest records have one that a worker wrote is taken.
    """
    if topic.removeprefix(prefix).startswith("_pipeline."):
        raise ConfigurationError(
            f"topic {topic} is the pipeline's own, not dead letters: `pipeline tail {topic}` shows what is in it"
        )
    if topic in {entry.topics.dead_letters for entry in app.layouts()}:
        return
    names = admin.topic_names()
    bases = bases_of(topic, names)
    if not bases:
        return
    source = all(base.startswith(f"{topic}.") for base in bases)
    if source and ends_with_letters(app.cluster, topic):
        return
    theirs = [f"--topic {base}.dlq" for base in bases if f"{base}.dlq" in names]
    instead = " or ".join(theirs[:3]) or "the subscription's dead_letter_topic with --topic"
    raise ConfigurationError(
        f"topic {topic} has no dead letters but records that a group works on (its replay lane is {bases[0]}.replay): give {instead}"
    )


def _of_group(app: Application, admin: ClusterAdmin, group: str) -> list[str]:
    declared = [entry.topics.dead_letters for entry in app.layouts() if entry.group == group]
    names = set(admin.topic_names())
    found = declared or [entry.topics.dead_letters for entry in find_layouts(admin, group)]
    return sorted(name for name in dict.fromkeys(found) if name in names)


class Desk:
    """See the module. Use it as a context manager, or close it."""

    def __init__(self, cluster: Cluster, codec: Registered, topics: Topics, path: Path | None) -> None:
        self.cluster = cluster
        self.codec = codec
        self.topics = topics
        self.store = Store(path)
        self.values = Values(codec, self.store.schemas())

    @classmethod
    def of(cls, app: Application, group: str | None = None, topic: str | None = None) -> Self:
        """For an application, or whatever has its cluster, codec and settings."""
        topics = locate(app, group, topic)
        return cls(app.cluster, app.codec, topics, path_of(app, topics.dead_letters))

    def refresh(self, progress: Progress | None = None, verify: bool = False) -> Refreshed:
        """Bring the index up to date: reads only what is new. `verify`: see `Ingest.run`."""
        topics = self.topics
        try:
            reading = Ingest(self.store, self.cluster, topics.dead_letters, topics.results, self.values)
            return reading.run(progress, verify)
        except sqlite3.Error as error:
            raise unusable(self.store.path, error) from error

    def rebuild(self, progress: Progress | None = None) -> Refreshed:
        """Throw the index away and read everything."""
        try:
            with self.store.locked():
                self.store.renew()
        except (OSError, sqlite3.Error) as error:
            raise unusable(self.store.path, error) from error
        return self.refresh(progress)

    def query(self, wanted: Wanted) -> Query:
        return Query(self.store.db, self.topics.dead_letters, self._of_group(wanted))

    def _of_group(self, wanted: Wanted) -> Wanted:
        group = self.topics.group
        if wanted.group or not group or not self._shared_with(group):
            return wanted
        return dataclasses.replace(wanted, group=group)

    def _shared_with(self, group: str) -> bool:
        """Whether letters of other groups lie here too: only then is each letter asked for its group, which no count can do quickly."""
        ends = self.store.db.execute("SELECT (SELECT min(grp) FROM letters), (SELECT max(grp) FROM letters)").fetchone()
        return any(name is not None and name != group for name in ends)

    def page(self, wanted: Wanted, limit: int, cursor: str = "", progress: Progress | None = None) -> Page:
        """Newest first. `progress` hears (looked at, candidates) when a filter makes it read records."""
        query = self.query(wanted)
        if query.exact:
            return query.page(limit, cursor)
        found: list[Letter] = []
        total, looked_at = query.count(), 0
        while len(found) <= limit:
            candidates = query.chunk(CHUNK, cursor)
            if not candidates:
                return Page(tuple(found), "")
            fitting = self._fitting(wanted, [id_of(c.partition, c.offset) for c in candidates])
            found += [c for c in candidates if id_of(c.partition, c.offset) in fitting]
            cursor = cursor_of(candidates[-1])
            looked_at += len(candidates)
            if progress is not None:
                progress(looked_at, total)
        return Page(tuple(found[:limit]), cursor_of(found[limit - 1]))

    def chosen(self, numbers: list[int], wanted: Wanted) -> Query:
        """The same question about these positions only, for what SQL alone can't choose."""
        self.store.db.execute("CREATE TEMP TABLE IF NOT EXISTS chosen(id INTEGER PRIMARY KEY)")
        with self.store.writing() as db:
            db.execute("DELETE FROM chosen")
            db.executemany("INSERT OR IGNORE INTO chosen VALUES (?)", [(number,) for number in numbers])
        return Query(self.store.db, self.topics.dead_letters, self._of_group(wanted), "l.id IN (SELECT id FROM chosen)")

    def matching(self, wanted: Wanted, progress: Progress | None = None) -> list[int]:
        """Positions (as numbers) of all of them, by partition and offset."""
        with self.store.reading():  # whose letters lie here, and which match: an action must not take what came between
            query = self.query(wanted)
            numbers = list(query.ids())
        if query.exact:
            return numbers
        found: list[int] = []
        for at in range(0, len(numbers), CHUNK):
            part = numbers[at : at + CHUNK]
            fitting = self._fitting(wanted, part)
            found += [number for number in part if number in fitting]
            if progress is not None:
                progress(at + len(part), len(numbers))
        return found

    def _fitting(self, wanted: Wanted, numbers: list[int]) -> set[int]:
        assert wanted.where is not None, "only a filter makes a query inexact"
        matches = wanted.where.matches
        return {
            id_of(message.partition(), message.offset())
            for message in self.fetch(numbers)
            if matches(MessageRow(message, self.values.show))
        }

    def fetch(self, numbers: list[int], progress: Callable[[int], None] | None = None) -> Iterator[Message]:
        return fetch(self.cluster, self.topics.dead_letters, numbers, progress)

    def letters(self, numbers: list[int]) -> dict[int, Letter]:
        return letters_at(self.store.db, numbers)

    def states(self, numbers: list[int]) -> dict[int, State]:
        """The states of those that the index knows."""
        found: dict[int, State] = {}
        for at in range(0, len(numbers), 500):
            marks = ", ".join(map(str, numbers[at : at + 500]))
            rows = self.store.db.execute(f"SELECT id, state FROM letters WHERE id IN ({marks})")
            found |= {number: STATES[state] for number, state in rows}
        return found

    def expiry(self, now_ms: int) -> Expiry | None:
        """The alarm of dead letters that are open and near the end of their retention."""
        admin = self.cluster.admin()
        try:
            spec = admin.topics([self.topics.dead_letters]).get(self.topics.dead_letters)
        finally:
            admin.close()
        kept = int(spec.configs.get("retention.ms", "-1")) if spec else -1
        return expiry(self.store.db, self.topics.dead_letters, kept, now_ms)

    def forgetful(self) -> str:
        """A sentence where results go before the letters that they tell of: an index that is built later than that does not know them."""
        names = (self.topics.dead_letters, self.topics.results)
        admin = self.cluster.admin()
        try:
            found = admin.topics(names)
        finally:
            admin.close()
        letters, results = (
            int(found[name].configs.get("retention.ms", "-1")) if name in found else -1 for name in names
        )
        if results < 0 or 0 <= letters <= results:
            return ""
        return (
            f"{names[0]} keeps dead letters (retention.ms={letters}) for longer than {names[1]} knows what was done to them "
            f"(retention.ms={results}): those redriven before that may be open again in a new index; raise the latter, or run "
            "`pipeline topics apply` with the application"
        )

    def plan_path(self, plan_id: str) -> Path | None:
        """Where a redrive keeps its plan, so that it can be taken up again; None for an index in memory."""
        return None if self.store.path is None else self.store.path.parent / "plans" / f"{plan_id}.json"

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises `IndexUnusable`, which says what to do, where SQLite said that it can't go on."""
        self.close()
        if isinstance(error, sqlite3.Error):
            raise unusable(self.store.path, error) from error


def group_name(desk: Desk, group: str = "") -> str:
    """Whose dead letters they are (`group`: as it was asked for), where keys are meant and not letters. Raises `ConfigurationError`."""
    if group or desk.topics.group:
        return group or desk.topics.group
    admin = desk.cluster.admin()
    try:
        groups = {entry.group for entry in find_layouts(admin) if entry.topics.dead_letters == desk.topics.dead_letters}
    finally:
        admin.close()
    if len(groups) != 1:
        raise ConfigurationError(
            f"{desk.topics.dead_letters} does not say whose dead letters it has: name the group with --group"
        )
    return groups.pop()


def path_of(app: Application, topic: str) -> Path | None:
    """Where the index of a topic is; None for a cluster in memory, which ends with its process."""
    address = str(app.settings.broker)
    if address.startswith("memory://") and not app.settings.state_dir:
        return None
    return index_path(app.settings.state_directory(), address, topic)
