"""The sender and its buffer, step by step on a made-up clock: random histories lose nothing and keep each key's order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.emit.buffer import Buffer, Link, Outgoing, Route
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.send_route import DIRECT_IN_FLIGHT
from pipeline.emit.sender import Sender
from pipeline.emit.spool import Spool
from pipeline.emit.stats import Counters
from pipeline.model.errors import ClusterError, ClusterUnavailable, ConfigurationError
from tests.fake_producer import FakeProducer, Sent


class ScriptedBroker(FakeProducer):
    """Does as told: "up" acknowledges, "hold" keeps silent, "fail" breaks the connection; "no topic" refuses."""

    def __init__(self, capacity: int = 10_000) -> None:
        super().__init__(capacity)
        self.mode = "up"

    def take(self, record: Sent) -> None:
        if record.value == b"too large":
            raise ClusterError("the record is too large")
        if self.mode == "no topic":
            raise ClusterError("sending failed: [UNKNOWN_TOPIC_OR_PART]")
        super().take(record)
        if self.mode == "fail":
            self.break_off(0)

    def break_off(self, first: int) -> None:
        """The first ones got through, the rest did not."""
        self.answer(first)
        self.answer(error=ClusterUnavailable("connection lost"))

    def serve(self, timeout_s: float) -> None:
        self.up = self.mode == "up"
        super().serve(timeout_s)


class Bench:
    """A sender with its buffer, driven by hand."""

    def __init__(self, policy: BufferPolicy, broker: ScriptedBroker) -> None:
        self.broker = broker
        self.buffer = Buffer(policy)
        self.counters = Counters()
        self.lock = threading.Condition(threading.Lock())
        self.spool = Spool(policy.spool_dir, policy.spool_max_bytes) if policy.spool_dir else None
        self.sender = Sender(broker, self.buffer, self.lock, self.counters, self.spool)
        self.now_ms = 1_000

    def publish(self, key: str, number: int) -> bool:
        return self.buffer.admit(Outgoing("t", key.encode(), b"%d" % number, [("pl.event_id", b"e%d" % number)]))

    def run(self, steps: int = 400, tick_ms: int = 100) -> None:
        for _ in range(steps):
            self.now_ms += tick_ms
            if not self.sender.step(self.now_ms) and self.buffer.records == 0 and self.sender.drained:
                return

    def numbers(self) -> list[int]:
        return [int(value or b"") for _, _, value, *_ in self.broker.log]


def spooling(path: Path, **changes: int) -> BufferPolicy:
    return BufferPolicy(mode="spool", spool_dir=path, **({"max_records": 20} | changes))  # type: ignore[arg-type]


def test_all_goes_through_in_order() -> None:
    bench = Bench(BufferPolicy(), ScriptedBroker())
    for number in range(1_000):
        assert bench.publish("k", number)
    bench.run()
    assert bench.numbers() == list(range(1_000))
    assert bench.counters.delivered == 1_000
    assert bench.buffer.held_bytes == 0


def test_failed_records_go_again_before_newer_ones() -> None:
    bench = Bench(BufferPolicy(max_records=10), ScriptedBroker())
    bench.broker.mode = "hold"
    for number in range(8):
        bench.publish("k", number)
    bench.run(3)
    assert len(bench.broker.held) == 5  # the window
    bench.broker.break_off(2)
    bench.broker.mode = "up"
    bench.run()
    assert bench.numbers() == list(range(8))


def test_nothing_newer_is_sent_while_an_older_failure_is_unresolved() -> None:
    bench = Bench(BufferPolicy(max_records=100), ScriptedBroker())
    bench.broker.mode = "hold"
    bench.publish("k", 0)
    bench.publish("k", 1)
    bench.run(1)
    bench.broker.answer(1, ClusterUnavailable("timed out"))
    bench.publish("k", 2)
    bench.run(20)
    assert [int(value or b"") for _, _, value, *_ in bench.broker.held] == [1]


@pytest.mark.parametrize("through", [0, 255, 256, 299])
def test_nothing_newer_passes_a_failure_whose_report_waits_behind_many_others(through: int) -> None:
    """More reports than are looked at in one go: the failure is not known yet when the next batch could be sent."""
    bench = Bench(BufferPolicy(max_records=2_000), ScriptedBroker())
    bench.broker.mode = "hold"
    for number in range(300):
        bench.publish("k", number)
    bench.run(3)
    assert len(bench.broker.held) == 300
    bench.publish("k", 300)
    bench.broker.break_off(through)
    bench.broker.mode = "up"
    bench.run()
    assert bench.numbers() == list(range(301))


def test_a_failure_that_is_reported_while_a_batch_goes_out_ends_the_batch() -> None:
    class Breaking(ScriptedBroker):
        def take(self, record: Sent) -> None:
            if record.value == b"5":
                self.break_off(2)
                self.mode = "up"
            super().take(record)

    bench = Bench(BufferPolicy(), Breaking())
    bench.broker.mode = "hold"
    for number in range(10):
        bench.publish("k", number)
    bench.run()
    assert [n for n in bench.numbers() if n != 5] == [0, 1, 2, 3, 4, 6, 7, 8, 9], "5 was in the client's hands by then"


def test_a_record_that_goes_past_the_thread_does_not_pass_what_failed_since_it_was_numbered() -> None:
    bench = Bench(BufferPolicy(), ScriptedBroker())
    bench.broker.mode = "hold"
    bench.publish("k", 0)
    bench.run(1)
    (record,) = outgoing(range(1, 2))
    assert bench.sender.launch(record)
    bench.broker.break_off(0)
    bench.sender.step(bench.now_ms)  # the failure is known by now, and no report of it left
    bench.broker.mode = "up"
    assert not bench.sender.send_route.hand_over_launched(record)
    bench.run()
    assert bench.numbers() == [0, 1]


def test_a_full_client_keeps_the_order() -> None:
    bench = Bench(BufferPolicy(), ScriptedBroker(capacity=3))
    bench.broker.mode = "hold"
    for number in range(10):
        bench.publish("k", number)
    for _ in range(10):
        bench.run(3)
        bench.broker.answer(3)
    bench.run(5)
    assert bench.numbers() == list(range(10))


def test_a_refused_record_is_given_up_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(BufferPolicy(), ScriptedBroker())
    bench.publish("k", 1)
    bench.buffer.admit(Outgoing("t", b"k", b"too large", [("pl.event_id", b"big")]))
    bench.publish("k", 2)
    bench.run()
    assert bench.numbers() == [1, 2]
    assert bench.counters.failed == 1
    assert "big" in caplog.text


def test_what_the_client_can_not_take_is_given_up_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error ended the sender's step: its whole batch was in flight for ever, and no flush ended any more."""
    bench = Bench(BufferPolicy(), ScriptedBroker())
    take = bench.broker.take

    def refusing(record: Sent) -> None:
        if record.value == b"1":
            raise TypeError("a bytes-like object is required")
        take(record)

    monkeypatch.setattr(bench.broker, "take", refusing)
    for number in range(3):
        bench.publish("k", number)
    bench.run()
    assert bench.numbers() == [0, 2]
    assert (bench.counters.failed, bench.buffer.records, bench.buffer.held_bytes) == (1, 0, 0)


def test_a_missing_topic_is_waited_for_and_named(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(BufferPolicy(), ScriptedBroker())
    bench.broker.mode = "no topic"
    bench.publish("k", 1)
    bench.run(50)
    assert bench.counters.failed == 0
    assert bench.sender.trouble == "topic t does not exist: make it with `pipeline topics apply --topic t`"
    assert [record.message for record in caplog.records] == [f"{bench.sender.trouble}; buffer mode is block"]
    bench.broker.mode = "up"
    bench.run(200)
    assert bench.numbers() == [1]
    assert bench.sender.trouble == ""


@pytest.mark.parametrize("mode", ["block", "spool"])
def test_what_a_missing_topic_leaves_is_counted_at_the_end(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = ScriptedBroker()
    broker.send = no_such_topic  # type: ignore[method-assign]
    bench = Bench(spooling(tmp_path) if mode == "spool" else BufferPolicy(), broker)
    for number in range(7):
        bench.publish("k", number)
    bench.run(30)
    left = bench.sender.finish(bench.now_ms, 0.1)
    assert left.undelivered == (7 if mode == "block" else 0)
    assert (left.spool_bytes > 0) == (mode == "spool")
    assert "pipeline topics apply --topic t" in left.trouble
    said = caplog.records[-1].message
    assert ("7 records were not delivered" if mode == "block" else "in the spool") in said
    assert left.trouble in said


def no_such_topic(*args: object, **kwargs: object) -> None:
    raise ClusterError("sending failed: [UNKNOWN_TOPIC_OR_PART]")


def test_drop_oldest_drops_the_oldest_not_yet_sent() -> None:
    bench = Bench(BufferPolicy(mode="drop_oldest", max_records=10), ScriptedBroker())
    bench.broker.mode = "hold"
    for number in range(5):
        bench.publish("k", number)
    bench.run(3)
    for number in range(5, 30):
        assert bench.publish("k", number)
    bench.broker.mode = "up"
    bench.broker.answer(5)
    bench.run()
    assert bench.numbers() == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]
    assert bench.buffer.dropped == 20


@pytest.mark.parametrize("mode", ["block", "spool"])
def test_a_full_buffer_takes_nothing(mode: str, tmp_path: Path) -> None:
    bench = Bench(BufferPolicy(mode=mode, max_records=4, spool_dir=tmp_path), ScriptedBroker())  # type: ignore[arg-type]
    assert [bench.publish("k", number) for number in range(6)] == [True] * 4 + [False] * 2


def test_bytes_bound_the_buffer_too() -> None:
    buffer = Buffer(BufferPolicy(max_bytes=2_000))
    record = Outgoing("t", b"k", b"x" * 1_500, [])
    assert buffer.admit(record)
    assert not buffer.admit(Outgoing("t", b"k", b"x" * 1_500, []))


def test_a_record_for_which_no_dropping_makes_room_is_the_only_one_that_is_dropped() -> None:
    """What is with the client can't be taken back, and fills the buffer all but for a few small ones that wait."""
    bench = Bench(BufferPolicy(mode="drop_oldest", max_bytes=20_000), ScriptedBroker())
    bench.broker.mode = "hold"
    assert bench.buffer.admit(Outgoing("t", b"k", b"x" * 16_000, []))
    bench.run(1)
    for number in range(3):
        assert bench.publish("k", number)
    assert bench.buffer.admit(Outgoing("t", b"k", b"x" * 8_000, []))
    assert (bench.buffer.dropped, len(bench.buffer.waiting)) == (1, 3)


def test_one_record_larger_than_the_whole_buffer_is_still_taken() -> None:
    assert Buffer(BufferPolicy(max_bytes=1_024)).admit(Outgoing("t", b"k", b"x" * 5_000, []))


def test_an_outage_is_spooled_and_sent_again_in_order(tmp_path: Path) -> None:
    bench = Bench(spooling(tmp_path), ScriptedBroker())
    bench.broker.mode = "hold"
    for number in range(500):
        while not bench.publish("k", number):
            bench.run(1)
    bench.run(50)
    assert bench.buffer.records == 10  # the window, copied to the spool
    assert bench.sender.link.away
    assert bench.counters.spooled == 500
    bench.broker.mode = "up"
    bench.broker.answer(1_000)
    bench.run()
    assert bench.numbers() == list(range(500))  # also: no copy was sent twice
    assert bench.sender.drained
    assert bench.counters.delivered == 500


def test_away_is_told_by_silence_and_back_by_an_answer() -> None:
    link = Link(away_after_ms=2_000)
    link.watch(0, 1)
    link.watch(1_999, 1)
    assert not link.away
    link.watch(2_000, 1)
    assert link.away
    link.delivered(2_001)
    assert not link.away
    link.watch(9_000, 0)
    assert not link.away


def test_back_off_grows_and_ends_with_success() -> None:
    link = Link(2_000)
    link.failed(0)
    assert not link.may_send(99)
    assert link.may_send(100)
    link.failed(100)
    assert not link.may_send(299)
    link.delivered(200)
    assert link.may_send(200)


def test_a_spool_takes_over_before_memory_is_full(tmp_path: Path) -> None:
    buffer = Buffer(spooling(tmp_path, max_records=8))
    for number in range(8):
        buffer.admit(Outgoing("t", b"k", b"%d" % number, []))
    buffer.take(4)
    assert buffer.route(away=False, spool_empty=True, disk_works=True) is Route.SPOOL
    assert buffer.route(away=False, spool_empty=True, disk_works=False) is Route.HOLD


def test_a_disk_that_refuses_leaves_records_in_memory(tmp_path: Path) -> None:
    bench = Bench(spooling(tmp_path), ScriptedBroker())
    assert bench.spool is not None

    def refuse(records: object) -> int:
        raise OSError(28, "No space left on device")

    bench.spool.append = refuse  # type: ignore[method-assign]
    bench.broker.mode = "fail"
    for number in range(15):
        assert bench.publish("k", number)
    bench.run(100)
    assert bench.buffer.records == 15
    bench.broker.mode = "up"
    bench.run()
    assert bench.numbers() == list(range(15))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mode": "drop"}, "mode"),
        ({"max_records": 0}, "max_records"),
        ({"max_bytes": True}, "max_bytes"),
        ({"mode": "spool"}, "spool_dir"),
        ({"block_timeout": "soon"}, "block_timeout"),
    ],
)
def test_a_bad_policy_names_its_setting(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        BufferPolicy(**changes)  # type: ignore[arg-type]


class History:
    """Publishes, outages, crashes and restarts at random; remembers what the publisher has promised."""

    KEYS = ("a", "b", "c")

    def __init__(self, seed: int, path: Path, max_spool: int) -> None:
        self.dice = random.Random(seed)
        self.policy = spooling(path, max_records=16, spool_max_bytes=max_spool)
        self.broker = ScriptedBroker(capacity=12)
        self.bench = Bench(self.policy, self.broker)
        self.next = 0
        self.promised: set[int] = set()
        self.crashes = 0

    def play(self, moves: int) -> None:
        actions: list[tuple[Callable[[], None], int]] = [
            (self.publish, 40),
            (self.step, 40),
            (self.change_broker, 6),
            (self.answer, 10),
            (self.crash, 1),
        ]
        for _ in range(moves):
            self.dice.choices([a for a, _ in actions], [w for _, w in actions])[0]()

    def publish(self) -> None:
        for _ in range(self.dice.randrange(1, 6)):
            if self.bench.publish(self.KEYS[self.next % 3], self.next):
                self.promised.add(self.next)
                self.next += 1

    def step(self) -> None:
        self.bench.run(self.dice.randrange(1, 5), self.dice.choice((1, 50, 1_000)))

    def change_broker(self) -> None:
        self.broker.mode = self.dice.choice(("up", "hold", "fail"))

    def answer(self) -> None:
        if self.dice.random() < 0.5:
            self.broker.answer(self.dice.randrange(0, 8))
        else:
            self.broker.break_off(self.dice.randrange(0, 8))

    def crash(self) -> None:
        """The process dies: memory is gone, the client's queue too; what is on disk must come again."""
        self.crashes += 1
        waiting = self.bench.buffer.waiting
        lost = {int(r.value or b"") for r in waiting}
        lost |= {int(r.value or b"") for r in self.bench.buffer.in_flight.values() if not r.copied}
        self.promised -= lost - set(self.bench.numbers())
        for folder in Path(str(self.policy.spool_dir)).iterdir():
            assert folder.is_dir()
        assert self.bench.spool is not None
        self.bench.spool._own.sync()
        import os

        os.close(self.bench.spool._own._lock)
        for folder in self.bench.spool._left:
            os.close(folder._lock)
        self.broker.held.clear()
        self.bench = Bench(self.policy, self.broker)

    def finish(self) -> None:
        self.broker.mode = "up"
        self.broker.answer(1_000)
        self.bench.run(3_000)
        assert self.bench.buffer.records == 0
        assert self.bench.sender.drained


@pytest.mark.parametrize("max_spool", [1 << 20, 4_096])
def test_random_histories_lose_nothing_and_keep_order(tmp_path: Path, max_spool: int) -> None:
    crashes = spooled = 0
    for seed in range(60):
        history = History(seed, tmp_path / str(seed), max_spool)
        history.play(200)
        spooled += history.bench.counters.spooled
        history.finish()
        crashes += history.crashes
        arrived: dict[bytes, list[int]] = {}
        seen: set[int] = set()
        for _, key, value, *_ in history.broker.log:
            number = int(value or b"")
            if number not in seen:
                arrived.setdefault(key or b"", []).append(number)
            seen.add(number)
        assert history.promised <= seen, f"lost {sorted(history.promised - seen)[:5]}, seed {seed}"
        for key, numbers in arrived.items():
            assert numbers == sorted(numbers), f"key {key!r} out of order, seed {seed}"
        if not history.crashes:
            assert len(history.broker.log) == len(seen), f"sent twice, seed {seed}"
    assert crashes > 25
    assert spooled > 250


def outgoing(numbers: range) -> list[Outgoing]:
    made = [Outgoing("t", b"k", b"%d" % number, [("pl.event_id", b"e%d" % number)]) for number in numbers]
    for number, record in zip(numbers, made, strict=True):
        record.number = number
    return made


def test_bulk_goes_straight_to_the_client_only_while_nothing_older_waits() -> None:
    bench = Bench(BufferPolicy(max_records=100), ScriptedBroker(capacity=4))
    bench.broker.mode = "hold"
    assert bench.sender.send_direct(outgoing(range(6))) == 6  # the client took four, two wait again
    assert [int(record.value or b"") for record in bench.buffer.waiting] == [4, 5]
    assert bench.sender.send_direct(outgoing(range(6, 8))) == 0
    for record in outgoing(range(6, 8)):
        assert bench.buffer.admit(record)
    bench.broker.capacity, bench.broker.mode = 100, "up"
    bench.broker.answer(4)
    bench.run()
    assert bench.numbers() == list(range(8))


def test_bulk_does_not_overtake_a_failure_or_the_window() -> None:
    bench = Bench(BufferPolicy(max_records=8), ScriptedBroker())
    bench.broker.mode = "hold"
    assert bench.sender.send_direct(outgoing(range(6))) == 4
    bench.broker.break_off(1)
    bench.sender.step(bench.now_ms)
    assert bench.sender.send_direct(outgoing(range(4, 6))) == 0
    bench.broker.mode = "up"
    bench.run()
    assert bench.numbers() == [0, 1, 2, 3]


def test_resending_does_not_overtake_one_that_failed(tmp_path: Path) -> None:
    """One of a batch from the spool failed, others are open, and the client has room again: the rest must wait."""
    before = Spool(tmp_path, 1 << 20)
    before.append(outgoing(range(6)))
    before.close()
    bench = Bench(spooling(tmp_path), ScriptedBroker(capacity=3))
    bench.broker.mode = "hold"
    bench.run(3)
    assert [int(value or b"") for _, _, value, *_ in bench.broker.held] == [0, 1, 2]
    bench.broker.answer(1, ClusterUnavailable("timed out"))
    bench.run(20)
    assert [int(value or b"") for _, _, value, *_ in bench.broker.held] == [1, 2]
    bench.broker.break_off(0)
    bench.broker.mode = "up"
    bench.run()
    assert bench.numbers() == list(range(6))


def test_a_registry_that_answers_ends_the_silence_that_waiting_for_it_was(tmp_path: Path) -> None:
    bench = Bench(spooling(tmp_path), ScriptedBroker())
    bench.broker.mode = "hold"
    known = False

    def encode(record: Outgoing) -> bool:
        record.unencoded = None if known else record.unencoded
        return known

    bench.sender.send_route.encode = encode
    record = Outgoing("t", b"k", b"1", [])
    record.unencoded = "agent.run.Message"
    bench.buffer.admit(record)
    bench.run(30)
    assert bench.sender.safe
    known = True
    bench.run(3)
    assert len(bench.broker.held) == 1
    assert not bench.sender.link.away, "the broker has had no time to answer yet"
    bench.run(30)
    assert bench.sender.link.away, "now it had"
    bench.broker.mode = "up"
    bench.broker.answer(1)
    bench.run(3)
    assert bench.numbers() == [1]
    assert not bench.sender.link.away


def launched(bench: Bench, record: Outgoing) -> bool:
    """What a publisher does while its thread sleeps."""
    if not bench.sender.launch(record):
        return False
    bench.sender.send_route.hand_over_launched(record)
    return True


def test_one_record_goes_past_the_thread_only_while_nothing_older_waits_and_few_are_under_way(tmp_path: Path) -> None:
    bench = Bench(BufferPolicy(max_records=4 * DIRECT_IN_FLIGHT), ScriptedBroker(capacity=3))
    bench.broker.mode = "hold"
    assert all(launched(bench, record) for record in outgoing(range(4)))
    # The client took three, one waits again.
    assert [int(record.value or b"") for record in bench.buffer.waiting] == [3]
    assert not launched(bench, outgoing(range(4, 5))[0])
    bench.broker.capacity = 1_000
    bench.sender.step(bench.now_ms)
    assert launched(bench, outgoing(range(4, 5))[0])
    bench.broker.break_off(1)
    bench.sender.step(bench.now_ms)
    assert not launched(bench, outgoing(range(5, 6))[0])  # an older one has failed
    bench.broker.mode = "up"
    bench.broker.answer(10)
    bench.run()
    assert bench.numbers() == list(range(5))
    bench.broker.mode = "hold"
    more = [launched(bench, record) for record in outgoing(range(5, 5 + DIRECT_IN_FLIGHT + 1))]
    assert more == [True] * DIRECT_IN_FLIGHT + [False]
    encoded_later = outgoing(range(9, 10))[0]
    encoded_later.unencoded = "ToolCall"
    assert not Bench(BufferPolicy(), ScriptedBroker()).sender.launch(encoded_later)
    assert not Bench(spooling(tmp_path), ScriptedBroker()).sender.launch(outgoing(range(1))[0])


def test_random_histories_with_records_past_the_thread_keep_the_order() -> None:
    past = failed = 0
    for seed in range(100):
        dice, bench = random.Random(seed), Bench(BufferPolicy(max_records=64), ScriptedBroker(capacity=12))
        promised = 0
        for _ in range(300):
            match dice.randrange(5):
                case 0 | 1:
                    record = Outgoing("t", b"abc"[promised % 3 :][:1], b"%d" % promised, [])
                    direct = dice.random() < 0.7 and launched(bench, record)
                    past += direct
                    promised += direct or bench.buffer.admit(record)
                case 2:
                    bench.run(dice.randrange(1, 5), dice.choice((1, 50, 1_000)))
                case 3:
                    bench.broker.mode = dice.choice(("up", "up", "hold", "fail"))
                    failed += bench.broker.mode == "fail"
                case _:
                    answer = bench.broker.answer if dice.random() < 0.7 else bench.broker.break_off
                    answer(dice.randrange(0, 8))
        bench.broker.mode = "up"
        bench.broker.answer(1_000)
        bench.run(3_000)
        arrived = [(key, int(value or b"")) for _, key, value, *_ in bench.broker.log]
        assert sorted(number for _, number in arrived) == list(range(promised)), f"lost or sent twice, seed {seed}"
        for key in (b"a", b"b", b"c"):
            own = [number for each, number in arrived if each == key]
            assert own == sorted(own), f"key {key!r} out of order, seed {seed}"
    assert past > 2_000
    assert failed > 500
