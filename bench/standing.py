"""Times in which a partition stands still: one worker of two is restarted in order, then one is killed; both group protocols.

Workers are processes of their own. Each notes every record it handles in one file (the machine's clock, partition, process).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench.events import PARTITIONS, application, raw_producer
from bench.lab import Lab, Row
from bench.ours import ready
from pipeline import Context, Pipeline

NOTE = struct.Struct("<qii")
"""Nanoseconds, partition, process."""
SETTLED_S = 1.5
DEADLINE_S = 60.0


def _worker_app(bootstrap: str, topic: str, protocol: str, ledger: str) -> Pipeline:
    app = application(bootstrap, group_protocol=protocol)
    notes = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    write, pack, clock, process = os.write, NOTE.pack, time.monotonic_ns, os.getpid()

    @app.subscribe(topic, group=f"bench-still-{protocol}", value="bytes", tiers=("10s",), attempts=2)
    async def handle(value: bytes, ctx: Context) -> None:
        write(notes, pack(clock(), ctx.partition, process))

    return app


def worker(bootstrap: str, topic: str, protocol: str, ledger: str) -> dict[str, Any]:
    """Until SIGTERM, or until whoever started it is gone."""
    app, parent = _worker_app(bootstrap, topic, protocol, ledger), os.getppid()

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await app.start()
        while not stop.is_set() and os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
        await app.stop()

    uvloop.run(main())
    return {}


class _Ground:
    """A topic that is written to evenly, its ledger, and the workers."""

    def __init__(self, bootstrap: str, topic: str, protocol: str, ledger: Path) -> None:
        self._arguments = {"bootstrap": bootstrap, "topic": topic, "protocol": protocol, "ledger": str(ledger)}
        self._ledger = ledger
        self._stop = threading.Event()
        self._feed = threading.Thread(target=self._write, args=(bootstrap, topic), name="bench-feed", daemon=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.per_s = 1_200

    def start(self) -> None:
        self._feed.start()

    def _write(self, bootstrap: str, topic: str) -> None:
        """Ten records at a time: a partition has one every 10 ms."""
        producer, began = raw_producer(bootstrap, **{"linger.ms": 0}), time.monotonic()
        for number in itertools.count():
            if self._stop.wait(max(0.0, began + number / self.per_s - time.monotonic()) if number % 10 == 0 else 0):
                break
            producer.produce(topic, b"x", b"run-%d" % (number % 600), number % PARTITIONS)
            producer.poll(0)
        producer.flush(10)

    def new_worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "bench.child", "bench.standing:worker", json.dumps(self._arguments)]
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return self._processes[-1]

    def notes(self) -> list[tuple[int, int, int]]:
        data = self._ledger.read_bytes() if self._ledger.exists() else b""
        return list(NOTE.iter_unpack(data[: len(data) // NOTE.size * NOTE.size]))

    def until_shared_by(self, *processes: subprocess.Popen[bytes]) -> None:
        """Every partition has been worked on within the last second and a half, by these and by all of these."""
        wanted, deadline = {process.pid for process in processes}, time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            time.sleep(0.2)
            after = time.monotonic_ns() - round(SETTLED_S * 1e9)
            owners = {(partition, process) for at, partition, process in self.notes() if at >= after}
            if len(owners) == PARTITIONS and {process for _, process in owners} == wanted:
                return
        raise TimeoutError(f"{len(wanted)} workers did not share the partitions within {DEADLINE_S:g} s")

    def end(self) -> None:
        self._stop.set()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        if self._feed.ident is not None:
            self._feed.join(15)


def longest_gaps(notes: Iterable[tuple[int, int]], from_ns: int) -> dict[int, float]:
    """Per partition the longest time (s) between two of its (time, partition) notes that ended after `from_ns`."""
    last: dict[int, int] = {}
    gaps: dict[int, float] = {}
    for at, partition in sorted(notes):
        if at >= from_ns and partition in last:
            gaps[partition] = max(gaps.get(partition, 0.0), (at - last[partition]) / 1e9)
        last[partition] = at
    return gaps


def _gaps(ground: _Ground, began_ns: int) -> dict[str, float]:
    gaps = longest_gaps([(at, partition) for at, partition, _ in ground.notes()], began_ns)
    if len(gaps) != PARTITIONS:
        raise RuntimeError(f"{PARTITIONS - len(gaps)} partitions had no record since")
    return {"longest_s": max(gaps.values()), "median_s": median(gaps.values())}


def pauses(bootstrap: str, topic: str, protocol: str) -> dict[str, Any]:
    """Two workers; one is stopped and started again, then one is killed. Each time the longest time without a record."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger"
        ready(_worker_app(bootstrap, topic, protocol, str(ledger)))
        ground = _Ground(bootstrap, topic, protocol, ledger)
        try:
            first, second = ground.new_worker(), ground.new_worker()
            ground.start()
            ground.until_shared_by(first, second)
            began_ns = time.monotonic_ns()
            first.terminate()
            first.wait(40)
            third = ground.new_worker()
            ground.until_shared_by(second, third)
            restart = _gaps(ground, began_ns)
            began_ns = time.monotonic_ns()
            second.kill()
            ground.until_shared_by(third)
            return {"restart": restart, "kill": _gaps(ground, began_ns)}
        finally:
            ground.end()


# -- the rows

PROTOCOLS = {"classic": "", "consumer": "-848"}
RESTART_S = 3.0
BEYOND_SESSION_S = 3.0


def _session_s(bootstrap: str, protocol: str) -> float:
    """After so long a silent member loses its partitions: ours to say in the classic protocol, the broker's in KIP-848."""
    app = application(bootstrap)
    if protocol == "classic":
        return app.settings.session_timeout_s
    return int(app.cluster.admin().broker_setting("group.consumer.session.timeout.ms") or 45_000) / 1_000


def rows(lab: Lab) -> Iterator[Row]:
    """How long a partition gets no record processed."""
    for protocol, suffix in PROTOCOLS.items():
        seen = lab.on_kafka("standing:pauses", topic=lab.new_topic("still"), protocol=protocol)
        session_s = _session_s(lab.bootstrap, protocol)
        bounds = {"restart": RESTART_S, "kill": session_s + BEYOND_SESSION_S}
        whats = {"restart": "a worker of two is stopped and started again", "kill": "a worker of two is killed"}
        for what, bound in bounds.items():
            longest, usual = seen[what]["longest_s"], seen[what]["median_s"]
            of = f"; the session timeout is {session_s:g} s" if what == "kill" else ""
            yield Row(
                f"pause-{what}{suffix}", f"longest pause of a partition: {whats[what]}, {protocol} protocol", bound / longest,
                f"<= {bound:g} s", longest <= bound, longest, None, "s", None,
                f"the median of the {PARTITIONS} partitions' longest pauses is {usual:.2f} s{of}; ratio is reach / ours",
                {"median_s": usual},
            )  # fmt: skip
