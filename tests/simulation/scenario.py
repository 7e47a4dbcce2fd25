"""What a seed is turned into, as data: records, a schedule of disturbances, rates of broker faults, and a fleet.

Nothing is drawn later than here that could not be left out: a failing scenario is shrunk by taking parts away.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace

TOPIC, GROUP, OUT = "sim.events", "sim", "sim.out"
ATTEMPTS = 4
TIERS: tuple[tuple[str, ...], ...] = (
    ("200ms", "600ms", "1500ms"),
    ("200ms", "1500ms"),
    ("100ms", "200ms", "600ms", "1500ms"),
    ("600ms",),
)
"""What workers declare: the first, until a roll-out changes it."""

RATES = {
    "send_failure": (0.0101, 0.0502),
    "ack_lost": (0.0103, 0.0504),
    "commit_partition_failure": (0.0305, 0.1506),
    "commit_lost": (0.0207, 0.0808),
    "commit_late": (0.0209, 0.0810),
    "lost_as_revoked": (0.2011, 0.6012),
}
"""Every value is there once, so that what happened can be counted by its chance."""
MORE_RATES = {"ack_twice": (0.0517, 0.3018), "commit_twice": (0.0519, 0.3020)}
"""Drawn apart from the others, and harmless."""
SKEWS_MS = (-3_600_000, -40_000, 700, 3_600_000)
"""How far a worker's clock may be ahead of the cluster's."""
TRANSACTION_RATES = {
    "transaction_refused": (0.0111, 0.0512),
    "transaction_torn": (0.0113, 0.0514),
    "transaction_late": (0.0115, 0.0516),
}
"""More of them, where delivery is exactly_once."""
STALE_RATES = {"transaction_stale": (0.0521, 0.3022)}
"""Drawn apart from the others too."""
DELAYS = ("land", "ack", "commit", "fetch")


@dataclass(frozen=True, slots=True)
class Planned:
    """A record to publish. `steps`: what its handler does, attempt by attempt (the last one from then on).

    "ok", "emit" (done, with outputs), "fail", "reject", "retry:MS", "hang" (until its deadline).
    """

    number: int
    at_ms: int
    key: bytes | None
    steps: tuple[str, ...]
    takes_ms: int

    def step(self, attempt: int) -> str:
        return self.steps[min(attempt, len(self.steps)) - 1]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to the fleet. `pick` chooses among what there is at that time; `value` is what `kind` needs."""

    number: int
    at_ms: int
    kind: str
    pick: int = 0
    value: int = 0


KINDS = {
    "kill": 6,
    "stop": 4,
    "freeze": 5,
    "expel": 3,
    "start": 9,
    "retier": 1,
    "grow": 1,
    "pause": 1,
    "skip": 2,
    "release": 1,
    "replay": 3,
    "away": 1,
    "deny": 1,
    "gap": 1,
    "jump": 1,
    "stall": 1,
}
CALM = {"stop": 3, "start": 3, "retier": 1, "pause": 1, "replay": 1, "gap": 1}
"""What must not repeat anything."""
VALUES: dict[str, tuple[int, ...]] = {
    "kill": (-1, -1, 0, 30, 800, 2_500),
    "freeze": (200, 800, 2_000, 3_500),
    "retier": (1, 2, 3),
    "pause": (400, 2_500),
    "away": (300, 1_200),
    "deny": (300, 1_200),
    "gap": (1, 3),
    "jump": (-800, 700, 4_000),
    "stall": (400, 2_500),
    "standstill": (700, 1_500, 3_000),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds small enough to be met."""

    look_ahead: int = 10
    buffered: int = 10_000
    held_back: int = 16_384
    metadata: int = 4_095


@dataclass(frozen=True, slots=True)
class Scenario:
    """One history. `executor`: "async", "batch" (one per key), "whole" batches, or "def"."""

    seed: int
    order: str = "key"
    executor: str = "async"
    partitions: int = 2
    workers: int = 2
    concurrency: int = 1_000
    limits: Limits = field(default_factory=Limits)
    records: tuple[Planned, ...] = ()
    events: tuple[Event, ...] = ()
    faults: tuple[tuple[str, float], ...] = ()
    delays: tuple[str, ...] = ()
    calm: bool = False
    delivery: str = "at_least_once"
    dead_letter: str = "release"
    commit_ms: int = 50
    skews_ms: tuple[int, ...] = ()
    """Of each worker's clock in turn; none: all have the cluster's."""

    @property
    def ends_ms(self) -> int:
        return max((each.at_ms for each in (*self.records, *self.events)), default=0) + 200

    def parts(self) -> list[str]:
        """The name of everything that could be left out."""
        return [
            *(f"e{event.number}" for event in self.events),
            *(f"f{index}" for index, _ in enumerate(self.faults)),
            *(f"d{index}" for index, _ in enumerate(self.delays)),
            *(f"r{record.number}" for record in self.records),
        ]

    def only(self, kept: Collection[str]) -> Scenario:
        return replace(
            self,
            records=tuple(record for record in self.records if f"r{record.number}" in kept),
            events=tuple(event for event in self.events if f"e{event.number}" in kept),
            faults=tuple(fault for index, fault in enumerate(self.faults) if f"f{index}" in kept),
            delays=tuple(delay for index, delay in enumerate(self.delays) if f"d{index}" in kept),
        )


def drawn(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(f"pipeline/{seed}")
    calm = rng.random() < 0.12
    storm = not calm and rng.random() < 0.35
    span_ms = rng.choice((2_000, 4_000, 6_000))
    found = Scenario(
        seed=seed,
        order=rng.choice(("key",) * 8 + ("key_relaxed", "none")),
        executor=rng.choice(("async",) * 6 + ("batch", "whole", "def", "def")),
        partitions=rng.choice((1, 2, 2, 3, 4)),
        workers=rng.choice((1, 2, 2, 3)),
        concurrency=rng.choice((2, 1_000, 1_000)),
        limits=_limits(rng),
        records=_records(rng, span_ms, calm),
        events=_events(rng, span_ms, CALM if calm else KINDS, rng.randrange(8, 18) if storm else rng.randrange(0, 9)),
        faults=()
        if calm
        else tuple((name, rng.choice(chances)) for name, chances in RATES.items() if rng.random() < 0.4),
        delays=tuple(name for name in DELAYS if rng.random() < 0.6),
        calm=calm,
    )
    return _in_mode(found, random.Random(f"pipeline/{seed}/mode"))


def _in_mode(scenario: Scenario, rng: random.Random) -> Scenario:
    """Drawn apart, so that the histories of the other modes stay what they are."""
    mode = rng.choice(("at_least_once",) * 6 + ("exactly_once", "hold"))
    if rng.random() < 0.2:
        scenario = replace(scenario, skews_ms=tuple(rng.choice((0, *SKEWS_MS)) for _ in range(5)))
    if not scenario.calm:
        more = tuple((name, rng.choice(chances)) for name, chances in MORE_RATES.items() if rng.random() < 0.25)
        scenario = replace(scenario, faults=(*scenario.faults, *more))
    if mode == "hold":
        return replace(scenario, dead_letter=mode, order="key", events=_with_releases(scenario.events, rng))
    if mode == "exactly_once":
        more = tuple((name, rng.choice(chances)) for name, chances in TRANSACTION_RATES.items() if rng.random() < 0.5)
        scenario = replace(scenario, delivery=mode, commit_ms=rng.choice((50, 50, 400)))
        more += tuple((name, rng.choice(chances)) for name, chances in STALE_RATES.items() if rng.random() < 0.5)
        if scenario.calm:
            return scenario
        return replace(scenario, faults=(*scenario.faults, *more), events=_with_standstills(scenario.events, rng))
    return scenario


def _with_standstills(events: tuple[Event, ...], rng: random.Random) -> tuple[Event, ...]:
    """No transaction begins for longer than a partition may drain, and meanwhile a worker joins."""
    more: list[Event] = []
    for _ in range(rng.choice((0, 0, 1, 2))):
        at_ms, number = rng.randrange(200, 5_000), len(events) + len(more)
        more += (
            Event(number, at_ms, "standstill", value=rng.choice(VALUES["standstill"])),
            Event(number + 1, at_ms + rng.randrange(600), "start"),
        )
    return tuple(sorted((*events, *more), key=lambda event: event.at_ms))


def _with_releases(events: tuple[Event, ...], rng: random.Random) -> tuple[Event, ...]:
    """An operator lets held keys go, instead of replaying, and some more often."""
    ends_ms = max((event.at_ms for event in events), default=3_000)
    kept = [replace(event, kind="free") if event.kind == "replay" else event for event in events]
    kept += [Event(0, rng.randrange(200, ends_ms + 800), "free", rng.randrange(1_000)) for _ in range(rng.randrange(4))]
    kept = [replace(event, value=rng.randrange(8)) if event.kind == "free" else event for event in kept]
    return tuple(replace(event, number=i) for i, event in enumerate(sorted(kept, key=lambda event: event.at_ms)))


def _limits(rng: random.Random) -> Limits:
    return Limits(
        look_ahead=rng.choice((1, 3, 10, 200)),
        buffered=rng.choice((2, 10_000, 10_000)),
        held_back=rng.choice((2, 6, 16_384)),
        metadata=rng.choice((4_095, 4_095, 4_095, 260)),
    )


def _records(rng: random.Random, span_ms: int, calm: bool) -> tuple[Planned, ...]:
    keys: list[bytes | None] = [b"k%d" % number for number in range(rng.choice((1, 3, 3, 5, 8)))]
    if rng.random() < 0.15:
        keys.append(None)
    trouble = rng.choice((0.15, 0.4, 0.7))
    times = sorted(rng.randrange(span_ms) for _ in range(rng.choice((8, 15, 25, 40))))
    return tuple(
        Planned(number, at_ms, rng.choice(keys), _steps(rng, trouble, calm), rng.choice((0, 0, 0, 15, 60, 300)))
        for number, at_ms in enumerate(times)
    )


def _steps(rng: random.Random, trouble: float, calm: bool) -> tuple[str, ...]:
    ending = rng.choice(("ok", "ok", "ok", "emit"))
    if rng.random() >= trouble:
        return (ending,)
    fails = [
        rng.choice(("fail",) * 6 + ("retry:20", "retry:400", "retry:2500", "hang"))
        for _ in range(rng.choice((1, 1, 2, 3, 4)))
    ]
    if calm:
        fails = [
            "fail" if step == "hang" else step for step in fails
        ]  # longer than a drain waits: cancelled, and run again
    return (*fails, rng.choice((ending, ending, ending, "reject")))


def _events(rng: random.Random, span_ms: int, kinds: dict[str, int], count: int) -> tuple[Event, ...]:
    chosen = rng.choices(list(kinds), list(kinds.values()), k=count)
    times = sorted(rng.randrange(100, span_ms + 800) for _ in chosen)
    return tuple(
        Event(number, at_ms, kind, rng.randrange(1_000), rng.choice(VALUES.get(kind, (0,))))
        for number, (kind, at_ms) in enumerate(zip(chosen, times, strict=True))
    )
