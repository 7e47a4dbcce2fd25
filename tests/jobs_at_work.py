"""An application with jobs, served by a thread of its own while a test plays the operator: on a cluster in memory, or on real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import Pipeline
from pipeline.topology import Defaults, apply
from tests.patience import PATIENCE

SOURCE = """
import asyncio
from pydantic import BaseModel
from pipeline import Fixed, JobContext, Pipeline, Warn

app = Pipeline("operated")
broken = True

class Ticket(BaseModel):
    id: str
    text: str = ""

@app.job("classify")
async def classify(ticket: Ticket) -> dict[str, str]:
    return {"label": ticket.id + "!"}

@app.job("fragile", attempts=2, backoff=Fixed("100ms"), jitter=0)
async def fragile(ticket: Ticket) -> str:
    if broken:
        raise RuntimeError("the model is away")
    return "mended"

@app.job("picky", attempts=1)
async def picky(ticket: Ticket) -> str:
    if ticket.id == "bad":
        raise ValueError("no such ticket")
    return ticket.id

@app.job("slow")
async def slow(ticket: Ticket, job: JobContext) -> None:
    await asyncio.sleep(600)

@app.job("warns")
async def warns(_given: None) -> Warn:
    return Warn("half of it")
"""


def made(folder: Path, name: str, monkeypatch: Any) -> Any:
    """The module of the application, which `NAME:app` names."""
    (folder / f"{name}.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def make_topics(app: Pipeline, partitions: int = 2) -> None:
    admin = app.cluster.admin()
    try:
        apply(admin, app.subscriptions, Defaults(partitions=partitions), app.settings.prefix)
    finally:
        admin.close()


@contextlib.contextmanager
def served(app: Pipeline) -> Iterator[None]:
    """Its workers run until the end of this."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="served", daemon=True)
    thread.start()

    def call(what: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(what(), loop).result(60)

    try:
        call(app.start)
        yield
    finally:
        with contextlib.suppress(Exception):
            call(app.stop)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def soon(what: Callable[[], Any], seconds: float = 40.0) -> Any:
    """What it gives once that is true."""
    until_s = time.monotonic() + seconds * PATIENCE
    while not (found := what()):
        assert time.monotonic() < until_s, "it did not come"
        time.sleep(0.1)
    return found
