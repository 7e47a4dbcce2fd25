"""Execution contracts: who asks for a task and who runs it agree on a name with a version and on JSON, not on code.

A task names its contract ("myapp.batch.v1"); a `TaskWorker` that has a contract of that name executes it.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pipeline.model.background import BackgroundQueue
from pipeline.model.errors import ConfigurationError, InvalidJob
from pipeline.model.job_policies import JobOptions
from pipeline.model.job_types import JobType
from pipeline.model.outcome import Warn
from pipeline.model.validation import first_fault
from pipeline.worker.jobs.context import JobContext

RUNNER_CHAT_CONTRACT = "runner.chat.v1"
"""An agent answers a message: `{"user_message": ..., "context": {...}}`, and the agent's name."""
JOB_DISPATCH_CONTRACT = "job.dispatch.v1"
"""A function that the worker has under a name: `{"job_type": ..., "arguments": ...}`."""
TASKS_TOPIC = "tasks"
_CONTRACT_ID = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+\.v[0-9]+")
_MODEL = TypeVar("_MODEL", bound=BaseModel)


class ContractTask(BaseModel):
    """What lies in the queue."""

    contract_id: str
    agent: str | None = None
    payload: dict[str, Any] = Field(default_factory=dict)


class RunnerChat(BaseModel):
    """The payload of RUNNER_CHAT_CONTRACT."""

    user_message: str
    context: dict[str, Any] = Field(default_factory=dict)


class JobDispatch(BaseModel):
    """The payload of JOB_DISPATCH_CONTRACT; `arguments` is what the function takes."""

    job_type: str
    arguments: Any = None


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One task as its contract gets it; `agent` is a name."""

    id: str
    contract_id: str
    payload: Mapping[str, Any]
    agent: str | None = None


class Runner(Protocol):
    """Lets an agent work. `async def` or `def` (that one runs in a thread)."""

    def run(self, agent: Any, user_message: str, *, context: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True)
class ExecutionContractContext:
    """What a contract may use of its worker. `job`: this execution, with attempt, log and idempotency key."""

    job: JobContext
    queue: BackgroundQueue
    agents: Mapping[str, Any]
    jobs: Mapping[str, JobType]
    runner_factory: Callable[[], Runner] | None = None

    def runner(self) -> Runner:
        """A runner of its own for this execution."""
        if self.runner_factory is None:
            raise ConfigurationError("this TaskWorker has no runner_factory: give it one, then retry the task")
        return self.runner_factory()


class ExecutionContract(Protocol):
    """How tasks of one name are executed. Subclass it, or write a class that looks like it.

    With `requires_agent` a task that names no agent of the worker is given up. Whatever `execute` raises is a failed attempt, with the
    words of `@app.job`: Retry, Reject. It may run again after a crash: see `worker_context.job.idempotency_key`.
    """

    contract_id: str
    requires_agent: bool = False

    async def execute(
        self, task_item: TaskItem, *, agent: Any, worker_context: ExecutionContractContext
    ) -> dict[str, Any]: ...


class RunnerChatContract(ExecutionContract):
    """RUNNER_CHAT_CONTRACT. A runner's answer is the result when it is a dict, else `output` of it."""

    contract_id = RUNNER_CHAT_CONTRACT
    requires_agent = True

    async def execute(
        self, task_item: TaskItem, *, agent: Any, worker_context: ExecutionContractContext
    ) -> dict[str, Any]:
        chat = fitting(RunnerChat, task_item.contract_id, task_item.payload)
        run = worker_context.runner().run
        if inspect.iscoroutinefunction(run):
            answer = await run(agent, chat.user_message, context=chat.context)
        else:
            answer = await asyncio.to_thread(run, agent, chat.user_message, context=chat.context)
        if isinstance(answer, dict):
            return answer
        for name in ("final_output", "output"):  # of the OpenAI Agents SDK, of pydantic-ai
            answer = getattr(answer, name, answer)
        return {"output": answer}


class JobDispatchContract(ExecutionContract):
    """JOB_DISPATCH_CONTRACT: an explicit name, never an import path."""

    contract_id = JOB_DISPATCH_CONTRACT

    async def execute(
        self, task_item: TaskItem, *, agent: Any, worker_context: ExecutionContractContext
    ) -> dict[str, Any]:
        asked = fitting(JobDispatch, task_item.contract_id, task_item.payload)
        declared = worker_context.jobs.get(asked.job_type)
        if declared is None:
            known = ", ".join(sorted(worker_context.jobs)) or "none"
            raise InvalidJob(f"job_type {asked.job_type!r} is not one of this TaskWorker; it has: {known}")
        try:
            given = TypeAdapter[Any](declared.takes).validate_python(asked.arguments)
        except ValidationError as error:
            where, what = first_fault(error)
            raise InvalidJob(
                f"the arguments do not fit job_type {asked.job_type!r}: {where or 'they'}: {what}"
            ) from None
        arguments = (given,) if declared.alone else (given, worker_context.job)
        if declared.is_async:
            result = await declared.handler(*arguments)  # type: ignore[misc]
        else:
            result = await asyncio.to_thread(declared.handler, *arguments)
        if isinstance(result, Warn):
            return {"result": None, "warning": result.reason}
        return {"result": TypeAdapter[Any](declared.gives).dump_python(result, mode="json")}


BUILT_IN: tuple[ExecutionContract, ...] = (RunnerChatContract(), JobDispatchContract())
_PAYLOADS: Mapping[str, type[BaseModel]] = {RUNNER_CHAT_CONTRACT: RunnerChat, JOB_DISPATCH_CONTRACT: JobDispatch}


def fitting(model: type[_MODEL], contract_id: str, payload: Mapping[str, Any]) -> _MODEL:
    """The payload as this model. Raises InvalidJob, which is terminal in a worker."""
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        where, what = first_fault(error)
        raise InvalidJob(f"the payload does not fit contract {contract_id!r}: {where or 'it'}: {what}") from None


def check_contract_id(contract_id: str) -> str:
    """Raises ConfigurationError."""
    if not _CONTRACT_ID.fullmatch(contract_id):
        raise ConfigurationError(
            f"contract_id={contract_id!r:.80} must be a dotted name with a version, such as 'myapp.batch.v1'"
        )
    return contract_id


async def enqueue_contract(
    queue: BackgroundQueue,
    contract_id: str,
    payload: Mapping[str, Any] | BaseModel,
    *,
    agent: str | None = None,
    topic: str = TASKS_TOPIC,
    options: JobOptions | None = None,
) -> str:
    """Ask for a task; the id is that of its job: `queue.handle(topic, id).result()` reads what came of it.

    Raises ConfigurationError for the contract's name or an option, InvalidJob for a payload that does not fit a built-in contract.
    """
    check_contract_id(contract_id)
    given = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else dict(payload)
    if contract_id in _PAYLOADS:
        fitting(_PAYLOADS[contract_id], contract_id, given)
    if contract_id == RUNNER_CHAT_CONTRACT and agent is None:
        raise InvalidJob(f"contract {contract_id!r} needs an agent: name it with agent=")
    task = ContractTask(contract_id=contract_id, agent=agent, payload=given)
    return await queue.enqueue(topic, task, options)
