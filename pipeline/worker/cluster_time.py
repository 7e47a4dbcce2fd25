"""Keeps a worker's clocks on the cluster's time: due times are written by one machine and read by another."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Any

from pipeline.model.cluster import Cluster
from pipeline.model.errors import ClusterUnavailable, PipelineError
from pipeline.worker.parts import Clock

AGAIN_S = 300.0
TIMEOUT_S = 5.0
TELL_MS = 1_000
"""A difference from which on somebody should look at the machine."""


class ClusterTime:
    """`measure` may be called in any thread. Where the cluster can't be asked (no such topic, no right) own time is used."""

    def __init__(self, topic: str, log: Any) -> None:
        self.topic, self._log = topic, log
        self._clocks: list[Clock] = []
        self._ahead_ms = self._spread_ms = 0
        self._told = False
        self._task: asyncio.Task[None] | None = None

    def keep(self, clock: Clock) -> Clock:
        """From now on this clock is corrected too."""
        clock.ahead_ms, clock.spread_ms = self._ahead_ms, self._spread_ms
        self._clocks.append(clock)
        return clock

    def prepare(self, cluster: Cluster, existing: Container[str]) -> None:
        """For the first time. A topic that is not there is not waited for."""
        if self.topic in existing:
            self.measure(cluster)
        else:
            self.unknown(f"{self.topic} is not there or may not be used: run `pipeline topics apply`")

    def measure(self, cluster: Cluster) -> None:
        try:
            found = cluster.time_difference(self.topic, TIMEOUT_S)
        except ClusterUnavailable:
            return  # what was measured before still holds
        except PipelineError as error:
            self.unknown(str(error))
            return
        if abs(found.ahead_ms - self._ahead_ms) > TELL_MS:
            self._log.warning("this machine's clock is not the cluster's: corrected here", ahead_ms=found.ahead_ms)
        self._ahead_ms, self._spread_ms = found.ahead_ms, found.spread_ms
        for clock in self._clocks:
            clock.ahead_ms, clock.spread_ms = found.ahead_ms, found.spread_ms

    def unknown(self, why: str) -> None:
        if not self._told:
            self._log.warning("retries keep to this machine's clock: the cluster's time is not known", why=why)
        self._told = True

    def start(self, cluster: Cluster) -> None:
        """Clocks drift and are set: measure again and again, beside the event loop."""
        if not self._told:
            self._task = asyncio.ensure_future(self._repeat(cluster))

    async def _repeat(self, cluster: Cluster) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            try:
                await asyncio.get_running_loop().run_in_executor(None, self.measure, cluster)
            except Exception as error:  # of the client's, or no thread for it: what was measured before still holds
                self._log.warning("the cluster's time could not be measured, which is tried again", error=repr(error))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
