"""Delivery "exactly_once" on the memory cluster: what readers of committed records see, through refusals, doubt and zombies."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import structlog

from pipeline import Context, FlowPolicy, Pipeline, Reject, Retry, Settings, memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import CLOSES, OPENS, DeliveryHeaders, encode
from pipeline.model.policies import Start
from pipeline.model.transactions import Membership
from pipeline.topology import Defaults, apply
from pipeline.worker import transacting
from pipeline.worker.committing import Committer
from pipeline.worker.concluding import OUTPUTS_SAMPLED
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.inputs import Lost
from pipeline.worker.opening import FetchPolicy
from pipeline.worker.transacting import REPEAT_MS, REPEATS_MAX
from pipeline.worker.transaction_parts import State
from tests.unit.test_worker_review import Consumer

TOPIC, GROUP, OUT = "events", "g", "out"
PARTITIONS = 2

Story = Callable[["Fleet"], Awaitable[None]]


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


async def copy(value: dict[str, Any], ctx: Context) -> None:
    """Writes what it reads, after the failures that the record asks for."""
    await asyncio.sleep(value.get("sleep", 0))
    if ctx.attempt <= value.get("fails", 0):
        raise Retry("as asked")
    if value.get("reject"):
        raise Reject("as asked")
    for part in range(value.get("parts", 1)):
        ctx.emit(OUT, ctx.key, {"n": value["n"], "part": part})


class Fleet:
    """Workers of one application on one cluster, in virtual time."""

    def __init__(self, loop: VirtualClockLoop, **arguments: Any) -> None:
        self.loop = loop
        self.cluster = MemoryCluster("eos", clock=loop.clock, scheduler=loop.call_later_ms)
        memory.cluster.register(self.cluster)
        self.arguments = {"tiers": ("1s",), "attempts": 3, "flow": FlowPolicy(commit_interval_ms=100), **arguments}
        self.apps: list[Pipeline] = []
        apply(self.cluster.admin(), self.app("setup").subscriptions, Defaults(partitions=PARTITIONS), "")
        self.cluster.create(OUT, 2)
        self.handler: Any = copy

    def app(self, name: str, instance_id: str = "") -> Pipeline:
        app = Pipeline(name, settings=Settings(broker="memory://eos", instance_id=instance_id, session_timeout_s=6.0))
        handler = getattr(self, "handler", copy)
        app.subscribe(TOPIC, group=GROUP, value="json", delivery="exactly_once", **self.arguments)(handler)
        return app

    async def start(self, name: str = "w", instance_id: str = "") -> Any:
        app = self.app(name, instance_id)
        await app.start()
        self.apps.append(app)
        assert app.worker is not None
        return app.worker

    async def stop(self) -> None:
        for app in self.apps:
            await asyncio.wait_for(app.stop(), 200)

    def publish(self, *records: dict[str, Any]) -> None:
        producer = self.cluster.producer("agents")
        for number, record in enumerate(records):
            value = {"n": number, **record}
            key = str(value.get("key", number % 5)).encode()
            producer.send(TOPIC, key, json.dumps(value).encode(), partition=value.get("partition", -1))

    def out(self, topic: str = OUT) -> list[Any]:
        logs = self.cluster.logs[topic]
        return [json.loads(record.value() or b"") for log in logs for record in log.records()]

    def numbers(self) -> list[int]:
        return sorted(value["n"] for value in self.out())

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)


def play(story: Story, **arguments: Any) -> None:
    async def main(loop: VirtualClockLoop) -> None:
        fleet = Fleet(loop, **arguments)
        try:
            await story(fleet)
            await fleet.stop()
        finally:
            memory.cluster.forget(fleet.cluster.address)

    run(main)


def transactions(worker: Any) -> Any:
    return worker.running[0].engine.transactions


def test_outputs_are_seen_with_their_commit_and_not_before() -> None:
    async def story(fleet: Fleet) -> None:
        fleet.cluster.faults.commit_delay_ms = (50, 50)
        worker = await fleet.start()
        fleet.publish({}, {"parts": 3})
        log = list(fleet.cluster.logs[OUT])
        await fleet.until(lambda: sum(each.end for each in log) == 4)
        assert fleet.out() == []
        assert worker.running[0].engine.stats.processed == 0, "it counts once it is committed"
        await fleet.until(lambda: len(fleet.out()) == 4)
        await fleet.until(lambda: worker.running[0].engine.stats.processed == 2)
        positions = fleet.cluster.admin().group_positions(GROUP)
        assert sum(positions[TopicPartition(TOPIC, p)].offset for p in range(PARTITIONS)) == 2

    play(story)


def test_retries_dead_letters_and_alerts_are_in_the_transaction() -> None:
    told: list[Any] = []

    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        fleet.publish(*({"fails": n % 3, "reject": n % 7 == 0} for n in range(60)))
        rejected = [n for n in range(60) if n % 7 == 0]
        await fleet.until(lambda: len(fleet.out()) == 60 - len(rejected))
        await fleet.until(lambda: len(told) == len(rejected))
        dead = fleet.cluster.logs[f"{TOPIC}.{GROUP}.dlq"]
        offsets = {(p, record.offset()) for p, log in enumerate(dead) for record in log.records()}
        assert {(alert.partition, alert.offset) for alert in told} <= offsets or told
        assert fleet.numbers() == [n for n in range(60) if n not in rejected]
        assert transactions(worker).counts.aborted == 0

    play(story, on_dead_letter=told.append)


@pytest.mark.parametrize(
    "fault", ["transaction_refused", "transaction_torn", "transaction_late", "commit_lost", "send_failure"]
)
def test_a_doubtful_transaction_loses_and_repeats_nothing(fault: str) -> None:
    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        fleet.publish(*({"fails": n % 9 == 0, "parts": 2, "sleep": 0.05} for n in range(200)))
        await fleet.until(lambda: len(fleet.out()) > 20)
        setattr(fleet.cluster.faults, fault, 0.3 if fault != "send_failure" else 0.05)
        await fleet.until(lambda: transactions(worker).counts.aborted > 0, 120)
        setattr(fleet.cluster.faults, fault, 0.0)
        await fleet.until(lambda: len(fleet.out()) >= 400, 120)
        assert fleet.numbers() == sorted([*range(200), *range(200)])

    play(story)


def test_a_new_generation_of_the_group_runs_no_handler_again() -> None:
    """A member joins or leaves while a transaction is on its way: it is refused, and the same is written in another one."""
    runs: Counter[int] = Counter()

    async def counted(value: dict[str, Any], ctx: Context) -> None:
        if ctx.attempt == 1:
            runs[value["n"]] += 1
        await copy(value, ctx)

    told: list[Any] = []

    async def story(fleet: Fleet) -> None:
        fleet.handler = counted
        worker = await fleet.start()
        fleet.publish(*({"fails": n % 9 == 0, "reject": n % 25 == 6, "parts": 2, "sleep": 0.05} for n in range(200)))
        await fleet.until(lambda: len(fleet.out()) > 20)
        fleet.cluster.faults.transaction_stale = 0.5
        kept = [n for n in range(200) if n % 25 != 6]
        await fleet.until(lambda: len(fleet.out()) >= 2 * len(kept) and fleet.numbers() == sorted([*kept, *kept]), 120)
        await fleet.until(lambda: len(told) == 200 - len(kept))
        counts = transactions(worker).counts
        assert (counts.repeated > 3, counts.aborted) == (True, 0)
        assert set(runs.values()) == {1}
        dead = fleet.cluster.logs[f"{TOPIC}.{GROUP}.dlq"]
        letters = {(p, record.offset()) for p, log in enumerate(dead) for record in log.records()}
        assert {(alert.partition, alert.offset) for alert in told} == letters

    play(story, on_dead_letter=told.append)


def test_a_generation_that_stays_wrong_is_a_doubt() -> None:
    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        fleet.cluster.faults.transaction_stale = 1.0
        fleet.publish(*({} for _ in range(20)))
        await fleet.until(lambda: transactions(worker).counts.aborted > 0, 120)
        assert transactions(worker).counts.repeated == REPEATS_MAX
        fleet.cluster.faults.transaction_stale = 0.0
        await fleet.until(lambda: len(fleet.out()) >= 20, 120)
        assert fleet.numbers() == list(range(20))

    play(story)


@pytest.mark.parametrize("state", [State.COMMITTING, State.UNDOING, State.REPEATING])
@pytest.mark.parametrize("pause_ms", [REPEAT_MS, 3_000])
def test_a_partition_that_is_lost_before_it_is_said_again_is_not_committed(
    state: State, pause_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is ours again by then: a new ownership has begun from what is committed."""
    monkeypatch.setattr(transacting, "REPEAT_MS", pause_ms)

    answered, losses, late = transacting.Transactions.answered, list[str](), list[Any]()

    async def story(fleet: Fleet) -> None:
        def then_lose(ours: Any, item: Any) -> None:
            if state is item.asked is State.COMMITTING and losses and not late:
                late.append(item)  # the loss is told before what came of the commit
                ours._keeper.later(pause_ms // 4, lambda: answered(ours, item))
                return
            answered(ours, item)
            if ours.state is state and ours._held and fleet.cluster.faults.transaction_stale and not losses:
                for consumer in [each for each in fleet.cluster.consumers if each.client_id == "first"]:
                    fleet.cluster.expel(consumer)
                    losses.append(consumer.client_id)
                ours._keeper.later(pause_ms // 2, heal)

        def heal() -> None:
            fleet.cluster.faults.transaction_stale = 0.0

        monkeypatch.setattr(transacting.Transactions, "answered", then_lose)
        first = await fleet.start("first")
        fleet.publish(*({} for _ in range(5)))
        await fleet.until(lambda: len(fleet.out()) == 5)
        fleet.cluster.faults.transaction_stale = 1.0
        fleet.publish(*({"n": n} for n in range(5, 60)))
        await fleet.until(lambda: len(fleet.out()) >= 60, 120)
        await asyncio.sleep(10)
        assert losses
        assert bool(late) == (state is State.COMMITTING)
        assert fleet.numbers() == list(range(60))
        assert transactions(first).counts.aborted > 0

    play(story)


def test_a_record_s_outputs_are_seen_all_at_once_also_when_the_queue_is_full() -> None:
    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        transactions(worker)._producer.max_queued_records = 3
        fleet.publish(*({"parts": 7} for _ in range(60)))
        while (seen := len(fleet.out())) < 60 * 7:
            parts = Counter(fleet.numbers())
            assert all(count == 7 for count in parts.values()), f"torn after {seen}: {parts}"
            await asyncio.sleep(0.001)

    play(story, flow=FlowPolicy(commit_interval_ms=10))


def test_a_dead_letter_that_its_topic_does_not_take_leaves_a_pointer() -> None:
    """Its transaction fails once, and the next one gets through."""

    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        fleet.cluster.configs[f"{TOPIC}.{GROUP}.dlq"]["max.message.bytes"] = "4000"
        fleet.publish({"reject": True, "text": "x" * 5_000}, {}, {})
        await fleet.until(lambda: len(fleet.out()) == 2)
        dead = [record for log in fleet.cluster.logs[f"{TOPIC}.{GROUP}.dlq"] for record in log.records()]
        assert [record.value() for record in dead] == [None]
        assert transactions(worker).counts.aborted == 1

    play(story)


def test_nobody_is_told_of_a_dead_letter_that_may_still_not_be() -> None:
    told: list[Any] = []

    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        fleet.cluster.faults.transaction_refused = 1.0
        fleet.publish({"reject": True})
        await fleet.until(lambda: transactions(worker).counts.aborted > 3, 120)
        assert not told
        assert not worker.running[0].engine.stats.dead
        fleet.cluster.faults.transaction_refused = 0.0
        await fleet.until(lambda: bool(told), 120)
        await asyncio.sleep(5)
        assert len(told) == 1
        assert sum(worker.running[0].engine.stats.dead.values()) == 1

    play(story, on_dead_letter=told.append)


def test_a_dead_letter_of_transactions_that_were_given_up_is_no_flood() -> None:
    """Done again, it counted again: while nothing could be committed one record paused the group, for good."""

    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        engine = worker.running[0].engine
        fleet.cluster.faults.transaction_refused = 1.0
        fleet.publish({"reject": True})
        await fleet.until(lambda: transactions(worker).counts.aborted > 4, 120)
        fleet.cluster.faults.transaction_refused = 0.0
        await fleet.until(lambda: sum(engine.stats.dead.values()) == 1, 120)
        assert not engine.flood.tripped
        fleet.publish(*({"n": number, "reject": True} for number in range(3)))
        await fleet.until(lambda: engine.paused)

    play(story, flow=FlowPolicy(commit_interval_ms=100, dead_letter_flood=2))


def test_a_lost_partition_takes_its_records_out_of_the_transaction() -> None:
    """Its next owner does them, while the first still lives."""

    async def story(fleet: Fleet) -> None:
        one = await fleet.start("one")
        fleet.publish(*({"n": n, "sleep": 0.01} for n in range(40)))
        await fleet.until(lambda: transactions(one)._sent > 3)
        engine = one.running[0].engine
        number = next(iter(engine.partitions))
        engine.post(Lost((number,)))
        await fleet.until(lambda: transactions(one).counts.aborted == 1)
        assert fleet.numbers() == []

    play(story, flow=FlowPolicy(commit_interval_ms=1_000))


def test_a_killed_worker_leaves_nothing_and_its_successor_does_it_once() -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.start("one")
        fleet.publish(*({"parts": 2, "sleep": 0.01} for _ in range(80)))
        await fleet.until(lambda: len(fleet.out()) > 20)
        fleet.cluster.faults.transaction_torn = 1.0
        await asyncio.sleep(0.3)
        fleet.cluster.faults.transaction_torn = 0.0
        dead = fleet.apps.pop()
        assert dead.worker is not None
        dead.worker.abandon()
        fleet.cluster.kill("one")
        await fleet.start("two")
        await fleet.until(lambda: len(fleet.out()) >= 160, 120)
        assert fleet.numbers() == sorted([*range(80), *range(80)])

    play(story)


def test_a_zombie_commits_nothing() -> None:
    async def story(fleet: Fleet) -> None:
        zombie = await fleet.start("zombie")
        fleet.publish(*({"sleep": 0.02} for _ in range(60)))
        await fleet.until(lambda: len(fleet.out()) > 10)
        fleet.cluster.freeze("zombie")
        await fleet.start("heir")
        await fleet.until(lambda: len(fleet.out()) >= 60, 120)
        fleet.cluster.thaw("zombie")
        fleet.publish(*({"n": n} for n in range(60, 90)))
        await fleet.until(lambda: len(fleet.out()) >= 90, 120)
        assert fleet.numbers() == list(range(90))
        assert transactions(zombie).counts.aborted

    play(story)


def test_partitions_move_between_workers_without_an_abort() -> None:
    async def story(fleet: Fleet) -> None:
        one = await fleet.start("one")
        fleet.publish(*({"n": n, "sleep": 0.005} for n in range(50)))
        await fleet.until(lambda: len(fleet.out()) > 5)
        two = await fleet.start("two")
        fleet.publish(*({"n": n} for n in range(50, 100)))
        await fleet.until(lambda: len(two.running[0].engine.partitions) == 1)
        await fleet.until(lambda: len(fleet.out()) >= 100)
        assert fleet.numbers() == list(range(100))
        assert transactions(one).counts.aborted == transactions(two).counts.aborted == 0

    play(story)


def test_a_stop_commits_what_was_done_before_it_lets_go() -> None:
    runs: list[int] = []

    async def story(fleet: Fleet) -> None:
        async def counting(value: dict[str, Any], ctx: Context) -> None:
            runs.append(value["n"])
            await copy(value, ctx)

        fleet.handler = counting
        await fleet.start("one")
        fleet.publish(*({"sleep": 0.05} for _ in range(60)))
        await fleet.until(lambda: len(runs) > 10)
        await asyncio.wait_for(fleet.apps.pop().stop(), 200)
        await fleet.start("two")
        await fleet.until(lambda: len(fleet.out()) >= 60, 150)
        assert fleet.numbers() == list(range(60))
        assert len(runs) == 60, "a graceful stop repeats nothing"

    # an interval so long that only the stop itself commits
    play(story, flow=FlowPolicy(commit_interval_ms=60_000, transaction_timeout_ms=300_000), concurrency=4)


def test_a_partition_that_is_let_go_during_a_commit_does_not_ask_for_it_every_moment() -> None:
    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        await fleet.until(lambda: transactions(worker).state is State.OPEN)
        fleet.cluster.faults.commit_delay_ms = (2_000, 2_000)
        fleet.publish(*({} for _ in range(10)))
        await fleet.until(lambda: transactions(worker).state is State.COMMITTING)
        engine, asked = worker.running[0].engine, 0
        concluded = engine.concluded

        def counted(unit: Any) -> bool:
            nonlocal asked
            asked += 1
            return bool(concluded(unit))

        engine.concluded = counted
        await asyncio.wait_for(fleet.apps.pop().stop(), 200)
        assert 0 < asked < 200
        assert len(fleet.out()) == 10

    play(story)


def test_a_handler_past_the_drain_deadline_does_not_take_the_others_with_it() -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.start("one")
        fleet.publish({}, {}, {"sleep": 500}, {}, {})
        await asyncio.sleep(1)
        stopping = fleet.apps.pop()
        await asyncio.wait_for(stopping.stop(), 60)
        assert sorted(value["n"] for value in fleet.out()) == [0, 1, 3, 4]

    flow = FlowPolicy(commit_interval_ms=60_000, transaction_timeout_ms=300_000, drain_timeout_ms=2_000)
    play(story, flow=flow)


def test_a_drain_that_ends_while_no_transaction_can_be_opened_leaves_no_partition_unread() -> None:
    """The try that waited for its time came between the doubt of the drain and its answer: all units stayed closed."""

    async def story(fleet: Fleet) -> None:
        ours = transactions(await fleet.start("first"))
        abort = ours._producer.abort

        def at_last(done: Any) -> None:
            fleet.cluster.faults.no_transactions = False
            abort(done)

        ours._producer.abort = at_last
        await fleet.until(lambda: ours.state is State.OPEN)
        fleet.cluster.faults.no_transactions = True
        fleet.publish({"n": 0, "partition": 0}, {"n": 1, "partition": 1})
        await fleet.until(lambda: ours.state is State.IDLE)
        fleet.publish({"n": 2, "partition": 0}, {"n": 3, "partition": 1})
        await fleet.until(lambda: len(ours._waiting) == 2)
        await fleet.start("second")
        await fleet.until(lambda: len(fleet.out()) == 4, 120)
        assert ours.counts.aborted == 1
        assert fleet.numbers() == [0, 1, 2, 3]

    play(story, flow=FlowPolicy(commit_interval_ms=100, drain_timeout_ms=20_000))


def test_of_two_with_one_transactional_id_the_older_stops_and_says_so() -> None:
    async def story(fleet: Fleet) -> None:
        old = await fleet.start("old", "same")
        fleet.publish({})
        await fleet.until(lambda: len(fleet.out()) == 1)
        policy = transactions(old)._producer._policy
        fleet.cluster.transactions.initialise(policy.transactional_id)
        fleet.publish({"n": 1})
        error = await asyncio.wait_for(old.broken, 30)
        assert "g.same-0" in str(error)
        assert "instance_id" in str(error)
        assert fleet.numbers() == [0]

    play(story)


def test_work_stops_while_a_commit_takes_long() -> None:
    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        engine = worker.running[0].engine
        fleet.cluster.faults.commit_delay_ms = (5_000, 5_000)
        fleet.publish(*({"sleep": 0.05} for _ in range(400)))
        await fleet.until(lambda: engine._dispatch.paused)
        assert len(transactions(worker)._waiting) <= 60, "what was running may still end"
        assert not engine.paused, "nobody paused it"
        fleet.cluster.faults.commit_delay_ms = (0, 0)
        await fleet.until(lambda: len(fleet.out()) >= 400, 120)
        assert fleet.numbers() == list(range(400))

    play(story, flow=FlowPolicy(commit_interval_ms=100, buffered=50, transaction_timeout_ms=60_000), concurrency=10)


@pytest.mark.parametrize(
    ("flow", "named"),
    [
        (FlowPolicy(buffered=10_001), "buffered"),
        (FlowPolicy(commit_interval_ms=5_000), "commit_interval_ms"),
        (FlowPolicy(transaction_timeout_ms=999), "transaction_timeout_ms"),
    ],
)
def test_what_a_transaction_can_not_hold_is_refused(flow: FlowPolicy, named: str) -> None:
    app = Pipeline("t", settings=Settings(broker="memory://x"))
    with pytest.raises(ConfigurationError, match=named):
        app.subscribe(TOPIC, group=GROUP, delivery="exactly_once", flow=flow)(copy)
    with pytest.raises(ConfigurationError, match="delivery"):
        app.subscribe(TOPIC, group=GROUP, delivery="at_most_once")(copy)  # type: ignore[arg-type]


class Renamed(Consumer):
    """A member that can be removed from its group, and join again under another id."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "m"

    def membership(self) -> Membership | None:
        return Membership(self.name, None) if self.name else None


def test_a_transaction_is_vouched_for_only_while_its_partitions_are_this_members() -> None:
    """Rule (h): brokers take offsets from any member, and from none at all (an empty id)."""
    consumer, posted, found = Renamed(), [], []
    policy = FetchPolicy(TOPIC, GROUP, Start())
    fetcher = Fetcher(consumer, policy, lambda _timeout_s: (), posted.append, lambda _n: 0)  # type: ignore[arg-type]
    mine, other = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)

    def vouched(*partitions: TopicPartition) -> Membership | None:
        fetcher.vouch(partitions, found.append)
        fetcher.step(0)
        return found.pop()

    assert vouched(mine) is None, "it is not assigned yet"
    fetcher.assigned([mine])
    fetcher.step(0)
    assert vouched(mine) == Membership("m", None)
    assert vouched(mine, other) is None, "one of them is somebody else's"
    consumer.name = ""
    assert vouched(mine) is None, "removed from the group"
    consumer.name = "n"
    assert vouched(mine) is None, "joined again"
    consumer.name = "m"
    fetcher.lost([mine])
    assert vouched(mine) is None, "lost"


def test_a_position_that_would_be_cut_is_not_committed() -> None:
    """What is done behind a slow record and not said would be done, and written, again."""

    async def story(fleet: Fleet) -> None:
        worker = await fleet.start()
        engine = worker.running[0].engine
        await fleet.until(lambda: len(engine.partitions) == PARTITIONS)
        texts = fleet.cluster.admin().group_positions(GROUP).values()
        engine._committer._limit = max(len(position.metadata) for position in texts) + 18
        fast_and_slow = ({"key": "bc"[n % 2], "sleep": 0.05 * (n % 2), "partition": 0} for n in range(100))
        fleet.publish({"sleep": 3, "key": "a", "partition": 0}, *fast_and_slow)
        await fleet.until(lambda: transactions(worker)._sent > 60)
        assert not fleet.out(), "half of it is done, and can't be said"
        await fleet.until(lambda: len(fleet.out()) >= 101)
        assert transactions(worker).counts.aborted == 0
        assert fleet.numbers() == list(range(101))

    play(story, flow=FlowPolicy(commit_interval_ms=50, transaction_timeout_ms=20_000))


def narrow(monkeypatch: pytest.MonkeyPatch, span_max: int) -> None:
    """Texts and spans that a test can fill."""
    monkeypatch.setattr("pipeline.worker.engine.SPAN_MAX", span_max)
    monkeypatch.setattr("pipeline.worker.ownership.SPAN_MAX", span_max)
    monkeypatch.setattr("pipeline.worker.engine.Committer", lambda: Committer(500))


def replayed(fleet: Fleet, *origins: int, key: bytes = b"", sleeps: Callable[[int], float] = lambda _origin: 0) -> None:
    """Copies that a tool sends, as it does after a dead letter: to the replay lane of partition 0."""
    producer = fleet.cluster.producer("tool")
    for origin in origins:
        headers = DeliveryHeaders(0, 0, 0, TOPIC, 0, origin, 1, GROUP, replay_id="r1")
        value = json.dumps({"n": origin, "sleep": sleeps(origin)}).encode()
        producer.send(f"{TOPIC}.{GROUP}.replay", key or b"%d" % origin, value, encode([], headers), partition=0)


def test_a_lane_does_not_fill_the_text_of_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large redrive with slow records in it: no transaction could be closed, and all was done again without end."""
    narrow(monkeypatch, 1_000)

    async def story(fleet: Fleet) -> None:
        fleet.cluster.faults.fetch_records = (100, 100)
        worker = await fleet.start()
        replayed(fleet, *range(4_000), sleeps=lambda origin: 0 if origin % 8 else 8)
        await fleet.until(lambda: worker.running[0].engine.stats.processed >= 4_000)
        assert transactions(worker).counts.aborted == 0
        assert fleet.numbers() == list(range(4_000))

    play(story, flow=FlowPolicy(commit_interval_ms=100, buffered=200))


def test_a_lane_is_not_stopped_before_what_its_first_record_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record fails in the last tier, and its successor stands further down there than a lane's first open record may."""
    narrow(monkeypatch, 100)

    async def story(fleet: Fleet) -> None:
        await fleet.start()
        others = ({"n": n, "key": n, "fails": 1, "partition": 0} for n in range(2, 200))
        fleet.publish({"n": 0, "key": 0, "fails": 2, "partition": 0}, {"n": 1, "key": 0, "partition": 0}, *others)
        await fleet.until(lambda: len(fleet.out()) >= 200)
        numbers = [value["n"] for value in fleet.out()]
        assert numbers.index(0) < numbers.index(1)

    play(story)


async def held_before(fleet: Fleet, keys: int, followers: int) -> None:
    """What a subscription with "hold" leaves behind: the first record of each key is held, those behind it are dead letters too."""
    app = Pipeline("before", settings=Settings(broker=fleet.cluster.address, session_timeout_s=6.0))
    app.subscribe(TOPIC, group=GROUP, value="json", dead_letter="hold", **fleet.arguments)(copy)
    await app.start()
    fleet.publish(*({"key": f"k{n % keys}", "reject": True, "partition": 0} for n in range(keys + followers)))
    letters = fleet.cluster.logs[f"{TOPIC}.{GROUP}.dlq"][0]
    await fleet.until(lambda: letters.end == keys + followers and replay_lane(fleet).end == keys, 120)
    await app.stop()


def replay_lane(fleet: Fleet) -> Any:
    return fleet.cluster.logs[f"{TOPIC}.{GROUP}.replay"][0]


def marked(fleet: Fleet, hop: int, hold: str) -> None:
    """An operator's copy of the first held record, or mark behind what was sent back."""
    headers = DeliveryHeaders(
        0, hop, 2**40 if hop else 0, TOPIC, 0, 0, 1, GROUP, replay_id="" if hop else "r0", hold=hold
    )
    fleet.cluster.producer("tool").send(f"{TOPIC}.{GROUP}.replay", b"k0", None, encode([], headers), partition=0)


@pytest.mark.parametrize(("keys", "released"), [(1, True), (60, False)])
def test_keys_held_before_the_switch_do_not_stop_their_lane(
    monkeypatch: pytest.MonkeyPatch, keys: int, released: bool
) -> None:
    """The lane was paused for what stands first in it, and the mark that ends that lies further up: every replay stood still."""
    narrow(monkeypatch, 100)

    async def story(fleet: Fleet) -> None:
        fleet.cluster.faults.fetch_records = (20, 20)
        await held_before(fleet, keys, 400 if released else 0)
        await fleet.start()
        if released:
            marked(fleet, 1_000, f"{OPENS}R")
            replayed(fleet, *range(401), key=b"k0")
            marked(fleet, 0, f"{CLOSES}R")
            replayed(fleet, 1_000)
        else:
            replayed(fleet, *range(1_000, 1_400))
        await fleet.until(lambda: len(fleet.out()) == (402 if released else 400), 120)
        assert not released or [n for n in (value["n"] for value in fleet.out()) if n < 1_000] == list(range(401))

    play(story)


async def silently(values: Sequence[dict[str, Any]], contexts: Sequence[Context]) -> None:
    """A batch without outputs."""


@pytest.mark.parametrize("batch", [None, 10])
def test_latencies_are_sampled_as_without_transactions(batch: int | None) -> None:
    """What is done is counted apart until its commit: samples that looked at that count saw it stand still, or begin anew."""

    async def story(fleet: Fleet) -> None:
        fleet.handler = silently if batch else copy
        worker = await fleet.start()
        stats = worker.running[0].engine.stats
        for number in range(2 * OUTPUTS_SAMPLED):
            fleet.publish({"n": number})
            await fleet.until(lambda number=number: stats.processed > number)  # type: ignore[misc]
        assert sum(stats.latencies.counts) >= 2

    play(story, batch=batch)
