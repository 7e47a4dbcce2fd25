"""Replays: the engine beside the least code that copies a topic, previews by the million, and memory meanwhile.

Both sides read the same records with one header each (an event id, as published events have), write with the same producer
settings, hear of every acknowledgement, and are measured from the first tenth of the records to the last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.bare import BATCH, COMMIT_S, client
from bench.events import PARTITIONS, application, raw_producer
from bench.lab import Lab, Row, middle, ratio_by_turns
from bench.memory import resident_bytes
from bench.meter import Meter
from pipeline.model.cluster import Position, TopicPartition
from pipeline.replay.asking import Request
from pipeline.replay.executing import Executor
from pipeline.replay.plan import ReplayPlan, Selection
from pipeline.replay.planning import make_plan
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from pipeline.topology import Defaults, apply

GROUP = "bench-replay"
HEADERS = (("pl.event_id", b"0190a3c4-8d1e-7c55-9f0a-6b1e2d3c4f5a"),)
PREVIEW_S = 10.0
GROWTH = 1.2
HEADER_FILTER = 'replay.count == 0 and key startswith "run-0000" and header.traceparent is null'


def bare(bootstrap: str, topic: str, records: int, target: str) -> dict[str, Any]:
    """consume() and produce(), bytes as they are, a delivery report for each record, offsets committed now and then."""
    consumer, producer = client(bootstrap), raw_producer(bootstrap)
    consumer.subscribe([topic])
    meter, sent, committed = Meter(records, lambda: None), 0, time.monotonic()
    refused: list[str] = []

    def report(error: Any, _message: Any) -> None:
        if error is None:
            meter.tick()
        else:
            refused.append(str(error))

    while sent < records:
        messages = consumer.consume(BATCH, 0.1)
        for message in messages:
            if message.error() is not None:
                raise RuntimeError(f"{topic}: {message.error()}")
            while True:
                try:
                    producer.produce(
                        target,
                        message.value(),
                        message.key(),
                        message.partition() or 0,
                        report,
                        headers=message.headers() or [],
                    )
                    break
                except BufferError:
                    producer.poll(0.01)
        sent += len(messages)
        producer.poll(0)
        if messages and time.monotonic() - committed >= COMMIT_S:
            committed = time.monotonic()
            for last in {(m.topic(), m.partition()): m for m in messages}.values():
                consumer.commit(message=last, asynchronous=True)
    if producer.flush(60) or refused:
        raise RuntimeError(f"not everything was written: {refused[:1]}")
    consumer.close()
    return meter.result()


def _planned(bootstrap: str, topic: str, target: str, where: str = "", decode: str = "none") -> tuple[Any, ReplayPlan]:
    """A plan over the whole topic: to the lane of a group that has processed all, or to another topic."""
    app = application(bootstrap)

    @app.subscribe(topic, group=GROUP, tiers=("10s",))
    async def handle(event: dict[str, Any], ctx: Any) -> None:
        """Never runs: only its lanes are needed."""

    admin = app.cluster.admin()
    apply(admin, app.subscriptions, Defaults(partitions=PARTITIONS))
    places = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    ends = admin.end_offsets(places)
    admin.set_group_positions(GROUP, {place: Position(end) for place, end in ends.items()})
    request = Request(
        topic,
        "bench",
        group="" if target else GROUP,
        to_topic=target,
        select=Selection(where=where),
        allowed=frozenset({target}),
        decode=decode,
    )
    return app, make_plan(app.cluster, request, app.codec, int(time.time() * 1000))


def engine(bootstrap: str, topic: str, records: int, target: str) -> dict[str, Any]:
    """The engine in one process. `target`: a topic, or empty for the replay lane."""
    app, plan = _planned(bootstrap, topic, target)
    surroundings = Surroundings(app.cluster)
    meter, executors, marks = Meter(records, lambda: None), list[Executor](), list[int]()

    def stage(name: str) -> None:
        if name == "recorded":
            meter.add(executors[0].settled - meter.count)
            if not marks and meter.count >= records // 5:
                marks.append(resident_bytes())

    options = run_options(surroundings, plan, "bench", stage=stage)
    tally = run_plan(surroundings, plan, Reason("bench", "bench"), options, app.codec, executors.append)
    if dict(tally.counts) != {"written": records}:
        raise RuntimeError(f"{records} records were to be written: {dict(tally.counts)}")
    return {**meter.result(), "early_bytes": marks[0], "late_bytes": resident_bytes()}


def preview(bootstrap: str, topic: str, records: int, where: str) -> dict[str, Any]:
    """Seconds that a plan with its preview takes; how many values its filter decoded."""
    began, cpu = time.perf_counter(), time.process_time()
    before = resident_bytes()
    _, plan = _planned(bootstrap, topic, "", where, "some")
    seconds, found = time.perf_counter() - began, plan.preview or {}
    if found["offsets"] != records:
        raise RuntimeError(f"the plan looked at {found['offsets']} of {records} records")
    return {
        "seconds": seconds,
        "cpu_us": (time.process_time() - cpu) / records * 1e6,
        "selected": found["selected"],
        "decoded": found["decoded_by_filter"],
        "grown_bytes": resident_bytes() - before,
    }


def rows(lab: Lab) -> Iterator[Row]:
    """Copying to a replay lane and to a topic, memory, previews."""
    target = lab.new_topic("copies")
    by = partial(lab.on_kafka, topic=lab.topic, records=lab.records)
    sides = [
        partial(by, "replay:bare", target=target),
        partial(by, "replay:engine", target=""),
        partial(by, "replay:engine", target=target),
    ]
    against, lane, topic = lab.by_turns(sides)
    note = "against consume() + produce() with a report for each record; ours also writes headers, results and commits in order"
    for name, what, ours in (("replay-1m", "to a replay lane", lane), ("replay-topic", "to a topic", topic)):
        ratio, cpu = ratio_by_turns(against, ours), 1 / ratio_by_turns(against, ours, "cpu_us")
        yield Row(
            name, f"{lab.records:,} events replayed {what}, bytes to bytes", ratio, 0.7, ratio >= 0.7,
            middle(ours), middle(against), "records/s", cpu, note,
        )  # fmt: skip
    early, late = middle(lane, "early_bytes"), middle(lane, "late_bytes")
    yield Row(
        "replay-memory", f"resident bytes while {lab.records:,} events are replayed", early / late,
        f"grows <= {GROWTH} x", late <= GROWTH * early, late / 1e6, early / 1e6, "MB", None, "at the end against a fifth of the way",
    )  # fmt: skip
    for name, where in (("replay-preview", ""), ("replay-filter", HEADER_FILTER)):
        seen = by("replay:preview", where=where)
        seconds = seen["seconds"] * 1e6 / lab.records
        said = f"{seen['selected']:,} chosen, {seen['decoded']} values decoded by the filter"
        yield Row(
            name, f"preview of 1,000,000 records{' by headers and key' if where else ''}", PREVIEW_S / seconds,
            f"<= {PREVIEW_S:g} s, nothing decoded", seconds <= PREVIEW_S and not seen["decoded"], seconds, None, "s", None, said,
        )  # fmt: skip
