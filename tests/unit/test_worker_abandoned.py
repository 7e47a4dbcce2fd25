"""A worker that a simulation killed: what it was told before and had not looked at has it begin nothing."""

from __future__ import annotations

import asyncio

import pytest

from pipeline import Context
from tests.unit.jobs.worlds import World, application, play


@pytest.mark.parametrize("turns", range(12))
def test_it_begins_nothing_whenever_it_dies(turns: int) -> None:
    """As in the simulation's seed 85988: it had asked for its partition, and the answer lay in its inbox."""
    app = application()
    begun: list[bytes] = []

    async def handle(value: bytes, _ctx: Context) -> None:
        begun.append(value)
        await asyncio.sleep(1)

    app.subscribe("events", group="g", value="bytes", tiers=("1s",), attempts=2)(handle)

    async def story(world: World) -> None:
        producer = world.cluster.producer("agent")
        producer.send("events", b"k", b"1", [])
        worker = await world.start(app)
        for _ in range(turns):
            await asyncio.sleep(0)
        before = len(begun)
        world.kill(worker)
        await asyncio.sleep(30)
        assert len(begun) == before

    play(app, story, partitions=1)
