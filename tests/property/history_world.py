"""The world around a partition's owners in a random history: a small broker, the handlers' scripts, and what must hold.

Logs have gaps (compaction, transaction markers); a commit may fail for one partition alone; hand-offs of a dead owner land
later, in a later owner's life. The oracle knows nothing of `Unit`: it sees records, executions, endings and commit texts.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

from pipeline.core.parking import Identity
from pipeline.core.progress import METADATA_LIMIT, decode
from pipeline.model.cluster import Headers
from pipeline.model.headers import DeliveryHeaders, encode
from tests.property.history_operator import Operator, Violation

TIERS = {"3": 3, "9": 9, "27": 27}
REPLAY = "replay"
SOURCE_NAME = "source"
ATTEMPTS = 5
TOPIC = "t"
GROUP = "g"


class Record:
    """A record in a log, with the methods of a fetched message."""

    __slots__ = ("_headers", "_key", "_offset", "parent")

    def __init__(self, offset: int, key: bytes | None, headers: Headers | None, parent: tuple[str, int] | None) -> None:
        self._offset = offset
        self._key = key
        self._headers = headers
        self.parent = parent

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return b""

    def headers(self) -> Headers | None:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


class Log:
    """A partition."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.offsets: list[int] = []
        self.end = 0

    def append(self, key: bytes | None, headers: Headers | None, gap: int, parent: tuple[str, int] | None) -> int:
        offset = self.end + gap
        self.records.append(Record(offset, key, headers, parent))
        self.offsets.append(offset)
        self.end = offset + 1
        return offset

    def fetch(self, offset: int, most: int) -> list[Record]:
        at = bisect_left(self.offsets, offset)
        return self.records[at : at + most]

    def at(self, offset: int) -> Record:
        return self.records[bisect_left(self.offsets, offset)]


@dataclass(slots=True)
class Send:
    """A record on its way to a lane. `parent`: lane name and offset of the record that is handed off."""

    lane: str
    key: bytes | None
    headers: Headers
    parent: tuple[str, int]


Commit = dict[str, tuple[int, str]]
"""Lane name -> (offset, metadata text)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides before anything happens."""

    order: str
    keys: tuple[bytes | None, ...]
    records: int
    death_rate: float
    partial_commits: bool
    late_rate: float
    switches: bool
    replays: int
    retiring: bool
    limit: int
    has_tiers: bool
    ack_rate: float
    slow_lanes: frozenset[str]
    bring_up_death_rate: float
    hold: bool = False
    renew_ms: int = 1 << 40
    operator_rate: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        storm = rng.random() < 0.3  # owners die one after the other while their predecessors' hand-offs arrive
        keys: tuple[bytes | None, ...] = tuple(b"k%d" % i for i in range(rng.choice((1, 3, 4, 6))))
        plan = cls._draw(rng, storm, keys)
        # Drawn last: the histories without it stay what they were.
        hold = plan.order == "key" and rng.random() < 0.4
        renew_ms = rng.choice((20, 200, 1 << 40)) if hold else 1 << 40
        return replace(plan, hold=hold, renew_ms=renew_ms, operator_rate=rng.choice((0.005, 0.02, 0.1)))

    @classmethod
    def _draw(cls, rng: random.Random, storm: bool, keys: tuple[bytes | None, ...]) -> Plan:
        return cls(
            order=rng.choice(("key", "key", "key", "key", "key_relaxed", "none")),
            keys=(*keys, None) if rng.random() < 0.3 else keys,
            records=rng.choice((15, 40)),
            death_rate=rng.choice((0.02, 0.05) if storm else (0.002, 0.006, 0.02)),
            partial_commits=rng.random() < 0.3,
            late_rate=0.3 if storm else rng.choice((0.02, 0.1)),
            switches=rng.random() < 0.2,
            replays=rng.choice((0, 0, 2, 5)),
            retiring=rng.random() < 0.2,
            limit=rng.choice((METADATA_LIMIT,) * 7 + (80,)),
            has_tiers=rng.random() < 0.95,
            slow_lanes=frozenset(rng.sample((SOURCE_NAME, *TIERS, REPLAY), rng.choice((0, 0, 1, 2, 3)))),
            ack_rate=rng.choice((1.0, 1.0, 0.3, 0.05)),
            bring_up_death_rate=0.25 if storm else rng.choice((0.0, 0.05)),
        )


@dataclass(slots=True)
class Story:
    """What became of one record (an identity) so far."""

    key: bytes | None
    script: tuple[int | None, ...]
    executions: int = 0
    may_repeat: int = 0
    endings: set[str] = field(default_factory=set)
    not_before: dict[int, int] = field(default_factory=dict)


OK, REJECT, BY_POLICY = -1, -2, -3


def _script(rng: random.Random) -> tuple[int, ...]:
    """Per attempt: OK, REJECT, BY_POLICY (a failure retried as the policy says), or a failure that asks for so many ms."""
    fails = rng.choice((0, 0, 0, 1, 2, 3, 9))
    steps = [rng.choice((BY_POLICY, BY_POLICY, BY_POLICY, 0, 1, 2, 5, 20, 40)) for _ in range(fails)]
    return (*steps, rng.choice((OK, OK, OK, OK, REJECT)))


class World:
    """Everything that outlives an owner."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.plan = Plan.draw(self.rng)
        self.now = 1_000
        self.deaths = 0
        self.logs = {name: Log() for name in (SOURCE_NAME, *TIERS, REPLAY)}
        self.committed: Commit = {}
        self.late: list[deque[Send]] = []
        self.stories: dict[Identity, Story] = {}
        self.skipped: dict[Identity, bytes | None] = {}
        self.released: dict[bytes | None, int] = {}
        self.replays_left = self.plan.replays
        self.dead: list[Identity] = []
        self.operator = Operator(self)
        self._by_key: dict[bytes | None, list[Identity]] = defaultdict(list)
        self._first_open: dict[bytes | None, int] = defaultdict(int)
        for _ in range(self.plan.records):
            key = self.rng.choice(self.plan.keys)
            identity = Identity(self.logs[SOURCE_NAME].append(key, None, self.gap(), None))
            self._by_key[key].append(identity)
            self.stories[identity] = Story(key, _script(self.rng))

    def gap(self) -> int:
        return self.rng.choice((0, 0, 0, 0, 1, 3))

    # -- the broker

    def land(self, send: Send) -> None:
        self.logs[send.lane].append(send.key, send.headers, self.gap(), send.parent)

    def land_late(self) -> None:
        """A dead owner's hand-off arrives. One idempotent producer: what it sent to a lane lands in order, without holes."""
        if self.late and self.rng.random() < self.plan.late_rate:
            sent = self.rng.choice(self.late)
            self.land(sent.popleft())
            if not sent:
                self.late.remove(sent)

    def apply(self, commit: Commit) -> Commit:
        """Stores a commit; returns what failed."""
        failed: Commit = {}
        if self.plan.partial_commits and self.rng.random() < 0.3:
            failed = {name: commit[name] for name in commit if self.rng.random() < 0.4}
        self.committed.update({name: position for name, position in commit.items() if name not in failed})
        return failed

    def inject_replay(self) -> None:
        """A redrive writes a dead record to the replay lane: hop 0, no epoch, a replay id."""
        origin = self.rng.choice(self.dead).origin
        identity = Identity(origin, f"r{self.replays_left}")
        self.replays_left -= 1
        key = self.stories[Identity(origin)].key
        self.stories[identity] = Story(key, _script(self.rng))
        headers = DeliveryHeaders(0, 0, 0, TOPIC, 0, origin, 0, GROUP, replay_id=identity.replay_id, replay_count=1)
        self.logs[REPLAY].append(key, encode([], headers), self.gap(), None)

    def bring_back(self, identity: Identity, key: bytes | None) -> None:
        """A release sends it back: a record of its own, with a story of its own."""
        if identity not in self.stories:
            self.stories[identity] = Story(key, _script(self.rng))

    # -- the oracle

    def started(self, identity: Identity, attempt: int) -> None:
        if self.now < self.stories[identity].not_before.get(attempt, 0):
            raise Violation("early")

    def failed(self, identity: Identity, attempt: int, delay_ms: int) -> None:
        """Execution `attempt` failed and the next may not start before the delay is over."""
        promised = self.stories[identity].not_before
        promised[attempt + 1] = min(promised.get(attempt + 1, 1 << 60), self.now + delay_ms)

    def ended(self, identity: Identity, ending: str) -> None:
        story = self.stories[identity]
        first = not story.endings
        story.endings.add(ending)
        if ending == "dead" and not identity.replay_id:
            self.dead.append(identity)
        if first and not identity.replay_id and ending != "behind":
            self._check_order(identity, story.key)

    def _check_order(self, identity: Identity, key: bytes | None) -> None:
        if self.plan.order != "key" or key is None:
            return
        mine, at = self._by_key[key], self._first_open[key]
        exempt = identity in self.skipped or identity.origin <= self.released.get(key, -1)
        while at < len(mine) and mine[at] < identity:
            if not self.stories[mine[at]].endings and mine[at] not in self.skipped and not exempt:
                raise Violation("order")
            at += 1
        while self._first_open[key] < len(mine) and self.stories[mine[self._first_open[key]]].endings:
            self._first_open[key] += 1

    def owner_gone(self, ran: list[tuple[Identity, str, int]]) -> int:
        """Counts the executions of a life that are not durably settled: those may be repeated. Returns how many."""
        settled = {name: decode(*position) for name, position in self.committed.items()}
        lost = 0
        for identity, name, offset in ran:
            place: tuple[str, int] | None = (name, offset)
            while place is not None:
                name, offset = place
                progress = settled.get(name)
                if progress is None or offset >= progress.end or offset in progress.open:
                    self.stories[identity].may_repeat += 1
                    lost += 1
                    break
                # A commit is not atomic over partitions: a copy can be durably settled while what fed it is not.
                place = self.logs[name].at(offset).parent if self.plan.partial_commits else None
        return lost

    def check_end(self) -> None:
        for identity, story in self.stories.items():
            if not story.endings:
                raise Violation(f"lost: {identity}")
            allowed = {_ending(story.script), "behind"} | ({"dead", "done"} if identity in self.skipped else set())
            if not story.endings <= allowed or (len(story.endings - {"behind"}) > 1 and identity not in self.skipped):
                raise Violation(f"wrong or two endings: {identity} {story.endings}")
            if story.endings == {"behind"} and not self.operator.was_sent(identity):
                raise Violation(f"left behind: {identity}")
            needed = min(len(story.script), ATTEMPTS)
            if story.executions - needed > story.may_repeat and self.plan.limit == METADATA_LIMIT:
                raise Violation(f"ran again without cause: {identity}")

    def repeated(self) -> int:
        return sum(max(0, s.executions - min(len(s.script), ATTEMPTS)) for s in self.stories.values())


def _ending(script: tuple[int | None, ...]) -> str:
    return "done" if len(script) <= ATTEMPTS and script[-1] == OK else "dead"
