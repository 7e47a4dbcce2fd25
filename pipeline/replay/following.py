"""What operators switched for one plan: read from the control topic between polls."""

from __future__ import annotations

import time

from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.control import ControlRecordError, Switches
from pipeline.model.errors import ClusterError

_RECORDS = 500
CATCH_UP_S = 5.0


class Follower:
    """`state()` is "", "paused" or "cancelled" as of now. A control topic that is missing or silent switches nothing."""

    def __init__(self, cluster: Cluster, control_topic: str, plan_id: str) -> None:
        self._plan_id = plan_id
        self._switches = Switches()
        self._reader = cluster.reader("pipeline-replay")
        self._place = TopicPartition(control_topic, 0)
        self._next = 0
        self._reader.assign({self._place: 0})

    def catch_up(self) -> None:
        """Wait for what was switched before: for those who would be through before they hear of it."""
        until = time.monotonic() + CATCH_UP_S
        while self._place not in self._reader.ended() and time.monotonic() < until:
            if not self._hear(0.05):
                return

    def state(self) -> str:
        self._hear(0.0)
        switch = self._switches.replay(self._plan_id)
        return "" if switch is None else switch.state

    def _hear(self, wait_s: float) -> bool:
        try:
            messages = self._reader.poll(_RECORDS, wait_s)
        except ClusterError:
            self._reader.assign({self._place: self._next})
            return False
        for message in messages:
            self._next = message.offset() + 1
            try:
                self._switches.fold(message.key(), message.value())
            except ControlRecordError:
                continue
        return True

    def close(self) -> None:
        self._reader.close()
