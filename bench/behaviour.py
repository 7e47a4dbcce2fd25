"""Rows about time and memory: latency, retry tiers, parking, resident bytes."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from bench.lab import Lab, Row

LATE_MS = 100.0
CPU_MS_PER_S = 10.0
"""One hundredth of a core: what "no CPU" means here."""
SLOWER = 1.1
FLIGHT_BYTES = 6_000
GROWTH = 1.1


LATENCY_TURNS = 5
"""A p99 of eight seconds is made of a dozen hiccups of broker and machine: of two turns either side wins by luck."""


def latency(lab: Lab) -> Iterator[Row]:
    """publish -> handler at 1,000/s; raw and ours by turns."""
    per_s, records = 1_000, lab.sized(9_000, 4_000)
    raw, ours = [], []
    for _ in range(lab.sized(LATENCY_TURNS, 1)):
        raw.append(lab.on_kafka("latency:raw", topic=lab.new_topic("raw"), records=records, per_s=per_s))
        ours.append(lab.on_kafka("latency:ours", topic=lab.new_topic("latency"), records=records, per_s=per_s))
    for name, reach in (("p50", "<= 2 x raw"), ("p99", "<= raw + 5 ms")):
        mine, theirs = (median(r[f"{name}_ms"] for r in side) for side in (ours, raw))
        bound = 2 * theirs if name == "p50" else theirs + 5
        note = "ratio is raw / ours; raw: librdkafka with linger.ms=0 and a poll loop"
        yield Row(
            f"latency-{name}", f"publish to handler at 1,000/s, {name}", theirs / mine, reach, mine <= bound,
            mine, theirs, "ms", None, note,
        )  # fmt: skip


def lateness(lab: Lab) -> Iterator[Row]:
    """Retries come on time and never early."""
    seen = lab.on_kafka(
        "retries:lateness",
        topic=lab.new_topic("late"),
        records=lab.sized(10_000, 4_000),
        per_s=1_000,
        tier_s=lab.sized(5, 2),
    )
    # A due time is a whole millisecond: nothing finer can be promised.
    on_time, p99 = seen["early_ms"] < 1.0, seen["p99_ms"]
    note = f"p50 {seen['p50_ms']:.1f} ms late; earliest {seen['early_ms']:.2f} ms early (due times are whole ms); ratio is reach / ours"
    yield Row(
        "retry-lateness", "retry tier, 1,000 due per second, p99 lateness", LATE_MS / p99, "never early, <= 100 ms",
        on_time and p99 <= LATE_MS, p99, None, "ms", None, note,
    )  # fmt: skip


def tiers(lab: Lab) -> Iterator[Row]:
    """What records cost while they wait, and when they come due."""
    records = lab.sized(100_000, 30_000)
    seen = lab.on_kafka("retries:waiting", topic=lab.new_topic("wait"), records=records, watch_s=lab.sized(10, 5))
    idle, waits = seen["idle_ms_per_s"], seen["waiting_ms_per_s"]
    note = f"CPU of the process in ms per second; ratio is idle / waiting; {records:,} failed and parked in {seen['parked_s']:.1f} s"
    yield Row(
        "retry-waiting", f"{records:,} records wait in a tier: CPU beside an idle worker", idle / waits,
        f"<= idle + {CPU_MS_PER_S:g} ms/s", waits <= idle + CPU_MS_PER_S, waits, idle, "CPU ms/s", None, note,
    )  # fmt: skip
    records = lab.sized(30_000, 10_000)
    due = lab.on_kafka("retries:traffic", topic=lab.new_topic("bytes"), records=records, tier_s=lab.sized(15, 10))
    note = f"from librdkafka's statistics; {records:,} records that came due at once were run in {due['drain_s']:.1f} s"
    yield Row(
        "retry-bytes", "bytes fetched per record that comes due", None, "stated", True,
        due["bytes_per_record"], None, "bytes", None, note,
    )  # fmt: skip


def parking(lab: Lab) -> Iterator[Row]:
    """Ten thousand successors behind a head that fails four times."""
    successors, others = lab.sized(10_000, 3_000), lab.sized(60_000, 25_000)
    runs = {
        fails: [
            lab.on_kafka(
                "retries:parking", topic=lab.new_topic("park"), successors=successors, others=others, fails=fails
            )
            for _ in range(lab.sized(2, 1))
        ]
        for fails in (False, True)
    }
    head, calm = runs[True][0], runs[False][0]
    hops = head["hops"] / successors
    note = f"{head['hops']:,} hops ({hops:.2f} per successor); the four tiers alone take 5 s"
    yield Row(
        "parking-time", f"{successors:,} successors behind a head that fails four times", calm["hot_s"] / head["hot_s"],
        "stated", True, head["hot_s"], calm["hot_s"], "s", None, note,
    )  # fmt: skip
    slow, free = (median(r["others_s"] for r in runs[fails]) for fails in (True, False))
    yield Row(
        "parking-others", f"{others:,} records of other keys meanwhile (20 ms of waiting, 200 running)", free / slow,
        f"not slower than {SLOWER} x", slow <= SLOWER * free, slow, free, "s", None, "ratio is without / with the failing head",
    )  # fmt: skip


def memory(lab: Lab) -> Iterator[Row]:
    """Bytes per record in flight; growth over time, also behind a stalled key."""
    seen = lab.on_kafka("memory:in_flight", topic=lab.new_topic("flight"), records=lab.sized(20_000, 10_000))
    each = seen["bytes_each"]
    note = f"{seen['records']:,} suspended handlers; everything beyond the idle worker, librdkafka included; ratio is reach / ours"
    yield Row(
        "memory-in-flight", "resident bytes per record in flight", FLIGHT_BYTES / each, "<= 6,000 bytes",
        each <= FLIGHT_BYTES, each, None, "bytes", None, note,
    )  # fmt: skip
    for stalled in (False, True):
        # A stalled key stops its own partition (a twelfth of the keys) once its commit metadata is three quarters full.
        records = round(lab.records * 0.85) if stalled else lab.records
        topic, total = lab.topic, records
        seen = lab.on_kafka("memory:over_time", topic=topic, records=total, stalled=stalled)
        early, late = seen["early_bytes"], seen["late_bytes"]
        what = "with one key stalled" if stalled else "with nothing stalled"
        yield Row(
            "memory-stalled" if stalled else "memory-flat", f"resident bytes over {total:,} records, {what}",
            early / late, f"grows <= {GROWTH} x", late <= GROWTH * early, late / 1e6, early / 1e6, "MB", None,
            "at the end against a fifth of the way",
        )  # fmt: skip
