"""Workers under test: the topics of one test, its worker processes, and a ledger of what their handlers really did.

Topics are read back beside the ledger. Tests import everything they need of it from here.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline import Pipeline, Settings
from pipeline.core.progress import Progress, decode
from pipeline.model.cluster import Headers, Message, TopicPartition
from pipeline.topology import Defaults, apply
from tests.integration.ledger import Ledger, Mark, verdict
from tests.integration.obedient import GROUP, OUT, SOURCE, make_app
from tests.integration.processes import ROOT, Process
from tests.integration.waiting import until, until_async
from tests.patience import PATIENCE

__all__ = [
    "GROUP",
    "OUT",
    "ROOT",
    "SESSION_S",
    "SOURCE",
    "Mark",
    "Process",
    "Scene",
    "make_app",
    "running",
    "until",
    "until_async",
    "verdict",
]

SESSION_S = 3.0
"""How long a dead member keeps its partitions in these tests."""


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
            end = time.monotonic() + 20 * PATIENCE
            while wanted:
                assert time.monotonic() < end, f"{topic} could not be read to its end"
                found += reader.poll(1000, 0.1)
                # Not by the last record: a transaction's marker comes after it.
                wanted = {tp for tp in wanted if reader.ended().get(tp, -1) < ends[tp]}
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
