"""A roll-back on the memory cluster: a worker finds what a newer version left, and finishes it in order.

The newer version is this one with the numbers of the next: commits of a format that the older can't read, headers of a higher version
and of names that it does not know.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import structlog

from pipeline import Context, FlowPolicy, Pipeline, Retry, Settings, memory
from pipeline.core import progress
from pipeline.core.progress import Progress
from pipeline.core.rebuild import Rebuild
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model import headers
from pipeline.model.cluster import TopicPartition
from pipeline.model.headers import OPENS, DeliveryHeaders
from pipeline.topology import Defaults, apply

TOPIC, GROUP, KEYS = "events", "g", "abc"
UNKNOWN = ("pl.not_invented_yet", b"\xff\x00")
SLOW_S = 60.0


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def newer(patch: pytest.MonkeyPatch) -> None:
    """From here on everything is written as the next version might."""
    add_texts = headers._add_texts

    def more(out: headers.Headers, delivery: DeliveryHeaders) -> None:
        add_texts(out, delivery)
        out.append(UNKNOWN)

    patch.setattr(headers, "VERSION", headers.VERSION + 1)
    patch.setattr(headers, "_add_texts", more)
    patch.setattr(progress, "_PREFIX", "pl2:")


class Fleet:
    """One partition, a log of what ran, and the worker at work."""

    def __init__(self, loop: VirtualClockLoop) -> None:
        self.cluster = MemoryCluster("roll-back", clock=loop.clock, scheduler=loop.call_later_ms)
        memory.cluster.register(self.cluster)
        self.started: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []
        self.apps: list[Pipeline] = []
        apply(self.cluster.admin(), self.app().subscriptions, Defaults(partitions=1))

    def app(self) -> Pipeline:
        app = Pipeline("w", settings=Settings(broker=self.cluster.address, session_timeout_s=6.0))

        @app.subscribe(
            TOPIC, group=GROUP, value="json", tiers=("1s", "20s"), attempts=5, flow=FlowPolicy(commit_interval_ms=100)
        )
        async def one(value: dict[str, Any], ctx: Context) -> None:
            self.started.append((ctx.run_id, ctx.offset))
            await asyncio.sleep(value.get("sleep", 0))
            if ctx.attempt <= value.get("fails", 0):
                raise Retry("as asked")
            self.done.append((ctx.run_id, ctx.offset))

        return app

    async def start(self) -> Pipeline:
        app = self.app()
        await app.start()
        self.apps.append(app)
        await self.until(lambda: unit_of(app) is not None)
        return app

    def abandon(self) -> None:
        """As processes that died; after a failure too, or the loop would wait for them for ever."""
        for app in self.apps:
            if app.worker is not None:
                app.worker.abandon()

    def publish(self, key: str, value: str = "{}") -> None:
        self.cluster.producer("agents").send(TOPIC, key.encode(), value.encode(), partition=0)

    def records(self, lane: str) -> list[Any]:
        return list(self.cluster.logs[f"{TOPIC}.{GROUP}.{lane}"][0].records())

    @property
    def committed(self) -> dict[TopicPartition, Any]:
        return self.cluster.admin().group_positions(GROUP)

    async def until(self, condition: Any, seconds: float = 120.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)


def unit_of(app: Pipeline) -> Any:
    assert app.worker is not None
    return app.worker.running[0].engine.partitions.get(0)


async def left_by_a_newer_one(fleet: Fleet) -> int:
    """Its third owner dies with keys parked in the last tier, and with more done beyond a slow record than was committed below
    it. Gives its epoch."""
    for _ in range(2):
        app = await fleet.start()
        await app.stop()
    app = await fleet.start()
    fleet.publish("early")
    await fleet.until(lambda: fleet.committed[TopicPartition(TOPIC, 0)].offset == 1)
    fleet.publish("slow", f'{{"sleep": {SLOW_S}}}')
    for number in range(4):
        for key in KEYS:
            fleet.publish(key, '{"fails": 2}' if not number else "{}")
        fleet.publish("free")
    await fleet.until(lambda: len(fleet.records("retry.20s")) >= len(KEYS) and len(fleet.done) == 5)
    await asyncio.sleep(1)  # commits
    epoch = unit_of(app).epoch
    fleet.cluster.kill("w", None)
    fleet.abandon()
    return int(epoch)


def test_what_a_newer_version_left_is_finished_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(fleet: Fleet) -> None:
        with monkeypatch.context() as patch:
            newer(patch)
            epoch = await left_by_a_newer_one(fleet)
        position = fleet.committed[TopicPartition(TOPIC, 0)]
        assert position.offset == 1
        assert all(each.metadata.startswith("pl2:") for each in fleet.committed.values())
        assert all(UNKNOWN in record.headers() for record in fleet.records("retry.20s"))
        before, fleet.started = Counter(fleet.done), []

        app = await fleet.start()
        assert unit_of(app).epoch > epoch, "what its predecessors write late would not be told"
        published = fleet.cluster.logs[TOPIC][0].end
        await fleet.until(lambda: len(set(fleet.done)) == published)
        for key in KEYS:
            offsets = [offset for name, offset in fleet.done if name == key]
            assert offsets == sorted(set(offsets)), f"{key} is not in order, or ran again"
        again = {origin for origin in before if origin in fleet.started}
        assert again == {origin for origin in before if origin[1] >= position.offset}, "all else was committed"
        assert not fleet.records("dlq")

        assert ("free", 5) in fleet.done  # and a copy of it comes, late, from a predecessor's buffer
        late = DeliveryHeaders(2, 9, epoch, TOPIC, 0, 5, 0, GROUP, due_ms=fleet.cluster.clock() + 5_000)
        zombie, ran = fleet.cluster.producer("zombie"), len(fleet.started)
        zombie.send(f"{TOPIC}.{GROUP}.retry.1s", b"free", b"{}", headers.encode([], late), partition=0)
        await asyncio.sleep(1)
        await app.stop()
        app = await fleet.start()
        await asyncio.sleep(30)
        assert fleet.started[ran:] == [], "a dead worker's late record ran"
        lanes = {tp: fleet.cluster.admin().end_offsets([tp])[tp] for tp in fleet.committed}
        assert {tp: each.offset for tp, each in fleet.committed.items()} == lanes, "all is committed"
        await app.stop()

    async def main(loop: VirtualClockLoop) -> None:
        fleet = Fleet(loop)
        try:
            await story(fleet)
        finally:
            fleet.abandon()

    try:
        run(main)
    finally:
        memory.cluster.forget("memory://roll-back")


@pytest.mark.parametrize(
    ("known", "hold", "expected"),
    [(0, "", 8), (0, headers.HELD, 8), (0, OPENS + "r", 1), (3, "", 4)],
    ids=["a worker's copy", "a held copy", "an operator's copy", "the commit says"],
)
def test_an_unknown_epoch_is_above_that_of_every_copy_an_owner_wrote(known: int, hold: str, expected: int) -> None:
    rebuild = Rebuild(Progress(0, 0, (), known), ["replay"], {"replay": Progress(0, 0)}, {"replay": 1})
    copy = DeliveryHeaders(1, 1, 7, TOPIC, 0, 0, 0, GROUP, hold=hold)
    rebuild.observe(1, 0, b"k", headers.encode([], copy))
    assert rebuild.epoch == expected
    assert not rebuild.zombies
