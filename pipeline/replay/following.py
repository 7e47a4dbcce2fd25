"""What operators switched for one plan: read from the control topic between polls."""

from __future__ import annotations

from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.control import ControlRecordError, Switches
from pipeline.model.errors import ClusterError

_RECORDS = 500


class Follower:
    """`state()` is "", "paused" or "cancelled" as of now. A control topic that is missing or silent switches nothing."""

    def __init__(self, cluster: Cluster, control_topic: str, plan_id: str) -> None:
        self._plan_id = plan_id
        self._switches = Switches()
        self._reader = cluster.reader("pipeline-replay")
        self._place = TopicPartition(control_topic, 0)
        self._next = 0
        self._reader.assign({self._place: 0})

    def state(self) -> str:
        try:
            messages = self._reader.poll(_RECORDS, 0.0)
        except ClusterError:
            self._reader.assign({self._place: self._next})
            messages = []
        for message in messages:
            self._next = message.offset() + 1
            try:
                self._switches.fold(message.key(), message.value())
            except ControlRecordError:
                continue
        switch = self._switches.replay(self._plan_id)
        return "" if switch is None else switch.state

    def close(self) -> None:
        self._reader.close()
