"""F5: `run_processor` runs a job from its request to its ending in virtual time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import Batch, Exponential, Fixed, ItemResult, Pipeline, Reject, Retry, Settings, Warn
from pipeline.model.errors import ConfigurationError, InvalidJob, JobUnsuccessful
from pipeline.model.job_policies import JobOptions, RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.testing import run_processor
from pipeline.worker.jobs.context import JobContext
from tests.patience import PATIENCE


class Order(BaseModel):
    id: int


class Receipt(BaseModel):
    order: int


def application() -> Pipeline:
    return Pipeline("f5", settings=Settings(broker="memory://f5"))


def test_f5_a_job_function_runs_by_its_own_policy_and_hours_of_back_off_take_milliseconds() -> None:
    app = application()

    @app.job("charge", attempts=5, backoff=Exponential("1h", factor=2, max_delay="10h"), jitter=0)
    async def charge(order: Order, job: JobContext) -> Receipt:
        job.log.info("charging", order=order.id)
        if job.attempt < 5:
            raise ConnectionError("the bank does not answer")
        return Receipt(order=order.id)

    began = time.monotonic()
    run = run_processor(charge, {"id": 7})
    assert time.monotonic() - began < 2 * PATIENCE
    assert (run.attempts, run.result, run.error, run.state) == (5, Receipt(order=7), None, JobState.COMPLETED)
    hours = [round(at / 3600, 3) for at in run.began_s]
    assert hours == [0, 1, 3, 7, 15]
    assert [str(line) for line in run.logs] == [f"attempt {n} info charging order=7" for n in range(1, 6)]


def test_f5_an_expected_failure_has_its_error_and_its_attempts() -> None:
    async def fails(number: int) -> None:
        raise ValueError(f"no {number}")

    run = run_processor(fails, 3, expect_failure=True, max_retries=2)
    assert (run.attempts, run.result, run.state) == (3, None, JobState.DEAD_LETTER)
    assert isinstance(run.error, ValueError)
    assert str(run.error) == "no 3"
    assert run_processor(fails, 3, expect_failure=True, max_retries=0).attempts == 1
    assert run_processor(fails, 3, expect_failure=True).attempts == 5, "as for any job"


def test_f5_what_was_not_expected_is_an_assertion_error_with_the_logs() -> None:
    async def fails(_: None, job: JobContext) -> None:
        job.log.warning("it is down", service="bank")
        raise RuntimeError("down")

    with pytest.raises(
        AssertionError,
        match=r"dead_letter after 2 attempts: RuntimeError: down\n.*attempt 1 warning it is down service='bank'",
    ) as caught:
        run_processor(fails, max_retries=1)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(AssertionError, match="a failure was expected, and it returned 4"):
        run_processor(lambda number: 2 * number, 2, expect_failure=True)


def test_f5_handlers_steer_as_they_do_in_a_worker() -> None:
    def steers(what: str, job: JobContext) -> Any:
        if what == "reject":
            raise Reject("never")
        if what == "retry" and job.attempt == 1:
            raise Retry(after="3h")
        return Warn("so so")

    assert run_processor(steers, "reject", expect_failure=True).attempts == 1
    run = run_processor(steers, "retry")
    assert (run.attempts, run.began_s, run.warning) == (2, (0, 10_800), "so so")
    assert run.state is JobState.COMPLETED_WITH_WARNING


def test_f5_deadlines_and_delays_pass_in_virtual_time() -> None:
    async def hangs(_: None) -> None:
        await asyncio.Event().wait()

    began = time.monotonic()
    run = run_processor(
        hangs, expect_failure=True, max_retries=1, options=JobOptions(timeout="2h", delay="30d", backoff=Fixed("1h"))
    )
    assert time.monotonic() - began < 2 * PATIENCE
    assert isinstance(run.error, JobUnsuccessful)
    assert "took longer than timeout=7200s" in str(run.error)
    day_s = 86_400
    assert run.began_s[0] == 30 * day_s
    assert 3 * 3_600 <= run.began_s[1] - run.began_s[0] < 3.3 * 3_600


def test_f5_data_that_enqueue_would_refuse_and_a_result_that_has_no_json_form() -> None:
    def takes(order: Order) -> object:
        return object()

    with pytest.raises(InvalidJob, match="does not fit job 'takes': id: Field required"):
        run_processor(takes, {})
    with pytest.raises(ConfigurationError, match="max_retries=-1"):
        run_processor(takes, {"id": 1}, max_retries=-1)
    run = run_processor(takes, {"id": 1}, expect_failure=True)
    assert run.attempts == 1
    assert "which has no JSON form" in str(run.error)


@pytest.mark.parametrize("kept", [RetentionPolicy(completed=0, failed=0), RetentionPolicy(age_ms=0)])
def test_f5_a_job_that_is_forgotten_at_once_is_told_as_any_other(kept: RetentionPolicy) -> None:
    app = application()

    @app.job("double", retention=kept)
    async def double(number: int) -> int:
        return 2 * number

    @app.job("fails", retention=kept, attempts=2, dead_letter=False)
    async def fails(_number: int) -> None:
        raise RuntimeError("down")

    run = run_processor(double, 21)
    assert (run.result, run.attempts, run.state) == (42, 1, JobState.COMPLETED)
    failed = run_processor(fails, 1, expect_failure=True)
    assert (failed.attempts, failed.state) == (2, JobState.FAILED)


def test_f5_it_works_inside_an_event_loop_too() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(3_600)
        return 2 * number

    async def main() -> Any:
        return run_processor(double, 4, options=JobOptions(timeout="2h")).result

    assert asyncio.run(main()) == 8


def test_f5_it_needs_no_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from pipeline.testing import run_processor\n"
        "assert run_processor(lambda n: n + 1, 1).result == 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_f5_a_batch_handler_gets_a_batch_of_one() -> None:
    app, seen = application(), list[Any]()

    @app.job("index", batch=Batch(size=50), attempts=3, backoff=Fixed("1m"))
    async def index(numbers: list[int], jobs: list[JobContext]) -> list[ItemResult[int]]:
        seen.append((numbers, jobs[0].attempt))
        if len(seen) == 1:
            raise TimeoutError
        return [{"id": jobs[0].id, "status": "completed", "result": numbers[0] * 2}]

    run = run_processor(index, 4)
    assert (run.result, run.attempts, seen) == (8, 2, [([4], 1), ([4], 2)])
    with pytest.raises(InvalidJob, match="valid integer"):
        run_processor(index, "four")
