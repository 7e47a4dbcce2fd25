"""B3, B4: tasks by execution contracts, on queues in memory and on Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from pipeline import Retry
from pipeline.background import (
    JOB_DISPATCH_CONTRACT,
    RUNNER_CHAT_CONTRACT,
    ConsumeOptions,
    ExecutionContract,
    ExecutionContractContext,
    JobOptions,
    MemoryQueue,
    ResultQueue,
    TaskItem,
    TaskWorker,
    enqueue_contract,
)
from pipeline.model.errors import ConfigurationError, InvalidJob, JobMissing, JobUnsuccessful
from pipeline.model.job_policies import Fixed
from tests.conformance.conftest import kafka_queue
from tests.patience import PATIENCE

Make = Callable[[], ResultQueue]


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


@pytest.fixture(params=["memory", "kafka-in-memory", "kafka"])
def make(request: pytest.FixtureRequest) -> Make:
    """Gives the same queue to whoever asks: a worker, and a caller in another process."""
    if request.param == "memory":
        shared = MemoryQueue()
        return lambda: shared
    return kafka_queue(request, request.param, "b3")


class Doubles(ExecutionContract):
    contract_id = "myapp.batch.v1"

    async def execute(
        self, task_item: TaskItem, *, agent: Any, worker_context: ExecutionContractContext
    ) -> dict[str, Any]:
        if task_item.payload.get("flaky") and worker_context.job.attempt == 1:
            raise Retry(after="10ms")
        return {
            "items": [2 * n for n in task_item.payload["items"]],
            "id": task_item.id,
            "attempt": worker_context.job.attempt,
        }


class NeedsAgent:
    """Looks like a contract, and inherits nothing."""

    contract_id = "myapp.agent.v2"
    requires_agent = True

    async def execute(self, task_item: TaskItem, *, agent: Any, worker_context: ExecutionContractContext) -> Any:
        return agent.answer if agent.answer else "no dict"


class Runner:
    async def run(self, agent: Any, user_message: str, *, context: Mapping[str, Any]) -> Any:
        return SimpleNamespace(final_output=f"{agent.name} for {context.get('tenant')}: {user_message}")


class PlainRunner:
    def run(self, agent: Any, user_message: str, *, context: Mapping[str, Any]) -> Any:
        return {"said": user_message, "by": agent.name}


class Mail(BaseModel):
    to: str


async def send_mail(mail: Mail) -> Mail:
    return Mail(to=mail.to.upper())


def count(numbers: list[int], job: Any) -> int:
    return len(numbers) + job.attempt


def played(
    make: Make, worker: Callable[[ResultQueue], TaskWorker], story: Callable[[ResultQueue], Awaitable[None]]
) -> None:
    """A worker at work while the story happens; both end."""

    async def main() -> None:
        queue, caller = make(), make()
        working = worker(queue)
        running = asyncio.create_task(working.start())
        ready = asyncio.create_task(working.ready.wait())
        await asyncio.wait({running, ready}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert working.ready.is_set(), running
            await story(caller)
        finally:
            ready.cancel()
            working.stop()
            await running
            await caller.close()

    asyncio.run(main())


async def result(queue: ResultQueue, task: str, topic: str = "tasks") -> Any:
    async with asyncio.timeout(30 * PATIENCE):
        while True:
            try:
                return await queue.handle(topic, task).result("30s")
            except JobMissing:
                await asyncio.sleep(0.05)


def test_b3_a_contract_runs_with_its_payload_and_its_result_is_kept_apart_from_the_caller(make: Make) -> None:
    async def story(queue: ResultQueue) -> None:
        plain = await enqueue_contract(queue, "myapp.batch.v1", {"items": [1, 2]})
        flaky = await enqueue_contract(
            queue, "myapp.batch.v1", {"items": [3], "flaky": True}, options=JobOptions(tenant="acme")
        )
        assert await result(queue, plain) == {"items": [2, 4], "id": plain, "attempt": 1}
        assert await result(queue, flaky) == {"items": [6], "id": flaky, "attempt": 2}

    played(make, lambda queue: TaskWorker(queue, execution_contracts=[Doubles()]), story)


def test_b3_runner_chat_and_job_dispatch_are_built_in(make: Make) -> None:
    async def story(queue: ResultQueue) -> None:
        chat = {"user_message": "Where is it?", "context": {"tenant": "acme"}}
        chatted = await enqueue_contract(queue, RUNNER_CHAT_CONTRACT, chat, agent="support")
        mailed = await enqueue_contract(
            queue, JOB_DISPATCH_CONTRACT, {"job_type": "send_mail", "arguments": {"to": "ann"}}
        )
        counted = await enqueue_contract(queue, JOB_DISPATCH_CONTRACT, {"job_type": "count", "arguments": [1, 2]})
        assert await result(queue, chatted) == {"output": "support for acme: Where is it?"}
        assert await result(queue, mailed) == {"result": {"to": "ANN"}}
        assert await result(queue, counted) == {"result": 3}

    def worker(queue: ResultQueue) -> TaskWorker:
        return TaskWorker(
            queue, [SimpleNamespace(name="support")], Runner, jobs={"send_mail": send_mail, "count": count}
        )

    played(make, worker, story)


CHAT = {"user_message": "x"}
SENDS_TO_7 = {"job_type": "send_mail", "arguments": {"to": 7}}


@pytest.mark.parametrize(
    ("contract", "payload", "agent", "error_class", "told"),
    [
        ("myapp.other.v1", {}, None, "ContractMissing", "'myapp.other.v1' is not one of this TaskWorker; it has: job.dispatch.v1"),
        (RUNNER_CHAT_CONTRACT, CHAT, "nobody", "AgentMissing", "'nobody' is not one of this TaskWorker; it has: empty, support"),
        ("myapp.agent.v2", {}, None, "AgentMissing", "contract 'myapp.agent.v2' needs an agent, and the task names none"),
        (RUNNER_CHAT_CONTRACT, CHAT, "support", "ConfigurationError", "no runner_factory: give it one"),
        (JOB_DISPATCH_CONTRACT, {"job_type": "os.system"}, None, "InvalidJob", "'os.system' is not one of this TaskWorker; it has: count"),
        (JOB_DISPATCH_CONTRACT, SENDS_TO_7, None, "InvalidJob", "do not fit job_type 'send_mail': to"),
        ("myapp.agent.v2", {}, "empty", "Reject", "returned str: a result is a dict"),
    ],
)  # fmt: skip
def test_b3_what_no_attempt_can_change_is_a_dead_letter_with_the_reason_and_the_worker_goes_on(
    make: Make, contract: str, payload: dict[str, Any], agent: str | None, error_class: str, told: str
) -> None:
    async def story(queue: ResultQueue) -> None:
        wrong = await enqueue_contract(queue, contract, payload, agent=agent)
        with pytest.raises(JobUnsuccessful) as caught:
            await result(queue, wrong)
        assert (caught.value.state, caught.value.error_class) == ("dead_letter", error_class)
        assert told in str(caught.value)
        assert "after 1 attempt:" in str(caught.value), "it is not tried again"
        assert await result(queue, await enqueue_contract(queue, "myapp.agent.v2", {}, agent="support")) == {"a": 1}

    agents = {"support": SimpleNamespace(name="support", answer={"a": 1}), "empty": SimpleNamespace(answer="")}

    def worker(queue: ResultQueue) -> TaskWorker:
        return TaskWorker(queue, agents, None, [NeedsAgent()], jobs={"send_mail": send_mail, "count": count})

    played(make, worker, story)


def test_b3_a_plain_runner_works_in_a_thread_and_a_contract_of_yours_goes_before_a_built_in_one() -> None:
    async def story(queue: ResultQueue) -> None:
        task = await enqueue_contract(queue, RUNNER_CHAT_CONTRACT, CHAT, agent="support")
        assert await result(queue, task) == {"said": "x", "by": "support"}
        task = await enqueue_contract(queue, JOB_DISPATCH_CONTRACT, {"job_type": "any"})
        assert await result(queue, task) == {"mine": True}

    class Mine(ExecutionContract):
        contract_id = JOB_DISPATCH_CONTRACT

        async def execute(self, task_item: TaskItem, *, agent: Any, worker_context: Any) -> dict[str, Any]:
            return {"mine": True}

    shared = MemoryQueue()
    agents = [SimpleNamespace(name="support")]
    played(lambda: shared, lambda queue: TaskWorker(queue, agents, PlainRunner, [Mine()]), story)


def test_b3_wrong_tasks_are_told_to_the_caller() -> None:
    async def main() -> None:
        queue = MemoryQueue()
        with pytest.raises(ConfigurationError, match=r"dotted name with a version, such as 'myapp\.batch\.v1'"):
            await enqueue_contract(queue, "batch", {})
        with pytest.raises(InvalidJob, match=r"does not fit contract 'runner\.chat\.v1': user_message: Field required"):
            await enqueue_contract(queue, RUNNER_CHAT_CONTRACT, {}, agent="a")
        with pytest.raises(InvalidJob, match="name it with agent="):
            await enqueue_contract(queue, RUNNER_CHAT_CONTRACT, CHAT)
        with pytest.raises(InvalidJob, match="job_type"):
            await enqueue_contract(queue, JOB_DISPATCH_CONTRACT, {"arguments": 1})
        with pytest.raises(ConfigurationError, match="given twice"):
            TaskWorker(queue, execution_contracts=[Doubles(), Doubles()])
        with pytest.raises(ConfigurationError, match="has no name: give agents as a dict"):
            TaskWorker(queue, [object()])

    asyncio.run(main())


def test_b4_start_runs_until_it_is_stopped_and_stopping_first_is_fine() -> None:
    async def main() -> None:
        worker = TaskWorker(MemoryQueue())
        worker.stop()
        await asyncio.wait_for(worker.start(), 10 * PATIENCE)
        assert not worker.ready.is_set()
        with pytest.raises(ConfigurationError, match="was started already"):
            await worker.start()
        queue = MemoryQueue()
        cancelled = asyncio.create_task(TaskWorker(queue).start())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(Exception, match="closed"):
            await queue.enqueue("tasks", {})

    asyncio.run(main())


def test_b4_a_task_that_fails_is_tried_again_by_the_workers_options(make: Make) -> None:
    class Fails(ExecutionContract):
        contract_id = "myapp.fails.v1"

        async def execute(self, task_item: TaskItem, *, agent: Any, worker_context: Any) -> dict[str, Any]:
            raise RuntimeError("no")

    async def story(queue: ResultQueue) -> None:
        with pytest.raises(JobUnsuccessful, match="after 3 attempts: RuntimeError: no"):
            await result(queue, await enqueue_contract(queue, "myapp.fails.v1", {}, topic="own"), "own")

    options = ConsumeOptions(attempts=3, backoff=Fixed("10ms"))
    played(make, lambda queue: TaskWorker(queue, (), None, [Fails()], topic="own", options=options), story)
