"""What the demo publishes, and the thread that publishes it at an even pace through the real publisher."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.emit.fleet import FleetRecord, behaviour_of, simulate
from pipeline.emit.openai_chat import ImportOptions, Skipped
from pipeline.emit.publisher import Publisher
from pipeline.emit.transcripts import read_runs
from pipeline.model.errors import ConfigurationError, PipelineError, PublishError
from pipeline.model.events import RunEvent
from pipeline.model.headers import EVENT_ID

DEFAULT_RUNS = 1_000
RECORDS_MAX = 300_000
"""The demo keeps an account of every record in memory, so it takes no more than this."""
ACTIVE_RUNS = 20
SLICE_S = 0.02
FLUSH_S = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """Records in the order in which they will be published; `skipped`: what of the input could not be used. `cut`: it was too much."""

    records: tuple[FleetRecord, ...]
    runs: int
    skipped: tuple[Skipped, ...] = ()
    cut: bool = False


def simulated(runs: int | None, seed: int, now_ms: int) -> Load:
    """The seeded agent fleet."""
    wanted = runs or DEFAULT_RUNS
    records: list[FleetRecord] = []
    for record in simulate(seed, wanted, now_ms):
        if len(records) == RECORDS_MAX:
            return Load(tuple(records), wanted, cut=True)
        records.append(record)
    return Load(tuple(records), wanted)


def imported(path: Path, source: str, runs: int | None, seed: int) -> Load:
    """The runs of a transcript file, several at a time as live agents would. Raises ConfigurationError when there is none in it."""
    found: list[Sequence[RunEvent]] = []
    skipped: list[Skipped] = []
    count, cut = 0, False
    for run, _ in read_runs(path, ImportOptions(source)):
        skipped += run.skipped
        if run.events:
            found.append(run.events)
            count += len(run.events)
        if len(found) == runs or count > RECORDS_MAX:
            cut = count > RECORDS_MAX
            break
    if not found:
        why = f": line {skipped[0].line}: {skipped[0].reason}" if skipped else ": it is empty"
        raise ConfigurationError(
            f"{path} has no run that could be imported{why}; give transcripts in OpenAI chat format."
        )
    return Load(tuple(_interleaved(found, seed)), len(found), tuple(skipped), cut)


def _interleaved(runs: Sequence[Sequence[RunEvent]], seed: int) -> list[FleetRecord]:
    dice, waiting = random.Random(seed), [iter(run) for run in reversed(runs)]
    active = [waiting.pop() for _ in range(min(ACTIVE_RUNS, len(waiting)))]
    mixed: list[FleetRecord] = []
    while active:
        index = dice.randrange(len(active))
        event = next(active[index], None)
        if event is not None:
            mixed.append(FleetRecord(event.run_id.encode(), event, behaviour_of(event)))
        elif waiting:
            active[index] = waiting.pop()
        else:
            active[index] = active[-1]
            active.pop()
    return mixed


def identities(load: Load) -> list[tuple[bytes, str]]:
    """(key, event id) of every record, in order: what has to be found in the source topic."""
    return [(record.key, event_id(record, number)) for number, record in enumerate(load.records)]


def event_id(record: FleetRecord, number: int) -> str:
    """An event's own id; bytes that are no event are given one by their number."""
    return record.value.event_id if isinstance(record.value, RunEvent) else f"garbage-{number}"


class Feed:
    """Publishes in its own thread, `rate` records a second; stops at `hold_at` until `go_on` is called."""

    def __init__(self, publisher: Publisher, topic: str, load: Load, rate: float, hold_at: int) -> None:
        self._publisher = publisher
        self._topic = topic
        self._load = load
        self._rate = rate
        self._hold_at = hold_at
        self._released = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-feed", daemon=True)
        self.sent = 0
        self.done = False
        self.error: BaseException | None = None

    @property
    def holding(self) -> bool:
        return self.sent >= self._hold_at and not self._released.is_set()

    def start(self) -> None:
        self._thread.start()

    def go_on(self) -> None:
        self._released.set()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(FLUSH_S)

    def check(self) -> None:
        """Raises what went wrong in the thread."""
        if isinstance(self.error, PipelineError):
            raise self.error
        if self.error is not None:
            raise PublishError(f"publishing stopped: {self.error!r}")

    def _run(self) -> None:
        try:
            self._publish_all()
        except Exception as error:
            self.error = error

    def _publish_all(self) -> None:
        total, began = len(self._load.records), time.monotonic()
        while self.sent < total and not self._stopping.is_set():
            if self.holding:
                self._released.wait(SLICE_S)
                began = time.monotonic() - self.sent / self._rate
                continue
            limit = total if self._released.is_set() else self._hold_at
            target = min(limit, int((time.monotonic() - began) * self._rate) + 1)
            for number in range(self.sent, target):
                self._publish(self._load.records[number], number)
            self.sent = max(self.sent, target)
            self._stopping.wait(SLICE_S)
        left = self._publisher.flush(FLUSH_S)
        if left.undelivered:
            raise PublishError(f"Kafka did not acknowledge {left.undelivered} records within {FLUSH_S:g} s.")
        self.done = self.sent == total

    def _publish(self, record: FleetRecord, number: int) -> None:
        if isinstance(record.value, RunEvent):
            self._publisher.publish(record.value)
        else:
            header = (EVENT_ID, event_id(record, number).encode())
            self._publisher.publish_record(self._topic, record.key, record.value, [header])
