"""The workers of a simulated history, and what is done to them. Each is an application of its own, as separate processes would be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline import Context, Pipeline, Reject, Retry, Settings
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.faults import Faults
from pipeline.memory.loop import VirtualClockLoop
from pipeline.model.cluster import DeliveryCallback, TimeDifference, TopicPartition
from pipeline.model.control import Pause, Release, Skip, Switch, encode
from pipeline.model.headers import DeliveryHeaders
from pipeline.model.headers import encode as encode_headers
from pipeline.model.outcome import Emit
from pipeline.model.policies import BatchPolicy, FlowPolicy
from pipeline.topology import Defaults, execute, plan
from pipeline.worker.threads import ThreadRunners
from pipeline.worker.worker import Worker
from tests.simulation.facts import Began, Ended, Facts, Landed
from tests.simulation.operator import DEAD, HALF, OPENED, REPLAY, WHOLE, Operator
from tests.simulation.scenario import (
    ATTEMPTS,
    GROUP,
    MORE_RATES,
    OUT,
    RATES,
    STALE_RATES,
    TIERS,
    TOPIC,
    TRANSACTION_RATES,
    Event,
    Planned,
    Scenario,
)

CONTROL = "_pipeline.control"
OUTPUTS = 2
TIMEOUT_S = 0.8
TICK_S = 0.05
SESSION_S = 1.5
TRANSACTION_MS = 2_000
SETTINGS = Settings(broker="memory://sim", session_timeout_s=SESSION_S)

_ALL_RATES = RATES | MORE_RATES | TRANSACTION_RATES | STALE_RATES
_BY_CHANCE = {chance: name for name, chances in _ALL_RATES.items() for chance in chances}


class CountedFaults(Faults):
    """Counts what it did, by name."""

    counts: Counter[str]

    def happens(self, chance: float) -> bool:
        found = super().happens(chance)
        if found:
            self.counts[_BY_CHANCE[chance]] += 1
        return found


def faults_of(scenario: Scenario, counts: Counter[str]) -> CountedFaults:
    delays = set(scenario.delays)
    found = CountedFaults(
        scenario.seed,
        land_delay_ms=(0, 30) if "land" in delays else (0, 0),
        ack_delay_ms=(0, 60) if "ack" in delays else (0, 0),
        commit_delay_ms=(0, 60) if "commit" in delays else (0, 0),
        fetch_records=(1, 6) if "fetch" in delays else None,
        commit_late_ms=(1, 400),
        **dict(scenario.faults),  # type: ignore[arg-type]
    )
    found.counts = counts
    return found


class _Inline:
    """The work queue of a pool of threads, in virtual time: each chunk is run at once, some time after it was handed over."""

    def __init__(self, runners: Any, loop: VirtualClockLoop, rng: random.Random) -> None:
        self._runners, self._loop, self._rng = runners, loop, rng
        self._now: deque[Any] = deque()
        self.dead = False

    def put(self, chunk: Any) -> None:
        if chunk.deliveries:
            self._loop.call_later(self._rng.choice((0, 0.002, 0.03, 0.2)), self._go, chunk)

    def get(self) -> Any:
        return self._now.popleft()

    def _go(self, chunk: Any) -> None:
        if not self.dead:
            self._now.extend((chunk, type(chunk)([])))
            self._runners._run()


class _OwnTime:
    """The cluster as a worker sees it whose clock differs: it measures that, as on Kafka, but not exactly."""

    def __init__(self, cluster: MemoryCluster, name: str, skew_ms: int, rng: random.Random) -> None:
        self._cluster = cluster
        self._skew_ms = skew_ms
        self._rng = rng
        self.address = f"{cluster.address}-{name}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def clock(self) -> int:
        return self._cluster.clock() + self._skew_ms

    def time_difference(self, topic: str, timeout_s: float) -> TimeDifference:
        early_ms, spread_ms = self._rng.choice(((0, 0), (0, 30), (15, 30), (30, 30), (3, 200)))
        return TimeDifference(-self._skew_ms - early_ms, spread_ms)


@dataclass(slots=True)
class Member:
    """A worker and the tiers it declares."""

    name: str
    worker: Worker
    tiers: tuple[str, ...]
    inline: _Inline | None = None
    engines: list[Any] = field(default_factory=list)


class Fleet:
    """`alive`: by name, those that were not killed or stopped. `frozen`: those of them that the cluster does not hear."""

    source, group, dead = TOPIC, GROUP, DEAD

    def __init__(self, scenario: Scenario, cluster: MemoryCluster, loop: VirtualClockLoop, facts: Facts) -> None:
        self.scenario, self.cluster, self.loop, self.facts = scenario, cluster, loop, facts
        self.alive: dict[str, Member] = {}
        self.frozen: set[str] = set()
        self._pausing: object | None = None
        self.tiers = TIERS[0]
        self.clock_ahead_ms = 0
        self.stats: Counter[str] = Counter()
        self.planned = {record.number: record for record in scenario.records}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._made = 0
        self._executions = 0
        self._replays = 0
        self._grown = False
        self._switches = cluster.producer("operator")  # one for all: commands of one person land in their order
        self.operator = Operator(self)
        self.registered: list[str] = []

    # -- handlers

    def app(self, name: str, tiers: tuple[str, ...], broker: str = "") -> Pipeline:
        scenario = self.scenario
        app = Pipeline(name, settings=SETTINGS.model_copy(update={"broker": broker or self.cluster.address}))
        batch = BatchPolicy(size=6, wait_ms=10, whole=scenario.executor == "whole")
        app.subscribe(
            TOPIC,
            group=GROUP,
            value="bytes",
            order=scenario.order,  # type: ignore[arg-type]
            tiers=tiers,
            attempts=ATTEMPTS,
            timeout=TIMEOUT_S,
            concurrency=scenario.concurrency,
            batch=batch if scenario.executor in ("batch", "whole") else None,
            flow=FlowPolicy(
                buffered=scenario.limits.buffered,
                commit_interval_ms=scenario.commit_ms,
                drain_timeout_ms=1_000,
                look_ahead=scenario.limits.look_ahead,
                transaction_timeout_ms=TRANSACTION_MS,
            ),
            delivery=scenario.delivery,  # type: ignore[arg-type]
            dead_letter=scenario.dead_letter,  # type: ignore[arg-type]
        )(self._handler(name, tiers))
        return app

    def _handler(self, name: str, tiers: tuple[str, ...]) -> Callable[..., Any]:
        if self.scenario.executor == "batch":
            return self._batch_handler(name, tiers)
        if self.scenario.executor == "whole":
            return self._whole_handler(name, tiers)
        if self.scenario.executor == "def":

            def plain(value: bytes, ctx: Context) -> Any:
                number = self._begin(name, ctx)
                return self._end(number, self.planned[int(value)], ctx, tiers)

            return plain

        async def handle(value: bytes, ctx: Context) -> Any:
            number, record = self._begin(name, ctx), self.planned[int(value)]
            try:
                await asyncio.sleep(10 if record.step(ctx.attempt) == "hang" else record.takes_ms / 1000)
            except asyncio.CancelledError:
                self.facts.append(
                    Ended(self.cluster.clock(), number, "cancelled", self._wait_ms("fail", ctx.attempt, tiers))
                )
                raise
            return self._end(number, record, ctx, tiers)

        return handle

    def _batch_handler(self, name: str, tiers: tuple[str, ...]) -> Callable[..., Any]:
        async def handle(values: list[bytes], contexts: list[Context]) -> Any:
            pairs = list(zip(values, contexts, strict=True))
            numbers = [self._begin(name, ctx) for _, ctx in pairs]
            try:
                await asyncio.sleep(max(self.planned[int(value)].takes_ms for value in values) / 1000)
            except asyncio.CancelledError:
                for number, ctx in zip(numbers, contexts, strict=True):
                    self.facts.append(
                        Ended(self.cluster.clock(), number, "cancelled", self._wait_ms("fail", ctx.attempt, tiers))
                    )
                raise
            results: list[Any] = []
            for number, (value, ctx) in zip(numbers, pairs, strict=True):
                try:
                    results.append(self._end(number, self.planned[int(value)], ctx, tiers))
                except Exception as error:
                    results.append(error)
            return results

        return handle

    def _whole_handler(self, name: str, tiers: tuple[str, ...]) -> Callable[..., Any]:
        """All or nothing: when one fails, the first of each key has failed and the others were not run."""

        def ended(pairs: list[tuple[bytes, Context]], outcome: str, bad: bool) -> None:
            firsts: set[tuple[int, bytes | None]] = set()
            for _, ctx in pairs:
                place = (ctx.partition, ctx.key)
                if bad and self.scenario.order != "none" and ctx.key is not None and place in firsts:
                    continue
                firsts.add(place)
                number = self._begin(name, ctx)
                wait_ms = self._wait_ms("fail", ctx.attempt, tiers) if bad else 0
                self.facts.append(Ended(self.cluster.clock(), number, outcome, wait_ms))

        async def handle(values: list[bytes], contexts: list[Context]) -> None:
            pairs = list(zip(values, contexts, strict=True))
            try:
                await asyncio.sleep(max(self.planned[int(value)].takes_ms for value in values) / 1000)
            except asyncio.CancelledError:
                if name in self.alive:
                    ended(pairs, "cancelled", True)
                raise
            bad = any(self.planned[int(value)].step(ctx.attempt) not in ("ok", "emit") for value, ctx in pairs)
            ended(pairs, "failed" if bad else "ok", bad)
            if bad:
                raise ValueError("not all of this batch")

        return handle

    def _begin(self, worker: str, ctx: Context) -> int:
        self._executions += 1
        delivery = ctx._delivery
        message, identity = delivery.message, delivery.identity
        place = (message.topic() or "", message.partition() or 0, delivery.offset)
        self.facts.append(
            Began(
                self.cluster.clock(), self._executions, worker, delivery.unit.epoch, place, identity.origin, identity.replay_id,
                ctx.attempt, ctx.key,
            )
        )  # fmt: skip
        return self._executions

    def _end(self, number: int, record: Planned, ctx: Context, tiers: tuple[str, ...]) -> Any:
        step, now_ms = record.step(ctx.attempt), self.cluster.clock()
        if step in ("ok", "emit"):
            outputs = OUTPUTS if step == "emit" else 0
            self.facts.append(Ended(now_ms, number, "ok", outputs=outputs))
            return [Emit(OUT, ctx.key, b"%d" % number) for _ in range(outputs)] or None
        if step == "reject":
            self.facts.append(Ended(now_ms, number, "rejected"))
            raise Reject
        self.facts.append(Ended(now_ms, number, "failed", self._wait_ms(step, ctx.attempt, tiers)))
        if step.startswith("retry:"):
            raise Retry(after=int(step[6:]) / 1000)
        raise ValueError(step)

    @staticmethod
    def _wait_ms(step: str, attempt: int, tiers: tuple[str, ...]) -> int:
        if step.startswith("retry:"):
            return int(step[6:])
        return int(tiers[min(attempt, len(tiers)) - 1].removesuffix("ms"))

    # -- workers

    def prepare(self, partitions: int) -> None:
        """The topics of what is declared now."""
        admin = self.cluster.admin()
        for action in plan(
            self.app("planner", self.tiers).subscriptions, admin.topics(), Defaults(partitions=partitions)
        ).actions:
            execute(admin, action)

    async def start(self) -> None:
        self._made += 1
        name = f"w{self._made}"
        self.facts.happened("start", name)
        worker = Worker(self.app(name, self.tiers, self._own_time(name)), index=self._made)
        await worker.start()
        member = self.alive[name] = Member(name, worker, self.tiers)
        for running in worker.running:
            engine: Any = running.engine
            member.engines.append(engine)  # a worker that has stopped has none any more
            limits = self.scenario.limits
            engine._committer._limit = limits.metadata
            engine._ownership._policy = replace(engine._ownership._policy, held_back=limits.held_back)
            if engine.parts.transactional is not None and limits.buffered < 100:
                engine.parts.transactional.max_queued_records = 3
            if isinstance(engine.executor, ThreadRunners):
                rng = random.Random(f"{self.scenario.seed}/{name}")
                member.inline = _Inline(engine.executor, self.loop, rng)
                executor: Any = engine.executor
                executor._work, executor._grow = member.inline, lambda: None

    def _own_time(self, name: str) -> str:
        """The address at which a worker finds the cluster."""
        skews = self.scenario.skews_ms
        skew_ms = skews[self._made % len(skews)] if skews else 0
        if not skew_ms:
            return self.cluster.address
        self.stats["a clock of its own"] += 1
        own: Any = _OwnTime(self.cluster, name, skew_ms, random.Random(f"{self.scenario.seed}/{name}"))
        memory.register(own)
        self.registered.append(own.address)
        return str(own.address)

    def forget(self) -> None:
        for address in self.registered:
            memory.forget(address)

    def _take(self, name: str) -> Member:
        member = self.alive.pop(name)
        for engine in member.engines:
            stats = engine.stats
            for (_, cause), count in stats.hops.items():
                self.stats[f"hop: {cause}"] += count
            self.stats["wait in memory"] += stats.waited_in_memory
            self.stats["timed out"] += stats.timeouts
            if (transactions := engine.transactions) is not None:
                self.stats["producer made anew after a doubt"] += transactions.counts.aborted
        return member

    def kill(self, name: str, late_ms: int | None) -> None:
        self.facts.happened("kill", name)
        self.cluster.kill(name, late_ms)
        member = self._take(name)
        if member.inline is not None:
            member.inline.dead = True
        if name in self._stopping:
            self._stopping[name].cancel()
            self.facts.happened("killed while it stopped", name)
        member.worker.abandon()
        self.frozen.discard(name)
        self.facts.happened("gone", name)

    async def stop(self, name: str) -> None:
        """Gracefully; it may be killed while it does."""
        if name in self._stopping:
            return
        self.facts.happened("stop", name)
        self._stopping[name] = task = asyncio.ensure_future(self.alive[name].worker.stop())
        await asyncio.wait([task])
        del self._stopping[name]
        if not task.cancelled():
            task.result()
            if name in self.alive:  # it may have been killed in the moment in which its stop was through
                self._take(name)
                self.facts.happened("stopped", name)

    def freeze(self, name: str) -> None:
        self.facts.happened("freeze", name)
        self.cluster.freeze(name)
        self.frozen.add(name)

    def thaw(self, name: str) -> None:
        self.facts.happened("thaw", name)
        self.cluster.thaw(name)
        self.frozen.discard(name)

    # -- what happens to them

    async def happen(self, event: Event) -> None:
        await getattr(self, f"_on_{event.kind}")(event)

    def _one(self, event: Event) -> str | None:
        awake = [name for name in self.alive if name not in self.frozen]
        return awake[event.pick % len(awake)] if awake else None

    async def _on_kill(self, event: Event) -> None:
        if name := self._one(event):
            self.kill(name, None if event.value < 0 else event.value)

    async def _on_stop(self, event: Event) -> None:
        if name := self._one(event):
            await self.stop(name)

    async def _on_freeze(self, event: Event) -> None:
        if name := self._one(event):
            self.freeze(name)
            self.loop.call_later(event.value / 1000, lambda: self.thaw(name) if name in self.frozen else None)

    async def _on_expel(self, event: Event) -> None:
        if name := self._one(event):
            for consumer in [c for c in self.cluster.consumers if c.client_id == name]:
                self.facts.happened("expel", name)
                self.cluster.expel(consumer)

    async def _on_start(self, _event: Event) -> None:
        if len(self.alive) < self.scenario.workers + 1:
            await self.start()

    async def _on_retier(self, event: Event) -> None:
        self.tiers = TIERS[event.value]
        self.facts.happened("retier", self.tiers)
        self.prepare(len(self.cluster.logs[TOPIC]))

    async def _on_grow(self, _event: Event) -> None:
        if self._grown:
            return
        self._grown = True
        admin = self.cluster.admin()
        total = len(self.cluster.logs[TOPIC]) + 1
        self.facts.happened("grow", total)
        lanes = [topic for topic in self.cluster.logs if topic.startswith(f"{TOPIC}.{GROUP}.")]
        for topic in (*lanes, TOPIC):
            admin.add_partitions(topic, total)

    async def _on_pause(self, event: Event) -> None:
        if event.value:
            self._pausing = asked = object()

            def written(error: object, _offset: int) -> None:
                if error is None and self._pausing is asked:  # the first answer, and no resume was sent before it came
                    self._pausing = None
                    self.facts.happened("pause")

            self._switch(Pause(self.group), True, written)
            self.loop.call_later(event.value / 1000, self.resume)

    def resume(self) -> None:
        self._pausing = None
        self.facts.happened("resume")
        self._switch(Pause(self.group), False)

    def _switch(self, switch: Switch, on: bool, written: DeliveryCallback | None = None) -> None:
        key, value = encode(switch)
        self._switches.send(CONTROL, key, value if on else None, delivered=written)

    def _in_lanes(self) -> list[tuple[int, int, bytes | None]]:
        """Records of which a copy is in a tier and that have no dead letter: what an operator finds with `pipeline why`."""
        found: dict[tuple[int, int], bytes | None] = {}
        for fact in self.facts.visible():
            if fact.place[0].startswith(f"{TOPIC}.{GROUP}."):
                packed = dict(fact.headers).get("pl.d")
                if packed is not None and packed.split(b" ")[2] != b"0":
                    found[fact.place[1], int(packed.split(b" ")[5])] = fact.key
        return [(partition, origin, key) for (partition, origin), key in found.items()]

    async def _on_skip(self, event: Event) -> None:
        if there := self._in_lanes():
            partition, origin, key = there[-1 - event.pick % min(4, len(there))]
            self.facts.happened("skip", f"{partition}/{origin}", partition=partition, origin=origin, key=key)
            self._switch(Skip(GROUP, TOPIC, partition, origin, key), True)

    async def _on_release(self, event: Event) -> None:
        if there := [place for place in self._in_lanes() if place[2] is not None]:
            partition, _, key = there[-1 - event.pick % min(4, len(there))]
            up_to = max(
                fact.place[2] for fact in self.facts
                if isinstance(fact, Landed) and fact.place[:2] == (TOPIC, partition) and fact.key == key
            )  # fmt: skip
            self.facts.happened("release", f"{partition}/{key!r}", partition=partition, origin=up_to, key=key)
            self._switch(Release(GROUP, TOPIC, partition, key, up_to), True)

    async def _on_replay(self, event: Event) -> None:
        letters = [fact for fact in self.facts.visible() if fact.place[0] == DEAD]
        if not letters:
            return
        letter = letters[event.pick % len(letters)]
        named = {name: text or b"" for name, text in letter.headers}
        partition, origin = int(named["pl.origin.partition"]), int(named["pl.origin.offset"])
        self._replays += 1
        headers = DeliveryHeaders(
            0, 0, 0, TOPIC, partition, origin, 0, GROUP, replay_id=f"r{self._replays}", replay_count=1
        )
        self.facts.happened("replay", f"{partition}/{origin}")
        self.cluster.producer("replayer").send(REPLAY, letter.key, letter.value, encode_headers([], headers), partition)

    async def _on_free(self, event: Event) -> None:
        """A held key is let go; some tools die half way."""
        ends = {6: OPENED, 7: HALF}.get(event.value, WHOLE)
        await self.operator.release(event.pick, redrive=event.value % 2 == 0, ends=ends)

    async def _on_away(self, event: Event) -> None:
        """A partition of the source or of a lane has no leader for a while."""
        topics = [self.source, *(t for t in self.cluster.logs if t.startswith(f"{self.source}.{self.group}."))]
        topic = topics[event.pick % len(topics)]
        place = TopicPartition(topic, event.pick % len(self.cluster.logs[topic]))
        self.facts.happened("away", place)
        self.cluster.faults.unavailable.add(place)
        self.loop.call_later(event.value / 1000, self._back, place)

    def _back(self, place: TopicPartition) -> None:
        self.cluster.faults.unavailable.discard(place)
        self.cluster.wake_all()

    async def _on_deny(self, event: Event) -> None:
        """Writing to the dead letters is refused for a while."""
        self.facts.happened("deny", self.dead)
        self.cluster.faults.denied_topics.add(self.dead)
        self.loop.call_later(event.value / 1000, lambda: self.cluster.faults.denied_topics.discard(self.dead))

    async def _on_standstill(self, event: Event) -> None:
        """No transaction can be begun or aborted for a while."""
        self.facts.happened("standstill", event.value)
        self.cluster.faults.no_transactions = True
        self.loop.call_later(event.value / 1000, lambda: setattr(self.cluster.faults, "no_transactions", False))

    async def _on_gap(self, event: Event) -> None:
        """A transaction's markers, or its aborted records."""
        partition = event.pick % len(self.cluster.logs[self.source])
        self.facts.happened("gap", f"{self.source}[{partition}]")
        self.cluster.skip_offsets((self.source, partition), event.value)

    async def _on_jump(self, event: Event) -> None:
        """The wall clock is set, for all."""
        self.facts.happened("jump", event.value)
        self.clock_ahead_ms += event.value

    async def _on_stall(self, event: Event) -> None:
        """Nothing runs for a while: a machine that is suspended."""
        self.facts.happened("stall", event.value)
        self.loop.advance(event.value / 1000)
