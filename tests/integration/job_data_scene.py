"""The application of test_jobs_data_on_kafka.py: jobs that say how far they are, run in processes or batches, and carry much.

As a module (`tests.integration.job_data_scene:app`) it is what worker processes and their children run, made from HARNESS_SPEC.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

from pipeline import Batch, Pipeline, Resources, Settings
from pipeline.model.job_policies import Fixed, RetentionPolicy
from pipeline.worker.jobs.context import JobContext

APP_NAME = "tests.integration.job_data_scene:app"


def make_app(spec: dict[str, Any]) -> Pipeline:
    app = Pipeline("data", settings=Settings(**spec["settings"]))
    app.queue("default", concurrency=50)
    if spec.get("webhook"):
        app.webhook("test", spec["webhook"], secret="shared")

    @app.job("count")
    async def count(until: int, job: JobContext) -> int:
        begin = job.last_progress.processed if job.last_progress else 0
        for number in range(begin, until):
            job.progress(number + 1, until)
            await asyncio.sleep(0.1)
        job.log("counted", until=until)
        return begin

    @app.job("repeat", retention=RetentionPolicy(completed=0))
    async def repeat(text: str) -> str:
        return text + text

    @app.job("write", permissions=["tickets:write"])
    async def write(_given: None) -> None: ...

    @app.job("index", batch=Batch(size=20, wait="100ms"), attempts=2, backoff=Fixed("200ms"))
    async def index(numbers: list[int], jobs: list[JobContext]) -> list[dict[str, Any]]:
        return [
            {"id": job.id, "status": "failed", "error": "once more"}
            if number == 7 and job.attempt == 1
            else {"id": job.id, "status": "completed", "result": [number, job.attempt, len(numbers)]}
            for number, job in zip(numbers, jobs, strict=True)
        ]

    @app.job("alone", executor="process", max_stalled_count=1, resources=Resources(memory="1GiB", cpu=0.5))
    def alone(what: str, job: JobContext) -> list[int]:
        job.progress(1, 1, what)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hunger":
            bytearray(3 * 2**30)
        return [os.getpid(), job.stalls]

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return make_app(json.loads(os.environ["HARNESS_SPEC"]))
    raise AttributeError(name)
