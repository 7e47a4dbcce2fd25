"""What a record costs (CPU of the worker's process) as keys and partitions grow, and what it holds with 100,000 in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.behaviour import FLIGHT_BYTES
from bench.events import KEYS, PARTITIONS, load
from bench.lab import Lab, Result, Row, middle

KEY_COUNTS = (100, 1_000, 10_000, 100_000, 1_000_000)
PARTITION_COUNTS = (1, 4, 16, 64)
GROWTH = 1.5
ROUNDS = 2
VALUE = b"x" * 280


def _pairs(records: int, keys: int) -> list[tuple[bytes, bytes]]:
    """Every key as often as the others, in turn, in an order that has nothing to do with their names."""
    step = 7_919 if keys % 7_919 else 7_907
    return [(b"run-%07d" % (number * step % keys), VALUE) for number in range(records)]


def _side(lab: Lab, records: int, keys: int, partitions: int, group: str) -> Callable[[], Result]:
    topic = lab.new_topic("cost", partitions)
    load(lab.bootstrap, topic, _pairs(records, keys))
    more = {"partitions": partitions, "group": group}
    return partial(lab.on_kafka, "ours:throughput", topic=topic, records=records, kind="async-raw", **more)


def _grown(what: str, sizes: Sequence[int], found: Sequence[Sequence[Result]]) -> Iterator[Row]:
    """A row per size, against the least; the ratio is the least's cost / its own."""
    least = middle(found[0], "cpu_us")
    for size, results in zip(sizes, found, strict=True):
        cost = middle(results, "cpu_us")
        yield Row(
            f"cost-{what}-{size}", f"CPU per record, {size:,} {what}", least / cost, f"<= {GROWTH} x that of {sizes[0]:,}",
            cost <= GROWTH * least, cost, least, "CPU us", None,
            "async def with no work, raw bytes, key order; the whole process, librdkafka included; less is better",
            {what: size, "rate": middle(results)},
        )  # fmt: skip


def by_keys(lab: Lab) -> Iterator[Row]:
    """From 100 keys to a million; the million has a million records, so that each is met."""
    sizes = [keys for keys in KEY_COUNTS if keys <= max(lab.records, lab.sized(1_000_000, 0))]
    sides = [_side(lab, max(lab.records, keys), keys, PARTITIONS, f"bench-keys-{keys}") for keys in sizes]
    yield from _grown("keys", sizes, lab.by_turns(sides, ROUNDS))


def by_partitions(lab: Lab) -> Iterator[Row]:
    """From one partition to 64, with as many of each lane."""
    sides = [_side(lab, lab.records, KEYS, count, f"bench-partitions-{count}") for count in PARTITION_COUNTS]
    yield from _grown("partitions", PARTITION_COUNTS, lab.by_turns(sides, ROUNDS))


def in_flight(lab: Lab) -> Iterator[Row]:
    """As many suspended handlers as a subscription may have."""
    seen = lab.on_kafka("memory:in_flight", topic=lab.new_topic("flight"), records=lab.sized(100_000, 30_000))
    each, count = seen["bytes_each"], seen["records"]
    yield Row(
        "memory-100k", f"resident bytes per record with {count:,} in flight", FLIGHT_BYTES / each, f"<= {FLIGHT_BYTES:,} bytes",
        each <= FLIGHT_BYTES, each, None, "bytes", None,
        f"suspended handlers of as many keys: {each * 100_000 / 1e6:,.0f} MB per 100,000, beyond the idle worker; ratio is reach / ours",
        {"in_flight": count, "megabytes_per_100k": each * 100_000 / 1e6},
    )  # fmt: skip
