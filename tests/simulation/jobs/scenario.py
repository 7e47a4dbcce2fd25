"""What a seed is turned into where jobs are simulated, as data: what is asked and when, a schedule of disturbances, a fleet.

As for events nothing is drawn later than here that could not be left out.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from tests.simulation.scenario import DELAYS, MORE_RATES, RATES, SKEWS_MS, Event, Limits, Scenario

QUEUE = "sim"
INBOX, STORE = f"jobs.{QUEUE}", f"jobs.{QUEUE}.{QUEUE}.state"
DEAD, REPLAY = f"jobs.{QUEUE}.{QUEUE}.dlq", f"jobs.{QUEUE}.{QUEUE}.replay"


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of job, as its policy and as the checker knows it. `waits_ms`: before the second attempt, the third, ... at least."""

    attempts: int = 4
    waits_ms: tuple[int, ...] = (200, 200, 200)
    jitter: float = 0.0
    concurrency: int = 0
    stalls: int = 3
    dead_letter: bool = True
    kept: int = 10_000
    release: bool = False
    plain: bool = False
    """Its handler is no coroutine."""
    declared: bool = True
    """Workers know it."""


KINDS: dict[str, Kind] = {
    "steady": Kind(jitter=0.5),
    "doubling": Kind(3, (100, 300)),
    "narrow": Kind(concurrency=1),
    "brittle": Kind(stalls=1),
    "once": Kind(1, (), dead_letter=False),
    "brief": Kind(2, (150,), kept=2),
    "released": Kind(2, (100,), release=True),
    "plain": Kind(plain=True),
    "stray": Kind(1, (), declared=False),
}
WEIGHTS = {
    "steady": 8,
    "doubling": 3,
    "narrow": 3,
    "brittle": 2,
    "once": 2,
    "brief": 2,
    "released": 3,
    "plain": 2,
    "stray": 1,
}
TIMEOUT_MS = 800
TICK_EVERY_MS = 2_000
CRON = "*/2 * * * * *"
LONG_MS = 7_200_000
LANES = (4, 2, 1)
AGEING_MS, MISFIRE_MS = 700, 1_500


@dataclass(frozen=True, slots=True)
class Asked:
    """Something that is asked for. `kind`: a type of job, or a command ("!cancel", "!retry", "!now" of the request `about`;
    "!put", "!drop", "!pause", "!go", "!run" of the schedule `name`).

    `steps`: what the handler does, attempt by attempt: "ok", "warn", "fail", "reject", "retry:MS", "hang" (until its deadline),
    "stubborn" (the same, and it goes on for a while when it is told to stop).
    """

    number: int
    at_ms: int
    kind: str
    about: int = -1
    name: str = ""
    misfire: str = "once"
    key: str | None = None
    tenant: str = ""
    priority: int = 0
    delay_ms: int = 0
    exact: bool = False
    """`delay_ms` is given as `run_at`."""
    expires_ms: int = 0
    attempts: int = 0
    dedup_id: str | None = None
    window_ms: int = 0
    steps: tuple[str, ...] = ("ok",)
    takes_ms: int = 0
    waited: bool = False
    """Its caller waits for the result."""

    def step(self, attempt: int) -> str:
        return self.steps[min(attempt, len(self.steps)) - 1]


@dataclass(frozen=True, slots=True)
class JobScenario(Scenario):
    """One history of jobs. `due`: so many come due at once."""

    asked: tuple[Asked, ...] = field(default=())
    due: int = 5_000

    @property
    def ends_ms(self) -> int:
        return max((each.at_ms for each in (*self.asked, *self.events)), default=0) + 200

    def parts(self) -> list[str]:
        return [*Scenario.parts(self), *(f"r{each.number}" for each in self.asked)]

    def only(self, kept: Collection[str]) -> JobScenario:
        fewer = Scenario.only(self, kept)
        assert isinstance(fewer, JobScenario)
        return replace(fewer, asked=tuple(each for each in self.asked if f"r{each.number}" in kept))


EVENTS = {
    "kill": 6,
    "stop": 4,
    "freeze": 5,
    "expel": 3,
    "start": 9,
    "restoring": 3,
    "pause": 1,
    "redrive": 2,
    "away": 2,
    "deny": 1,
    "shut": 1,
    "gap": 1,
    "jump": 1,
    "stall": 1,
}
CALM = {"stop": 3, "start": 3, "pause": 1, "gap": 1}
VALUES: dict[str, tuple[int, ...]] = {
    "kill": (-1, -1, 0, 30, 800, 2_500),
    "restoring": (-1, 0, 800),
    "freeze": (200, 800, 2_000, 3_500),
    "pause": (400, 2_500),
    "away": (300, 1_200),
    "deny": (300, 1_200),
    "shut": (300, 1_200),
    "gap": (1, 3),
    "jump": (-800, 700, 4_000),
    "stall": (400, 2_500),
}


def drawn_jobs(seed: int) -> JobScenario:
    """The scenario of a seed."""
    rng = random.Random(f"pipeline/jobs/{seed}")
    calm = rng.random() < 0.12
    storm = not calm and rng.random() < 0.35
    span_ms = rng.choice((2_000, 4_000, 6_000))
    faults = {} if calm else RATES | MORE_RATES
    return JobScenario(
        seed=seed,
        order="none",
        executor="jobs",
        partitions=rng.choice((1, 2, 2, 3)),
        workers=rng.choice((1, 2, 2, 3)),
        concurrency=rng.choice((1, 2, 5, 100, 100)),
        limits=Limits(buffered=rng.choice((2, 10_000, 10_000)), metadata=rng.choice((4_095, 4_095, 4_095, 260))),
        events=_events(rng, span_ms, CALM if calm else EVENTS, rng.randrange(8, 18) if storm else rng.randrange(0, 9)),
        faults=tuple((name, rng.choice(chances)) for name, chances in faults.items() if rng.random() < 0.35),
        delays=tuple(name for name in DELAYS if rng.random() < 0.6),
        calm=calm,
        commit_ms=rng.choice((50, 50, 200)),
        skews_ms=tuple(rng.choice((0, *SKEWS_MS)) for _ in range(5)) if rng.random() < 0.2 else (),
        asked=_asked(rng, span_ms, calm),
        due=rng.choice((2, 5_000)),
    )


def _events(rng: random.Random, span_ms: int, kinds: dict[str, int], count: int) -> tuple[Event, ...]:
    chosen = rng.choices(list(kinds), list(kinds.values()), k=count)
    times = sorted(rng.randrange(100, span_ms + 800) for _ in chosen)
    return tuple(
        Event(number, at_ms, kind, rng.randrange(1_000), rng.choice(VALUES.get(kind, (0,))))
        for number, (kind, at_ms) in enumerate(zip(chosen, times, strict=True))
    )


@dataclass(frozen=True, slots=True)
class _Taste:
    """What the jobs of one history are like."""

    keys: tuple[str | None, ...]
    tenants: tuple[str, ...]
    kinds: tuple[str, ...]
    trouble: float
    delayed: float
    dedup: float
    waited: float


def _asked(rng: random.Random, span_ms: int, calm: bool) -> tuple[Asked, ...]:
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=4)
    taste = _Taste(
        keys=(None, *(f"k{number}" for number in range(rng.choice((0, 1, 2, 4))))),
        tenants=("a", "b", "c")[: rng.choice((1, 1, 2, 3))],
        kinds=(*names, "steady") if rng.random() < 0.8 else ("steady",),
        trouble=rng.choice((0.1, 0.4, 0.7)),
        delayed=rng.choice((0.0, 0.2, 0.6)),
        dedup=rng.choice((0.0, 0.2, 0.6)),
        waited=rng.choice((0.0, 0.0, 0.0, 0.3)),
    )
    burst = rng.random() < 0.3
    count = rng.choice((8, 15, 25, 40))
    times = sorted(rng.randrange(200) if burst and rng.random() < 0.7 else rng.randrange(span_ms) for _ in range(count))
    found: list[Asked] = []
    scheduled = rng.random() < 0.4
    for number, at_ms in enumerate(times):
        if scheduled and number and rng.random() < 0.2:
            found.append(_of_schedule(rng, number, at_ms, found, taste))
        elif number and rng.random() < 0.15:
            about = rng.randrange(max(0, number - 8), number)
            command = rng.choice(("!cancel", "!cancel", "!retry", "!now"))
            found.append(Asked(number, min(at_ms + rng.choice((0, 30, 400, 2_000)), span_ms), command, about))
        else:
            found.append(_job(rng, number, at_ms, taste, calm))
    return tuple(found)


def _of_schedule(rng: random.Random, number: int, at_ms: int, before: list[Asked], taste: _Taste) -> Asked:
    names = sorted({each.name for each in before if each.name})
    if not names or rng.random() < 0.3:
        name = f"s{number}"
        takes_ms = rng.choice((0, 0, 60))
        key = rng.choice(taste.keys) if rng.random() < 0.4 else None
        misfire = rng.choice(("skip", "once", "all"))
        return Asked(
            number,
            at_ms,
            "!put",
            name=name,
            misfire=misfire,
            key=key,
            takes_ms=takes_ms,
            steps=rng.choice((("ok",), ("fail", "ok"))),
        )
    name = rng.choice(names)
    put = next(each for each in before if each.name == name)
    kind = rng.choice(("!drop", "!pause", "!go", "!run", "!run", "!put"))
    if kind == "!put":
        return replace(put, number=number, at_ms=at_ms, misfire=rng.choice((put.misfire, "all")))
    return Asked(number, at_ms, kind, about=put.number, name=name, key=put.key)


def _job(rng: random.Random, number: int, at_ms: int, taste: _Taste, calm: bool) -> Asked:
    dedup = rng.choice(("d1", "d2")) if rng.random() < taste.dedup else None
    delayed = rng.random() < taste.delayed
    return Asked(
        number,
        at_ms,
        rng.choice(taste.kinds),
        key=rng.choice(taste.keys),
        tenant=rng.choice(taste.tenants),
        priority=rng.choice((0, 0, 0, 5, -1, 10, 20)),
        delay_ms=rng.choice((1, 50, 400, 400, 1_500, 3_000, LONG_MS)) if delayed else 0,
        exact=rng.random() < 0.3,
        expires_ms=rng.choice((150, 1_000, 8_000)) if rng.random() < 0.08 else 0,
        attempts=rng.choice((0, 0, 0, 1, 2)),
        dedup_id=dedup,
        window_ms=rng.choice((300, 1_500, 60_000)) if dedup else 0,
        steps=_steps(rng, taste.trouble, calm),
        takes_ms=rng.choice((0, 0, 0, 15, 60, 300)),
        waited=rng.random() < taste.waited,
    )


def _steps(rng: random.Random, trouble: float, calm: bool) -> tuple[str, ...]:
    ending = rng.choice(("ok", "ok", "ok", "warn"))
    if rng.random() >= trouble:
        return (ending,)
    choice = ("fail",) * 6 + ("retry:20", "retry:400", "retry:1500") + (() if calm else ("hang", "stubborn"))
    fails = [rng.choice(choice) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
    return (*fails, rng.choice((ending, ending, ending, "reject")))
