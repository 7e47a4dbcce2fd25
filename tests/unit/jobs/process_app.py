"""The application whose jobs run in child processes in test_processes.py."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from pydantic import BaseModel, field_validator

from pipeline import JobContext, Pipeline, Reject, Resources, Settings, Warn

app = Pipeline("processes", settings=Settings(broker="memory://processes"))


@app.job("pid", executor="process")
def pid(number: int, job: JobContext) -> dict[str, int]:
    return {"pid": os.getpid(), "number": number, "attempt": job.attempt}


@app.job("slow", executor="process", timeout="500ms")
def slow(_given: None) -> None:
    time.sleep(60)


@app.job("slow_async", executor="process", timeout="500ms")
async def slow_async(_given: None) -> None:
    await asyncio.sleep(60)


@app.job("dies", executor="process", max_stalled_count=2)
def dies(_given: None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.job("hungry", executor="process", resources=Resources(memory="1GiB"))
def hungry(size: int) -> int:
    return len(bytearray(size))


@app.job("narrow", executor="process", resources=Resources(cpu=1))
def narrow(_given: None) -> int:
    return len(os.sched_getaffinity(0))


@app.job("tells", executor="process")
def tells(count: int, job: JobContext) -> int:
    begin = job.last_progress.processed if job.last_progress else 0
    for number in range(begin, count):
        job.progress(number + 1, count)
    job.log("counted", until=count)
    return begin


@app.job("misfit", executor="process")
def misfit(_given: None) -> int:
    return "five"  # type: ignore[return-value]


@app.job("fails", executor="process")
def fails(_given: None, job: JobContext) -> None:
    job.log.warning("about to")
    raise Reject("password=hunter2222 is wrong")


class Textless:
    def __str__(self) -> str:
        raise RuntimeError("no text")


WARNINGS = {"an error": ValueError("partly done"), "bytes": b"partly", "no text": Textless(), "nothing": None}


@app.job("warns", executor="process")
def warns(how: str) -> Warn:
    return Warn(WARNINGS[how])  # type: ignore[arg-type]


class Weight(BaseModel):
    unit: str

    @field_validator("unit")
    @classmethod
    def known(cls, unit: str) -> str:
        if unit == "exit":
            raise SystemExit(3)
        return {"kg": "kilogram"}[unit]


@app.job("weighs", executor="process", terminal=(KeyError,))
def weighs(weight: Weight) -> str:
    return weight.unit
