"""A stream that an agent left, closed by the garbage collector in the middle of our own critical sections, in whatever thread it runs.

Each body runs in a thread of its own with a deadline, since what it shows would else hang for ever.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import signal
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel

from pipeline.emit.hooks.langchain import LangChainHooks
from pipeline.emit.hooks.watch import HookOptions, RunWatch
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.publisher import Publisher
from pipeline.emit.recorder import RecorderOptions, SyncRecorder
from pipeline.emit.run_sync import Run
from pipeline.emit.sections import Bell, Section, busy, inside, inside_publishing, put_off, then_catch_up
from pipeline.model.errors import BufferFull
from pipeline.model.events import Message, RunCancelled, RunEvent
from tests.fake_producer import FakeProducer
from tests.patience import PATIENCE
from tests.unit.test_emit_recorder import Kept

DEADLINE_S = 5.0 * PATIENCE
CLOCK = itertools.count(1_000)


class Plain:
    """Encodes an event as its name and number; keeps it."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []

    def encode(self, value: RunEvent, *, topic: str) -> bytes:
        self.events.append(value)
        return f"{type(value).__name__} {value.run_id} {value.sequence}".encode()


class Bench:
    def __init__(self, policy: BufferPolicy | None = None) -> None:
        self.producer = FakeProducer()
        self.encoder = Plain()
        self.publisher = Publisher(self.producer, self.encoder, policy)
        self.strike: Callable[[], object] | None = None
        options = RecorderOptions(clock_ms=self._clock, owns_publisher=False)
        self.recorder = SyncRecorder(self.publisher, options)

    def _clock(self) -> int:
        self.struck()
        return next(CLOCK)

    def struck(self) -> None:
        strike, self.strike = self.strike, None
        if strike is not None:
            strike()

    def strike_in(self, owner: object, name: str) -> None:
        """The next call of this one is where the collector runs."""
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.struck()
            return inner(*args, **kwargs)

        setattr(owner, name, call)

    def arrived(self, run_id: str) -> list[str]:
        """Its events in Kafka, as "name number"."""
        assert self.publisher.flush(DEADLINE_S).complete
        told = [(record.value or b"").decode().split() for record in self.producer.log]
        return [f"{name} {number}" for name, run, number in told if run == run_id]


@pytest.fixture
def bench() -> Iterator[Bench]:
    gc.disable()
    made = Bench()
    yield made
    gc.enable()
    made.publisher.close(0.5)


def leave_a_stream(run: Run) -> None:
    """As SDKs have it: an object that holds its generator, whose frame holds the object."""
    stream = types.SimpleNamespace()

    def chunks(held: object) -> Iterator[int]:
        with run.model_call("gpt-large"):
            yield from range(10)
        assert held

    stream.chunks = chunks(stream)
    next(stream.chunks)


def in_time(body: Callable[[], object]) -> None:
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "it hangs"
    if trouble:
        raise trouble[0]


def test_inside_its_own_runs_turn(bench: Bench) -> None:
    def body() -> None:
        with bench.recorder.run(agent="a", run_id="r") as run:
            leave_a_stream(run)
            bench.strike = gc.collect
            run.message("user", "hello")
            assert bench.strike is None

    in_time(body)
    assert bench.arrived("r") == ["RunStarted 0", "Message 1", "ModelCall 2", "RunCompleted 3"]


@pytest.mark.parametrize("place", ["launch", "admit"])
def test_inside_the_publishers_section_of_another_run(bench: Bench, place: str) -> None:
    if place == "admit":
        bench.publisher._sender.launch = lambda record: False  # type: ignore[method-assign]

    def body() -> None:
        with bench.recorder.run(agent="a", run_id="left") as left, bench.recorder.run(agent="a", run_id="r") as run:
            leave_a_stream(left)
            bench.strike_in(bench.publisher._buffer, place)
            bench.strike = gc.collect
            while bench.strike is not None:  # one goes straight to the client only while the publisher's thread sleeps
                run.message("user", "hello")

    in_time(body)
    assert bench.arrived("left") == ["RunStarted 0", "ModelCall 1", "RunCompleted 2"]
    numbers = [int(told.split()[1]) for told in bench.arrived("r")]
    assert numbers == list(range(len(numbers)))


def test_inside_the_publishers_own_thread(bench: Bench) -> None:
    done = threading.Event()

    def collect() -> None:
        gc.collect()
        done.set()

    def body() -> None:
        with bench.recorder.run(agent="a", run_id="r") as run:
            leave_a_stream(run)
            bench.strike = collect
            bench.strike_in(bench.publisher._buffer, "route")
            assert done.wait(DEADLINE_S)

    in_time(body)
    assert bench.arrived("r") == ["RunStarted 0", "ModelCall 1", "RunCompleted 2"]


def test_the_publishers_own_thread_does_not_wait_for_room_that_it_has_to_make() -> None:
    gc.disable()
    full = Bench(BufferPolicy(max_records=2, block_timeout=10 * DEADLINE_S))
    full.producer.up = False
    struck = threading.Event()

    def collect() -> None:
        gc.collect()
        struck.set()

    def body() -> None:
        run = full.recorder.run(agent="a", run_id="r")
        run.__enter__()
        leave_a_stream(run)
        run.message("user", "the second of two")
        full.strike = collect
        full.strike_in(full.publisher._buffer, "route")
        assert struck.wait(DEADLINE_S)
        full.producer.come_back()

    try:
        in_time(body)
        assert full.arrived("r") == ["RunStarted 0", "Message 1"]
    finally:
        gc.enable()
        full.publisher.close(0.5)


def test_while_another_thread_records_the_run_and_waits_for_this_one(bench: Bench) -> None:
    """Its turn is held by a thread that waits for the section which this one is in."""
    numbered = threading.Event()

    def body() -> None:
        with bench.recorder.run(agent="a", run_id="left") as left, bench.recorder.run(agent="a", run_id="r") as run:
            leave_a_stream(left)
            other = threading.Thread(target=lambda: left.message("user", "elsewhere"), daemon=True)

            def strike() -> None:
                bench.strike = numbered.set  # by the other thread's clock: it has its run's turn by then
                other.start()
                assert numbered.wait(DEADLINE_S)
                gc.collect()

            with bench.publisher._lock:
                strike()
            run.message("user", "hello")
            other.join(DEADLINE_S)
            assert not other.is_alive()

    in_time(body)
    assert bench.arrived("left") == ["RunStarted 0", "Message 1", "ModelCall 2", "RunCompleted 3"]


def test_a_framework_that_is_told_of_the_end_there(bench: Bench) -> None:
    """LangChain ends the run itself when a stream is closed: with its hooks, once, and not as one that hangs."""
    ended: list[object] = []
    hooks = LangChainHooks(bench.recorder, HookOptions(tenant="t", after_run=[ended.append], on_error=[ended.append]))
    model = FakeListChatModel(responses=["It was sent on Monday."])

    def body() -> None:
        turn = types.SimpleNamespace()

        def chunks(held: object) -> Iterator[object]:
            yield from model.stream("x", config={"callbacks": [hooks]})
            assert held

        turn.chunks = chunks(turn)
        next(turn.chunks)
        del turn
        with bench.publisher._lock:
            gc.collect()
        assert hooks.stats().open == 0
        with bench.recorder.run(agent="a", run_id="r"):
            pass

    in_time(body)
    assert bench.arrived("r") == ["RunStarted 0", "RunCompleted 1"]
    assert (hooks.stats().runs, hooks.stats().errors) == (1, 0)


def test_a_run_told_by_calls_that_ends_there_calls_its_hooks_when_the_section_is_left(bench: Bench) -> None:
    ended: list[str] = []
    watch = RunWatch("a framework", bench.recorder, HookOptions(after_run=[lambda run: ended.append(run.status)]))

    def body() -> None:
        run = watch.open("a", run_id="r")
        run.model_call("m", "gpt-large")
        with bench.publisher._lock:
            assert run.end("m")
            watch.close(run)
            assert ended == []
        assert ended == ["COMPLETED"]

    in_time(body)
    assert bench.arrived("r") == ["RunStarted 0", "ModelCall 1", "RunCompleted 2"]


def test_a_signal_handler_that_publishes_and_asks_inside_a_section(bench: Bench) -> None:
    seen: list[object] = []

    def handle(_number: int, _frame: object) -> None:
        bench.publisher.publish(Message(**_fields("s"), role="USER", content="stop"))
        seen.append(bench.publisher.stats().published)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with bench.publisher._lock:
            signal.raise_signal(signal.SIGUSR1)
            assert seen == [0]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert bench.arrived("s") == ["Message 0"]


def test_what_can_not_be_recorded_there_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise BufferFull("no room")

    with Section():
        put_off(refuse)
    assert "is not recorded: no room" in caplog.text


def test_what_is_put_off_is_done_once_when_the_outermost_is_left() -> None:
    done: list[str] = []
    section = Section()
    assert not inside()
    with then_catch_up, busy():
        with section, section:
            put_off(done.append, "first")
            put_off(done.append, "second")
            assert inside_publishing()
        assert done == []
        assert inside()
        assert not inside_publishing()
    assert done == ["first", "second"]


def test_what_is_put_off_is_done_to_its_end_before_the_next() -> None:
    """Though it leaves a critical section of its own on its way."""
    done: list[str] = []

    def first() -> None:
        with then_catch_up, busy():
            done.append("begins")
        done.append("ends")

    with then_catch_up, busy():
        put_off(first)
        put_off(done.append, "next")
    assert done == ["begins", "ends", "next"]


class Interrupted(KeyboardInterrupt):
    """What the handler of a signal raises, once each time that it is armed."""


@pytest.mark.parametrize("real", [False, True], ids=["no publisher", "publisher"])
def test_an_interrupt_leaves_no_turn_taken_and_no_event_behind(bench: Bench, real: bool) -> None:
    armed, chance = [False], random.Random(7)

    def handle(_number: int, _frame: object) -> None:
        if armed[0]:
            armed[0] = False
            raise Interrupted

    kept = Kept()
    keeper: Kept | Plain = bench.encoder if real else kept
    recorder = SyncRecorder(bench.publisher if real else kept, RecorderOptions(owns_publisher=False))
    before = signal.signal(signal.SIGALRM, handle)
    try:
        for number in range(150):
            run = recorder.run(agent="a", run_id=f"r{number}")
            with contextlib.suppress(Interrupted), run:
                armed[0] = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.002))
                while True:
                    run.message("user", "hello")
            assert not inside()
            told = [event for event in keeper.events if event.run_id == run.run_id]
            assert type(told[-1]) is RunCancelled
            numbers = [event.sequence for event in told]  # the one that was interrupted may be missing
            assert numbers == sorted(set(numbers))
            elsewhere = threading.Thread(target=lambda turn=run._turn: turn.acquire() and turn.release(), daemon=True)
            elsewhere.start()
            elsewhere.join(DEADLINE_S)
            assert not elsewhere.is_alive(), "the turn is taken"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert bench.publisher.flush(DEADLINE_S).complete


def test_a_bell_rings_once_however_often_it_was_rung() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert bell.wait(0.0)
    assert not bell.wait(0.0)
    bell.ring()
    bell.hush()
    assert not bell.wait(0.001)


def _fields(run_id: str) -> dict[str, Any]:
    return {"event_id": "e", "run_id": run_id, "sequence": 0, "occurred_at": 1, "agent": "a", "tenant": "t"}
