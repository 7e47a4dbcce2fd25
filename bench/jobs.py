"""Jobs on a real Kafka: from `enqueue` to completed, beside BullMQ and Taskiq on Redis; single calls, lateness, what waiting costs.

One process asks and works, on every side. A job has an input of about 95 bytes and a short result.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import uvloop

from bench import job_peers
from bench.events import PARTITIONS, application
from bench.lab import Lab, MeasureError, Row, middle, ratio_by_turns
from bench.memory import resident_bytes
from bench.meter import Meter
from pipeline import FlowPolicy, Pipeline
from pipeline.core.progress import decode
from pipeline.core.store_scan import Floor
from pipeline.model.cluster import TopicPartition
from pipeline.topology import Defaults, apply

CHUNK = 500
MANY = 5_000
DAY = "1d"
Ticket = dict[str, str]


def _ticket(number: int) -> Ticket:
    return {"ticket": f"ticket-{number}", "text": "x" * 60}


def _queue(bootstrap: str, concurrency: int = 1_000) -> tuple[Pipeline, str]:
    """An application with a queue that nobody used before."""
    app, name = application(bootstrap), f"bench-{uuid.uuid4().hex[:8]}"
    app.queue(name, concurrency=concurrency)
    return app, name


async def _begin(app: Pipeline) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, lambda: apply(app.cluster.admin(), app.subscriptions, Defaults(PARTITIONS)))
    await app.start()


def throughput(bootstrap: str, jobs: int, concurrency: int, wait_ms: int = 0) -> dict[str, Any]:
    """From the first tenth that ran to the end of a stop, when every ending is acknowledged."""
    app, name = _queue(bootstrap, concurrency)
    meter = Meter(jobs, lambda: None)

    @app.job("classify", queue=name, concurrency=concurrency, attempts=3)
    async def classify(ticket: Ticket) -> Ticket:
        if wait_ms:
            await asyncio.sleep(wait_ms / 1000)
        if meter.count < jobs - 1:  # the last one counts when all are through
            meter.tick()
        else:
            done.set()
        return {"label": ticket["ticket"]}

    done = asyncio.Event()

    async def main() -> dict[str, Any]:
        await _begin(app)
        for first in range(0, jobs, CHUNK):
            await app.enqueue_many(classify, [_ticket(n) for n in range(first, min(jobs, first + CHUNK))])
        await asyncio.wait_for(done.wait(), 150)
        await app.stop()
        meter.tick()
        return meter.result()

    return uvloop.run(main())


def single(bootstrap: str, jobs: int) -> dict[str, Any]:
    """One `enqueue` after the other, each acknowledged before the next."""
    app, name = _queue(bootstrap)

    @app.job("classify", queue=name)
    async def classify(ticket: Ticket) -> None: ...

    async def main() -> dict[str, Any]:
        await _begin(app)
        seen = []
        for number in range(jobs + 100):
            began = time.perf_counter()
            await app.enqueue(classify, _ticket(number))
            seen.append((time.perf_counter() - began) * 1000)
        await app.stop()
        seen = sorted(seen[100:])
        return {"p50_ms": seen[len(seen) // 2], "p99_ms": seen[len(seen) * 99 // 100]}

    return uvloop.run(main())


def many(bootstrap: str, jobs: int) -> dict[str, Any]:
    """`enqueue_many` alone, nobody works."""
    app, name = _queue(bootstrap)

    @app.job("classify", queue=name)
    async def classify(ticket: Ticket) -> None: ...

    async def main() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: apply(app.cluster.admin(), app.subscriptions, Defaults(PARTITIONS)))
        meter = Meter(jobs, lambda: None)
        for first in range(0, jobs, MANY):
            handles = await app.enqueue_many(classify, [_ticket(n) for n in range(first, min(jobs, first + MANY))])
            meter.add(len(handles))
        await app.stop()
        return meter.result()

    return uvloop.run(main())


def lateness(bootstrap: str, jobs: int) -> dict[str, Any]:
    """Delays of two to six seconds: how long after its time each began."""
    app, name = _queue(bootstrap)
    late: list[float] = []
    done, rng = asyncio.Event(), random.Random(1)

    @app.job("due", queue=name, concurrency=1_000)
    async def due(at: dict[str, float]) -> None:
        late.append((time.time() - at["due"]) * 1000)
        if len(late) == jobs:
            done.set()

    async def main() -> dict[str, Any]:
        await _begin(app)
        await app.enqueue(due, {"due": time.time()})
        for _ in range(jobs - 1):
            delay_s = rng.randrange(2_000, 6_000) / 1000  # whole milliseconds, as times of jobs are
            await app.enqueue(due, {"due": time.time() + delay_s}, delay=delay_s)
        await asyncio.wait_for(done.wait(), 60)
        await app.stop()
        seen = sorted(late[1:])
        return {"p50_ms": seen[len(seen) // 2], "p99_ms": seen[len(seen) * 99 // 100], "early_ms": -min(seen)}

    return uvloop.run(main())


def waiting(bootstrap: str, queue: str, jobs: int) -> dict[str, Any]:
    """Ask for jobs that are due tomorrow while a worker admits them; its bytes for each beyond the first fifth."""
    app = application(bootstrap)
    app.queue(queue)

    @app.job("tomorrow", queue=queue)
    async def tomorrow(ticket: Ticket) -> None: ...

    async def main() -> dict[str, Any]:
        await _begin(app)
        first = jobs // 5
        await _ask(app, tomorrow, 0, first, {"delay": DAY})
        await _admitted(app, queue, first)
        before = resident_bytes()
        await _ask(app, tomorrow, first, jobs, {"delay": DAY})
        await _admitted(app, queue, jobs)
        grown = resident_bytes() - before
        await app.stop()
        return {"bytes": grown / (jobs - first)}

    return uvloop.run(main())


async def _ask(app: Pipeline, job: Any, first: int, to: int, options: Mapping[str, Any]) -> None:
    for at in range(first, to, MANY):
        await app.enqueue_many(job, [_ticket(n) for n in range(at, min(to, at + MANY))], **options)


async def _admitted(app: Pipeline, queue: str, jobs: int) -> None:
    """Committed past all of them: they are in the store."""
    deadline = time.monotonic() + 150
    loop, admin = asyncio.get_running_loop(), app.cluster.admin()
    while time.monotonic() < deadline:
        found = await loop.run_in_executor(None, admin.group_positions, queue)
        if sum(position.offset for place, position in found.items() if place.topic == f"jobs.{queue}") >= jobs:
            return
        await asyncio.sleep(0.2)
    raise TimeoutError(f"{jobs} jobs were not admitted within 150 s")


def restore(bootstrap: str, queue: str) -> dict[str, Any]:
    """A worker starts on a store: seconds until all partitions are at work."""
    app = application(bootstrap)
    app.queue(queue, flow=FlowPolicy())
    for name in ("tomorrow", "classify"):

        @app.job(name, queue=queue)
        async def idle(ticket: Ticket) -> None: ...

    async def main() -> dict[str, Any]:
        began = time.monotonic()
        await app.start()
        while app.worker is None or len(app.worker.running[0].engine.owned) < PARTITIONS:
            if time.monotonic() - began > 150:
                raise TimeoutError("the store was not restored within 150 s")
            await asyncio.sleep(0.02)
        seconds = time.monotonic() - began
        await app.stop()
        return {"seconds": seconds}

    return uvloop.run(main())


def finish(bootstrap: str, queue: str, jobs: int) -> dict[str, Any]:
    """So many jobs from `enqueue` to their ending: records that its store got of them, and how many a new owner has to read."""
    app = application(bootstrap)
    app.queue(queue, concurrency=1_000)
    done, left = asyncio.Event(), jobs

    @app.job("classify", queue=queue, concurrency=1_000)
    async def classify(ticket: Ticket) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async def main() -> dict[str, Any]:
        await _begin(app)
        await _ask(app, classify, 0, jobs, {})
        await asyncio.wait_for(done.wait(), 150)
        await asyncio.sleep(5)  # what is known of them is forgotten but for some, and what counts may be written again
        await app.stop()
        admin, state = app.cluster.admin(), f"jobs.{queue}.{queue}.state"
        places = [TopicPartition(state, number) for number in range(PARTITIONS)]
        ends = admin.end_offsets(places)
        floors = {
            place.partition: Floor.of(decode(position.offset, position.metadata).marks).at
            for place, position in admin.group_positions(queue).items()
            if place.topic == f"jobs.{queue}"
        }
        read = sum(end - floors.get(place.partition, 0) for place, end in ends.items())
        return {"records": sum(ends.values()), "read": read}

    return uvloop.run(main())


# -- rows


def rows(lab: Lab) -> Iterator[Row]:
    yield from _beside_redis(lab)
    yield from _alone(lab)
    yield from _standing(lab)


def _beside_redis(lab: Lab) -> Iterator[Row]:
    noop, wait = {"concurrency": 100, "wait_ms": 0}, {"concurrency": 1_000, "wait_ms": 20}
    shown = (("noop", "no work, 100 in flight", noop), ("wait", "20 ms of waiting, 1,000 in flight", wait))
    jobs = lab.sized(60_000, 20_000)
    try:
        with job_peers.redis() as port, job_peers.bullmq() as folder:
            for name, what, load in shown:
                yield from _throughput(lab, name, what, load, jobs, port, folder)
            peer = job_peers.run_bullmq(folder, port, jobs=2_000, what="single")
    except job_peers.Absent as absent:
        lab.say(str(absent))
        for name, what, load in shown:
            rate = lab.on_kafka("jobs:throughput", jobs=jobs, **load)["rate"]
            yield Row(
                f"jobs-{name}", what, None, "> BullMQ", False, rate, unit="jobs/s", note=f"not compared: {absent}"
            )
        peer = {}
    mine = lab.on_kafka("jobs:single", jobs=lab.sized(3_000, 1_000))
    for name, bound in (("p50", 3.0), ("p99", 20.0)):
        ours, theirs = mine[f"{name}_ms"], peer.get(f"{name}_ms")
        yield Row(
            f"jobs-enqueue-{name}", f"one enqueue, acknowledged, {name}", bound / ours, f"<= {bound:g} ms", ours <= bound,
            ours, theirs, "ms", None, "ratio is reach / ours; against: BullMQ's add, on a Redis that keeps nothing on disk",
        )  # fmt: skip


def _throughput(
    lab: Lab, name: str, what: str, load: dict[str, int], jobs: int, port: int, folder: Any
) -> Iterator[Row]:
    def bullmq() -> dict[str, Any]:
        lab.say(f"bullmq {what}")
        return job_peers.run_bullmq(
            folder, port, jobs=jobs, concurrency=load["concurrency"], waitMs=load["wait_ms"], what="throughput"
        )

    against, ours = lab.by_turns([bullmq, lambda: lab.on_kafka("jobs:throughput", jobs=jobs, **load)])
    ratio = ratio_by_turns(against, ours)
    yield Row(
        f"jobs-{name}", f"enqueue to completed, {what}; beside BullMQ", ratio, "> 1", ratio > 1, middle(ours),
        middle(against), "jobs/s", None, "one process asks and works; BullMQ on a Redis that keeps nothing on disk",
    )  # fmt: skip
    if not job_peers.has_taskiq():
        lab.say("taskiq-redis is not installed")
        return
    try:
        theirs = lab.run("job_peers:taskiq", port=port, jobs=jobs // 10, **load)["rate"]
    except MeasureError as error:
        yield Row(f"jobs-{name}-taskiq", what, None, "> 1", False, note=f"not measured: {error}")
        return
    yield Row(
        f"jobs-{name}-taskiq", f"enqueue to completed, {what}; beside Taskiq", middle(ours) / theirs, "> 1",
        middle(ours) > theirs, middle(ours), theirs, "jobs/s", None, "Taskiq on a Redis stream, with results",
    )  # fmt: skip


def _alone(lab: Lab) -> Iterator[Row]:
    rate = lab.on_kafka("jobs:many", jobs=lab.sized(200_000, 50_000))["rate"]
    yield Row(
        "jobs-enqueue-many", "enqueue_many, acknowledged", rate / 30_000, ">= 30,000/s", rate >= 30_000, rate,
        None, "jobs/s", None, "ratio is ours / reach",
    )  # fmt: skip
    seen = lab.on_kafka("jobs:lateness", jobs=lab.sized(2_000, 1_000))
    on_time, p99 = seen["early_ms"] < 1.0, seen["p99_ms"]
    note = f"p50 {seen['p50_ms']:.1f} ms late; earliest {seen['early_ms']:.2f} ms early; ratio is reach / ours"
    yield Row(
        "jobs-lateness", "a delayed job, p99 lateness", 50 / p99, "never early, <= 50 ms", on_time and p99 <= 50, p99,
        None, "ms", None, note,
    )  # fmt: skip


def _standing(lab: Lab) -> Iterator[Row]:
    jobs, queue = lab.sized(1_000_000, 100_000), f"bench-{uuid.uuid4().hex[:8]}"
    each = lab.on_kafka("jobs:waiting", queue=queue, jobs=jobs)["bytes"]
    yield Row(
        "jobs-waiting", f"resident bytes of each of {jobs:,} jobs that wait", None, "stated", True, each, None, "bytes",
        None, "between the first fifth and the last, on one worker",
    )  # fmt: skip
    seconds = lab.on_kafka("jobs:restore", queue=queue)["seconds"]
    per = seconds / jobs * 100_000
    yield Row(
        "jobs-restore", f"a start with {jobs:,} jobs that wait, per 100,000", None, "seconds", per < 10, per, None, "s",
        None, f"{seconds:.1f} s in all, joining the group included",
    )  # fmt: skip
    jobs, queue = lab.sized(300_000, 30_000), f"bench-{uuid.uuid4().hex[:8]}"
    store = lab.on_kafka("jobs:finish", queue=queue, jobs=jobs)
    seconds = lab.on_kafka("jobs:restore", queue=queue)["seconds"]
    yield Row(
        "jobs-restart", f"a start of a queue that has done {jobs:,} jobs", None, "stated", True, seconds, None, "s",
        None, f"its store has {store['records']:,} records, of which {store['read']:,} are read",
    )  # fmt: skip
