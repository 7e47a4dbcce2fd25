"""Workers under test: topics of one test, worker processes, and a ledger of what their handlers really did.

The ledger is a file that every handler of the test appends to, one `write` per line: what was started and finished is known
even of a process that was SIGKILLed, in one order for all processes. `verdict` judges it; topics are read back beside it.
As a module (`tests.integration.harness:app`) it is the application that the worker processes run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import FlowPolicy, Pipeline, Reject, Retry, Settings
from pipeline.core.progress import Progress, decode
from pipeline.model.cluster import Headers, Message, TopicPartition
from pipeline.topology import Defaults, apply

ROOT = Path(__file__).parents[2]
SOURCE, GROUP, OUT = "events", "g", "out"
SESSION_S = 3.0
"""How long a dead member keeps its partitions in these tests."""


def until(what: str, condition: Callable[[], Any], deadline_s: float = 30.0, tell: Callable[[], str] = str) -> Any:
    """Wait for a truthy answer; on time-out say what was waited for and what `tell` knows."""
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}\n{tell()}")
        time.sleep(0.02)
    return answer


async def until_async(what: str, condition: Callable[[], Any], deadline_s: float = 30.0) -> Any:
    """`until` for code in the event loop."""
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        await asyncio.sleep(0.01)
    return answer


# -- the ledger


class Mark(NamedTuple):
    """One line: a handler's `start`, or how it ended (`done`, `fail`, `reject`)."""

    at: float
    pid: int
    what: str
    partition: int
    offset: int
    key: str
    attempt: int


class Ledger:
    """Appended to by every process of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)

    def mark(self, what: str, ctx: Any) -> None:
        line = [time.time(), os.getpid(), what, ctx.partition, ctx.offset, ctx.run_id, ctx.attempt]
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def marks(self, *kinds: str) -> list[Mark]:
        with self.path.open() as file:
            found = [Mark(*json.loads(line)) for line in file if line.endswith("\n")]
        return [mark for mark in found if not kinds or mark.what in kinds]

    def done(self) -> list[tuple[int, int]]:
        """Origins of what was done, in order; one that was done twice is there twice."""
        return [(mark.partition, mark.offset) for mark in self.marks("done")]

    def __str__(self) -> str:
        marks = self.marks()
        kinds = {kind: sum(m.what == kind for m in marks) for kind in sorted({m.what for m in marks})}
        return f"ledger: {kinds}; last: " + "; ".join(
            f"{m.at:.3f} pid {m.pid} {m.what} {m.partition}/{m.offset} {m.key} #{m.attempt}" for m in marks[-12:]
        )


@dataclass
class Verdict:
    """What is wrong with a history, in words; empty lists are what a test wants."""

    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)

    def check(self, *allowed: str) -> None:
        for name in ("lost", "duplicates", "disorder", "early"):
            found = getattr(self, name)
            assert name in allowed or not found, f"{len(found)} {name}: {found[:8]}"


def verdict(
    marks: Sequence[Mark],
    published: Iterable[tuple[int, int]],
    dead: Iterable[tuple[int, int]] = (),
    tier_s: float = 0.0,
) -> Verdict:
    """Judge a history: I1 (nothing lost), I2 (done once), I3 (a key's records start only when all lower ones have ended,
    in first effects), I8 (no retry earlier than `tier_s` after the failure before it)."""
    found, ended, dead_set = Verdict(), dict[tuple[int, int], int](), set(dead)
    by_key: dict[tuple[int, str], set[int]] = {}
    for mark in marks:
        by_key.setdefault((mark.partition, mark.key), set()).add(mark.offset)
    failed_at: dict[tuple[int, int], Mark] = {}
    final: dict[tuple[int, int], int] = {}
    for mark in marks:
        if mark.what != "start":
            origin = (mark.partition, mark.offset)
            final[origin] = max(final.get(origin, 0), mark.attempt)
    for mark in marks:
        origin = (mark.partition, mark.offset)
        if mark.what == "start":
            if origin not in ended:  # a first effect: records that are run again by a crash do not count
                below = [o for o in by_key[mark.partition, mark.key] if o < mark.offset]
                waiting = [o for o in below if (mark.partition, o) not in ended]
                if waiting:
                    found.disorder.append(
                        f"{mark.key}: {origin} started at attempt {mark.attempt} before {waiting[:5]}"
                    )
            before = failed_at.get(origin)
            # Due times are whole milliseconds, rounded down.
            if before is not None and mark.attempt > before.attempt and mark.at - before.at < tier_s - 0.001:
                found.early.append(f"{origin} #{mark.attempt} after {mark.at - before.at:.3f} s")
        elif mark.what == "fail":
            failed_at[origin] = mark
            if origin in dead_set and mark.attempt == final[origin]:
                ended[origin] = 1
        elif mark.what == "reject":
            ended[origin] = 1
        else:
            ended[origin] = ended.get(origin, 0) + 1
            if ended[origin] > 1:
                found.duplicates.append(f"{origin} {mark.key} done {ended[origin]} times")
    done = {(m.partition, m.offset) for m in marks if m.what == "done"}
    found.lost.extend(str(origin) for origin in published if origin not in done and origin not in dead_set)
    return found


# -- the application that worker processes run


async def _obey(value: dict[str, Any], ctx: Any, ledger: Ledger) -> None:
    """Do what the record says: `gate` (a file to wait for), `sleep`, `fails` (attempts that fail), `reject`."""
    ledger.mark("start", ctx)
    while "gate" in value and not os.path.exists(value["gate"]):
        await asyncio.sleep(0.02)
    if "sleep" in value:
        await asyncio.sleep(value["sleep"])
    _end(value, ctx, ledger)


def _obey_in_thread(value: dict[str, Any], ctx: Any, ledger: Ledger) -> None:
    ledger.mark("start", ctx)
    if "sleep" in value:
        time.sleep(value["sleep"])
    _end(value, ctx, ledger)


def _end(value: dict[str, Any], ctx: Any, ledger: Ledger) -> None:
    if value.get("reject"):
        ledger.mark("reject", ctx)
        raise Reject("the record says so")
    if ctx.attempt <= value.get("fails", 0):
        ledger.mark("fail", ctx)
        raise Retry("the record says so", after=value.get("after"))
    if value.get("emit"):
        ctx.emit(OUT, ctx.key, {"of": [ctx.partition, ctx.offset]})
    ledger.mark("done", ctx)


def make_app(spec: dict[str, Any]) -> Pipeline:
    """An application from plain data: settings, arguments of `subscribe`, kind of handler, and where the ledger is."""
    app = Pipeline("t", settings=Settings(**spec["settings"]))
    ledger = Ledger(Path(spec["ledger"]))
    arguments = {"group": GROUP, "value": "json", **spec["subscribe"]}
    if "flow" in arguments:
        arguments["flow"] = FlowPolicy(**arguments["flow"])
    if spec["kind"] == "def":

        @app.subscribe(SOURCE, **arguments)
        def plain(value: dict[str, Any], ctx: Any) -> None:
            _obey_in_thread(value, ctx, ledger)

    elif spec["kind"] == "batch":

        @app.subscribe(SOURCE, **{"batch": 50, **arguments})
        async def batch(values: list[dict[str, Any]], contexts: list[Any]) -> list[Any]:
            found = await asyncio.gather(*map(_obey, values, contexts, [ledger] * len(values)), return_exceptions=True)
            return list(found)

    else:

        @app.subscribe(SOURCE, **arguments)
        async def one(value: dict[str, Any], ctx: Any) -> None:
            await _obey(value, ctx, ledger)

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return make_app(json.loads(os.environ["HARNESS_SPEC"]))
    raise AttributeError(name)


class Process:
    """One worker process, its log and its status page."""

    def __init__(self, spec: dict[str, Any], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "pipeline.worker.process", str(os.getpid()), "tests.integration.harness:app", "0", "0", "127.0.0.1"],
                env={**os.environ, "HARNESS_SPEC": json.dumps(spec)}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(10)

    def lines(self) -> list[dict[str, Any]]:
        """The structured part of its log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == event]

    def status(self, path: str = "health") -> tuple[int, str]:
        """(HTTP status, body); (0, why) while it does not serve."""
        for line in self.said("status"):
            url = line["metrics"].replace("/metrics", f"/{path}")
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)
        return 0, "no status line yet"

    def partitions(self) -> list[int]:
        status, body = self.status()
        health = json.loads(body) if status else {}
        return next((group["partitions"] for group in health.values()), [])

    def stop(self, deadline_s: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.popen.wait(deadline_s)


class Scene:
    """One test: its prefix on the cluster, its topics, its ledger, and the processes it started. Leaves nothing running."""

    def __init__(self, bootstrap: str, name: str, folder: Path, partitions: int = 2) -> None:
        self.prefix = f"{name}."
        self.folder = folder
        self.partitions = partitions
        self.bootstrap = bootstrap
        self.ledger = Ledger(folder / "ledger")
        self.processes: list[Process] = []
        self.published: list[tuple[int, int]] = []
        self.client = Pipeline("t", settings=self.settings())
        self._producer: Any = None

    def settings(self, **more: Any) -> Settings:
        return Settings(**{"broker": self.bootstrap, "prefix": self.prefix, "session_timeout_s": SESSION_S, **more})

    def app(self, **more: Any) -> Pipeline:
        """An application for handlers in this process."""
        return Pipeline("t", settings=self.settings(**more))

    @property
    def admin(self) -> Any:
        return self.client.cluster.admin()

    def topic(self, name: str = SOURCE) -> str:
        return self.prefix + name

    def lane(self, name: str, group: str = GROUP) -> str:
        """ "dlq", "replay", "retry.200ms"."""
        return f"{self.prefix}{SOURCE}.{self.prefix}{group}.{name}"

    def make_topics(self, app: Pipeline, *plain: str) -> None:
        """Source (with this scene's partitions), lanes and control topic of an application, and topics for outputs."""
        from pipeline.model.cluster import TopicSpec

        apply(self.admin, app.subscriptions, Defaults(partitions=self.partitions), self.prefix)
        missing = [self.topic(name) for name in plain if self.topic(name) not in self.admin.topic_names()]
        self.admin.create_topics([TopicSpec(name, 1) for name in missing])

    # -- records

    def publish(
        self, key: str | None, value: Any, headers: Headers | None = None, partition: int = -1, topic: str = SOURCE
    ) -> tuple[int, int]:
        """One record, acknowledged; returns its origin. `value`: bytes as they are, anything else as JSON."""
        return self.publish_many([(key, value)], headers, partition, topic)[0]

    def publish_many(
        self,
        records: Iterable[tuple[str | None, Any]],
        headers: Headers | None = None,
        partition: int = -1,
        topic: str = SOURCE,
    ) -> list[tuple[int, int]]:
        from confluent_kafka import Producer

        if self._producer is None:
            self._producer = Producer(
                {
                    "bootstrap.servers": self.bootstrap,
                    "partitioner": "murmur2_random",
                    "linger.ms": 2,
                    "enable.idempotence": True,
                }
            )
        made: list[tuple[int, int]] = []
        problems: list[str] = []

        def report(error: Any, message: Any) -> None:
            problems.append(str(error)) if error else made.append((message.partition(), message.offset()))

        for key, value in records:
            data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
            self._producer.produce(
                self.topic(topic), data, key and key.encode(), partition, report, headers=headers or []
            )
        assert self._producer.flush(30) == 0
        assert not problems, problems[:3]
        if topic == SOURCE:
            self.published += made
        return made

    def read(self, topic: str) -> list[Message]:
        """All records of a topic (real name) as it is now, partition by partition in offset order."""
        admin, spec = self.admin, self.admin.topics([topic])
        if topic not in spec:
            return []
        partitions = [TopicPartition(topic, p) for p in range(spec[topic].partitions)]
        starts, ends = admin.beginning_offsets(partitions), admin.end_offsets(partitions)
        wanted = {tp for tp in partitions if ends[tp] > starts[tp]}
        found: list[Message] = []
        reader = self.client.cluster.reader("read-back")
        try:
            reader.assign({tp: starts[tp] for tp in wanted})
            end = time.monotonic() + 20
            while wanted:
                assert time.monotonic() < end, f"{topic} could not be read to its end"
                for message in reader.poll(1000, 0.1):
                    found.append(message)
                    tp = TopicPartition(message.topic(), message.partition())
                    if message.offset() + 1 >= ends[tp]:
                        wanted.discard(tp)
        finally:
            reader.close()
        return sorted(found, key=lambda m: (m.partition(), m.offset()))

    def dead(self) -> list[Message]:
        return self.read(self.lane("dlq"))

    def count(self, topic: str) -> int:
        """Records ever written to a topic (end offsets)."""
        spec = self.admin.topics([topic])
        if topic not in spec:
            return 0
        return sum(self.admin.end_offsets([TopicPartition(topic, p) for p in range(spec[topic].partitions)]).values())

    def committed(self) -> dict[TopicPartition, Any]:
        return self.admin.group_positions(self.prefix + GROUP)

    def progress(self, partition: int) -> Progress:
        """What the group has committed for a partition of the source, offset map included."""
        position = self.committed().get(TopicPartition(self.topic(), partition))
        return Progress(0, 0) if position is None else decode(position.offset, position.metadata)

    def unsettled(self) -> set[tuple[int, int]]:
        """Published records that the committed offsets and offset maps do not cover."""
        known = {p: self.progress(p) for p in range(self.partitions)}
        return {(p, o) for p, o in self.published if o >= known[p].end or o in known[p].open}

    def settled(self) -> bool:
        """Is everything of the source committed?"""
        positions = self.committed()
        source = self.topic()
        ends = self.admin.end_offsets([TopicPartition(source, p) for p in range(self.partitions)])
        return all(tp in positions and positions[tp].offset == end for tp, end in ends.items() if end)

    # -- control records

    def switch(self, switch: Any, on: bool = True) -> None:
        """What the commands `pause`, `resume`, `keys skip` and `keys release` write."""
        from pipeline.model.control import encode
        from pipeline.model.topics import CONTROL_TOPIC

        key, value = encode(switch)
        self.publish(key.decode(), value if on else None, topic=CONTROL_TOPIC)

    # -- processes

    def spec(self, kind: str = "async", settings: dict[str, Any] | None = None, **subscribe: Any) -> dict[str, Any]:
        chosen = {"broker": self.bootstrap, "prefix": self.prefix, "session_timeout_s": SESSION_S, **(settings or {})}
        return {"settings": chosen, "subscribe": subscribe, "kind": kind, "ledger": str(self.ledger.path)}

    def start(self, spec: dict[str, Any]) -> Process:
        process = Process(spec, self.folder / f"worker-{len(self.processes)}.log")
        self.processes.append(process)
        return process

    def start_and_wait(self, spec: dict[str, Any], partitions: int | None = None) -> Process:
        """Until it owns that many partitions (all, unless told)."""
        process = self.start(spec)
        wanted = self.partitions if partitions is None else partitions
        self.until(f"pid {process.pid} owns {wanted} partitions", lambda: len(process.partitions()) == wanted)
        return process

    def until(self, what: str, condition: Callable[[], Any], deadline_s: float = 30.0) -> Any:
        return until(what, condition, deadline_s, self.describe)

    def describe(self) -> str:
        """For failures: the ledger's end and the last lines of every log."""
        parts = [str(self.ledger)]
        for process in self.processes:
            tail = [
                line.replace(self.prefix, "") for line in process.log.read_text(errors="replace").splitlines()[-12:]
            ]
            parts.append(f"-- pid {process.pid}, exit code {process.popen.poll()}\n" + "\n".join(t[:400] for t in tail))
        return "\n".join(parts)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.send(signal.SIGCONT)
                process.kill()
        print(self.describe())  # pytest shows it for a test that failed
        if self._producer is not None:
            self._producer.flush(1)


@contextlib.asynccontextmanager
async def running(app: Pipeline, partitions: int | None = None) -> AsyncIterator[Pipeline]:
    """The application at work in this process, until it owns that many partitions of each subscription (None: do not wait)."""
    await app.start()
    try:
        if partitions is not None:
            worker = app.worker
            assert worker is not None
            await until_async(
                "all partitions are open",
                lambda: all(len(running.engine.partitions) == partitions for running in worker.running),
            )
        yield app
    finally:
        await app.stop()
