"""The Kafka-native pipeline for AI-agent runs and their background work.

    app = Pipeline("support")
    async with app.recorder() as recorder: ...          # publish run events
    @app.subscribe("agent.run.events", group="billing")  # process them

Names are imported when they are first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.background import (
        BackgroundQueue,
        ConsumeOptions,
        ExecutionContract,
        ExecutionContractContext,
        JobOptions,
        KafkaQueue,
        MemoryQueue,
        TaskWorker,
        enqueue_contract,
    )
    from pipeline.emit.hooks.queueing import queue_hook
    from pipeline.model.alerts import DeadLetterAlert, FloodAlert
    from pipeline.model.errors import (
        ConfigurationError,
        InvalidJob,
        JobMissing,
        JobUnsuccessful,
        PayloadTooLarge,
        PipelineError,
        ResultTimeout,
        SecretInPayload,
    )
    from pipeline.model.events import (
        Approval,
        Memory,
        Message,
        ModelCall,
        RunCancelled,
        RunCompleted,
        RunEvent,
        RunFailed,
        RunStarted,
        Step,
        ToolCall,
        ToolResult,
        UnknownEvent,
    )
    from pipeline.model.job_batches import Batch, ItemResult
    from pipeline.model.job_policies import Exponential, Fixed, QueuePolicy, RetentionPolicy
    from pipeline.model.job_resources import Resources
    from pipeline.model.outcome import Emit, Reject, Retry, Warn
    from pipeline.model.policies import Backoff, BatchPolicy, FlowPolicy, IsolationPolicy
    from pipeline.settings import Settings
    from pipeline.worker.context import Context
    from pipeline.worker.declaring import Retries
    from pipeline.worker.jobs.context import JobContext
    from pipeline.worker.routing import Router

_EVENTS = "Approval Memory Message ModelCall RunCancelled RunCompleted RunEvent RunFailed RunStarted Step ToolCall ToolResult UnknownEvent"
_QUEUES = "BackgroundQueue ConsumeOptions JobOptions KafkaQueue MemoryQueue"
_CONTRACTS = "ExecutionContract ExecutionContractContext TaskWorker enqueue_contract"
_WHERE = {
    "pipeline.app": "Pipeline",
    "pipeline.background": f"{_QUEUES} {_CONTRACTS}",
    "pipeline.emit.hooks.queueing": "queue_hook",
    "pipeline.model.alerts": "DeadLetterAlert FloodAlert",
    "pipeline.model.errors": "ConfigurationError InvalidJob JobMissing JobUnsuccessful PayloadTooLarge "
    "PipelineError ResultTimeout SecretInPayload",
    "pipeline.model.events": _EVENTS,
    "pipeline.model.job_policies": "Exponential Fixed QueuePolicy RetentionPolicy",
    "pipeline.model.outcome": "Emit Reject Retry Warn",
    "pipeline.model.policies": "Backoff BatchPolicy FlowPolicy IsolationPolicy",
    "pipeline.model.job_batches": "Batch ItemResult",
    "pipeline.model.job_resources": "Resources",
    "pipeline.settings": "Settings",
    "pipeline.worker.context": "Context",
    "pipeline.worker.declaring": "Retries",
    "pipeline.worker.jobs.context": "JobContext",
    "pipeline.worker.routing": "Router",
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = [
    "Approval",
    "BackgroundQueue",
    "Backoff",
    "Batch",
    "BatchPolicy",
    "ConfigurationError",
    "ConsumeOptions",
    "Context",
    "DeadLetterAlert",
    "Emit",
    "ExecutionContract",
    "ExecutionContractContext",
    "Exponential",
    "Fixed",
    "FloodAlert",
    "FlowPolicy",
    "InvalidJob",
    "IsolationPolicy",
    "ItemResult",
    "JobContext",
    "JobMissing",
    "JobOptions",
    "JobUnsuccessful",
    "KafkaQueue",
    "Memory",
    "MemoryQueue",
    "Message",
    "ModelCall",
    "PayloadTooLarge",
    "Pipeline",
    "PipelineError",
    "QueuePolicy",
    "Reject",
    "Resources",
    "ResultTimeout",
    "RetentionPolicy",
    "Retries",
    "Retry",
    "Router",
    "RunCancelled",
    "RunCompleted",
    "RunEvent",
    "RunFailed",
    "RunStarted",
    "SecretInPayload",
    "Settings",
    "Step",
    "TaskWorker",
    "ToolCall",
    "ToolResult",
    "UnknownEvent",
    "Warn",
    "enqueue_contract",
    "queue_hook",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
