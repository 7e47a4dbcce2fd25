"""Resets in a simulated history: the product's own code moves the group while zombies sleep, then workers start again.

It moves to where the group stands or back, never on, so all that must hold in a history must hold with it: nothing is lost, and each
record's first effect comes in its key's order.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from pipeline.memory.cluster import MemoryCluster
from pipeline.replay import reset
from pipeline.replay.claiming import claim, commit, look
from pipeline.replay.reset import Mode, moved, plan_moves
from tests.simulation.fleet import Fleet
from tests.simulation.scenario import GROUP, TOPIC, drawn
from tests.simulation.world import World, simulate

EMPTY_WITHIN_S = 10.0


def _mode(rng: random.Random) -> Mode:
    return rng.choice((reset.to_current(), reset.to_earliest(), reset.shift_by(-rng.randrange(1, 8))))


def move(cluster: MemoryCluster, rng: random.Random) -> str:
    """One reset of what has been committed; what it did, in words."""
    admin = cluster.admin()
    at = look(cluster, admin, GROUP, TOPIC)
    standings = {place: standing for place, standing in at.standings().items() if standing.progress is not None}
    mode = _mode(rng)
    moves = plan_moves(mode, standings)
    wanted = {}
    for each in moves:
        progress = standings[each.place].progress
        assert progress is not None
        wanted[each.place] = moved(progress, each.new)
    commit(cluster, admin, at, claim(cluster, at, wanted))
    return f"{mode.option} {[(m.place.partition, m.current, m.new) for m in moves]}"


async def resets(world: World, fleet: Fleet, count: int) -> None:
    """Again and again: everybody is killed, stopped or frozen, the group runs empty, is moved, and others take over."""
    rng = random.Random(f"{world.scenario.seed}/resets")
    for _ in range(count):
        await asyncio.sleep(rng.uniform(0.5, 2))
        asleep = []
        for name in [name for name in fleet.alive if name not in fleet.frozen]:
            fate = rng.random()
            if fate < 0.5:
                fleet.freeze(name)
                asleep.append(name)
            elif fate < 0.75:
                fleet.kill(name, rng.choice((None, 0, 500)))
            else:
                await fleet.stop(name)
        until = fleet.loop.time() + EMPTY_WITHIN_S
        while fleet.cluster.admin().describe_group(GROUP).members:
            assert fleet.loop.time() < until, "the group does not run empty"
            await asyncio.sleep(0.1)
        fleet.facts.happened("reset", move(fleet.cluster, rng))
        if rng.random() < 0.5:
            await fleet.start()
        await asyncio.sleep(rng.choice((0, 0.1, 0.8)))
        for name in asleep:
            fleet.thaw(name)
        while len(fleet.alive) < world.scenario.workers:
            await fleet.start()


def simulate_resets(seed: int, count: int = 4) -> World:
    """The history of a seed, its own disturbances left out, with so many resets in it."""
    scenario = replace(drawn(seed), events=(), calm=False, delivery="at_least_once", dead_letter="release")
    return simulate(scenario, lambda world, fleet: resets(world, fleet, count))
