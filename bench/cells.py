"""The work table: order by key, from no work to a thousand waiting handlers, beside asyncio alone and beside what Confluent's
Parallel Consumer was measured to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from bench.lab import Lab, Row, middle, ratio_by_turns

PARALLEL_CONSUMER_PART, ASYNCIO_PART = 1.5, 0.85
"""The aim is the smaller of these parts of either rate."""
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """`parallel_consumer` is in records per second, measured elsewhere (2 cores, order by key): not by this benchmark."""

    name: str
    wait_s: float
    running: int
    parallel_consumer: float
    records: int

    @property
    def workload(self) -> str:
        work = f"{self.wait_s * 1_000:g} ms of waiting, {self.running:,} running" if self.wait_s else "no work"
        return f"{work}, raw bytes, key order (Parallel Consumer elsewhere: {self.parallel_consumer:,.0f}/s)"


CELLS = (
    Cell("cell-none", 0.0, 1_000, 60_000, 200_000),
    Cell("cell-5ms-100", 0.005, 100, 12_000, 50_000),
    Cell("cell-20ms-1000", 0.02, 1_000, 22_000, 150_000),
    Cell("cell-1ms-1000", 0.001, 1_000, 30_000, 200_000),
)


def aim_of(parallel_consumer: float, asyncio_alone: float) -> float:
    return min(PARALLEL_CONSUMER_PART * parallel_consumer, ASYNCIO_PART * asyncio_alone)


def rows(lab: Lab) -> Iterator[Row]:
    """One row per cell; the ratio is to asyncio alone, the aim is a rate."""
    for cell in CELLS:
        records = min(cell.records, lab.records)
        alone = partial(lab.run, "bare:by_key", records=records, running=cell.running, wait_s=cell.wait_s)
        kind, more = ("wait-raw", {"wait_s": cell.wait_s}) if cell.wait_s else ("async-raw", {})
        ours = partial(
            lab.on_kafka,
            "ours:throughput",
            topic=lab.topic,
            records=records,
            kind=kind,
            group=f"bench-{cell.name}",
            concurrency=cell.running,
            **more,
        )
        against, own = lab.by_turns([alone, ours], ROUNDS)
        rate, bare = middle(own), middle(against)
        aim = aim_of(cell.parallel_consumer, bare)
        yield Row(
            cell.name, cell.workload, ratio_by_turns(against, own), f"{aim:,.0f}/s", rate >= aim,
            rate, bare, "records/s", 1 / ratio_by_turns(against, own, "cpu_us"), NOTE,
            {"aim": aim, "parallel_consumer": cell.parallel_consumer},
        )  # fmt: skip


NOTE = (
    "against asyncio alone: a bare loop on uvloop with the same keys, a queue per key and asyncio.sleep, with no Kafka; the aim is the "
    f"smaller of {PARALLEL_CONSUMER_PART:g} x Parallel Consumer (measured elsewhere) and {ASYNCIO_PART:g} x asyncio alone"
)
