"""B7: an ending is told to a webhook by a signed POST, which is a job like any other: retried, dead-lettered, one for each ending."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import cast

import pytest
import structlog
from pydantic import BaseModel

from pipeline.codec.jobs import StoreCodec
from pipeline.core.jobs.entries import Effect, Entry, Letter
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import INLINE_BYTES_MAX, JobPolicy, RetentionPolicy
from pipeline.model.job_states import TERMINAL, JobState
from pipeline.model.job_webhooks import DELIVERY, body_of, delivery_of
from pipeline.model.jobs import Completed, JobOutcome, JobRecord, JobRequest, RetryJob
from pipeline.model.store_keys import job_key
from pipeline.worker.jobs.writing import StoreWriter, Written
from pipeline.worker.sending import RESEND_MS
from tests.unit.jobs.test_store_writer import REFUSED, Producer, writer
from tests.unit.jobs.worlds import World, application, play, until
from tests.unit.test_alerting import Receiver
from tests.unit.test_core_jobs_board import NEVER, NOW, Bench

STATE, DEAD = "jobs.default.default.state", "jobs.default.default.dlq"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Label(BaseModel):
    label: str


def test_b7_an_ending_is_posted_signed_and_timestamped(receiver: Receiver) -> None:
    app = application()
    app.webhook("crm", receiver.url, secret="shared")

    @app.job("classify")
    async def classify(text: str) -> Label:
        return Label(label=text)

    @app.job("fails", attempts=1)
    async def fails(_given: None) -> None:
        raise RuntimeError("no api_key=hunter2hunter2 here")

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(classify, "é", webhook="crm", tenant="acme", tags=("a",), workflow_id="w")
        await until(lambda: len(receiver.got) == 1)
        headers, body = receiver.got[0]
        signed = hmac.new(b"shared", headers["Pipeline-Timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
        assert headers["Pipeline-Signature"] == f"sha256={signed}"
        assert headers["Pipeline-Job-Id"] == handle.id
        told = json.loads(body)
        assert (told["id"], told["type"], told["state"]) == (handle.id, "classify", "completed")
        assert (told["result"], told["tenant"], told["tags"], told["workflow_id"]) == (
            {"label": "é"},
            "acme",
            ["a"],
            "w",
        )
        assert told["error"] is None
        failed = await app.enqueue(fails, webhook="crm")
        await until(lambda: len(receiver.got) == 2)
        told = json.loads(receiver.got[1][1])
        assert (told["id"], told["state"], told["error"]["class"]) == (failed.id, "dead_letter", "RuntimeError")
        assert told["error"]["message"] == "no api_key=[secret] here"
        await until(lambda: len(world.read(DEAD)) == 1)
        codec = StoreCodec(app.codec, STATE)
        for job_id in (handle.id, failed.id):
            key = job_key(job_id)
            values = [message.value() or b"" for message in world.read(STATE) if message.key() == key]
            records = [cast(JobRecord, codec.unpack(key, value)) for value in values]
            ended = [(record.letter_due, record.webhook_due) for record in records if record.state in TERMINAL]
            assert ended == [(job_id == failed.id, True), (False, False)], "it is on its way, and that is written"

    play(app, story)


def test_b7_a_receiver_that_is_down_is_tried_again_and_one_that_refuses_is_a_dead_letter(receiver: Receiver) -> None:
    app = application()
    app.webhook("crm", receiver.url, secret="shared")

    @app.job("classify")
    async def classify(text: str) -> Label:
        return Label(label=text)

    async def story(world: World) -> None:
        await world.start(app)
        receiver.answer = lambda count: 503 if count < 4 else 204
        began = world.now_ms
        await (await app.enqueue(classify, "a", webhook="crm")).result("10s")
        await until(lambda: len(receiver.got) == 4)
        assert world.now_ms - began >= 7_000  # 1 + 2 + 4 s
        assert len({headers["Pipeline-Delivery-Id"] for headers, _ in receiver.got}) == 1
        receiver.answer = lambda _count: 410
        handle = await app.enqueue(classify, "b", webhook="crm")
        assert await handle.result("10s") == Label(label="b")  # what becomes of the delivery does not change it
        await until(lambda: len(world.read(DEAD)) == 1)
        letter = world.read(DEAD)[0]
        headers = dict(letter.headers() or ())
        assert headers["pl.error.class"] == b"Reject"
        assert headers["pl.error.message"] == b"127.0.0.1 answered 410"
        assert b"s3cret-path" not in (letter.value() or b"")
        assert len(receiver.got) == 5

    play(app, story)


def test_b7_a_webhook_that_is_not_declared_is_refused_and_so_is_what_is_none(receiver: Receiver) -> None:
    app, bare = application(), application("bare")
    app.webhook("crm", receiver.url)

    async def classify(text: str) -> str:
        return text

    for each in (app, bare):
        each.job("classify")(classify)
    with pytest.raises(ConfigurationError, match="declared twice"):
        app.webhook("crm", receiver.url)
    with pytest.raises(ConfigurationError, match="the url of webhook 'other' must be a URL"):
        app.webhook("other", "ftp://x")
    with pytest.raises(ConfigurationError, match="the pipeline's own"):
        app.job(DELIVERY)

    async def story(world: World) -> None:
        with pytest.raises(ConfigurationError, match=r"webhook='crn' is not declared .* declared: crm"):
            await app.enqueue("classify", "a", webhook="crn")
        await world.start(bare)
        handle = await app.enqueue("classify", "a", webhook="crm")
        assert await handle.result("10s") == "a"
        await until(lambda: len(world.read(DEAD)) == 1)
        assert dict(world.read(DEAD)[0].headers() or ())["pl.error.class"] == b"UnknownJobType"
        assert receiver.got == []
        bare.jobs.close()

    play(app, story)


# -- crashes


@pytest.fixture
def bench() -> Bench:
    return Bench(t=JobPolicy(attempts=1), **{DELIVERY: JobPolicy()})


def deliveries(bench: Bench) -> list[str]:
    return [job_id for job_id in bench.board.jobs if job_id.startswith("webhook/")]


def heard(bench: Bench, done: Effect) -> None:
    if isinstance(done, Letter):
        bench.board.lettered("a", done.record.version)
    bench.acknowledge([done])


@pytest.mark.parametrize("ending", [Completed(b"1"), NEVER])
def test_b7_one_delivery_for_an_ending_wherever_a_crash_comes(bench: Bench, ending: Completed) -> None:
    bench.ask("a", webhook="crm")
    (job,) = bench.take()
    bench.end(job, ending)
    stored = len(bench.log)
    for effect in bench.effects():
        heard(bench, effect)
    bench.store()
    entries = list(bench.log)
    assert len(entries) == stored + 3, "it ended and is due, its delivery, it is not due any more"
    for kept in range(stored + 1, len(entries) + 1):
        bench.log = entries[:kept]
        bench.acknowledge(bench.restart())
        (delivery,) = deliveries(bench)
        bench.acknowledge(bench.restart())
        assert deliveries(bench) == [delivery]
        record = bench.board.jobs["a"]
        assert not record.webhook_due  # type: ignore[union-attr]
        (running,) = bench.take()
        bench.end(running)
        ended = [(e.key, e.value) for e in bench.effects() if isinstance(e, Entry) and e.key == job_key(delivery)]
        bench.log = entries[:kept] + ended
        bench.acknowledge(bench.restart())
        assert bench.take() == []


@pytest.mark.parametrize("ending", [Completed(b"1"), NEVER])
def test_b7_an_ending_is_told_whichever_of_its_writes_fail_before_its_owner_dies(ending: Completed) -> None:
    """Each may fail while those behind it land, and again when they are written again."""
    for landed in itertools.product((True, False), repeat=7):
        bench = Bench(t=JobPolicy(attempts=1), **{DELIVERY: JobPolicy()})
        bench.ask("a", webhook="crm")
        (job,) = bench.take()
        bench.end(job, ending)
        producer = Producer()
        store = writer(producer)
        stored = [entry for entry in _written(bench, producer, store, landed) if entry[0] != b"letter"]
        bench.log = stored
        bench.restart()
        assert len(deliveries(bench)) == (len(stored) > 0), landed


def _written(
    bench: Bench, producer: Producer, store: StoreWriter, landed: Iterable[bool]
) -> list[tuple[bytes, bytes | None]]:
    """What the store has when the owner dies: it goes on for as long as it is known which writes land."""
    there, now_ms = list[tuple[bytes, bytes | None]](), 0
    for number, lands in enumerate(landed):
        store.write(cast(list[Written], bench.board.effects()), now_ms)
        if not producer.waiting:
            now_ms += RESEND_MS[-1]
            store.resend_due(now_ms)
        if not producer.waiting:
            break
        if lands:
            there.append((producer.sent[number], producer.values[number]))
        producer.answer(None if lands else REFUSED)
        for done in store.hear(now_ms):
            heard(bench, done)
    return there


def test_b7_nobody_is_told_of_an_ending_that_a_crash_may_take_back(bench: Bench) -> None:
    bench.ask("a", webhook="crm")
    (job,) = bench.take()
    bench.end(job, Completed(b"1"))
    effects = bench.effects()
    assert bench.take() == []
    bench.acknowledge(effects)
    assert bench.ids() == deliveries(bench)


def test_b7_a_job_whose_delivery_is_not_acknowledged_is_kept() -> None:
    """Forgotten meanwhile, it would take its delivery with it, should that be refused and its owner die."""
    kept = RetentionPolicy(completed=0)
    bench = Bench(t=JobPolicy(retention=kept), **{DELIVERY: JobPolicy()})
    bench.ask("a", webhook="crm")
    (job,) = bench.take()
    bench.end(job, Completed(b"1"))
    bench.board.committed = bench.offset
    effects = bench.effects()
    bench.board.due(bench.now_ms)
    assert bench.effects() == []
    bench.acknowledge(effects)
    bench.board.due(bench.now_ms)
    assert "a" not in bench.board.jobs


def test_b7_a_delivery_that_is_forgotten_before_its_job_is_not_made_again() -> None:
    bench = Bench(t=JobPolicy(attempts=1), **{DELIVERY: JobPolicy(retention=RetentionPolicy(completed=0))})
    bench.ask("a", webhook="crm")
    (job,) = bench.take()
    bench.end(job, Completed(b"1"))
    bench.store()
    (told,) = bench.take()
    bench.end(told)
    bench.board.committed = bench.offset
    bench.board.due(bench.now_ms)
    bench.store()
    assert deliveries(bench) == []
    bench.restart()
    assert deliveries(bench) == []
    assert bench.board.jobs["a"].webhook_due is False  # type: ignore[union-attr]


def test_b7_another_round_is_told_again_and_a_cancelled_or_expired_job_is_told_too(bench: Bench) -> None:
    bench.ask("a", webhook="crm")
    (job,) = bench.take()
    bench.end(job, NEVER)
    bench.store()
    assert bench.command(RetryJob("a"))
    bench.store()
    assert len(deliveries(bench)) == 1
    again = next(job for job in bench.take() if job.id == "a")
    bench.end(again, Completed(b"2"))
    bench.store()
    assert len(deliveries(bench)) == 2
    bench.ask("b", webhook="crm", expires_ms=NOW - 1)
    assert len(deliveries(bench)) == 3


def test_b7_the_body_has_the_result_as_it_is_however_deep() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    record = JobRecord(JobRequest("a", "t", webhook="w"), JobState.COMPLETED, outcome=JobOutcome(result=deep))
    assert body_of(record).endswith(b',"result":' + deep + b"}")


def test_b7_a_result_that_is_too_large_for_a_delivery_is_left_out_of_it() -> None:
    """Its dead letter must have room for it too: what no topic takes would be written again for ever."""
    request = JobRequest("a", "t", webhook="w", tags=("\u6f22" * 500,) * 50)
    record = JobRecord(request, JobState.COMPLETED, 1, outcome=JobOutcome(result=b'"%b"' % (b"1" * INLINE_BYTES_MAX)))
    delivery = delivery_of(record, NOW)
    assert len(delivery.payload) < INLINE_BYTES_MAX / 2
    told = json.loads(delivery.payload)["body"]
    assert (told["result"], told["result_omitted"], told["id"]) == (None, True, "a")
    assert "result_omitted" not in json.loads(body_of(record))
