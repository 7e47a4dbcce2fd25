"""What the tests of all adapters share: an application on a cluster in memory, and its events read back as Avro."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline import Pipeline, RunEvent, Settings
from pipeline.emit.hooks import FinishedRun, HookOptions
from pipeline.emit.recorder import SyncRecorder
from pipeline.memory import connect
from pipeline.memory.cluster import forget
from pipeline.model.cluster import TopicPartition
from pipeline.model.events import RunTotals

TOPIC = "agent.run.events"
_numbers = itertools.count()


@dataclass
class Recording:
    """`events` publishes what is buffered and reads all of it back."""

    app: Pipeline
    recorder: SyncRecorder
    finished: list[FinishedRun] = field(default_factory=list)
    failed: list[FinishedRun] = field(default_factory=list)

    @property
    def options(self) -> HookOptions:
        return HookOptions(tenant="acme", after_run=[self.finished.append], on_error=[self.failed.append])

    def events(self) -> list[RunEvent]:
        assert self.recorder._publisher.flush(10).complete  # type: ignore[attr-defined]
        reader = self.app.cluster.reader()
        reader.assign({TopicPartition(TOPIC, 0): 0})
        end = self.app.cluster.admin().end_offsets([TopicPartition(TOPIC, 0)])[TopicPartition(TOPIC, 0)]
        records = list[Any]()
        while len(records) < end:
            records += reader.poll(1_000, 5.0)
        reader.close()
        events = [self.app.codec.decode(TOPIC, record.value()) for record in records]
        assert all(isinstance(event, RunEvent) for event in events)
        return events  # type: ignore[return-value]

    def runs(self) -> dict[str, list[RunEvent]]:
        """Events by run, each numbered without a gap, ended once and last, with parents that come before their children."""
        found = dict[str, list[RunEvent]]()
        for event in self.events():
            found.setdefault(event.run_id, []).append(event)
        everywhere = {event.event_id for events in found.values() for event in events}
        for events in found.values():
            assert [event.sequence for event in events] == list(range(len(events)))
            assert [isinstance(event, RunTotals) for event in events] == [False] * (len(events) - 1) + [True]
            assert all(event.tenant == "acme" for event in events)
            before = {None}
            for event in events[1:]:
                assert event.parent_id in before | {events[0].event_id}
                before.add(event.event_id)  # type: ignore[arg-type]
            assert events[0].parent_id in everywhere | {None}
        return found

    def run(self) -> list[RunEvent]:
        (events,) = self.runs().values()
        return events


@contextmanager
def recording() -> Iterator[Recording]:
    address = f"memory://hooks-{next(_numbers)}"
    connect(address).create(TOPIC, partitions=1)
    app = Pipeline("support", settings=Settings(broker=address))
    try:
        with app.recorder() as recorder:
            yield Recording(app, recorder)
    finally:
        forget(address)


def story(events: list[RunEvent]) -> list[str]:
    """Each event as `Type:what` in its order, with `< Type:what` of its parent unless that is the run's start."""
    names = {event.event_id: f"{type(event).__name__}:{_what(event)}".rstrip(":") for event in events}
    first = events[0].event_id
    return [
        names[event.event_id]
        + (f" < {names[event.parent_id]}" if event.parent_id not in (first, None) and event.parent_id in names else "")
        for event in events
    ]


def _what(event: RunEvent) -> str:
    for name in ("tool", "model", "role", "name", "error_class"):
        if value := getattr(event, name, None):
            return f"{value}-{event.status.lower()}" if hasattr(event, "status") else str(value)  # type: ignore[attr-defined]
    return ""
