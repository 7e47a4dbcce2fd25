"""A seeded simulation of an agent fleet, and what a handler should do with an event: both pure, both decided
by the event alone.

The demo's handlers ask `behaviour_of(event)`; so does whoever counts afterwards what should have been
retried and dead-lettered.
"""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.emit.journal import RunIdentity, RunJournal, Scope, Stamp
from pipeline.model.events import RunEvent, ToolCall

FAILS_FOR_EVER = 1_000_000
FLAKY_TOOL, SLOW_TOOL, POISON_TOOL = "flaky_search", "slow_browser", "poison_parser"
POISON_BYTES = b"\x7fnot an event of ours"
_TOOLS = ("search", "get_order", "refund", "send_mail", "calculate")
_MODELS = ("gpt-large", "gpt-small", "sonata-3")
_AGENTS = (("support", "acme"), ("support", "globex"), ("booking", "acme"), ("research", "initech"))
_UNIT = 10_000


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a demo handler does with one record: fails its first `fails` executions, takes `sleep_ms`;
    `poison`: can never succeed."""

    fails: int = 0
    sleep_ms: int = 0
    poison: bool = False


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """What one agent publishes: an event, or bytes that are none. `key` is the run id, so poison stands
    among its run's events."""

    key: bytes
    value: RunEvent | bytes
    behaviour: Behaviour


@dataclass(frozen=True, slots=True)
class FleetMix:
    """How the simulated tool calls are spread, as parts of one; the rest is ordinary. `active`: runs
    interleaved at a time."""

    flaky: float = 0.06
    slow: float = 0.04
    poison: float = 0.01
    garbage: float = 0.004
    active: int = 20


def behaviour_of(event: object) -> Behaviour:
    """By the tool of a ToolCall: the fleet's own tools say it (`flaky_search` in its argument `fails`); any
    other by a hash of event_id.

    Of 10,000 ordinary tool calls 400 fail once, 150 twice, 50 for ever, and 300 take 20 ms. Everything else
    just succeeds.
    """
    if not isinstance(event, ToolCall):
        return Behaviour()
    if event.tool == FLAKY_TOOL:
        return Behaviour(fails=_argument(event, "fails", 1, 100))
    if event.tool == SLOW_TOOL:
        return Behaviour(sleep_ms=_argument(event, "sleep_ms", 200, 60_000))
    if event.tool == POISON_TOOL:
        return Behaviour(fails=FAILS_FOR_EVER, poison=True)
    draw = int.from_bytes(hashlib.sha256(event.event_id.encode()).digest()[:8], "big") % _UNIT
    for limit, behaviour in _BY_HASH:
        if draw < limit:
            return behaviour
    return Behaviour()


_BY_HASH = (
    (50, Behaviour(fails=FAILS_FOR_EVER, poison=True)),
    (200, Behaviour(fails=2)),
    (600, Behaviour(fails=1)),
    (900, Behaviour(sleep_ms=20)),
)


def _argument(event: ToolCall, name: str, default: int, high: int) -> int:
    """A whole number out of the call's arguments, within 0..high."""
    try:
        found = json.loads(event.arguments)
    except (ValueError, RecursionError):
        return default
    value = found.get(name, default) if isinstance(found, dict) else default
    return min(high, max(0, value)) if isinstance(value, int) else default


def simulate(seed: int, runs: int, now_ms: int, mix: FleetMix | None = None) -> Iterator[FleetRecord]:
    """What a fleet publishes in `runs` runs, about a dozen records each, interleaved. The same arguments
    give the same records."""
    chosen, source = mix or FleetMix(), random.Random(seed)
    active: list[Iterator[FleetRecord]] = []
    begun = 0
    while active or begun < runs:
        while begun < runs and len(active) < chosen.active:
            active.append(_run(random.Random(source.getrandbits(64)), begun, now_ms + 50 * begun, chosen))
            begun += 1
        index = source.randrange(len(active))
        record = next(active[index], None)
        if record is None:
            active[index] = active[-1]
            active.pop()
        else:
            yield record


class _Agent:
    """One simulated run: its journal, its dice and its clock."""

    def __init__(self, dice: random.Random, number: int, now_ms: int, mix: FleetMix) -> None:
        agent, tenant = dice.choice(_AGENTS)
        self.dice = dice
        self.mix = mix
        self.identity = RunIdentity(f"run-{number:06d}-{dice.getrandbits(32):08x}", agent, tenant)
        self.journal = RunJournal(self.identity)
        self._now_ms = now_ms

    def stamp(self, scope: Scope | None = None) -> Stamp:
        self._now_ms += self.dice.randrange(5, 400)
        return Stamp(self.new_id(), self._now_ms, scope or Scope())

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.dice.getrandbits(128), version=4))

    def record(self, event: RunEvent) -> FleetRecord:
        return FleetRecord(self.identity.run_id.encode(), event, behaviour_of(event))

    def tool(self) -> tuple[str, dict[str, object]]:
        draw, mix = self.dice.random(), self.mix
        if draw < mix.flaky:
            return FLAKY_TOOL, {"fails": self.dice.choice((1, 1, 2, 3))}
        if draw < mix.flaky + mix.slow:
            return SLOW_TOOL, {"sleep_ms": self.dice.choice((50, 100, 200))}
        if draw < mix.flaky + mix.slow + mix.poison:
            return POISON_TOOL, {"document": "0xdead"}
        return self.dice.choice(_TOOLS), {"q": f"order {self.dice.randrange(10_000)}"}


def _run(dice: random.Random, number: int, now_ms: int, mix: FleetMix) -> Iterator[FleetRecord]:
    agent = _Agent(dice, number, now_ms, mix)
    journal = agent.journal
    started = journal.started(agent.stamp(), "Where is my order?", {"simulated": "true"}, None)
    yield agent.record(started)
    yield agent.record(journal.message(agent.stamp(), "user", "Where is my order?", None))
    for _ in range(dice.randrange(1, 5)):
        yield from _turn(agent, Scope(None, started.event_id))
    ending = dice.random()
    if ending < 0.85:
        yield agent.record(journal.completed(agent.stamp(), "It is on its way."))
    elif ending < 0.96:
        yield agent.record(journal.failed(agent.stamp(), "ToolError", "the order system did not answer"))
    else:
        yield agent.record(journal.cancelled(agent.stamp(), "the user left"))


def _turn(agent: _Agent, scope: Scope) -> Iterator[FleetRecord]:
    """One model call, and mostly a tool call with its result; now and then bytes that no one can read."""
    dice, journal = agent.dice, agent.journal
    answer: dict[str, object] = {"input_tokens": dice.randrange(200, 4_000), "output_tokens": dice.randrange(10, 800)}
    answer["duration_ms"] = dice.randrange(200, 5_000)
    if dice.random() < 0.03:
        answer["error"] = "RateLimited: try again later"
    yield agent.record(journal.model_call(agent.stamp(scope), dice.choice(_MODELS), answer))
    if dice.random() < agent.mix.garbage:
        yield FleetRecord(agent.identity.run_id.encode(), POISON_BYTES, Behaviour(poison=True))
    if dice.random() < 0.8:
        name, arguments = agent.tool()
        call = journal.tool_call(agent.stamp(scope), name, f"call-{dice.getrandbits(32):08x}", arguments)
        yield agent.record(call)
        failed = dice.random() < 0.05
        stamp = agent.stamp(scope)
        result = "no answer" if failed else "found"
        yield agent.record(
            journal.tool_result(
                stamp, call, "ERROR" if failed else "OK", result, result if failed else None, call.occurred_at
            )
        )
