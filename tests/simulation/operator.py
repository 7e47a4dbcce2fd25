"""An operator of held keys in a simulated history: the steps of `pipeline dlq release` and `redrive`, in virtual time, which end half
way at times.

What is held, and how a release begins and ends, is the product's own code; its waiting and its index of letters are not.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.dead_letters.holds import Hold, _mark, _opening, find_holds
from pipeline.model.cluster import TopicPartition
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.headers import BEHIND, DeliveryHeaders, encode
from pipeline.replay.joining import members_of
from tests.simulation.facts import Landed, Place
from tests.simulation.scenario import GROUP, TOPIC

if TYPE_CHECKING:
    from tests.simulation.fleet import Fleet

LOOK_EVERY_S = 0.2
TAKEN_UP_S = 20.0
FINISHED_WITHIN_S = 60.0
DEAD, REPLAY = f"{TOPIC}.{GROUP}.dlq", f"{TOPIC}.{GROUP}.replay"
WHOLE, OPENED, HALF = 0, 1, 2
"""How far a release comes: to its end, to where its owner knows, or to where half of the letters are sent back."""


class Operator:
    """Of one history. One release at a time, as the index is locked."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._done: set[Place] = set()
        self._numbers = 0
        self._busy = asyncio.Lock()

    async def release(self, pick: int, redrive: bool, ends: int = WHOLE) -> None:
        """Let the key of one held record go, with it or without it."""
        async with self._busy:
            holds = await self._look()
            places = sorted({hold.place for hold in holds}, key=str)
            if not places:
                return
            wanted = places[pick % len(places)]
            self._numbers += 1
            number = f"s{self._numbers:03}"
            self._fleet.facts.happened("redrive of a held key" if redrive else "release of a held key", wanted)
            opened = await self._open([hold for hold in holds if hold.place == wanted], number)
            if not opened or ends == OPENED:
                return
            letters = self._letters(opened, redrive)
            for letter in letters[: len(letters) // 2] if ends == HALF else letters:
                await self._send(letter, number)
            if ends == WHOLE:
                await self._close(opened)

    async def finish(self) -> None:
        """What was begun and not ended: the same command again."""
        until = self._fleet.loop.time() + FINISHED_WITHIN_S
        while True:
            holds = await self._look()
            places = sorted({hold.place for hold in holds}, key=str)
            begun = sorted({hold.place for hold in holds if hold.release}, key=str)
            if not begun:
                return
            assert self._fleet.loop.time() < until, "a release does not come to its end"
            await self.release(places.index(begun[0]), redrive=False)
            await asyncio.sleep(LOOK_EVERY_S)

    # -- steps

    async def _look(self) -> list[Hold]:
        fleet = self._fleet
        desk: Any = SimpleNamespace(cluster=fleet.cluster, topics=SimpleNamespace(prefix=""))
        while True:
            if not any(topic.startswith(TOPIC) for topic, _ in fleet.cluster.faults.unavailable):
                try:
                    return find_holds(desk, GROUP)
                except ClusterUnavailable:
                    pass
            await asyncio.sleep(LOOK_EVERY_S)

    async def _open(self, holds: list[Hold], number: str) -> list[Hold]:
        """Until the owners have taken it up; nothing when that takes too long, or somebody else was faster."""
        place, until = holds[0].place, self._fleet.loop.time() + TAKEN_UP_S
        while self._fleet.loop.time() < until:
            fresh = [hold for hold in holds if not hold.release]
            for hold in fresh:
                await self._append(hold.partition, hold.key, None, _opening(hold, number))
            if not fresh and all(hold.taken_up for hold in holds):
                if not members_of(self._fleet.cluster.admin(), GROUP):
                    self._fleet.facts.happened("a release while nobody is in the group", partition=place[0])
                return holds
            await asyncio.sleep(LOOK_EVERY_S)
            holds = [hold for hold in await self._look() if hold.place == place]
            if not holds:
                return []
        return []

    def _letters(self, holds: list[Hold], redrive: bool) -> list[Landed]:
        """Those of the key that nothing was done about: the ones that follow, and the held ones or not."""
        partition, key = holds[0].partition, holds[0].key
        heads = {(hold.origin, hold.copy.identity[1]) for hold in holds}
        found = []
        for letter in self._fleet.facts.visible():
            if letter.place[:2] != (DEAD, partition) or letter.key != key or letter.place in self._done:
                continue
            named = {name: text or b"" for name, text in letter.headers}
            follows = named.get("pl.hold", b"").startswith(BEHIND.encode())
            head = (int(named["pl.origin.offset"]), named.get("pl.replay.id", b"").decode()) in heads
            if follows or (head and redrive):
                found.append(letter)
            elif head:
                self._done.add(letter.place)
        return found

    async def _send(self, letter: Landed, number: str) -> None:
        named = {name: text or b"" for name, text in letter.headers}
        partition, origin = int(named["pl.origin.partition"]), int(named["pl.origin.offset"])
        headers = DeliveryHeaders(0, 0, 0, TOPIC, partition, origin, 0, GROUP, replay_id=number, replay_count=1)
        await self._append(partition, letter.key, letter.value, headers)
        self._done.add(letter.place)

    async def _close(self, holds: list[Hold]) -> None:
        for hold in {hold.release: hold for hold in holds}.values():
            await self._append(hold.partition, hold.key, None, _mark(hold))

    async def _append(self, partition: int, key: bytes | None, value: bytes | None, headers: DeliveryHeaders) -> None:
        """Written once, and known to be."""
        cluster, place = self._fleet.cluster, TopicPartition(REPLAY, partition)
        while place in cluster.faults.unavailable:
            await asyncio.sleep(LOOK_EVERY_S)
        cluster.log(place).append(key, value, encode([], headers), cluster.clock())
        cluster.wake_for(place)
