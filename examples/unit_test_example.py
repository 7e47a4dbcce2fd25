"""Testing your own handlers: the whole worker on a cluster in memory, in virtual time. Ten minutes of retries take milliseconds.

Run it with pytest, or as a program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

from pipeline import Context, Pipeline, Settings
from pipeline.memory import MemoryCluster
from pipeline.memory.cluster import forget, register
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import TopicPartition
from pipeline.topology import Defaults, apply

TOPIC = "orders"


def application(attempts: list[tuple[str, int, int]], now_ms: Callable[[], int]) -> Pipeline:
    """What is tested: the first order fails twice, the second must wait for it."""
    app = Pipeline("shop", settings=Settings(broker="memory://unit-test"))

    @app.subscribe(TOPIC, group="shipping", value="bytes", tiers=("10s", "10m"), attempts=3)
    async def ship(order: bytes, ctx: Context) -> None:
        attempts.append((order.decode(), ctx.attempt, now_ms()))
        if order == b"first" and ctx.attempt < 3:
            raise ConnectionError("the warehouse does not answer")

    return app


def test_a_failed_order_holds_back_the_next_one_of_its_customer() -> None:
    attempts: list[tuple[str, int, int]] = []

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("unit-test", clock=loop.clock, scheduler=loop.call_later_ms)
        register(cluster)
        app = application(attempts, loop.clock)
        try:
            apply(cluster.admin(), app.subscriptions, Defaults(partitions=1))
            await app.start()
            producer = cluster.producer("test")
            for order in (b"first", b"second"):
                producer.send(TOPIC, b"customer-7", order)
            async with asyncio.timeout(3_600):  # virtual: a deadline costs nothing
                while len(attempts) < 4:
                    await asyncio.sleep(1)
            await app.stop()
            done = cluster.admin().group_positions("shipping")[TopicPartition(TOPIC, 0)]
            assert done.offset == 2
        finally:
            forget(cluster.address)

    run(main)
    assert [(order, attempt) for order, attempt, _ in attempts] == [
        ("first", 1), ("first", 2), ("first", 3), ("second", 1),
    ]  # fmt: skip
    waited_s = [round((later[2] - earlier[2]) / 1000) for earlier, later in pairwise(attempts)]
    assert waited_s == [10, 600, 0]


if __name__ == "__main__":
    test_a_failed_order_holds_back_the_next_one_of_its_customer()
    print("passed")
