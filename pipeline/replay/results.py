"""What became of every record an action was about: batches on the results topic, one partition's in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.inspect.appending import Entry
from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import Cluster, TopicPartition

VERSION = 1
OUTCOMES = ("written", "loop_capped", "undecodable", "failed", "purged", "cancelled", "converted", "edited")
ACTIONS = ("replay", "redrive", "purge", "cancel", "convert", "edit")
BATCH_RESULTS_MAX = 5_000
ERROR_LETTERS_MAX = 300
RUN_RECORDS_MAX = 1_000_000
"""A longer run is not believed: a forged record must not fill the memory."""
_ERRORS_PER_BATCH_MAX = 500


class Result(NamedTuple):
    """One record: its offset, what became of it, and where its copy is (-1: nowhere).

    `records` > 1 stands for so many records at consecutive offsets, whose copies are at consecutive offsets too: a writer may
    say it so, a reader gets them one by one.
    """

    offset: int
    outcome: str
    target_partition: int = -1
    target_offset: int = -1
    records: int = 1


@dataclass(frozen=True, slots=True)
class ResultBatch:
    """Results of records of one partition. `topic` and `partition` say where the records lie; `errors` is by offset."""

    plan: str
    action: str
    topic: str
    partition: int
    who: str
    at_ms: int
    results: Sequence[Result]
    errors: Mapping[int, str] = field(default_factory=dict)


class ResultRecordError(ValueError):
    """A record of the results topic is not readable."""


def record_key(topic: str, partition: int) -> bytes:
    """Results of one partition share it, so that they stay in order."""
    return f"{topic}/{partition}".encode()


def entries(batch: ResultBatch) -> list[Entry]:
    """The records to write for a batch: several when it is large. Write them with `appending.append`."""
    key = record_key(batch.topic, batch.partition)
    size = _ERRORS_PER_BATCH_MAX if batch.errors else BATCH_RESULTS_MAX
    return [
        Entry(key, encode(batch, batch.results[at : at + size])) for at in range(0, max(1, len(batch.results)), size)
    ]


def encode(batch: ResultBatch, results: Sequence[Result] | None = None) -> bytes:
    """The value of one record: the batch, with only these of its results when given."""
    chosen = batch.results if results is None else results
    found: dict[str, Any] = {
        "v": VERSION,
        "plan": batch.plan,
        "action": batch.action,
        "topic": batch.topic,
        "partition": batch.partition,
        "who": batch.who,
        "at_ms": batch.at_ms,
        "results": [result if result[4] > 1 else result[:4] for result in chosen],
    }
    if batch.errors:
        inside = {result[0] for result in chosen}
        found["errors"] = {
            str(offset): text[:ERROR_LETTERS_MAX] for offset, text in batch.errors.items() if offset in inside
        }
    return json.dumps(found, separators=(",", ":")).encode()


def decode(value: bytes | None) -> ResultBatch:
    """The batch in a record's value. Raises `ResultRecordError`."""
    try:
        found = json.loads(value or b"")
        return ResultBatch(
            plan=str(found["plan"]),
            action=str(found["action"]),
            topic=str(found["topic"]),
            partition=int(found["partition"]),
            who=str(found.get("who", "")),
            at_ms=int(found.get("at_ms", 0)),
            results=[result for each in found["results"] for result in _expanded(each)],
            errors={int(offset): str(text) for offset, text in (found.get("errors") or {}).items()},
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ResultRecordError(f"a record of the results topic is not readable: {error}") from None


def _expanded(raw: Sequence[Any]) -> Iterator[Result]:
    offset, outcome, partition, target = int(raw[0]), str(raw[1]), int(raw[2]), int(raw[3])
    count = int(raw[4]) if len(raw) > 4 else 1
    if not 0 < count <= RUN_RECORDS_MAX:
        raise ValueError(f"a run of {count} records")
    for number in range(count):
        yield Result(offset + number, outcome, partition, target + number if target >= 0 else -1)


def runs(outcome: str, offsets: Sequence[int], partition: int, targets: Sequence[int]) -> list[Result]:
    """One outcome of many records as few results. Both sequences ascend; `targets` holds -1 where a place is not known."""
    if not offsets:
        return []
    last = len(offsets) - 1
    if offsets[last] - offsets[0] == last and targets[last] - targets[0] == last and -1 not in targets:
        return [Result(offsets[0], outcome, partition, targets[0], last + 1)]
    found: list[Result] = []
    first, target, count = offsets[0], targets[0], 0
    for offset, at in zip(offsets, targets, strict=True):
        if count and offset == first + count and (at == target + count if target >= 0 else at < 0):
            count += 1
            continue
        if count:
            found.append(Result(first, outcome, partition, target, count))
        first, target, count = offset, at, 1
    found.append(Result(first, outcome, partition, target, count))
    return found


def read_results(
    cluster: Cluster,
    results_topic: str,
    *,
    plan: str = "",
    key: bytes | None = None,
    starts: Mapping[TopicPartition, int] | None = None,
    deadline_s: float = 120.0,
) -> Iterator[ResultBatch]:
    """Batches on the results topic up to its end now; of one plan, or of one `record_key`, when given.

    `starts`: read only these partitions of the results topic, from there. Nothing when the topic is missing; unreadable records are
    passed over.
    """
    admin = cluster.admin()
    try:
        spec = admin.topics([results_topic]).get(results_topic)
        if spec is None:
            return
        places = [TopicPartition(results_topic, p) for p in range(spec.partitions)] if starts is None else list(starts)
        beginnings, ends = admin.beginning_offsets(places), admin.end_offsets(places)
    finally:
        admin.close()
    first = {place: max(beginnings[place], (starts or {}).get(place, 0)) for place in places}
    mark = f'"{plan}"'.encode()
    for message in read_to_end(cluster, first, ends, deadline_s):
        value = message.value()
        if (key is not None and message.key() != key) or (plan and (value is None or mark not in value)):
            continue
        try:
            batch = decode(value)
        except ResultRecordError:
            continue
        if not plan or batch.plan == plan:
            yield batch
