"""D6: batch handlers of jobs: size and wait, a result for each item, and only those that failed are tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from pydantic import BaseModel, field_validator

from pipeline import Batch, ItemResult
from pipeline.model.errors import ConfigurationError, JobUnsuccessful
from pipeline.model.job_batches import by_job
from pipeline.model.job_policies import Fixed
from pipeline.model.job_states import JobState
from pipeline.worker.jobs.context import JobContext
from tests.unit.jobs.worlds import World, application, play, until

DEAD = "jobs.default.default.dlq"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Doc(BaseModel):
    n: int


class Indexed(BaseModel):
    at: int


def test_d6_a_batch_goes_out_when_it_is_full_or_has_waited_and_each_item_gets_its_own_result() -> None:
    app, batches = application(), list[tuple[float, list[int]]]()

    @app.job("index", batch=Batch(size=10, wait="200ms"))
    async def index(docs: list[Doc], jobs: list[JobContext]) -> list[ItemResult[Indexed]]:
        batches.append((asyncio.get_running_loop().time(), [doc.n for doc in docs]))
        return [
            {"id": job.id, "status": "completed", "result": Indexed(at=doc.n)}
            for doc, job in reversed(list(zip(docs, jobs, strict=True)))
        ]

    async def story(world: World) -> None:
        await world.start(app)
        began = world.loop.time()
        handles = await app.enqueue_many(index, [Doc(n=n) for n in range(25)])
        assert [await handle.result("10s") for handle in handles] == [Indexed(at=n) for n in range(25)]
        assert sorted(len(numbers) for _, numbers in batches) == [5, 10, 10]
        assert sorted(n for _, numbers in batches for n in numbers) == list(range(25))
        full = [at for at, numbers in batches if len(numbers) == 10]
        (rest,) = [at for at, numbers in batches if len(numbers) == 5]
        assert rest - began >= 0.2
        assert rest - max(full) >= 0.19

    play(app, story, partitions=1)


def test_d6_only_the_items_that_failed_are_tried_again_and_each_has_its_own_ending() -> None:
    app, calls = application(), list[list[int]]()

    @app.job("index", batch=Batch(size=6, wait="50ms"), attempts=3, backoff=Fixed("1s"), jitter=0)
    async def index(docs: list[Doc], jobs: list[JobContext]) -> list[dict[str, Any]]:
        calls.append(sorted(doc.n for doc in docs))
        results: list[dict[str, Any]] = []
        for doc, job in zip(docs, jobs, strict=True):
            if doc.n == 1 and job.attempt == 1:
                results.append({"id": job.id, "status": "failed", "error": "not yet"})
            elif doc.n == 2:
                results.append({"id": job.id, "status": "rejected", "error": "no such document"})
            elif doc.n == 3:
                results.append({"id": job.id, "status": "failed", "error": ConnectionError("down")})
            elif doc.n == 4:
                results.append({"id": job.id, "status": "completed_with_warning", "result": 4, "error": "late"})
            elif doc.n != 5:
                results.append({"id": job.id, "status": "completed", "result": doc.n})
        return results

    async def story(world: World) -> None:
        await world.start(app)
        handles = await app.enqueue_many(index, [Doc(n=n) for n in range(6)])
        assert await handles[0].result("20s") == 0
        assert await handles[1].result("20s") == 1
        assert await handles[4].result("20s") == 4
        errors = {}
        for n in (2, 3, 5):
            with pytest.raises(JobUnsuccessful) as caught:
                await handles[n].result("20s")
            errors[n] = caught.value.error_class
        assert errors == {2: "Reject", 3: "ConnectionError", 5: "NoResult"}
        statuses = [await handle.status() for handle in handles]
        assert [status.attempt for status in statuses] == [1, 2, 1, 3, 1, 3]
        assert statuses[4].state is JobState.COMPLETED_WITH_WARNING
        assert statuses[4].warning == "late"
        assert calls == [[0, 1, 2, 3, 4, 5], [1, 3, 5], [3, 5]]

    play(app, story, partitions=1)


def test_d6_a_handler_that_raises_fails_all_of_its_batch_and_a_def_handler_may_be_one() -> None:
    app, calls = application(), list[int]()

    @app.job("index", batch=Batch(size=3, wait="50ms"), attempts=2, backoff=Fixed("1s"))
    def index(docs: list[Doc]) -> None:
        calls.append(len(docs))
        if len(calls) == 1:
            raise RuntimeError("all of them")

    async def story(world: World) -> None:
        await world.start(app)
        handles = await app.enqueue_many(index, [Doc(n=n) for n in range(3)])
        assert [await handle.result("20s") for handle in handles] == [None] * 3
        assert [(await handle.status()).attempt for handle in handles] == [2] * 3
        assert sum(calls) == 6

    play(app, story, partitions=1)


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("status", ["failed", "rejected", "completed_with_warning"])
def test_d6_words_that_are_no_text_are_those_of_one_job_and_not_of_its_batch(status: str) -> None:
    """All of them failed, and their handler was called for all of them again."""
    app, calls = application(), list[int]()

    @app.job("index", batch=Batch(size=4, wait="50ms"), attempts=1)
    async def index(docs: list[Doc], jobs: list[JobContext]) -> list[dict[str, Any]]:
        calls.append(len(docs))
        odd: list[dict[str, Any]] = [
            {"status": status, "result": 1, "error": NoText()},
            {"status": status, "result": 1, "error": [NoText()]},
            {"status": "failed", "after": NoText()},
            {"status": "completed", "result": 2},
        ]
        return [{"id": job.id, **item} for job, item in zip(jobs, odd, strict=True)]

    async def story(world: World) -> None:
        await world.start(app)
        handles = await app.enqueue_many(index, [Doc(n=n) for n in range(4)])
        assert await handles[3].result("20s") == 2
        ended = status if status == "completed_with_warning" else "dead_letter"
        assert [(await handle.status()).state.value for handle in handles[:2]] == [ended] * 2
        assert calls == [4]

    play(app, story, partitions=1)


def test_d6_an_input_that_does_not_fit_leaves_its_batch_and_the_others_go_on() -> None:
    app, caller = application(), application("caller")

    @app.job("index", batch=Batch(size=3, wait="50ms"))
    async def index(docs: list[Doc]) -> list[ItemResult[int]]:
        return [{"status": "completed", "result": doc.n} for doc in docs]

    @caller.job("index")
    async def lenient(_given: dict[str, int]) -> int: ...

    async def story(world: World) -> None:
        await world.start(app)
        handles = await caller.enqueue_many("index", [{"n": 1}, {"m": 2}, {"n": 3}])
        assert await handles[0].result("10s") == 1
        assert await handles[2].result("10s") == 3
        with pytest.raises(JobUnsuccessful, match="does not fit what index takes: n: Field required"):
            await handles[1].result("10s")
        caller.jobs.close()

    play(app, story, partitions=1)


class Weight(BaseModel):
    unit: str

    @field_validator("unit")
    @classmethod
    def known(cls, unit: str) -> str:
        return {"kg": "kilogram"}[unit]


def test_d6_a_validator_that_raises_fails_its_own_job_and_not_its_batch() -> None:
    app, caller = application(), application("caller")

    @app.job("weigh", batch=Batch(size=3, wait="50ms"), attempts=1)
    async def weigh(weights: list[Weight]) -> list[ItemResult[str]]:
        return [{"status": "completed", "result": weight.unit} for weight in weights]

    @caller.job("weigh")
    async def lenient(_given: dict[str, str]) -> str: ...

    async def story(world: World) -> None:
        await world.start(app)
        handles = await caller.enqueue_many("weigh", [{"unit": unit} for unit in ("kg", "lb", "kg")])
        assert await handles[0].result("10s") == await handles[2].result("10s") == "kilogram"
        with pytest.raises(
            JobUnsuccessful, match="the input of weigh can't be checked: a validator raised KeyError: 'lb'"
        ):
            await handles[1].result("10s")
        caller.jobs.close()

    play(app, story, partitions=1)


def test_d6_a_job_that_is_cancelled_leaves_its_batch_and_with_the_last_one_the_call_is_stopped() -> None:
    app, stopped = application(), list[str]()

    @app.job("slow", batch=Batch(size=2, wait="50ms"))
    async def slow(docs: list[Doc]) -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            stopped.append("stopped")
            raise

    async def story(world: World) -> None:
        await world.start(app)
        one, other = await app.enqueue_many(slow, [Doc(n=1), Doc(n=2)])
        await asyncio.sleep(1)
        await app.cancel(slow, one.id)
        with pytest.raises(JobUnsuccessful, match="was cancelled"):
            await one.result("5s")
        assert await other.result("60s") is None
        assert stopped == []
        one, other = await app.enqueue_many(slow, [Doc(n=1), Doc(n=2)])
        await asyncio.sleep(1)
        for handle in (one, other):
            await app.cancel(slow, handle.id)
        await until(lambda: stopped == ["stopped"], 5)

    play(app, story, partitions=1)


def test_d6_a_batch_that_takes_too_long_is_a_failed_attempt_of_each_and_its_time_begins_with_the_call() -> None:
    app, calls = application(), list[int]()

    @app.job("slow", batch=Batch(size=5, wait="2s"), timeout="1s", attempts=1)
    async def slow(docs: list[Doc]) -> None:
        calls.append(len(docs))
        if docs[0].n:
            await asyncio.sleep(20)

    async def story(world: World) -> None:
        await world.start(app)
        assert await (await app.enqueue(slow, Doc(n=0))).result("10s") is None  # it waited longer than its timeout
        for handle in await app.enqueue_many(slow, [Doc(n=1)] * 2):
            with pytest.raises(JobUnsuccessful) as caught:
                await handle.result("10s")
            assert caught.value.error_class == "Timeout"
        assert calls == [1, 2]

    play(app, story, partitions=1)


def test_d6_what_a_batch_has_not_done_is_done_by_the_next_owner() -> None:
    app, other, calls = application("one"), application("two"), list[str]()

    def handler(name: str) -> Any:
        async def index(docs: list[Doc]) -> None:
            calls.append(name)
            if name == "one":
                await asyncio.sleep(1_000)

        return index

    for each in (app, other):
        each.job("index", batch=Batch(size=5, wait="100ms"))(handler(each.name))

    async def story(world: World) -> None:
        worker = await world.start(app)
        handles = await app.enqueue_many("index", [Doc(n=n) for n in range(7)])
        await until(lambda: calls == ["one", "one"])
        world.kill(worker)
        await world.start(other)
        assert [await handle.result("60s") for handle in handles] == [None] * 7

    play(app, story, partitions=1)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (5, "returned int"),
        ([{"status": "done"}], "result 0 .* status out of completed"),
        (["x"], "result 0"),
        ([{"status": "completed"}], "1 results without an id for 2 jobs"),
        ([{"id": "c", "status": "completed"}], "not in its batch"),
        ([{"id": "a", "status": "completed"}] * 2, "or that another result has"),
        ([{"id": "a", "status": "completed"}, {"status": "completed"}], "not in its batch"),
    ],
)
def test_d6_results_that_can_not_be_told_apart_are_none(returned: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        by_job(returned, ["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"size": 0}, "size=0"), ({"size": True}, "size=True"), ({"wait": -1}, "wait"), ({"wait": "2h"}, "batch.wait_ms")],
)
def test_d6_a_batch_that_means_nothing_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        application().job("one", batch=Batch(**arguments))


def test_d6_a_handler_that_takes_no_list_is_refused_and_so_is_a_limit_that_no_batch_fits() -> None:
    async def one(doc: Doc) -> None: ...

    with pytest.raises(ConfigurationError, match="annotate its first parameter as a list"):
        application().job("one", batch=Batch())(one)
    with pytest.raises(ConfigurationError, match=r"concurrency=10 is less than batch\.size=100"):
        application().job("one", batch=Batch(), concurrency=10)
