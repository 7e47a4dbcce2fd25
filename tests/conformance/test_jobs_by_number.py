"""What jobs promise, by the number of the capability, on a cluster in memory and on real Kafka alike.

Beside these: A5 in test_background_queues, B6, B10, F1 and D5's schedules in test_jobs_commands; what needs processes that die
(C5), a receiver (B7) or child processes (B10) is in tests/integration.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from pipeline import (
    Context,
    Fixed,
    JobContext,
    Pipeline,
    Reject,
    RetentionPolicy,
    RunCompleted,
    RunEvent,
    Settings,
    Warn,
    queue_hook,
)
from pipeline.background import KafkaQueue
from pipeline.inspect.scan import read_batches
from pipeline.model.cluster import Message, TopicPartition
from pipeline.model.errors import InvalidJob, JobMissing, JobUnsuccessful
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRecord
from pipeline.testing import run_processor
from tests.jobs_at_work import make_topics
from tests.patience import PATIENCE

pytestmark = pytest.mark.timeout(120)
SOON = "30s"
KEPT = 3

Make = Callable[[str], Pipeline]


class Ticket(BaseModel):
    id: str
    text: str = ""


class Label(BaseModel):
    label: str


@pytest.fixture
def make(broker: str, prefix: str) -> Make:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    return lambda name: Pipeline(name, settings=Settings(broker=broker, prefix=prefix, session_timeout_s=6.0))


def play(app: Pipeline, story: Callable[[], Awaitable[None]], partitions: int = 1, *others: Pipeline) -> None:
    """The story, while the application's workers run. `others` only ask."""
    make_topics(app, partitions)

    async def played() -> None:
        await app.start()
        try:
            await asyncio.wait_for(story(), 60 * PATIENCE)
        finally:
            for each in (*others, app):
                await each.stop()

    asyncio.run(played())


async def soon(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    until_s = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until_s, "it did not come"
        await asyncio.sleep(0.05)
    return found


def dead_jobs(app: Pipeline) -> list[Message]:
    place = TopicPartition(app.desk().topics.topics.dead_letters, 0)
    admin = app.cluster.admin()
    try:
        ends = admin.end_offsets([place])
    finally:
        admin.close()
    return [message for batch in read_batches(app.cluster, {place: 0}, ends, None) for message in batch]


def said(message: Message, name: str) -> str:
    return dict(message.headers() or ())[name].decode()


def test_a2_what_follows_a_run_is_enqueued_by_hooks_into_several_topics(make: Make) -> None:
    app, ran = make("hooked"), list[tuple[str, Any]]()

    @app.job("evaluate", queue="evaluations")
    async def evaluate(given: str) -> None:
        ran.append(("evaluate", given))

    @app.job("index", queue="indexing")
    async def index(given: str) -> None:
        ran.append(("index", given))

    async def story() -> None:
        queue = KafkaQueue(app)
        hooks = [queue_hook(queue, topic, lambda run: run) for topic in ("evaluate", "index")]
        took_s = []
        for hook in hooks:
            began = time.perf_counter()
            hook("run-7")
            took_s.append(time.perf_counter() - began)
        assert min(took_s) < 0.01, "the agent waits for a processor at most"
        assert max(took_s) < 0.05 * PATIENCE, "also when it is the first"
        assert [await hook.drain_async(20) for hook in hooks] == [True, True]
        await soon(lambda: len(ran) == 2)
        assert sorted(ran) == [("evaluate", "run-7"), ("index", "run-7")]
        await queue.close()

    play(app, story)


def test_a3_a_hook_that_comes_later_runs_over_past_runs(make: Make) -> None:
    """The runs are there before anybody declares the group, and the job."""
    agent, app, ran = make("agent"), make("later"), list[str]()

    @app.job("evaluate")
    async def evaluate(run_id: str) -> None:
        ran.append(run_id)

    @app.subscribe("agent.run.events", group="evaluations")
    async def ended(event: RunEvent, _ctx: Context) -> None:
        if isinstance(event, RunCompleted):
            await app.enqueue(evaluate, event.run_id)

    make_topics(app, 1)
    runs = []
    with agent.recorder() as recorder:
        for _ in range(3):
            with recorder.run(agent="support", tenant="acme") as run:
                runs.append(run.run_id)

    async def story() -> None:
        await soon(lambda: len(ran) >= 3)
        assert sorted(ran) == sorted(runs)

    play(app, story)


def test_b1_a_jobs_record_says_what_was_asked_for_and_what_became_of_it(make: Make) -> None:
    app = make("records")

    @app.job("classify", attempts=5, backoff=Fixed("100ms"), jitter=0)
    async def classify(ticket: Ticket, job: JobContext) -> Label:
        job.progress(1, 2, "half")
        if job.attempt == 1:
            raise LookupError("not yet")
        return Label(label="billing")

    async def story() -> None:
        before_ms = time.time() * 1000 - 1_000
        handle = await app.enqueue(
            classify, Ticket(id="7"), key="k", tenant="acme", workflow_id="w", tags=("red",), priority=4, attempts=3,
            timeout="9s",
        )  # fmt: skip
        await handle.result(SOON)
        record = await app.desk().job(handle.id)
        assert isinstance(record, JobRecord)
        asked, outcome = record.request, record.outcome
        assert (asked.id, asked.type, asked.key, asked.tenant) == (handle.id, "classify", "k", "acme")
        assert (asked.workflow_id, asked.tags, asked.priority) == ("w", ("red",), 4)
        assert (asked.attempts, asked.timeout_ms, asked.payload_ref) == (3, 9_000, None)
        assert asked.payload == b'{"id":"7","text":""}'
        assert (record.state, record.attempt, record.stalls) == (JobState.COMPLETED, 2, 0)
        assert before_ms < asked.created_ms <= record.started_ms <= record.finished_ms < time.time() * 1000 + 1_000
        assert record.finished_ms - asked.created_ms >= 99, "it waited before the second attempt"
        assert outcome.result == b'{"label":"billing"}'
        assert outcome.progress is not None
        assert (outcome.progress.processed, outcome.progress.percentage) == (1, 50.0)

    play(app, story)


def test_b2_types_are_registered_by_name_and_typed_on_both_sides(make: Make) -> None:
    app, asker = make("typed"), make("asker")

    @app.job("classify")
    async def classify(ticket: Ticket) -> Label:
        return Label(label=ticket.id)

    @asker.job("translate")
    async def translate(ticket: Ticket) -> None:
        raise AssertionError("it runs nowhere")

    async def story() -> None:
        assert await (await app.enqueue("classify", {"id": "by name"})).result(SOON) == Label(label="by name")
        with pytest.raises(InvalidJob, match="does not fit job 'classify': id"):
            await app.enqueue(classify, {"text": "no id"})
        with pytest.raises(InvalidJob, match="'translate' is not declared by this application"):
            await app.enqueue("translate", Ticket(id="1"))
        handle = await asker.enqueue(translate, Ticket(id="1"))
        with pytest.raises(JobUnsuccessful, match="translate"):
            await handle.result(SOON)
        (letter,) = await soon(lambda: dead_jobs(app))
        assert "translate" in said(letter, "pl.error.message")

    play(app, story, 1, asker)


def test_b5_delay_run_at_expires_and_key_are_kept(make: Make) -> None:
    app, ran = make("options"), dict[str, float]()

    @app.job("note")
    async def note(name: str) -> None:
        ran[name] = time.time() * 1000
        await asyncio.sleep(1.0 if name == "ahead" else 0.02)

    async def story() -> None:
        asked_ms = time.time() * 1000
        at_ms = int(asked_ms) + 900
        later = await app.enqueue(note, "later", delay="700ms")
        at = await app.enqueue(note, "at", run_at=at_ms)
        keyed = [await app.enqueue(note, f"{n}", key="k") for n in range(20)]
        for handle in (later, at, *keyed):
            await handle.result(SOON)
        assert 700 <= ran["later"] - asked_ms < 2_700
        assert 0 <= ran["at"] - at_ms < 2_000
        assert [name for name in ran if name.isdigit()] == [f"{n}" for n in range(20)], "in the order of its key"
        ahead = await app.enqueue(note, "ahead", key="k")
        expired = await app.enqueue(note, "expired", key="k", expires="100ms")
        with pytest.raises(JobUnsuccessful, match="was cancelled: expired"):
            await expired.result(SOON)
        await ahead.result(SOON)
        assert "expired" not in ran

    play(app, story)


def test_b8_finished_jobs_are_kept_by_number(make: Make) -> None:
    app = make("kept")

    @app.job("one", retention=RetentionPolicy(completed=KEPT))
    async def one(_number: int) -> None: ...

    async def story() -> None:
        handles = []
        for number in range(8):
            handles.append(await app.enqueue(one, number))
            await handles[-1].result(SOON)

        async def known() -> list[bool]:
            found = []
            for handle in handles:
                try:
                    found.append((await app.job_handle(one, handle.id).status()).state is JobState.COMPLETED)
                except JobMissing:
                    found.append(False)
            return found

        wanted = [False] * (8 - KEPT) + [True] * KEPT
        until_s = time.monotonic() + 30 * PATIENCE
        while (found := await known()) != wanted:
            assert time.monotonic() < until_s, found
            await asyncio.sleep(0.2)

    play(app, story)


def test_c1_each_class_of_errors_has_its_outcome(make: Make) -> None:
    app, ran = make("classes"), list[str]()

    @app.job("obey", attempts=3, backoff=Fixed("100ms"), jitter=0, timeout="300ms")
    async def obey(how: str) -> Any:
        ran.append(how)
        if how == "rejects":
            raise Reject("unsafe action")
        if how == "fails":
            raise ConnectionError("rate limited")
        if how == "hangs":
            await asyncio.sleep(60)
        return Warn("no sources") if how == "warns" else None

    async def story() -> None:
        for how, match in (
            ("rejects", "given up after 1 attempt: Reject: unsafe action"),
            ("fails", "given up after 3 attempts: ConnectionError: rate limited"),
            ("hangs", "given up after 3 attempts: .*300ms|given up after 3 attempts: .*0.3"),
        ):
            with pytest.raises(JobUnsuccessful, match=match):
                await (await app.enqueue(obey, how)).result(SOON)
        warned = await app.enqueue(obey, "warns")
        await warned.result(SOON)
        status = await warned.status()
        assert (status.state, status.warning) == (JobState.COMPLETED_WITH_WARNING, "no sources")
        letters = await soon(lambda: len(found := dead_jobs(app)) == 3 and found)
        assert [said(letter, "pl.attempt") for letter in letters] == ["1", "3", "3"]

    play(app, story)
    assert ran == ["rejects"] + ["fails"] * 3 + ["hangs"] * 3 + ["warns"]


def test_c2_a_dedup_id_runs_once_and_effects_have_one_key_on_every_attempt(make: Make) -> None:
    app, keys = make("once"), list[str]()

    @app.job("pay", attempts=3, backoff=Fixed("100ms"), jitter=0)
    async def pay(_amount: int, job: JobContext) -> int:
        keys.append(job.idempotency_key)
        if len(keys) == 1:
            raise ConnectionError("again")
        return 7

    async def story() -> None:
        first = await app.enqueue(pay, 1, dedup_id="order-1", dedup_window="1h")
        second = await app.enqueue(pay, 2, dedup_id="order-1", dedup_window="1h")
        assert await second.duplicate_of() == first.id
        assert (await first.result(SOON), await second.result(SOON)) == (7, 7)
        assert len(keys) == 2, "one job, two attempts"
        assert len(set(keys)) == 1
        other = await app.enqueue(pay, 3, dedup_id="order-2", dedup_window="1h")
        assert await other.duplicate_of() is None
        await other.result(SOON)
        assert len(set(keys)) == 2

    play(app, story)


def test_d4_urgent_jobs_go_first_and_a_tenant_waits_for_its_share_only(make: Make) -> None:
    app, ran = make("fair"), list[str]()
    runs, gate = asyncio.Event(), asyncio.Event()
    app.queue("default", concurrency=1)

    @app.job("note")
    async def note(name: str) -> None:
        if name == "first":
            runs.set()
            await gate.wait()
        ran.append(name)

    async def story() -> None:
        first = await app.enqueue(note, "first")
        await runs.wait()  # else another one may be chosen before it
        many = await app.enqueue_many(note, [f"many{n}" for n in range(40)], tenant="big")
        small = await app.enqueue(note, "small", tenant="small")
        urgent = await app.enqueue(note, "urgent", tenant="big", priority=10)

        async def waiting() -> int:
            return (await app.desk().stats()).total.waiting

        until_s = time.monotonic() + 30 * PATIENCE
        while await waiting() < 42:
            assert time.monotonic() < until_s
            await asyncio.sleep(0.1)
        gate.set()
        for handle in (first, small, urgent, *many):
            await handle.result(SOON)
        places = {name: place for place, name in enumerate(ran)}
        assert places["urgent"] <= 2, ran[:8]
        assert places["small"] <= 4, ran[:8]
        order = [name for name in ran if name.startswith("many")]
        assert all(int(a[4:]) < int(b[4:]) for a, b in itertools.pairwise(order))

    play(app, story)


@pytest.mark.parametrize("failures", [1, 9])
def test_f5_what_run_processor_tells_is_what_becomes_of_the_job_at_work(make: Make, failures: int) -> None:
    app = make("f5")

    @app.job("charge", attempts=3, backoff=Fixed("100ms"), jitter=0)
    async def charge(ticket: Ticket, job: JobContext) -> Label:
        if job.attempt <= failures:
            raise ConnectionError("the bank does not answer")
        return Label(label=f"{ticket.id} at attempt {job.attempt}")

    told = run_processor(charge, Ticket(id="t"), expect_failure=failures > 3)

    async def story() -> None:
        handle = await app.enqueue(charge, Ticket(id="t"))
        result = None
        with contextlib.suppress(JobUnsuccessful):
            result = await handle.result(SOON)
        status = await handle.status()
        assert (status.state, status.attempt, result) == (told.state, told.attempts, told.result)

    play(app, story)
