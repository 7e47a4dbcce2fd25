"""Have the workers of a queue come past what was in its inbox? A job that was in there and is not in the store then is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from pipeline.model.cluster import Cluster, ClusterAdmin, TopicPartition
from pipeline.model.errors import PipelineError

FRESH_S = 5.0
"""The group is asked no more often, however many wait."""

Ends = Mapping[TopicPartition, int]


class Inbox:
    """Its methods may wait, and raise PipelineError. Safe to use from several threads.

    A request is settled in the inbox by an entry in the store, so one that lies below what the group has committed has had its entry.
    All partitions count: where the inbox was given more of them, the key does not say which one a request went to.
    """

    def __init__(self, cluster: Cluster, topic: str, group: str) -> None:
        self._cluster = cluster
        self._topic = topic
        self._group = group
        self._lock = threading.Lock()
        self._admin: ClusterAdmin | None = None
        self._committed: Ends = {}
        self._asked_s: float | None = None

    def ends(self) -> Ends:
        """All that was acknowledged lies below."""
        with self._lock:
            return self._ends()

    def settled(self, ends: Ends, now_s: float) -> bool:
        """Is all that lies below settled? What was committed is at most `FRESH_S` old: it only grows. `now_s`: of a clock that does too."""
        with self._lock:
            if self._asked_s is None or not 0 <= now_s - self._asked_s < FRESH_S:
                self._asked_s, self._committed = now_s, {}
                self._committed = self._look()
            return all(self._committed.get(tp, 0) >= end for tp, end in ends.items())

    def _look(self) -> Ends:
        """What is committed beyond the end is about another topic, which had this name before."""
        positions = self._reached().group_positions(self._group)
        ends = self._ends()
        return {tp: at.offset for tp, at in positions.items() if at.offset <= ends.get(tp, -1)}

    def _ends(self) -> Ends:
        admin = self._reached()
        spec = admin.topics([self._topic]).get(self._topic)
        if spec is None:
            raise PipelineError(f"topic {self._topic} does not exist: run `pipeline topics apply`")
        return admin.end_offsets([TopicPartition(self._topic, number) for number in range(spec.partitions)])

    def _reached(self) -> ClusterAdmin:
        if self._admin is None:
            self._admin = self._cluster.admin()
        return self._admin
