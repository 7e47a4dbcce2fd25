"""Background work by topic: the two back-ends of `BackgroundQueue`, execution contracts, and the worker that runs them."""

from pipeline.background.contracts import (
    JOB_DISPATCH_CONTRACT,
    RUNNER_CHAT_CONTRACT,
    TASKS_TOPIC,
    ExecutionContract,
    ExecutionContractContext,
    Runner,
    TaskItem,
    enqueue_contract,
)
from pipeline.background.kafka_queue import KafkaQueue
from pipeline.background.memory_queue import MemoryQueue
from pipeline.background.task_worker import TaskWorker
from pipeline.model.background import BackgroundQueue, ConsumeOptions, QueueHandle, ResultQueue
from pipeline.model.job_policies import JobOptions

__all__ = [  # noqa: RUF022 - by the code of their characters, as everywhere
    "BackgroundQueue",
    "ConsumeOptions",
    "ExecutionContract",
    "ExecutionContractContext",
    "JOB_DISPATCH_CONTRACT",
    "JobOptions",
    "KafkaQueue",
    "MemoryQueue",
    "QueueHandle",
    "RUNNER_CHAT_CONTRACT",
    "ResultQueue",
    "Runner",
    "TASKS_TOPIC",
    "TaskItem",
    "TaskWorker",
    "enqueue_contract",
]
