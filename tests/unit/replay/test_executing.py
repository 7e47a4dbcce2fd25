"""The execution of a plan on a simulated cluster whose producer answers as a test says: refusals, silence, lost ownership."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pipeline.memory import connect
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import (
    Acknowledgements,
    CommitCallback,
    ConsumerPolicy,
    FetchFault,
    OutRecord,
    Position,
    TopicPartition,
    TopicSpec,
)
from pipeline.model.errors import BufferFull, ClusterUnavailable, FencedError, NotAuthorized
from pipeline.model.partitioner import partition_of
from pipeline.replay import executing, fetching, recording
from pipeline.replay.copying import copier_of
from pipeline.replay.executing import Executor
from pipeline.replay.fetching import FETCH
from pipeline.replay.joining import ResultsPlace
from pipeline.replay.options import RunOptions
from pipeline.replay.plan import PlanError, ReplayPlan, Selection, Source, Span, Target
from pipeline.replay.results import read_results
from tests.fake_producer import FakeProducer, Sent

Answer = Callable[[], None]


class Producer(FakeProducer):
    """Takes everything; answers in `serve`, at most `answers` of them at a time, unless `silent`. `refuse`: by (topic, partition)."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[tuple[str, int]] = Counter()
        self.refuse: dict[tuple[str, int], Exception] = {}
        self.silent: Callable[[str], bool] = lambda _topic: False
        self.room: Callable[[str], bool] = lambda _topic: True
        self.answers = 1_000_000
        self._waiting: deque[tuple[str, Answer]] = deque()

    def send_many(self, topic: str, partition: int, records: Sequence[OutRecord], into: Acknowledgements) -> int:
        if not self.room(topic):
            return 0
        place = (topic, partition)
        first, count = self.sent[place], len(records)
        self.sent[place] += count

        def answer() -> None:
            for number in range(count):
                if place in self.refuse:
                    into.errors[len(into.offsets)] = self.refuse[place]  # type: ignore[assignment]
                into.offsets.append(-1 if place in self.refuse else first + number)

        self._waiting.append((topic, answer))
        return count

    def take(self, record: Sent) -> None:
        topic, delivered = record.topic, record.delivered
        if not self.room(topic):
            raise BufferFull("full")
        offset = self.sent[topic, 0]
        self.sent[topic, 0] += 1
        assert delivered is not None
        error: Any = self.refuse.get((topic, 0))
        self._waiting.append((topic, lambda: delivered(error, -1 if error else offset)))

    def serve(self, _timeout_s: float) -> None:
        ready = [entry for entry in self._waiting if not self.silent(entry[0])][: self.answers]
        for entry in ready:
            self._waiting.remove(entry)
            entry[1]()

    def close(self, _timeout_s: float) -> None:
        """Nothing is held."""


class Member:
    """A consumer whose commits are answered by `refusal`, when it gives one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.refusal: Callable[[], Exception | None] = lambda: None
        self.committed_at: list[dict[TopicPartition, Position]] = []
        self.most_waiting = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def commit(self, positions: Mapping[TopicPartition, Position], done: CommitCallback) -> None:
        error: Any = self.refusal()
        if error is None:
            self.committed_at.append(dict(positions))
            self._inner.commit(positions, done)
        else:
            done(dict.fromkeys(positions, error))


class Around:
    """The cluster with that producer and that member."""

    def __init__(self, inner: MemoryCluster, producer: Producer) -> None:
        self._inner, self._producer = inner, producer
        self.members: list[Member] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def consumer(self, policy: ConsumerPolicy) -> Any:
        self.members.append(Member(self._inner.consumer(policy)))
        return self.members[-1]

    def bulk_producer(self, _client_id: str = "") -> Any:
        return self._producer


class Scene:
    def __init__(self, name: str) -> None:
        self.inner = connect(f"memory://{name}")
        self.producer = Producer()
        self.cluster = Around(self.inner, self.producer)
        for topic, partitions in (("T", 1), ("U", 4), ("R", 1), ("C", 1)):
            self.inner.admin().create_topics([TopicSpec(topic, partitions)])

    def publish(self, keys: Sequence[bytes], value: bytes = b"v") -> None:
        producer = self.inner.producer()
        for key in keys:
            producer.send("T", key, value, partition=0)
        assert producer.flush(10.0) == 0

    def executor(self, records: int, rate: float = 0.0, last: tuple[int, ...] = (), **options: Any) -> Executor:
        source, target = Source("topic", "T", 1, {0: Span(0, records)}), Target("topic", "", {"": "U"})
        plan = ReplayPlan("rp-1", 5, "ann", source, Selection(), target, rate=rate, last={0: last})
        until = time.monotonic() + 15.0
        options.setdefault("alive", lambda: time.monotonic() < until)
        chosen = RunOptions("rg", ResultsPlace("R", 1), "C", "ann", **options)
        return Executor(self.cluster, plan, chosen, copier_of(plan, {"U": 4}))

    @property
    def member(self) -> Member:
        return next(m for m in self.cluster.members if m.group_name == "rg")

    def committed(self) -> int:
        positions = self.inner.admin().group_positions("rg")
        found = positions.get(TopicPartition("T", 0))
        return 0 if found is None else found.offset


@pytest.fixture
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(executing, "STOP_S", 3.0)
    return Scene(f"executing-{request.node.name}")


def two_keys() -> tuple[bytes, bytes]:
    """Of different partitions of U."""
    names = [b"k%d" % n for n in range(50)]
    return names[0], next(name for name in names if partition_of(name, 4) != partition_of(names[0], 4))


def test_nothing_behind_a_refused_record_is_committed(scene: Scene) -> None:
    """The records behind go to another partition, and are written and acknowledged after the refusal was heard."""
    first, other = two_keys()
    scene.publish([first] * FETCH + [other] * 5 * FETCH)
    scene.producer.refuse["U", partition_of(first, 4)] = NotAuthorized("writing to U is not allowed")
    scene.producer.answers = 1
    scene.producer.silent = lambda _topic: scene.producer.sent["U", partition_of(other, 4)] < FETCH
    with pytest.raises(NotAuthorized):
        scene.executor(6 * FETCH).run()
    assert scene.committed() == 0, "or the refused ones would never be sent again"


def test_nothing_behind_refused_results_is_committed(scene: Scene) -> None:
    scene.publish([b"k"] * 6 * FETCH)
    scene.producer.answers = 1
    scene.producer.refuse["R", 0] = NotAuthorized("writing to R is not allowed")

    def stage(name: str) -> None:
        if name == "acknowledged" and scene.producer.sent["R", 0] >= 1:
            scene.producer.refuse.pop(("R", 0), None)

    with pytest.raises(NotAuthorized):
        scene.executor(6 * FETCH, stage=stage).run()
    assert scene.committed() == 0


def test_a_partition_that_is_wanted_back_is_drained_first(scene: Scene) -> None:
    """Let go at once, the next owner would send again what is under way, though nothing failed."""
    scene.publish([b"k"] * 2 * FETCH)
    scene.producer.silent = lambda topic: topic == "U"
    place = TopicPartition("T", 0)
    heard: list[bool] = []

    def progress(_tally: Any) -> None:
        if not scene.producer.sent["U", partition_of(b"k", 4)] or heard:
            return
        heard.append(executor.revoked([place]))
        scene.producer.silent = lambda _topic: False
        until = time.monotonic() + 10.0
        while not executor.revoked([place]):
            assert time.monotonic() < until
            scene.member.poll(1, 0.01)
        heard.append(True)
        executor.stop()

    executor = scene.executor(2 * FETCH, progress=progress)
    executor.run()
    assert heard == [False, True]
    sent = scene.producer.sent["U", partition_of(b"k", 4)]
    assert 0 < scene.committed() == sent
    results = [r.offset for batch in read_results(scene.inner, "R") for r in batch.results]
    assert results == [], "they are with the producer of this test"


def test_what_a_full_queue_refused_goes_out_before_a_partition_is_let_go(scene: Scene) -> None:
    scene.publish([b"k"] * FETCH)
    scene.producer.room = lambda topic: topic != "U"
    place = TopicPartition("T", 0)
    said: list[bool] = []

    def stage(name: str) -> None:
        if name == "sent":
            scene.producer.room = lambda _topic: True
            executor.revoked([place])
            said.append(scene.producer.sent["U", partition_of(b"k", 4)] == FETCH)
            executor.stop()

    executor = scene.executor(FETCH, stage=stage)
    executor.run()
    assert said == [True]


def test_results_that_a_full_queue_never_takes_end_the_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "FULL_S", 0.2)
    monkeypatch.setattr(executing, "STOP_S", 1.0)
    scene.publish([b"k"] * FETCH)
    scene.producer.room = lambda topic: topic != "R"
    with pytest.raises(ClusterUnavailable, match=r"results .* R .* run the plan again"):
        scene.executor(FETCH).run()
    assert scene.committed() == 0


def test_brokers_that_answer_nothing_end_the_run_with_a_sentence(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executing, "STALL_S", 0.3)
    monkeypatch.setattr(executing, "STOP_S", 0.2)
    scene.publish([b"k"] * FETCH)
    scene.producer.silent = lambda topic: topic == "U"
    began = time.monotonic()
    with pytest.raises(ClusterUnavailable, match=r"answered nothing for 0.3 s.*run the plan again"):
        scene.executor(FETCH, alive=lambda: time.monotonic() - began < 8.0).run()


def test_who_was_fenced_sends_no_more_until_it_knows_that_it_owns(scene: Scene) -> None:
    """A stopped process that wakes late: its commits are fenced, and it hears of the rebalance only later."""
    scene.publish([b"k"] * 40 * FETCH)
    began = time.monotonic()
    marks: list[int] = []

    def sent() -> int:
        return scene.producer.sent["U", partition_of(b"k", 4)]

    def refusal() -> Exception | None:
        if not marks:
            marks.append(sent())
        return FencedError("replaced") if time.monotonic() - began < 1.5 else None

    executor = scene.executor(40 * FETCH, rate=8_000.0, alive=lambda: time.monotonic() - began < 20.0)
    scene.member.refusal = refusal

    seen: list[int] = []
    advance = executor._advance

    def watched(now: bool = False) -> None:
        if time.monotonic() - began < 1.4:
            seen.append(sent())
        advance(now)

    executor._advance = watched  # type: ignore[method-assign]
    tally = executor.run()
    assert tally.counts == {"written": 40 * FETCH}, "it goes on when it still owns"
    assert max(seen) - marks[0] <= 2 * FETCH


def test_who_stood_still_asks_first(scene: Scene) -> None:
    """Between two steps more than its session may have passed: a commit made now is answered before anything more is sent."""
    scene.publish([b"k"] * 20 * FETCH)
    sent_at: list[int] = []

    def sent() -> int:
        return scene.producer.sent["U", partition_of(b"k", 4)]

    def refusal() -> Exception | None:
        sent_at.append(sent())
        executor.stop()
        return FencedError("replaced")

    def progress(_tally: Any) -> None:
        if sent() and not sent_at:
            time.sleep(1.0)  # as if the process was stopped
            sent_at.append(sent())
            scene.member.refusal = refusal

    executor = scene.executor(20 * FETCH, rate=2_000.0, session_timeout_ms=1_500, progress=progress)
    executor.run()
    assert len(sent_at) >= 2, "it asks"
    assert sent_at[1] == sent_at[0], "nothing was sent before the question"


def test_what_waits_to_be_sent_is_bounded_at_any_rate(scene: Scene) -> None:
    scene.publish([b"k"] * 40_000)
    began = time.monotonic()
    executor = scene.executor(40_000, rate=100.0, alive=lambda: time.monotonic() - began < 4.0, window=2_000)
    most = 0
    check = executor._check_awake

    def watched() -> None:
        nonlocal most
        check()
        most = max(most, sum(len(m) for flow in executor._flows.values() for m, _ in flow.pending))

    executor._check_awake = watched  # type: ignore[method-assign]
    executor.run()
    assert 0 < most <= 2_000 + FETCH


def test_what_waits_to_be_sent_is_bounded_in_bytes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "AHEAD_BYTES", 1_000_000)
    scene.publish([b"k"] * 10_000, b"x" * 1_000)
    began = time.monotonic()
    executor = scene.executor(10_000, rate=2_000.0, alive=lambda: time.monotonic() - began < 2.0)
    most = 0
    check = executor._check_awake

    def watched() -> None:
        nonlocal most
        check()
        most = max(most, sum(len(m) for flow in executor._flows.values() for m, _ in flow.pending))

    executor._check_awake = watched  # type: ignore[method-assign]
    executor.run()
    assert 0 < most <= 1_000 + 3 * FETCH


def test_those_sent_last_keep_to_the_window_and_the_bound_of_the_run(scene: Scene) -> None:
    """They are read ten thousand at once: as many could be written twice, and a canary of ten would be all of them."""
    scene.publish([b"k"] * 6_000)
    place = "U", partition_of(b"k", 4)
    last = tuple(reversed(range(6_000)))
    tally = scene.executor(6_000, last=last, stop_after=10).run()
    assert (tally.state, tally.done, scene.producer.sent[place]) == ("stopped", 10, 10)
    until = time.monotonic() + 1.5
    scene.producer.silent = lambda topic: topic == "U"
    scene.executor(6_000, last=last, window=1_000, alive=lambda: time.monotonic() < until).run()
    assert 10 + 1_000 <= scene.producer.sent[place] < 10 + 1_000 + FETCH


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("out_of_range", r"T partition 0 .*offset 7 .*are gone.*make a new plan"),
        ("unknown_topic", r"T does not exist any more"),
        ("not_authorized", r"^the broker's words; then run the plan again$"),
        ("bad_batch", r"T partition 0 .*offset 7.*damaged.*--from-offset 0:8"),
    ],
)
def test_what_can_not_be_read_is_told_as_what_it_is(scene: Scene, kind: Any, said: str) -> None:
    scene.publish([b"k"] * 10)
    executor = scene.executor(10)
    executor.fault(FetchFault(TopicPartition("T", 0), 7, kind, "the broker's words"))
    with pytest.raises((PlanError, NotAuthorized), match=said):
        executor.run()
