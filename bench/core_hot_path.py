"""The pure core's share of a record: receive_source -> admit -> done, in batches. Messages are made before the clock starts.

python -m bench.core_hot_path [--keys 400] [--batch 1000] [--records 300000] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections import deque

from pipeline.core.delivery import Delivery
from pipeline.core.progress import Progress
from pipeline.core.rebuild import Rebuild
from pipeline.core.unit import LaneSpec, Unit, UnitPolicy
from pipeline.model.policies import Order, RetryPolicy

LANES = (
    LaneSpec("10s", "t.g.retry.10s", 10_000),
    LaneSpec("1m", "t.g.retry.1m", 60_000),
    LaneSpec("replay", "t.g.replay", None),
)


class Message:
    """What the core asks of a fetched record, in Python (confluent's own is in C and a little faster)."""

    __slots__ = ("_key", "_offset")

    def __init__(self, offset: int, key: bytes | None) -> None:
        self._offset = offset
        self._key = key

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key


def new_unit(order: Order) -> Unit:
    nothing = Progress(0, 0)
    names = [lane.name for lane in LANES]
    rebuild = Rebuild(nothing, names, dict.fromkeys(names, nothing), dict.fromkeys(names, 0))
    return Unit(0, UnitPolicy("t", "g", order, RetryPolicy(tiers_ms=(10_000, 60_000))), LANES, rebuild)


def batches(records: int, batch: int, keys: int) -> list[list[Message]]:
    names = [b"run-%d" % (i * 7919 % keys) for i in range(keys)]
    return [
        [Message(offset, names[offset * 31 % keys]) for offset in range(first, first + batch)]
        for first in range(0, records, batch)
    ]


def one_by_one(unit: Unit, work: list[list[Message]]) -> int:
    """Each batch: receive, admit all, then end what runs until nothing waits. Returns the records ended."""
    ended, now_ms = 0, 1_000
    ready: deque[Delivery] = deque()
    for batch in work:
        unit.receive_source(batch, ready)  # type: ignore[arg-type]
        running: list[Delivery] = []
        while ready:
            delivery = ready.popleft()
            if unit.admit(delivery, now_ms):
                running.append(delivery)
        while running:
            following: list[Delivery] = []
            for delivery in running:
                then = unit.done(delivery, now_ms)
                if then is not None:
                    following.append(then)
            ended += len(running)
            running = following
    return ended


def loop_alone(work: list[list[Message]]) -> int:
    """The same walk with nothing of ours in it: what the measuring costs."""
    ended = 0
    for batch in work:
        ready = deque(batch)
        running = []
        while ready:
            message = ready.popleft()
            message.offset()
            message.key()
            running.append(message)
        following: list[Message] = []
        for message in running:
            if message is None:
                following.append(message)
        ended += len(running)
    return ended


def measure(order: Order, records: int, batch: int, keys: int, rounds: int = 5) -> tuple[float, float]:
    """(microseconds per record of the core and the loop, of the loop alone): the best of the rounds."""
    ours, alone = [], []
    for _ in range(rounds):
        work = batches(records, batch, keys)
        unit = new_unit(order)
        began = time.process_time()
        ended = one_by_one(unit, work)
        ours.append(time.process_time() - began)
        if ended != records or unit.waiting.count or unit.busy or unit.lanes[0].tracker.position != records:
            raise RuntimeError(f"{ended} of {records} records came out")
        began = time.process_time()
        loop_alone(work)
        alone.append(time.process_time() - began)
    return min(ours) * 1e6 / records, min(alone) * 1e6 / records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=400)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        unit, work = new_unit("key"), batches(arguments.records, arguments.batch, arguments.keys)
        profile = cProfile.Profile()
        profile.runcall(one_by_one, unit, work)
        pstats.Stats(profile).sort_stats("tottime").print_stats(12)
        return
    orders: tuple[Order, ...] = ("key", "none")
    for order in orders:
        total, alone = measure(order, arguments.records, arguments.batch, arguments.keys)
        print(f"order={order:5} {total:.3f} us per record, {total - alone:.3f} without the loop, {1e6 / total:,.0f}/s")


if __name__ == "__main__":
    main()
