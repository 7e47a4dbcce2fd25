"""One execution of a job, from its start to its ending."""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.worker.jobs.telling import Teller
from pipeline.worker.sending import OutRecord


class Run:
    """A job that runs; `version` is what its ending names. `ended_by` says why it was stopped: "timeout", "cancelled", "let go".

    `asked`: records of jobs that it asked for. `task`: what runs it, from when it begins; the jobs of a batch share one.

    `thread`: that of a `def` handler (0: it has none yet), None for any other. `call`: what comes of it there; `called_s`: when it was
    called, by the loop's time.
    """

    __slots__ = (
        *("asked", "call", "called_s", "ended_by", "host", "job"),
        *("task", "teller", "thread", "timeout_ms", "version"),
    )

    def __init__(self, host: Any, job: Job, timeout_ms: int) -> None:
        self.host = host
        self.job = job
        self.version = job.version
        self.timeout_ms = timeout_ms
        self.ended_by = ""
        self.asked: list[OutRecord] = []
        self.task: asyncio.Task[None] | None = None
        self.teller: Teller | None = None
        self.thread: int | None = None
        self.call: asyncio.Future[object] | None = None
        self.called_s: float | None = None

    @property
    def in_thread(self) -> bool:
        """It can't be stopped."""
        return self.thread is not None and not (self.call is not None and self.call.done())
