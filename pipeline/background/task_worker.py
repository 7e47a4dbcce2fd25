"""`TaskWorker`: runs the tasks of a queue by their execution contracts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.background.contracts import (
    BUILT_IN,
    TASKS_TOPIC,
    ContractTask,
    ExecutionContract,
    ExecutionContractContext,
    Runner,
    TaskItem,
    check_contract_id,
)
from pipeline.model.background import BackgroundQueue, ConsumeOptions, consuming
from pipeline.model.errors import AgentMissing, ConfigurationError, ContractMissing, InvalidJob
from pipeline.model.job_types import JobType
from pipeline.model.outcome import Reject
from pipeline.model.policies import check_terminal
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.jobs.declaring import declaration_of

TERMINAL: tuple[type[BaseException], ...] = (ContractMissing, AgentMissing, ConfigurationError, InvalidJob)
"""No attempt of this worker changes these: a dead letter at once, to be retried when a worker has what was missing."""


class TaskWorker:
    """`agents`: by name, or objects that have a `name`. `runner_factory`: makes what lets an agent work (`Runner`).

    `execution_contracts` come beside the built-in ones, and before them. `jobs`: functions by the job_type under which
    JOB_DISPATCH_CONTRACT calls them. `options`: how tasks of `topic` run.
    """

    def __init__(
        self,
        queue: BackgroundQueue,
        agents: Mapping[str, Any] | Iterable[Any] = (),
        runner_factory: Callable[[], Runner] | None = None,
        execution_contracts: Iterable[ExecutionContract] = (),
        *,
        jobs: Mapping[str, Callable[..., Any]] | None = None,
        topic: str = TASKS_TOPIC,
        options: ConsumeOptions | None = None,
    ) -> None:
        self.topic = topic
        self.ready = asyncio.Event()
        """Set once tasks are taken."""
        self._queue = queue
        self._agents = _by_name(agents)
        self._runner_factory = runner_factory
        self._contracts = _by_id(execution_contracts)
        self._jobs: dict[str, JobType] = {
            name: declaration_of(name, {}).type(handler) for name, handler in (jobs or {}).items()
        }
        chosen = consuming(options)
        self._options = replace(chosen, terminal=(*check_terminal(chosen.terminal or ()), *TERMINAL))
        self._stopping = asyncio.Event()
        self._started = False

    async def start(self) -> None:
        """Runs until `stop`, or until it is cancelled; then the queue is closed: what runs may end, nothing new starts."""
        if self._started:
            raise ConfigurationError("the TaskWorker was started already: make another one, with a queue of its own")
        self._started = True
        try:
            if not self._stopping.is_set():
                await self._queue.consume(self.topic, self._run, self._options)
                self.ready.set()
            await self._stopping.wait()
        finally:
            await self._queue.close()

    def stop(self) -> None:
        """From the worker's event loop, such as from a signal's handler. Before `start` is fine: that one returns at once then."""
        self._stopping.set()

    async def _run(self, task: ContractTask, job: JobContext) -> dict[str, Any]:
        contract = self._contracts.get(task.contract_id)
        if contract is None:
            known = ", ".join(sorted(self._contracts))
            raise ContractMissing(f"contract {task.contract_id!r} is not one of this TaskWorker; it has: {known}")
        item = TaskItem(job.id, task.contract_id, task.payload, task.agent)
        context = ExecutionContractContext(job, self._queue, self._agents, self._jobs, self._runner_factory)
        agent = self._agent(contract, task)
        result: object = await contract.execute(item, agent=agent, worker_context=context)
        if not isinstance(result, dict):
            raise Reject(f"contract {task.contract_id!r} returned {type(result).__name__}: a result is a dict")
        return result

    def _agent(self, contract: ExecutionContract, task: ContractTask) -> Any:
        if task.agent is None:
            if contract.requires_agent:
                raise AgentMissing(f"contract {task.contract_id!r} needs an agent, and the task names none")
            return None
        if task.agent not in self._agents:
            known = ", ".join(sorted(self._agents)) or "none"
            raise AgentMissing(f"agent {task.agent!r} is not one of this TaskWorker; it has: {known}")
        return self._agents[task.agent]


def _by_name(agents: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(agents, Mapping):
        return dict(agents)
    named: dict[str, Any] = {}
    for agent in agents:
        name = getattr(agent, "name", None)
        if not isinstance(name, str):
            raise ConfigurationError(f"agents: {type(agent).__name__} has no name: give agents as a dict of names")
        named[name] = agent
    return named


def _by_id(given: Iterable[ExecutionContract]) -> dict[str, ExecutionContract]:
    found: dict[str, ExecutionContract] = {}
    for contract in given:
        contract_id = check_contract_id(contract.contract_id)
        if contract_id in found:
            raise ConfigurationError(f"execution_contracts: {contract_id!r} is given twice")
        found[contract_id] = contract
    return {**{contract.contract_id: contract for contract in BUILT_IN}, **found}
