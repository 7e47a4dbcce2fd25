"""B7: an ending is told to a webhook by a signed POST, which is a job like any other: retried, dead-lettered, one for each ending."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator

import pytest
import structlog
from pydantic import BaseModel

from pipeline.core.jobs.entries import Effect, Entry
from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import INLINE_BYTES_MAX, JobPolicy, RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.model.job_webhooks import DELIVERY, body_of, delivery_of
from pipeline.model.jobs import Completed, JobOutcome, JobRecord, JobRequest, RetryJob
from pipeline.model.store_keys import job_key
from tests.unit.jobs.worlds import World, application, play, until
from tests.unit.test_alerting import Receiver
from tests.unit.test_core_jobs_board import NEVER, NOW, Bench

DEAD = "jobs.default.default.dlq"


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


@pytest.mark.parametrize("ending", [Completed(b"1"), NEVER])
def test_b7_one_delivery_for_an_ending_wherever_a_crash_comes(bench: Bench, ending: Completed) -> None:
    bench.ask("a", webhook="crm")
    (job,) = bench.take()
    bench.end(job, ending)
    effects: list[Effect] = bench.effects()
    entries = [effect for effect in effects if isinstance(effect, Entry)]
    stored = list(bench.log)
    assert len(entries) == (3 if isinstance(ending, Completed) else 2)
    for kept in range(1, len(entries) + 1):
        bench.log = stored + [(entry.key, entry.value) for entry in entries[:kept]]
        bench.restart()
        (delivery,) = deliveries(bench)
        bench.restart()
        assert deliveries(bench) == [delivery]
        record = bench.board.jobs["a"]
        assert not record.webhook_due  # type: ignore[union-attr]
        (running,) = bench.take()
        bench.end(running)
        ended = [(e.key, e.value) for e in bench.effects() if isinstance(e, Entry) and e.key == job_key(delivery)]
        bench.log = stored + [(entry.key, entry.value) for entry in entries[:kept]] + ended
        bench.restart()
        assert bench.take() == []


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
