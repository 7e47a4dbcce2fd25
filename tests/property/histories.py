"""Random histories of one source partition, its lanes and a succession of owners, on the real `Unit`, `Rebuild` and commit texts.

    python -m tests.property.histories 5000            as designed: must find nothing
    python -m tests.property.histories 1 --seed 1234   one history again
    python -m tests.property.histories 1000 --mutants  each rule broken in turn: each must be found

Every owner reads what is committed, reads the lanes' ends, scans the lanes, commits the lanes, then claims its epoch with the
source's commit, and only then processes. It may die between any two steps; what it sent may land in a later owner's life.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.core.delivery import Delivery
from pipeline.core.parking import Identity
from pipeline.core.progress import METADATA_LIMIT, Progress, decode, encode
from pipeline.core.rebuild import Rebuild
from pipeline.core.unit import SKIPPED, DeadLetter, HandOff, LaneSpec, RunAgain, Unit, UnitPolicy
from pipeline.model.headers import encode as encode_headers
from pipeline.model.headers import producer_headers
from pipeline.model.outcome import Failure, FailureKind
from pipeline.model.policies import RetryPolicy
from tests.property.history_world import (
    ATTEMPTS,
    BY_POLICY,
    GROUP,
    OK,
    REJECT,
    REPLAY,
    SOURCE_NAME,
    TIERS,
    TOPIC,
    Commit,
    Send,
    Violation,
    World,
)

STEPS_MAX = 60_000
SLOW_STEPS_MAX = 5_000
"""Until then some lanes are slow; later the history has to come to its end."""
DEATHS_MAX = 8


@dataclass(frozen=True, slots=True)
class Rules:
    """What the worker (not the core) has to do right; each False is a mutant."""

    lanes_before_claim: bool = True
    lanes_together: bool = True
    one_commit_in_flight: bool = True
    settle_after_ack: bool = True
    free_after_dead_letter: bool = True
    lands_in_order: bool = True


class Died(Exception):
    """The owner is gone: killed, or `graceful`."""


class Life:
    """One owner, from its assignment to its end."""

    def __init__(self, world: World, rules: Rules) -> None:
        self.world = world
        self.rules = rules
        self.rng = world.rng
        self.retired = self._retired()
        self.ready: deque[Delivery] = deque()
        self.running: list[Delivery] = []
        self.waits: list[RunAgain] = []
        self.unlanded: dict[str, deque[tuple[Send, Delivery]]] = defaultdict(deque)
        self.unacked: dict[str, deque[Delivery]] = defaultdict(deque)
        self.dead_letters: list[DeadLetter] = []
        self.written: list[Delivery] = []
        self.commits: list[Commit] = []
        self.retry: Commit = {}
        self.ran: list[tuple[Identity, str, int]] = []
        self.replays: dict[bytes | None, set[Identity]] = defaultdict(set)
        self.draining = False
        self.let_go_of = 0
        self.steps = 0

    def _retired(self) -> frozenset[str]:
        if not self.world.plan.has_tiers:
            return frozenset(TIERS)
        if self.world.plan.retiring:
            return self.rng.choice((frozenset(), frozenset({"9"}), frozenset({"3", "27"}), frozenset(TIERS)))
        return frozenset()

    def live(self) -> None:
        """Returns at the end of the history; raises `Died` before it."""
        try:
            self.bring_up()
            for self.steps in range(STEPS_MAX):
                if not self.tick():
                    return
        except Died:
            self.die()
            raise
        raise Violation("no end")

    def moment(self, death_rate: float | None = None) -> None:
        """Between any two steps."""
        self.world.land_late()
        rate = self.world.plan.death_rate if death_rate is None else death_rate
        most = DEATHS_MAX if death_rate is None else 2 * DEATHS_MAX
        if self.world.deaths < most and self.rng.random() < rate:
            self.world.deaths += 1
            raise Died

    # -- assignment

    def bring_up(self) -> None:
        world = self.world
        committed = {name: decode(*position) for name, position in world.committed.items()}
        nothing = Progress(0, 0)
        self.moment(world.plan.bring_up_death_rate)
        ends = {name: log.end for name, log in world.logs.items()}
        self.moment(world.plan.bring_up_death_rate)
        lanes = [*TIERS, REPLAY]
        rebuild = Rebuild(
            committed.get(SOURCE_NAME, nothing), lanes, {n: committed.get(n, nothing) for n in lanes}, ends
        )
        for index, offset in rebuild.scan_from.items():
            for record in world.logs[lanes[index - 1]].fetch(offset, 1 << 30):
                rebuild.observe(index, record.offset(), record.key(), record.headers())
            self.moment(world.plan.bring_up_death_rate)
        if not rebuild.complete:
            raise Violation("the rebuild is not complete at the fences")
        self.unit = Unit(0, self._policy(), [self._spec(name) for name in lanes], rebuild)
        self.names = [SOURCE_NAME, *lanes]
        snapshot = self.snapshot()
        claim = {SOURCE_NAME: snapshot.pop(SOURCE_NAME)}
        for part in (snapshot, claim) if self.rules.lanes_before_claim else (claim, snapshot):
            while part:
                self.moment(2 * world.plan.bring_up_death_rate)
                part = world.apply(part)
        for identity, key in world.skipped.items():
            self.unit.skip(key, identity)
        for key, up_to in world.released.items():
            self.unit.release(key, Identity(up_to))
        self.positions = {i: decode(*world.committed[name]).offset for i, name in enumerate(self.names)}
        self.moment(world.plan.bring_up_death_rate)

    def _policy(self) -> UnitPolicy:
        tiers_ms = tuple(delay for name, delay in TIERS.items() if name not in self.retired)
        self.retry_policy = RetryPolicy(attempts=ATTEMPTS, tiers_ms=tiers_ms)
        blocked, held_back = self.rng.choice(((0, 100), (2, 100), (10_000, 3), (10_000, 100)))
        order = self.world.plan.order
        return UnitPolicy(
            TOPIC,
            GROUP,
            order,
            self.retry_policy,
            blocked=blocked,
            held_back=held_back,
            hold=self.world.plan.hold,
            renew_ms=self.world.plan.renew_ms,
        )  # type: ignore[arg-type]

    def _spec(self, name: str) -> LaneSpec:
        return LaneSpec(name, f"{TOPIC}.{GROUP}.{name}", TIERS.get(name), name not in self.retired)

    # -- one step

    def tick(self) -> bool:
        """One thing happens; False: there is nothing left to do."""
        self.moment()
        self.interfere()
        next_due = None if self.draining else self.unit.release_due(self.world.now, self.ready)
        options = self.options()
        if not options and self.slow_work():
            self.world.now += self.rng.random() < 0.3
            return True
        if options:
            self.rng.choice(options)()
            return True
        if self.draining:
            self.hand_over()
        if self.commits or self.retry:
            self.step_commit()
            return True
        dues = [wait.at_ms for wait in self.waits] + ([] if next_due is None else [next_due])
        if dues:
            self.world.now = self.rng.choice((self.world.now + 1, max(min(dues), self.world.now + 1)))
            self.step_commit()
            return True
        if self.world.late:
            self.world.now += 1
            return True
        if self.world.plan.hold and self.world.operator.step(self.rng, final=True):
            self.step_commit()
            return True
        if self.world.replays_left and self.world.dead:
            self.world.inject_replay()
            return True
        return self.finished()

    def options(self) -> list[Callable[[], None]]:
        world, rng = self.world, self.rng
        found: list[Callable[[], None]] = []
        slow = world.plan.slow_lanes if self.steps < SLOW_STEPS_MAX and rng.random() < 0.97 else frozenset()
        if not self.draining:
            for index, name in enumerate(self.names):
                if self.positions[index] < world.logs[name].end and len(self.ready) < 20 and name not in slow:
                    found.append(lambda index=index: self.fetch(index))  # type: ignore[misc]
            if self.ready:
                found += [self.admit] * 3
            due = [wait for wait in self.waits if wait.at_ms <= world.now]
            if due:
                found.append(lambda: self.run_again(rng.choice(due)))
        if self.running:
            found += [self.finish] * 2
        found += [
            lambda name=name: self.land(name) for name, queue in self.unlanded.items() if queue and name not in slow
        ]  # type: ignore[misc]
        acks = [lambda name=name: self.ack(name) for name, queue in self.unacked.items() if queue]  # type: ignore[misc]
        if not found or rng.random() < world.plan.ack_rate:
            found += acks
        if self.dead_letters:
            found.append(self.write_dead_letter)
        if self.written:
            found.append(self.ack_dead_letter)
        if found:
            found.append(self.step_commit)
            world.now += rng.random() < 0.1
        return found

    def slow_work(self) -> bool:
        """Is there still something to do on a lane that is slow?"""
        logs, slow = self.world.logs, self.world.plan.slow_lanes
        unread = not self.draining and any(
            self.positions[i] < logs[name].end for i, name in enumerate(self.names) if name in slow
        )
        return unread or any(self.unlanded[name] for name in slow)

    def interfere(self) -> None:
        """What comes from outside: revocation, redrives, operators."""
        world, rng = self.world, self.rng
        if not self.draining and world.deaths < DEATHS_MAX and rng.random() < world.plan.death_rate / 4:
            world.deaths += 1
            self.draining = True
            self.unit.drain()
            self.ready.clear()
            self.let_go_of += len(self.waits)
            self.waits.clear()
        if world.replays_left and world.dead and rng.random() < 0.02:
            world.inject_replay()
        if world.plan.hold and rng.random() < world.plan.operator_rate:
            world.operator.step(rng)
        if world.plan.switches and self.unit.parking.keys and rng.random() < 0.03:
            key = rng.choice(list(self.unit.parking.keys))
            waiting = self.unit.parking.keys[key]
            if waiting and rng.random() < 0.7:
                identity = rng.choice(waiting)
                world.skipped[identity] = key
                self.unit.skip(key, identity)
            elif waiting:
                world.released[key] = max(rng.choice(waiting).origin, world.released.get(key, -1))
                self.unit.release(key, Identity(world.released[key]))

    def fetch(self, index: int) -> None:
        records = self.world.logs[self.names[index]].fetch(self.positions[index], self.rng.choice((1, 2, 5, 9)))
        if not records:
            self.positions[index] = self.world.logs[self.names[index]].end
            return
        self.positions[index] = records[-1].offset() + 1
        if index == 0:
            self.unit.receive_source(records, self.ready)
            return
        self.unit.receive_lane(index, records)
        self.perform()
        ahead = self.unit.lanes[index].look_ahead
        if self.names[index] == REPLAY:
            for delivery in ahead:
                if delivery.hop == 0 and not self.world.stories[delivery.identity].endings:
                    self.replays[delivery.key].add(delivery.identity)
        elif any(a.due_ms > b.due_ms for a, b in zip(ahead, list(ahead)[1:], strict=False)):
            raise Violation("due times decrease inside a tier")

    def admit(self) -> None:
        delivery = self.ready.popleft()
        if self.unit.admit(delivery, self.world.now):
            self.start(delivery)
        self.perform()

    def start(self, delivery: Delivery | None) -> None:
        if delivery is None:
            return
        identity, key = delivery.identity, delivery.key
        self.world.started(identity, delivery.attempt + 1)
        self.world.operator.may_start(key, identity)
        if self.world.plan.order != "none" and key is not None and any(other.key == key for other in self.running):
            raise Violation("two records of a key run at once")
        if self.world.plan.order == "key" and key is not None and identity.origin > self.world.released.get(key, -1):
            for earlier in self.replays[key]:
                ended = self.world.stories[earlier].endings or earlier in self.world.skipped
                if earlier < identity and not ended:
                    raise Violation("overtook a replayed record")
        self.running.append(delivery)

    def run_again(self, wait: RunAgain) -> None:
        self.waits.remove(wait)
        self.world.started(wait.delivery.identity, wait.delivery.attempt + 1)
        self.running.append(wait.delivery)

    def finish(self) -> None:
        world, unit = self.world, self.unit
        delivery = self.running.pop(self.rng.randrange(len(self.running)))
        identity, attempt = delivery.identity, delivery.attempt + 1
        story = world.stories[identity]
        story.executions += 1
        self.ran.append((identity, self.names[delivery.lane], delivery.offset))
        step = story.script[attempt - 1]
        if step == OK:
            world.ended(identity, "done")
            self.start(unit.done(delivery, world.now))
        else:
            kind = FailureKind.TERMINAL if step == REJECT else FailureKind.RETRYABLE
            failure = Failure(kind, "E", "E", "", after_ms=step if step is not None and step >= 0 else None)
            if kind is FailureKind.RETRYABLE:
                world.failed(identity, attempt, self._delay_ms(step, attempt))
            self.start(unit.failed(delivery, failure, world.now, self.rng.random()))
        self.perform()

    def _delay_ms(self, step: int | None, attempt: int) -> int:
        tiers_ms = self.retry_policy.tiers_ms
        if step is None or step == BY_POLICY:
            return tiers_ms[min(attempt, len(tiers_ms)) - 1] if tiers_ms else 0
        return step

    # -- effects and their acknowledgements

    def perform(self) -> None:
        effects, self.unit.effects[:] = list(self.unit.effects), []
        for effect in effects:
            delivery = effect.delivery
            if isinstance(effect, HandOff):
                headers = encode_headers(producer_headers(delivery.message.headers()), effect.headers)
                name = self.names[effect.lane]
                self.unlanded[name].append(
                    (Send(name, delivery.key, headers, (self.names[delivery.lane], delivery.offset)), delivery)
                )
                if not self.rules.settle_after_ack:
                    self.start(self.unit.handed_off(delivery, now_ms=self.world.now))
            elif isinstance(effect, DeadLetter):
                self.dead_letters.append(effect)
                if not self.rules.free_after_dead_letter:
                    self.start(self.unit.free(delivery.key, self.world.now))
            elif self.draining:
                self.let_go_of += 1
            else:
                self.waits.append(effect)

    def land(self, name: str) -> None:
        queue = self.unlanded[name]
        if not self.rules.lands_in_order:
            queue.rotate(self.rng.randrange(len(queue)))
        send, delivery = queue.popleft()  # one idempotent producer: a lane's records land in the order they were sent
        self.world.land(send)
        self.unacked[name].append(delivery)

    def ack(self, name: str) -> None:
        delivery = self.unacked[name].popleft()
        if self.rules.settle_after_ack:
            self.start(self.unit.handed_off(delivery, now_ms=self.world.now))

    def write_dead_letter(self) -> None:
        effect = self.dead_letters.pop(self.rng.randrange(len(self.dead_letters)))
        self._dead_letter_landed(effect)
        self.written.append(effect.delivery)

    def _dead_letter_landed(self, effect: DeadLetter) -> None:
        delivery, behind = effect.delivery, bool(effect.headers.hold)
        self.world.operator.letter(delivery.key, delivery.identity, behind, effect.failure is not SKIPPED)
        self.world.ended(delivery.identity, "behind" if behind else "dead")

    def ack_dead_letter(self) -> None:
        delivery = self.written.pop(self.rng.randrange(len(self.written)))
        self.start(self.unit.dead_lettered(delivery, self.world.now))
        self.perform()

    # -- commits

    def snapshot(self) -> Commit:
        limit = self.world.plan.limit
        return {self.names[i]: (p.offset, encode(p, limit)) for i, p in self.unit.progress().items()}

    def step_commit(self) -> None:
        if self.commits and (self.rules.one_commit_in_flight or self.rng.random() < 0.5):
            commit = self.commits.pop(0 if self.rules.one_commit_in_flight else self.rng.randrange(len(self.commits)))
            self.retry = self.world.apply(commit)
        elif self.retry:
            self.commits.append(self.retry)  # what failed is stored before anything newer
            self.retry = {}
        else:
            snapshot = self.snapshot()
            if not self.rules.lanes_together:
                name = self.rng.choice(self.names)
                snapshot = {name: snapshot[name]}
            self.commits.append(snapshot)

    def commit_all(self) -> None:
        while self.commits or self.retry:
            self.step_commit()
        pending = self.snapshot()
        while pending:
            pending = self.world.apply(pending)

    # -- ends

    def die(self) -> None:
        """Killed: what was sent may land now, later or never; a commit in flight may be stored or not."""
        for commit in self.commits:
            if self.rng.random() < 0.5:
                self.world.apply(commit)
        for queue in self.unlanded.values():
            sends = deque(send for send, _ in queue)
            for _ in range(self.rng.randint(0, len(sends))):
                self.world.land(sends.popleft())
            for _ in range(self.rng.choice((0, 0, self.rng.randint(0, len(sends))))):
                sends.pop()
            if sends:
                self.world.late.append(sends)
        for effect in self.dead_letters:
            if self.rng.random() < 0.3:
                self._dead_letter_landed(effect)
        self.world.owner_gone(self.ran)

    def hand_over(self) -> None:
        """Drained: everything that ran is settled and committed."""
        self.commit_all()
        lost = self.world.owner_gone(self.ran)
        self.ran.clear()
        if lost and not self.let_go_of and self.world.plan.limit == METADATA_LIMIT:
            raise Violation("a graceful stop leaves executions uncommitted")
        raise Died

    def finished(self) -> bool:
        self.commit_all()
        unit = self.unit
        left = [
            name
            for name, lane in zip(self.names, unit.lanes, strict=True)
            if lane.look_ahead or any(offset < self.world.logs[name].end for offset in lane.tracker.open)
        ]
        if left or len(unit.parking) or unit.parking.keys or unit.busy or unit.waiting.count or unit.blocked.count:
            raise Violation(f"something is left at the end: {left or 'a key'}")
        return False


def history(seed: int, rules: Rules | None = None) -> World:
    """One history; raises `Violation`."""
    world = World(seed)
    while True:
        try:
            Life(world, rules or Rules()).live()
        except Died:
            continue
        world.check_end()
        return world


def check(seeds: Iterable[int], rules: Rules | None = None, stop: bool = True) -> list[tuple[int, str]]:
    """(seed, what went wrong) of the histories that break an invariant; with `stop`, the first only."""
    found = []
    for seed in seeds:
        try:
            history(seed, rules)
        except (Violation, AssertionError, LookupError) as wrong:
            found.append((seed, f"{type(wrong).__name__}: {wrong}"))
            if stop:
                break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("histories", type=int, nargs="?", default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--mutants", action="store_true")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.histories)
    if arguments.mutants:
        from tests.property.history_mutants import check_mutants

        return check_mutants(seeds)
    began = time.perf_counter()
    kinds: Counter[str] = Counter()
    deaths = repeated = 0
    for seed in seeds:
        try:
            world = history(seed)
        except (Violation, AssertionError, LookupError) as wrong:
            kinds[f"{type(wrong).__name__}: {wrong}".split("Identity")[0]] += 1
            if sum(kinds.values()) <= 20:
                print(f"seed {seed}: {wrong!r}    again: python -m tests.property.histories 1 --seed {seed}")
            continue
        deaths += world.deaths
        repeated += world.repeated()
    seconds = time.perf_counter() - began
    print(
        f"{sum(kinds.values())} violations in {len(seeds)} histories, {deaths} owners gone, "
        f"{repeated} executions repeated, {seconds:.1f} s",
        dict(kinds) or "",
    )
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())
