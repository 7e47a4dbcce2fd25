"""Other job queues beside ours, both on Redis: BullMQ (Node) and Taskiq (Python). Absent ones are told of, not failed.

`redis-server` comes from the system's packages, BullMQ by npm into a folder of its own, Taskiq with the `bench` extra. Redis keeps
nothing on disk here, which is its fastest; the Kafka beside it acknowledges from its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.meter import Meter

BULLMQ = "bullmq@5"
SCRIPT = Path(__file__).with_name("bullmq.mjs")
START_S, INSTALL_S, RUN_S = 10.0, 180.0, 180.0


class Absent(RuntimeError):
    """A peer can't be measured here; the text says what is missing."""


@contextlib.contextmanager
def redis() -> Iterator[int]:
    """The port of a Redis of our own, on this machine only and for as long as the block runs."""
    server = shutil.which("redis-server")
    if server is None:
        raise Absent("redis-server is not installed (on Debian: apt-get install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as folder:
        command = [
            server,
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _until_up(port)
            yield port
        finally:
            process.terminate()
            process.wait(10)


def _until_up(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise Absent(f"redis-server did not come up within {START_S:g} s")


@contextlib.contextmanager
def bullmq() -> Iterator[Path]:
    """A folder that has BullMQ."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise Absent("Node and npm are not installed, so BullMQ can't be measured")
    with tempfile.TemporaryDirectory(prefix="bench-bullmq-") as folder:
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", BULLMQ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode:
            raise Absent(
                f"npm could not install {BULLMQ}: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"
            )
        yield Path(folder)


def run_bullmq(folder: Path, port: int, **arguments: Any) -> dict[str, Any]:
    """See bullmq.mjs."""
    command = ["node", str(SCRIPT), json.dumps({"port": port, "concurrency": 1, "waitMs": 0, **arguments})]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode or not done.stdout.strip():
        raise Absent(f"BullMQ did not run: {(done.stderr.strip() or 'it printed nothing').splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def has_taskiq() -> bool:
    return find_spec("taskiq_redis") is not None


def taskiq(port: int, jobs: int, concurrency: int, wait_ms: int) -> dict[str, Any]:
    """One process that asks and works, on a Redis stream, with acknowledgements and results."""
    import uvloop
    from taskiq.receiver import Receiver
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

    async def main() -> dict[str, Any]:
        url, name = f"redis://127.0.0.1:{port}", f"taskiq-{uuid.uuid4().hex[:8]}"
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        meter = Meter(jobs, lambda: loop.call_soon_threadsafe(done.set))
        broker = RedisStreamBroker(url=url, queue_name=name).with_result_backend(
            RedisAsyncResultBackend(redis_url=url, result_ex_time=600)
        )

        @broker.task(task_name=f"classify-{name}")
        async def classify(ticket: dict[str, Any]) -> dict[str, Any]:
            if wait_ms:
                await asyncio.sleep(wait_ms / 1000)
            meter.tick()
            return {"label": ticket["ticket"]}

        broker.is_worker_process = True
        await broker.startup()
        finish = asyncio.Event()
        working = asyncio.create_task(Receiver(broker, max_async_tasks=concurrency).listen(finish))
        asking = asyncio.create_task(_ask(classify, jobs))
        await asyncio.wait_for(done.wait(), RUN_S)
        await asking
        finish.set()
        with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(working, 5)
        await broker.shutdown()
        return meter.result()

    return uvloop.run(main())


async def _ask(task: Any, jobs: int, at_once: int = 500) -> None:
    """It has no call for many: so many side by side."""
    for first in range(0, jobs, at_once):
        inputs = [{"ticket": f"ticket-{n}", "text": "x" * 60} for n in range(first, min(jobs, first + at_once))]
        await asyncio.gather(*(task.kiq(each) for each in inputs))
