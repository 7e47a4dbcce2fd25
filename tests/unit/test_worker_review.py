"""Interleavings that a review of the worker found to lose, repeat or stall work: each test is the smallest one that shows it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pipeline import Context, Pipeline, Retry, Settings
from pipeline.core.delivery import Delivery
from pipeline.core.effects import DeadLetter, HandOff, LaneSpec
from pipeline.core.parking import Identity
from pipeline.core.progress import Progress
from pipeline.core.unit import SKIPPED
from pipeline.memory import cluster as memory
from pipeline.memory.cluster import MemoryCluster
from pipeline.memory.log import MemoryMessage
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.cluster import CommitCallback, Message, Position, TopicPartition
from pipeline.model.control import Pause, Switches
from pipeline.model.control import encode as encode_switch
from pipeline.model.errors import ClusterError, ClusterUnavailable, FencedError, SchemaUnavailable
from pipeline.model.headers import DeliveryHeaders, encode
from pipeline.model.headers import decode as decode_headers
from pipeline.model.outcome import Emit, Failure
from pipeline.model.policies import Backoff, BatchPolicy, FlowPolicy, Start
from pipeline.topology import Defaults, execute, plan
from pipeline.worker import worker as worker_module
from pipeline.worker.batches import BatchRunners
from pipeline.worker.committing import ANSWER_TIMEOUT_MS, Committer
from pipeline.worker.concluding import Background
from pipeline.worker.control import ControlFollower
from pipeline.worker.declaring import Retries
from pipeline.worker.encoding import OutputEncoder
from pipeline.worker.execution import failure_of
from pipeline.worker.fetcher import Fetcher
from pipeline.worker.health import health_of
from pipeline.worker.inputs import Claimed, Committed, Input, Opened, Refused, Revoking
from pipeline.worker.opening import FetchPolicy
from pipeline.worker.runners import AsyncRunners
from pipeline.worker.schema_waits import SchemaWaits
from pipeline.worker.sending import Sender
from pipeline.worker.threads import ThreadRunners, _Chunk
from pipeline.worker.threads import _Result as Result
from pipeline.worker.worker import Worker
from tests.fake_producer import FakeProducer
from tests.unit import test_core_unit as core

TOPIC, GROUP = "t", "g"
SOURCE, LANE = TopicPartition("t", 0), TopicPartition("t.g.retry.10s", 0)
LANES = (LaneSpec("10s", LANE.topic, 10_000),)
FENCED = FencedError("the commit has an old generation")

Play = Callable[[VirtualClockLoop, MemoryCluster], Awaitable[None]]


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def application(**arguments: Any) -> Callable[[Callable[..., Any]], Pipeline]:
    """Decorator: an application with one subscription of bytes."""

    def made(handler: Callable[..., Any]) -> Pipeline:
        app = Pipeline("app", settings=Settings(broker="memory://review"))
        app.subscribe(TOPIC, group=GROUP, value="bytes", **arguments)(handler)
        return app

    return made


def play(app: Pipeline, story: Callable[[VirtualClockLoop, MemoryCluster, Worker], Awaitable[None]]) -> None:
    """One worker on a cluster of its own with one partition, in virtual time."""

    async def main(loop: VirtualClockLoop) -> None:
        cluster = MemoryCluster("review", clock=loop.clock, scheduler=loop.call_later_ms)
        memory.register(cluster)
        try:
            admin = cluster.admin()
            for action in plan(app.subscriptions, admin.topics(), Defaults(partitions=1)).actions:
                execute(admin, action)
            worker = Worker(app)
            await worker.start()
            await story(loop, cluster, worker)
            await asyncio.wait_for(worker.stop(), 200)
        finally:
            memory.forget(cluster.address)

    run(main)


def publish(cluster: MemoryCluster, *keys: bytes) -> None:
    producer = cluster.producer("agents")
    for number, key in enumerate(keys):
        producer.send(TOPIC, key, b"%d" % number, partition=0)


def replay(cluster: MemoryCluster, *keys: bytes) -> None:
    """As `publish`, to the replay lane."""
    producer = cluster.producer("replay")
    for origin, key in enumerate(keys):
        own = DeliveryHeaders(0, 0, 0, TOPIC, 0, origin, 0, GROUP, replay_id="r")
        producer.send(f"{TOPIC}.{GROUP}.replay", key, b"x", encode([], own), partition=0)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Consumer:
    """A group member whose coordinator answers `refusals` first."""

    def __init__(self) -> None:
        self.refusals: list[ClusterError] = []
        self.fetched: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.positions: dict[TopicPartition, Position] = {}
        self.ends: dict[TopicPartition, int] = {}
        self.unknown: set[TopicPartition] = set()
        self.member = "m"
        self.stored: list[TopicPartition] = []

    def wake(self) -> None: ...

    def ended(self) -> dict[TopicPartition, int]:
        return {}

    def member_id(self) -> str:
        return self.member

    def committed(
        self, partitions: Collection[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, Position | None]:
        return {tp: self.positions.get(tp) for tp in partitions}

    def beginning_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        return self._offsets(partitions, {})

    def end_offsets(self, partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, int]:
        return self._offsets(partitions, self.ends)

    def _offsets(
        self, partitions: Collection[TopicPartition], known: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        if missing := self.unknown & set(partitions):
            raise ClusterError(f"{missing} is unknown")
        return {tp: known.get(tp, 0) for tp in partitions}

    def commit_now(
        self, positions: Mapping[TopicPartition, Position], timeout_s: float
    ) -> dict[TopicPartition, ClusterError | None]:
        error = self.refusals.pop() if self.refusals else None
        self.stored.extend(() if error else positions)
        return dict.fromkeys(positions, error)

    def commit(self, positions: Mapping[TopicPartition, Position], done: CommitCallback) -> None:
        self.stored.extend(positions)
        done(dict.fromkeys(positions))

    def add(self, positions: Mapping[TopicPartition, int]) -> None:
        self.fetched.update(positions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.fetched[partition] = offset

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        for tp in partitions:
            self.fetched.pop(tp, None)
            self.paused.discard(tp)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self.paused.update(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self.paused.difference_update(partitions)

    def poll(self, max_records: int, timeout_s: float) -> list[Message]:
        return []


class Poll:
    """A fetcher with its clock, its backlog and what it posts in the test's hands."""

    def __init__(self) -> None:
        self.consumer = Consumer()
        self.posted: list[Input] = []
        self.now_s = 0.0
        self.backlog = 0
        policy = FetchPolicy(TOPIC, GROUP, Start("earliest"), buffered=10)
        self.fetcher = Fetcher(
            self.consumer,  # type: ignore[arg-type]
            policy,
            lambda _timeout_s: LANES,
            self.posted.append,
            lambda _fetched: self.backlog,
            lambda: self.now_s,
            lambda _s: None,
        )

    def step(self, seconds: float = 0.0) -> None:
        self.now_s += seconds
        self.fetcher.step(0)

    def opened(self) -> Opened:
        self.fetcher.assigned([SOURCE])
        self.step()
        return next(item for item in reversed(self.posted) if isinstance(item, Opened))

    def claim(self) -> None:
        lanes, source = {LANE: Position(0, "")}, {SOURCE: Position(0, "")}
        self.fetcher.request(lambda: self.fetcher.claim(0, 1, lanes, source))
        self.step()

    def count(self, kind: type) -> int:
        return sum(isinstance(item, kind) for item in self.posted)


# -- the poll thread


def test_the_first_tries_to_open_a_partition_wait_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that fell silent: each connection is found to be dead by a request that waits in vain."""
    poll, asked = Poll(), list[float]()

    def silent(_partitions: Collection[TopicPartition], timeout_s: float) -> dict[TopicPartition, Position | None]:
        asked.append(timeout_s)
        raise ClusterUnavailable("it does not answer")

    monkeypatch.setattr(poll.consumer, "committed", silent)
    poll.fetcher.assigned([SOURCE])
    for _ in range(4):
        poll.step(20.0)
    assert asked == [3.0, 5.0, 10.0, 10.0]
    poll.fetcher.lost([SOURCE])
    poll.fetcher.assigned([SOURCE])
    poll.step(20.0)
    assert asked[4:] == [3.0], "another assignment, another beginning"


def test_a_claim_refused_between_two_generations_is_tried_again() -> None:
    """The partition stays ours, so no rebalance callback would ever come to open it."""
    poll = Poll()
    poll.opened()
    poll.consumer.refusals = [FENCED]
    poll.claim()
    poll.step(60)
    assert poll.count(Opened) == 2


def test_lanes_are_not_fetched_between_a_refused_claim_and_the_next_rebuild() -> None:
    """A record past the fence would end the next rebuild before it has read a single record of the lane."""
    poll = Poll()
    poll.opened()
    poll.fetcher.request(lambda: poll.fetcher.add({LANE: 0}))
    poll.step()
    assert LANE in poll.consumer.fetched
    poll.consumer.refusals = [ClusterUnavailable("the coordinator moves")]
    poll.claim()
    poll.step(60)
    assert poll.count(Opened) == 2
    assert not poll.consumer.fetched


def test_a_partition_that_was_lost_undrained_is_asked_for_again_the_next_time() -> None:
    poll = Poll()
    for times in (1, 2):
        poll.opened()
        poll.claim()
        assert not poll.fetcher.revoked([SOURCE])
        assert poll.count(Revoking) == times
        poll.fetcher.lost([SOURCE])


def test_an_answer_to_an_earlier_revocation_is_not_taken_for_the_next_ones() -> None:
    """An engine that was blocked for longer than the drain answers when the partition is ours again."""
    poll = Poll()
    first = poll.opened()
    assert not poll.fetcher.revoked([SOURCE])
    poll.fetcher.lost([SOURCE])
    second = poll.opened()
    poll.fetcher.release(0, {}, first.term)
    assert not poll.fetcher.revoked([SOURCE])
    poll.fetcher.release(0, {}, second.term)
    assert poll.fetcher.revoked([SOURCE])


@pytest.mark.parametrize("now", ["", "the next"])
def test_a_member_that_was_removed_commits_nothing_of_what_it_had(now: str) -> None:
    """A process that was stopped past its session wakes: its id is gone before its callbacks say so. A group that has run empty
    takes a commit without an id from anybody, and any group takes one from whoever has joined again."""
    poll = Poll()
    term = poll.opened().term
    poll.claim()
    assert poll.consumer.stored == [LANE, SOURCE]
    poll.consumer.member = now
    poll.fetcher.request(lambda: poll.fetcher.commit({SOURCE: Position(5, "")}))
    poll.step()
    answer = next(item for item in poll.posted if isinstance(item, Committed))
    assert isinstance(answer.errors[SOURCE], FencedError)
    poll.claim()
    poll.fetcher.release(0, {SOURCE: Position(5, "")}, term)
    assert poll.fetcher.revoked([SOURCE])
    assert poll.consumer.stored == [LANE, SOURCE], "what was stored before it was removed, and nothing more"


def test_what_is_assigned_to_the_next_member_is_committed_by_it() -> None:
    poll = Poll()
    poll.opened()
    poll.claim()
    poll.fetcher.lost([SOURCE])
    poll.consumer.member = "the next"
    poll.opened()
    poll.fetcher.request(lambda: poll.fetcher.commit({SOURCE: Position(5, "")}))
    poll.step()
    assert poll.consumer.stored == [LANE, SOURCE, SOURCE]


def test_one_partition_that_can_not_be_opened_does_not_hold_up_the_others() -> None:
    """For example after the source got partitions that the lanes do not have."""
    poll = Poll()
    poll.consumer.unknown = {TopicPartition(LANE.topic, 1)}
    poll.fetcher.assigned([SOURCE, TopicPartition(TOPIC, 1)])
    poll.step()
    poll.step(60)
    assert {item.partition for item in poll.posted if isinstance(item, Opened)} == {0}
    assert {item.partition for item in poll.posted if isinstance(item, Refused)} == {1}


def test_a_partition_that_could_not_be_opened_is_forgotten_when_it_moves_on() -> None:
    """Health would go on saying that it rests, while another worker processes it."""
    poll = Poll()
    poll.consumer.unknown = {LANE}
    poll.fetcher.assigned([SOURCE])
    poll.step()
    assert isinstance(poll.posted[-1], Refused)
    assert poll.posted[-1].error is not None
    assert poll.fetcher.revoked([SOURCE])
    assert poll.posted[-1] == Refused(0, None)


def test_a_pause_from_before_the_partition_was_lost_does_not_outlive_it() -> None:
    """The engine's request came late: with it in the books, a hold of all partitions would never end for this one."""
    poll = Poll()
    poll.opened()
    poll.fetcher.request(lambda: poll.fetcher.pause([SOURCE]))
    poll.claim()
    poll.backlog = 100
    poll.step()
    poll.step(1)
    assert SOURCE in poll.consumer.paused
    poll.backlog = 0
    poll.step()
    assert not poll.consumer.paused


# -- starting and stopping


def test_a_partition_claimed_while_the_worker_stops_does_not_keep_it_from_stopping() -> None:
    began: list[bytes] = []

    @application()
    async def app(value: bytes, ctx: Context) -> None:
        began.append(value)
        await asyncio.sleep(5)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        publish(cluster, b"a")
        await until(lambda: bool(began))
        ownership = engine._ownership
        lanes = tuple(lane.spec for lane in engine.partitions[0].lanes[1:])
        nothing = {lane.name: 0 for lane in lanes}
        ownership.open(Opened(7, lanes, Progress(0, 0), {name: Progress(0, 0) for name in nothing}, nothing))
        loop.call_later(1, ownership.claimed, Claimed(7, 1))
        await asyncio.wait_for(engine.drain_all(), 60)
        assert not engine.partitions

    play(app, story)


def test_a_handler_that_swallows_its_cancellation_does_not_hang_the_stop() -> None:
    began: list[bytes] = []

    @application(flow=FlowPolicy(drain_timeout_ms=1_000))
    async def app(value: bytes, ctx: Context) -> None:
        began.append(value)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(500)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(500)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, b"a")
        await until(lambda: bool(began))
        at = loop.time()
        await asyncio.wait_for(worker.stop(), 60)
        assert loop.time() - at < 30

    play(app, story)


def test_neither_does_a_batch_handler_that_does() -> None:
    began: list[int] = []

    @application(batch=10, flow=FlowPolicy(drain_timeout_ms=1_000))
    async def app(values: Sequence[bytes], contexts: Sequence[Context]) -> None:
        began.append(len(values))
        for _ in range(20):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(500)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, b"a")
        await until(lambda: bool(began))
        at = loop.time()
        await asyncio.wait_for(worker.stop(), 600)
        assert loop.time() - at < 30

    play(app, story)


def test_a_batch_that_is_filling_while_the_group_is_paused_waits_as_well() -> None:
    """Its records were admitted before; with a long wait the handler was called long after somebody had stopped it."""
    ran: list[int] = []

    @application(batch=BatchPolicy(10, wait_ms=60_000))
    async def app(values: Sequence[bytes], contexts: Sequence[Context]) -> None:
        ran.append(len(values))

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        publish(cluster, b"a")
        await until(lambda: bool(engine.gathered))
        key, value = encode_switch(Pause(GROUP))
        worker._switches.fold(key, value)
        engine.follow_switches()
        publish(cluster, *(b"%d" % number for number in range(20)))
        await asyncio.sleep(300)
        assert not ran
        worker._switches.fold(key, None)
        engine.follow_switches()
        await until(lambda: sum(ran) == 21, 200)

    play(app, story)


def test_a_batch_handler_that_goes_on_past_its_deadline_is_told_while_it_does() -> None:
    """As any other: its slot is gone, its keys stand still, and neither health nor metrics said so."""

    @application(batch=10, timeout="1s", attempts=1, tiers=())
    async def app(values: Sequence[bytes], contexts: Sequence[Context]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(50)
        await asyncio.sleep(50)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        stalls = worker.running[0].engine.stalls
        publish(cluster, b"a")
        await asyncio.sleep(10)
        assert (stalls.count, len(stalls.current)) == (1, 1)
        await asyncio.sleep(50)
        assert (stalls.count, len(stalls.current)) == (1, 0)

    play(app, story)


# -- handlers that end in unusual ways


def test_a_batch_whose_handler_is_cancelled_from_inside_fails_like_any_other() -> None:
    tries: list[int] = []

    @application(batch=10, tiers=(), attempts=3, retries=Retries(Backoff(100)))
    async def app(values: Sequence[bytes], contexts: Sequence[Context]) -> None:
        tries.append(len(values))
        if len(tries) == 1:
            raise asyncio.CancelledError

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, b"a", b"b")
        await until(lambda: worker.running[0].engine.stats.processed == 2)

    play(app, story)


class Unspeakable(Exception):
    def __str__(self) -> str:
        return str(self.args[7])


def test_an_exception_without_words_is_a_failure_like_any_other() -> None:
    failure = failure_of(Unspeakable("x"), ())
    assert isinstance(failure, Failure)
    assert failure.error_type == "Unspeakable"


class Beyond(BaseException):
    """Not an Exception, such as a test framework's or another event loop's way out."""


def test_an_async_handler_that_raises_a_base_exception_fails() -> None:
    tries: list[bytes] = []

    @application(tiers=(), attempts=3, retries=Retries(Backoff(100)))
    async def app(value: bytes, ctx: Context) -> None:
        tries.append(value)
        if len(tries) == 1:
            raise Beyond

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, b"a")
        await until(lambda: worker.running[0].engine.stats.processed == 1)

    play(app, story)


@pytest.mark.parametrize("value", [{(1, 2): 3}, "fine"])
def test_an_output_that_can_not_be_written_down_fails_its_record_and_not_the_worker(value: object) -> None:
    @application(attempts=1)
    async def app(_value: bytes, ctx: Context) -> None:
        ctx.emit("out", 5 if value == "fine" else "k", value)  # type: ignore[arg-type]

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.create("out", 1)
        publish(cluster, b"a")
        engine = worker.running[0].engine
        await until(lambda: engine.broken is not None or sum(engine.stats.dead.values()) == 1)
        assert engine.broken is None

    play(app, story)


@pytest.mark.parametrize("headers", [[("a", 5)], [(5, b"a")], [("\ud800", b"a")], [("a", "\ud800")], {"trace": b"x"}])
def test_headers_that_no_producer_takes_fail_their_record_and_not_the_worker(headers: Any) -> None:
    @application(attempts=1)
    async def app(_value: bytes, ctx: Context) -> None:
        ctx.emit("out", b"k", b"v", headers)

    await_one_dead_letter(app)


@pytest.mark.parametrize("topic", ["a\0b", "\ud800", "no blanks", "", 5])
def test_a_topic_that_can_not_be_fails_its_record_and_does_not_stop_the_partition(topic: Any) -> None:
    @application(attempts=1)
    async def app(_value: bytes, ctx: Context) -> None:
        ctx.emit(topic, b"k", b"v")

    await_one_dead_letter(app)


def await_one_dead_letter(app: Pipeline) -> None:
    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.create("out", 1)
        producer = worker._producer
        assert producer is not None
        send = producer.send

        def strict(topic: str, key: Any, value: Any, headers: Any = None, *more: Any, **named: Any) -> None:
            """As librdkafka's, which the one in memory is not: wrong types are told at once."""
            for name, text in headers or ():
                if not isinstance(text, bytes | str | None):
                    raise TypeError(f"expected header value to be None, binary, or unicode string, not {text!r}")
                name.encode()
            topic.encode()
            send(topic, key, value, headers, *more, **named)

        producer.send = strict  # type: ignore[method-assign]
        publish(cluster, b"a")
        engine = worker.running[0].engine
        await until(lambda: engine.broken is not None or sum(engine.stats.dead.values()) == 1)
        assert engine.broken is None

    play(app, story)


@pytest.mark.parametrize("batch", [1, 10])
def test_whatever_a_decoder_raises_fails_its_record_and_not_the_worker(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """A value nested so deeply that the interpreter gives up on it: the batches' engine stopped."""

    @application(attempts=1, tiers=(), **({"batch": batch} if batch > 1 else {}))
    async def app(value: Any, ctx: Any) -> None: ...

    def too_deep(*_arguments: object) -> Any:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(worker_module, "decoder", lambda *_: too_deep)
    monkeypatch.setattr(worker_module, "batch_decoder", lambda *_: too_deep)
    await_one_dead_letter(app)


@pytest.mark.parametrize("known", [None, 7])
def test_a_schema_that_the_handler_itself_misses_is_a_failure_like_any_other(known: int | None) -> None:
    """Asking for a job, or decoding something else: it was taken for the record's own schema, fetched, and run again without end."""
    tries: list[int] = []

    @application(attempts=2, tiers=(), retries=Retries(Backoff(100)))
    async def app(_value: bytes, ctx: Context) -> None:
        tries.append(ctx.attempt)
        raise SchemaUnavailable("the registry is away", known)

    await_one_dead_letter(app)
    assert tries == [1, 2]


def test_so_it_is_in_a_thread() -> None:
    def handler(_event: object, _context: object) -> None:
        raise SchemaUnavailable("the registry is away")

    runners = ThreadRunners(engine_of(), handler, 1, "t")
    chunk = _Chunk([delivery_of()])
    runners._work.put(chunk)
    runners._work.put(_Chunk([]))
    runners._run()
    (result,) = chunk.results
    assert isinstance(result, Result)
    assert isinstance(result.outcome, Failure)
    assert result.schema_id is None


def test_retries_that_come_due_together_run_together() -> None:
    running = [0, 0]

    @application(tiers=(), attempts=3, retries=Retries(Backoff(1_000), jitter=0.0))
    async def app(value: bytes, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0.2)
        running[0] -= 1

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, *(b"%d" % key for key in range(20)))
        await until(lambda: worker.running[0].engine.stats.processed == 20)
        assert running[1] == 20

    play(app, story)


def test_each_attempt_has_its_own_deadline() -> None:
    @application(tiers=(), attempts=2, timeout="10s")
    async def app(value: bytes, ctx: Context) -> None:
        await asyncio.sleep(7)
        if ctx.attempt == 1:
            raise ValueError

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, b"a")
        stats = worker.running[0].engine.stats
        await until(lambda: stats.processed + sum(stats.dead.values()) == 1)
        assert stats.timeouts == 0

    play(app, story)


def test_a_lane_does_not_pile_up_in_memory_behind_one_slow_key() -> None:
    """A replay of many records of one key: they are due at once, and wait in memory behind the first."""

    @application(flow=FlowPolicy(buffered=100, look_ahead=10))
    async def app(value: bytes, ctx: Context) -> None:
        await asyncio.sleep(100)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        await until(lambda: bool(engine.partitions))
        unit = engine.partitions[0]
        replay(cluster, *[b"slow"] * 2_000)
        await asyncio.sleep(5)
        assert 100 <= unit.waiting.count < 1_000
        publish(cluster, b"other")
        await until(lambda: engine.executor.running() == 2)

    play(app, story)


@pytest.mark.parametrize("send", [publish, replay])
def test_what_waits_in_memory_between_two_attempts_is_bounded(send: Callable[..., None]) -> None:
    """While a provider is down all keys fail, and each makes room for the next: the whole topic went into memory."""
    away = [True]

    @application(tiers=("10m",), flow=FlowPolicy(buffered=50))
    async def app(value: bytes, ctx: Context) -> None:
        if away[0]:
            raise Retry("the provider is down", after="5m")

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        send(cluster, *(b"%d" % number for number in range(2_000)))
        await asyncio.sleep(60)
        assert 100 <= len(engine._dispatch._again) < 1_000
        assert engine.buffered >= len(engine._dispatch._again)
        away[0] = False
        await until(lambda: engine.stats.processed == 2_000, 1_000)
        assert not engine.buffered

    play(app, story)


def test_threads_do_not_begin_what_was_let_go_while_it_waited_for_them() -> None:
    ran: list[object] = []
    runners = ThreadRunners(engine_of(), lambda event, _context: ran.append(event), 1, "t")
    gone, ours = delivery_of(draining=True), delivery_of(draining=False)
    chunk = _Chunk([gone, ours])
    runners._work.put(chunk)
    runners._work.put(_Chunk([]))
    runners._run()
    assert ran == [ours]
    assert [getattr(result, "outcome", "done") for result in chunk.results] == [None, "done"]


def test_what_comes_behind_a_failure_of_its_key_in_a_chunk_does_not_run() -> None:
    ran: list[object] = []

    def handle(event: Any, _context: object) -> None:
        ran.append(event)
        if event is a2:
            raise ValueError("no")

    runners = ThreadRunners(engine_of(), handle, 1, "t")
    a1, b1, a2, a3, b2 = (delivery_of(key=key) for key in (b"a", b"b", b"a", b"a", b"b"))
    one = a1.unit
    one.by_key = True
    for delivery in (b1, a2, a3, b2):
        delivery.unit = one
    chunk = _Chunk([a1, b1, a2, a3, b2])
    runners._work.put(chunk)
    runners._work.put(_Chunk([]))
    runners._run()
    assert ran == [a1, b1, a2, b2]
    assert [getattr(result, "outcome", "done") is None for result in chunk.results] == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_a_thread_outlives_a_handler_that_calls_exit() -> None:
    runners = ThreadRunners(engine_of(), lambda _event, _context: sys.exit(3), 1, "t")
    chunk = _Chunk([delivery_of()])
    runners._work.put(chunk)
    runners._work.put(_Chunk([]))
    runners._run()
    (result,) = chunk.results
    assert isinstance(result, Result)
    assert isinstance(result.outcome, Failure)


def test_a_thread_that_can_not_be_started_is_tried_again_and_does_not_stop_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[bytes] = []

    @application()
    def app(value: bytes, ctx: Context) -> None:
        ran.append(value)

    def refuses(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuses)
            publish(cluster, b"a")
            await until(lambda: engine.executor.running() == 1)
            await asyncio.sleep(3)
            assert engine.broken is None
            found = health_of(worker.running[0])
            assert not found["consuming"]
            assert "can't start new thread" in found["why"]
        await asyncio.sleep(3)
        await asyncio.to_thread(time.sleep, 0.05)
        await until(lambda: engine.stats.processed == 1)
        assert ran == [b"0"]
        assert health_of(worker.running[0])["consuming"]

    play(app, story)


def engine_of() -> Any:
    retry = SimpleNamespace(terminal=())
    subscription = SimpleNamespace(timeout_ms=60_000, retry=retry)
    execution = SimpleNamespace(subscription=subscription, decode=lambda delivery, _context: delivery)
    return SimpleNamespace(execution=execution, wake=lambda: None)


class Place:
    """A unit that can be told from others."""

    def __init__(self, draining: bool) -> None:
        self.draining = draining
        self.open = True


def delivery_of(draining: bool = False, key: bytes | None = None) -> Any:
    return SimpleNamespace(unit=Place(draining), key=key)


@pytest.mark.parametrize("kind", [AsyncRunners, BatchRunners])
def test_what_runs_can_be_counted_while_it_changes(kind: Any) -> None:
    """Health and metrics are asked in threads of their own; a probe without an answer has workers killed."""

    class Changing(list[object]):
        """Whoever looks at one finds another one there afterwards, as with another thread at work."""

        __hash__ = object.__hash__  # type: ignore[assignment]

        @property
        def delivery(self) -> object:
            return running.setdefault(Changing(), Changing())

        def __len__(self) -> int:
            running.setdefault(Changing(), Changing())
            return 1

    running: dict[Changing, Changing] = {}
    running[Changing()] = Changing()
    runners = object.__new__(kind)
    runners._runners = runners._running = running
    assert runners.running() == 1


def test_headers_that_the_client_can_not_read_do_not_stop_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no UTF-8, from any producer: confluent-kafka raises the first time, and later gives a name that ends the process."""

    def headers(message: MemoryMessage) -> Any:
        if message.topic() != TOPIC or message in read:
            return None if message.topic() == TOPIC else real(message)
        if message in asked:
            pytest.fail("the second answer ends the process")
        asked.append(message)
        raise SystemError("returned a result with an exception set")

    real, asked, read = MemoryMessage.headers, list[MemoryMessage](), list[MemoryMessage]()
    monkeypatch.setattr(MemoryMessage, "headers", headers)
    monkeypatch.setattr(MemoryMessage, "set_headers", lambda message, _none: read.append(message), raising=False)

    @application(attempts=2, tiers=("1s",))
    async def app(value: bytes, ctx: Context) -> None:
        raise ValueError(ctx.event_id)

    await_one_dead_letter(app)
    assert len(asked) == 1


# -- hand-offs and commits


class HandOffs:
    """A sender, records of one partition that have failed, and a producer that answers for each when it is told to."""

    def __init__(self, *keys: bytes) -> None:
        self.now = 1_000_000
        self.producer = FakeProducer(up=False)
        self._posted: list[Any] = []
        self.sender = Sender(self.producer, "dlq", self._posted.append, lambda _delivery: "")  # type: ignore[arg-type]
        self.unit = core.unit()
        records = (core.source_record(at, key) for at, key in enumerate(keys))
        for delivery in core.receive(self.unit, *records):
            assert self.unit.admit(delivery, self.now)
            self.unit.failed(delivery, core.FAILURE, self.now, 0.0)
        self.hand_offs = [effect for effect in self.unit.effects if isinstance(effect, HandOff)]
        assert len(self.hand_offs) == len(keys)

    def hand_off(self, number: int, after_ms: int = 0) -> None:
        self.sender.hand_off(self.hand_offs[number], self.now + after_ms)

    def answer(self, key: bytes, error: ClusterError | None, after_ms: int) -> None:
        self.producer.held.rotate(-self.held.index(key))
        self.producer.answer(1, error)
        item = self._posted.pop()
        self.sender.answer(item.effect, item.error, self.now + after_ms)

    def resend_due(self, after_ms: int) -> None:
        self.sender.resend_due(self.now + after_ms)

    @property
    def held(self) -> list[bytes | None]:
        return [record.key for record in self.producer.held]

    @property
    def waits(self) -> bool:
        return self.sender.troubled(self.unit) or self.sender.pending(self.unit)


NO = ClusterUnavailable("not enough replicas")


def test_a_hand_off_waits_behind_one_of_its_lane_that_was_refused() -> None:
    """Two records fail one after the other while their tier takes nothing: they stand in it in their order."""
    them = HandOffs(b"a", b"b")
    them.hand_off(0)
    them.answer(b"a", NO, 0)
    them.hand_off(1, 1)
    assert not them.held, "the second waits for the first, not for its own refusal"
    them.resend_due(100)
    assert them.held == [b"a"]
    them.answer(b"a", None, 110)
    assert them.held == [b"b"]
    them.answer(b"b", None, 120)
    assert not them.waits


def test_a_hand_off_goes_out_once_at_a_time_however_often_it_is_refused() -> None:
    """Two answers to one write counted twice: the unit stayed troubled, and took no new work, for ever."""
    them = HandOffs(b"a", b"b")
    for number in (0, 1):
        them.hand_off(number)
    them.answer(b"a", NO, 0)
    them.answer(b"b", NO, 50)
    them.resend_due(100)
    them.answer(b"a", None, 120)
    them.answer(b"b", NO, 140)
    for after_ms in (150, 440, 500):
        them.resend_due(after_ms)
    assert them.held == [b"b"]
    them.answer(b"b", None, 600)
    assert not them.waits


def test_a_hand_off_that_is_through_frees_no_lane_that_another_one_keeps() -> None:
    """Three that were refused go out again side by side; the second is refused once more, then the third is written. It ended the
    engine (it was looked for among those that wait); it may not send what waits for its time either."""
    them = HandOffs(b"a", b"b", b"c")
    for number in range(3):
        them.hand_off(number)
    for key in (b"a", b"b", b"c"):
        them.answer(key, NO, 0)
    them.resend_due(100)
    them.answer(b"a", None, 120)
    them.answer(b"b", NO, 140)
    them.answer(b"c", None, 150)
    assert not them.held, "the second waits for its time"
    assert them.sender.troubled(them.unit)
    them.resend_due(450)
    them.answer(b"b", None, 460)
    assert not them.waits


def test_the_late_answer_to_a_commit_that_was_given_up_is_not_taken_for_the_next_ones() -> None:
    committer, target = Committer(), core.unit()
    first = committer.next([target], 1_000)
    core.receive(target, core.source_record(0))
    target.lanes[0].tracker.settle(0)
    second = committer.next([target], 1_000 + ANSWER_TIMEOUT_MS)
    assert first
    assert second
    assert first != second
    committer.answered(dict.fromkeys(first), 70_000, first)
    assert committer.in_flight
    committer.answered(dict.fromkeys(second, no_answer()), 70_001, second)
    assert committer.next([target], 70_002) == {tp: second[tp] for tp in second}


def test_the_answer_to_a_commit_of_an_earlier_ownership_says_nothing_of_the_new_one() -> None:
    """It was sent again then: the old epoch and positions, over the new owner's."""
    committer, old, new = Committer(), core.unit(), core.unit()
    asked = committer.next([old], 1_000)
    assert asked
    committer.forget(old)
    committer.positions(new, 1_001)
    committer.answered(dict.fromkeys(asked, no_answer()), 1_002, asked)
    core.receive(new, core.source_record(0))
    new.lanes[0].tracker.settle(0)
    again = committer.next([new], 1_003)
    assert again
    assert again[TopicPartition("t", 0)].offset == 1


def test_two_copies_of_one_hop_that_both_fail_are_both_settled() -> None:
    """Without an order they run side by side; the second hand-off took the first one's place, whose offset stayed open."""
    copies = [core.lane_record(at, b"k", core.headers(5)) for at in (0, 1)]
    target = core.unit(order="none")
    target.receive_lane(1, copies)
    target.parking.observe(b"k", Identity(5), 1, 1)
    ready: deque[Delivery] = deque()
    target.release_due(core.NOW, ready)
    running = [delivery for delivery in ready if target.admit(delivery, core.NOW)]
    assert len(running) == 2
    for delivery in running:
        target.failed(delivery, core.FAILURE, core.NOW, 0.0)
    for effect in target.effects:
        assert isinstance(effect, HandOff)
        target.handed_off(effect.delivery)
    assert len(target.effects) == 1
    assert not target.lanes[1].tracker.open


def test_a_record_that_waits_in_memory_can_be_skipped() -> None:
    target = core.unit(tiers=())
    (delivery,) = core.receive(target, core.source_record(0, b"k"))
    assert target.admit(delivery, core.NOW)
    target.failed(delivery, core.FAILURE, core.NOW, 0.0)
    target.skip(b"k", Identity(0))
    target.failed(delivery, core.FAILURE, core.NOW, 0.0)
    assert [effect.failure for effect in target.effects if isinstance(effect, DeadLetter)] == [SKIPPED]


def test_commits_that_do_not_fit_one_request_take_turns() -> None:
    """The units at the end were never committed while those before them filled every request."""
    committer = Committer()
    units = [core.unit() for _ in range(3)]
    for number, target in enumerate(units):
        target.partition = number
        topic = "t" * 400_000
        target.lanes[0].spec = replace(target.lanes[0].spec, topic=topic)
    seen: set[int] = set()
    for at_ms in range(3):
        for target in units:
            end = target.lanes[0].tracker.next_offset
            core.receive(target, core.source_record(end))
            target.lanes[0].tracker.settle(end)
        asked = committer.next(units, at_ms)
        assert asked
        seen |= {tp.partition for tp in asked}
        committer.answered(dict.fromkeys(asked), at_ms, asked)
    assert seen == {0, 1, 2}


def test_an_engine_that_failed_commits_nothing_more() -> None:
    """Records of the step that failed were never received: to the commits after it they would be a gap, hence done."""
    ran: list[bytes] = []

    @application()
    async def app(value: bytes, ctx: Context) -> None:
        ran.append(value)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        await until(lambda: bool(engine.partitions))
        unit = engine.partitions[0]
        receive, unit.receive_source = unit.receive_source, fails  # type: ignore[method-assign]
        publish(cluster, b"a")
        await until(lambda: engine.broken is not None)
        unit.receive_source = receive  # type: ignore[method-assign]
        publish(cluster, b"b")
        await asyncio.sleep(5)
        position = cluster.group(GROUP).positions[TopicPartition(TOPIC, 0)]
        assert position.offset == 0
        assert not ran

    play(app, story)


def test_an_engine_that_fails_while_it_drains_commits_nothing_more() -> None:
    began: list[bytes] = []

    @application(flow=FlowPolicy(drain_timeout_ms=1_000))
    async def app(value: bytes, ctx: Context) -> None:
        began.append(value)
        await asyncio.sleep(60)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        publish(cluster, b"a")
        await until(lambda: bool(began))
        unit = engine.partitions[0]
        stop = asyncio.ensure_future(worker.stop())
        await until(lambda: unit.draining)
        unit.lanes[0].tracker.open.clear()  # as after any defect: the books are wrong
        engine.fail(ValueError("a defect"))
        await stop
        assert cluster.group(GROUP).positions[TopicPartition(TOPIC, 0)].offset == 0

    play(app, story)


def test_commits_that_fail_are_a_defect_that_is_told() -> None:
    @application()
    async def app(value: bytes, ctx: Context) -> None: ...

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        engine._committer.next = fails  # type: ignore[method-assign]
        await until(lambda: engine.broken is not None)

    play(app, story)


@pytest.mark.parametrize("what", ["a batch's wait", "deadlines", "a drain"])
def test_a_defect_in_a_timer_is_told_too(what: str) -> None:
    """The loop logs it, and goes on: the engine stood still, and to everybody it was at work."""

    async def several(values: Sequence[bytes], contexts: Sequence[Context]) -> None: ...

    async def one(value: bytes, ctx: Context) -> None:
        await asyncio.sleep(20)

    batches = what == "a batch's wait"
    app = application(batch=BatchPolicy(10, wait_ms=500))(several) if batches else application()(one)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        executor: Any = engine.executor
        publish(cluster, b"a")
        await until(lambda: bool(engine.gathered or executor.running()))
        with pytest.MonkeyPatch.context() as patch:
            if batches:
                patch.setattr(executor, "_start", fails)
            elif what == "deadlines":
                patch.setattr(engine.stalls, "current", (object(),))
                patch.setattr(engine.stalls, "keep", fails)
            else:
                patch.setattr(engine, "cancel", fails)
                engine._ownership._drain_s = 1.0
                engine._ownership._drain(engine.owned[0])
            await until(lambda: engine.broken is not None, 15)

    play(app, story)


def test_a_defect_in_the_deadlines_of_threads_is_told_too() -> None:
    timers, told = list[Callable[[], None]](), list[BaseException]()
    loop = SimpleNamespace(call_later=lambda _seconds, action: timers.append(action))
    engine = SimpleNamespace(**vars(engine_of()), loop=loop, fail=told.append)
    runners = ThreadRunners(engine, lambda *_: None, 1, "t")
    runners._out = [fails]  # type: ignore[list-item]
    runners._watch()
    timers[0]()
    assert len(told) == 1


def fails(*_arguments: object) -> None:
    raise ValueError("a defect")


def no_answer() -> ClusterError:
    return ClusterUnavailable("no answer")


# -- what goes on beside


def test_a_registry_may_be_away_for_longer_than_a_number_can_double(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []
    tries = itertools.count()

    def fetch(_schema_id: int) -> None:
        if next(tries) < 1_100:
            raise SchemaUnavailable("the registry is away")

    async def main(loop: VirtualClockLoop) -> None:
        waits = SchemaWaits(fetch, found.extend, Background(loop), structlog.get_logger())
        waits.add("delivery", 1)  # type: ignore[arg-type]
        await until(lambda: bool(found), 10_000)

    run(main)


def test_outputs_that_wait_for_their_contract_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that has ended makes room for the next one: with the registry away the whole topic went into memory."""
    ran: list[bytes] = []
    away = [True]

    def unknown(self: OutputEncoder, item: Emit) -> tuple[str, bytes, bytes]:
        if away[0]:
            raise SchemaUnavailable("the registry is away")
        return "out", b"k", b"v"

    monkeypatch.setattr(OutputEncoder, "encode", unknown)
    monkeypatch.setattr(OutputEncoder, "prepare", unknown)

    @application(flow=FlowPolicy(buffered=10))
    async def app(value: bytes, ctx: Context) -> None:
        ran.append(value)
        ctx.emit("out", "k", b"v")

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        cluster.create("out", 1)
        publish(cluster, *(b"%d" % number for number in range(500)))
        await asyncio.sleep(20)
        assert 10 <= len(ran) < 100
        away[0] = False
        await until(lambda: worker.running[0].engine.stats.processed == 500)
        assert len(ran) == 500

    play(app, story)


@pytest.mark.parametrize("buffered", [1, 2, 3])
def test_a_worker_that_may_buffer_one_record_goes_on_after_it(buffered: int) -> None:
    """It waited for fewer than none to be buffered, for ever."""
    ran: list[bytes] = []

    @application(flow=FlowPolicy(concurrency=1, buffered=buffered))
    async def app(value: bytes, ctx: Context) -> None:
        await asyncio.sleep(1)
        ran.append(value)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        publish(cluster, *(b"%d" % number for number in range(10)))
        await until(lambda: len(ran) == 10, 60)

    play(app, story)


def test_records_of_a_lane_that_wait_for_a_schema_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of the source: with the registry away a whole redrive went into memory."""
    away = [True]

    def decoder(*_arguments: object) -> Callable[[Delivery, Context], object]:
        def decode(delivery: Delivery, _context: Context) -> object:
            if away[0]:
                raise SchemaUnavailable("the registry is away", 7)
            return delivery.message.value()

        return decode

    monkeypatch.setattr(worker_module, "decoder", decoder)

    @application(flow=FlowPolicy(buffered=10))
    async def app(value: bytes, ctx: Context) -> None: ...

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        engine._schema_waits._fetch = lambda _id: None if not away[0] else fails()
        replay(cluster, *(b"%d" % number for number in range(2_000)))
        await asyncio.sleep(20)
        assert 10 <= len(engine._schema_waits) < 1_000
        away[0] = False
        await until(lambda: engine.stats.processed == 2_000, 200)

    play(app, story)


def test_what_waits_for_a_schema_is_forgotten_with_its_unit() -> None:
    """After each rebalance in an outage it counted again, until every partition was held for records long gone."""

    async def main(loop: VirtualClockLoop) -> None:
        def fetch(_schema_id: int) -> None:
            raise SchemaUnavailable("the registry is away")

        background = Background(loop)
        waits = SchemaWaits(fetch, lambda _waited: None, background, structlog.get_logger())
        gone, ours = delivery_of(), delivery_of()
        for delivery in (gone, ours, gone):
            waits.add(delivery, 1)
        waits.forget(gone.unit)
        assert len(waits) == 1
        background.cancel()

    run(main)


def test_a_drain_forgets_no_attempt_of_what_waits_for_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process that is new may not know it at the second attempt; the next owner began with the first one again."""

    @application(tiers=("10s",), retries=Retries(Backoff(100)))
    async def app(value: bytes, ctx: Context) -> None:
        raise ValueError

    def known_once(*_arguments: object) -> Callable[[Delivery, Context], object]:
        def decode(delivery: Delivery, _context: Context) -> object:
            if delivery.attempt:
                raise SchemaUnavailable("the registry is away", 7)
            return delivery.message.value()

        return decode

    monkeypatch.setattr(worker_module, "decoder", known_once)

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        engine = worker.running[0].engine
        engine._schema_waits._fetch = fails
        publish(cluster, b"a")
        await until(lambda: len(engine._schema_waits) == 1)
        tier = next(lane.spec.topic for lane in engine.partitions[0].lanes if lane.spec.name == "10s")
        await asyncio.wait_for(worker.stop(), 60)
        (copy,) = cluster.logs[tier][0].records()
        assert decode_headers(copy.headers()).attempt == 1

    play(app, story)


def test_both_sides_of_a_drain_give_up_before_the_poll_interval_is_over() -> None:
    @application(flow=FlowPolicy(drain_timeout_ms=3_000_000))
    async def app(value: bytes, ctx: Context) -> None: ...

    async def story(loop: VirtualClockLoop, cluster: MemoryCluster, worker: Worker) -> None:
        interval_s = Settings().max_poll_interval_s
        assert worker.running[0].engine._ownership._drain_s < interval_s

    play(app, story)


def test_the_control_topic_is_followed_again_after_an_error() -> None:
    class Reader:
        errors = 1

        def assign(self, positions: object) -> None: ...

        def poll(self, max_records: int, timeout_s: float) -> list[Message]:
            if self.errors:
                self.errors -= 1
                raise ClusterUnavailable("no leader")
            stepped.append(1)
            time.sleep(0.001)
            return []

        def close(self) -> None: ...

    stepped: list[int] = []
    follower = ControlFollower(
        Reader(),  # type: ignore[arg-type]
        "control",
        Switches(),
        lambda work: work(),
        lambda: None,
        structlog.get_logger(),
    )
    follower.start()
    deadline = time.monotonic() + 5
    while not stepped and time.monotonic() < deadline and follower._thread.is_alive():
        follower._thread.join(0.01)
    follower.stop()
    assert stepped


def test_a_switch_that_is_no_text_does_not_take_those_after_it_with_it() -> None:
    """JSON may spell what UTF-8 can't: the error was none of a control record's, and the rest of its poll was not looked at."""
    switches, said = Switches(), list[str]()
    log = SimpleNamespace(error=lambda event, **_more: said.append(event))
    reader: Any = SimpleNamespace(close=lambda: None)
    follower = ControlFollower(reader, "control", switches, lambda work: work(), lambda: None, log)
    bad = json.dumps(
        {"kind": "skip", "group": GROUP, "topic": TOPIC, "partition": 0, "origin_offset": 1, "key": "\ud800"}
    )
    worse = json.dumps({"kind": "pause", "group": "\ud800"})
    key, value = encode_switch(Pause(GROUP))
    records = [(b"skip/g/t/0/1", bad.encode()), (b"pause/x", worse.encode()), (key, value)]
    follower._fold([MemoryMessage(("control", 0, at), *record, None, 0) for at, record in enumerate(records)])
    assert switches.paused(GROUP) is not None
    assert said == ["control record ignored"] * 2


def test_switches_that_were_undone_are_not_remembered() -> None:
    reader: Any = SimpleNamespace(close=lambda: None)
    follower = ControlFollower(reader, "control", Switches(), lambda work: work(), lambda: None, structlog.get_logger())
    keys = (*(b"skip/g/t/0/%d" % origin for origin in range(100)), b"release/g/t/0/=k", b"replay/r", b"pause/g")
    follower._fold([MemoryMessage(("control", 0, at), key, None, None, 0) for at, key in enumerate(keys)])
    assert follower.resumed == {"pause/g"}
    assert follower.was_resumed("g")
    assert not follower.resumed
