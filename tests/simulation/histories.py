"""Which history a seed is: every fourth one is of job queues, the others are of events."""

from __future__ import annotations

from tests.simulation.jobs import world as jobs
from tests.simulation.jobs.scenario import JobScenario, drawn_jobs
from tests.simulation.scenario import Scenario, drawn
from tests.simulation.world import World, simulate

EVERY, JOBS = 4, 3
"""Of so many seeds in a row one is of jobs: the one with this remainder."""


def scenario_of(seed: int) -> Scenario:
    return drawn_jobs(seed) if seed % EVERY == JOBS else drawn(seed)


def simulated(scenario: Scenario) -> World:
    return jobs.simulate_jobs(scenario) if isinstance(scenario, JobScenario) else simulate(scenario)


def lines(world: World) -> list[str]:
    """For people: what the history is made of, and what happened."""
    scenario = world.scenario
    found = [
        f"seed {scenario.seed}: {scenario.executor} handlers, order {scenario.order}, {scenario.partitions} partitions, "
        f"{scenario.workers} workers, {scenario.limits}, concurrency {scenario.concurrency}",
        f"faults: {', '.join(f'{name} {chance}' for name, chance in scenario.faults) or 'none'} delays: {scenario.delays}",
    ]
    for record in scenario.records:
        steps = ", ".join(record.steps)
        found.append(
            f"  r{record.number}: key {record.key!r} at {record.at_ms} ms, {steps}, takes {record.takes_ms} ms"
        )
    if isinstance(scenario, JobScenario):
        found += [f"  r{asked.number}: {jobs.shown(asked)}" for asked in scenario.asked]
    for event in scenario.events:
        found.append(f"  e{event.number}: {event.kind} at {event.at_ms} ms, pick {event.pick}, value {event.value}")
    return found + (jobs.lines(world) if isinstance(scenario, JobScenario) else world.told())
