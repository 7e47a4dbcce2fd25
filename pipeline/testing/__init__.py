"""Help for tests, without pytest: a job function run in virtual time, and the checks that every `BackgroundQueue` passes."""

from pipeline.testing.checking import QueueCheck
from pipeline.testing.processors import LogLine, ProcessorRun, run_processor
from pipeline.testing.queues import QUEUE_CHECKS, check_queue

__all__ = [  # noqa: RUF022 - by the code of their characters, as everywhere
    "LogLine",
    "ProcessorRun",
    "QUEUE_CHECKS",
    "QueueCheck",
    "check_queue",
    "run_processor",
]
