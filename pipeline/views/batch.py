"""One batch of source records folded into both views: pure, so that what a crash leaves behind can be reasoned about.

A table entry is a run's summary (`<partition>/run/<id>`) or a rate's partial (`<partition>/rate/<key>`), in ONE table, so
one changelog partition holds both in the order they were written: partials first. The partition is in the key because a
process keeps the entries of all its partitions in one store. If a summary that says "seen" survived a crash, so
did the partial that counted the event; a partial that survived alone refuses the event's offset. A record that was seen
changes nothing, yet its entries are *touched* and written out again: the crash may have come before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.views import rates, summaries

Load = Callable[[str], dict[str, Any] | None]
"""The entry of a key in the table, or None. Entries are never changed in place."""


def run_entry(partition: int, run_id: str) -> str:
    """The table key of a run's summary."""
    return f"{partition}/run/{run_id}"


def rate_entry(partition: int, rate_key: str) -> str:
    """The table key of a partition's share of a rate."""
    return f"{partition}/rate/{rate_key}"


class Decoded(NamedTuple):
    """A source record, decoded, with its position."""

    partition: int
    offset: int
    record_name: str
    event: Mapping[str, Any]


@dataclass
class Changes:
    """The entries that a batch touched, by table key, as they are now. `counted` events were new."""

    runs: dict[str, summaries.Summary] = field(default_factory=dict)
    partials: dict[str, rates.Partial] = field(default_factory=dict)
    counted: int = 0

    def writes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Table key and entry, in the order they must be written: partials before the summaries that vouch for them."""
        yield from self.partials.items()
        yield from self.runs.items()


def fold_record(changes: Changes, load: Load, record: Decoded) -> None:
    """Fold one record into `changes`; on any exception `changes` is as it was."""
    name, event = record.record_name, record.event
    summaries.check(name, event)
    run_key = run_entry(record.partition, event["run_id"])
    rate_key = rate_entry(record.partition, rates.key_of(event))
    summary = changes.runs.get(run_key) or load(run_key)
    partial = changes.partials.get(rate_key) or load(rate_key)
    new = summaries.is_new(summary, event)
    folded = summaries.fold(summary, name, event)
    if new:
        partial = rates.fold(partial, name, event, record.partition, record.offset)
    changes.runs[run_key] = folded
    if partial is not None:
        changes.partials[rate_key] = partial
    changes.counted += new
