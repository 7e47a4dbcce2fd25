"""What a process fetches of the partitions it is given: how much of it may wait, where a partition ends, and what can't be read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import methodcaller

from pipeline.inspect.scan import read_batches
from pipeline.model.cluster import Cluster, FetchFault, GroupConsumer, Message, TopicPartition
from pipeline.model.errors import NotAuthorized, PipelineError
from pipeline.replay.flow import Flow
from pipeline.replay.pacing import batch_records
from pipeline.replay.plan import PlanError, ReplayPlan

FETCH = 1_000  # larger ones leave the processor's cache: measured, 2,000 take a quarter more CPU time per record
AHEAD, AHEAD_BYTES = 8_000, 64 * 1024 * 1024
"""What is fetched and waits to be sent: at most about so many records, and so many bytes by their usual size."""
WAIT_BUSY_S, WAIT_IDLE_S, SILENT_S = 0.001, 0.05, 2.0
PAUSE_AFTER_S = 0.25
"""A pause throws away what the client has fetched ahead, and it is fetched again. So a full house is left alone for a moment first."""


class Fetching:
    """Of one process; `flows` are its partitions at any time."""

    def __init__(
        self, cluster: Cluster, consumer: GroupConsumer, plan: ReplayPlan, window: int, flows: Mapping[int, Flow]
    ) -> None:
        self._cluster, self._consumer, self._topic, self._flows = cluster, consumer, plan.source.topic, flows
        self._window = window
        self._size = batch_records(plan.rate, FETCH)
        self._resting: set[int] = set()  # partitions not fetched until less of what was fetched waits
        self._usual_bytes = 0.0
        self._full_since: float | None = None
        self._heard_s = 0.0
        self._fault: FetchFault | None = None

    def fault(self, fault: FetchFault) -> None:
        """Met inside `poll`, which raises it."""
        if fault.kind != "other":
            self._fault = fault

    def forget(self, partition: int) -> None:
        self._resting.discard(partition)

    def poll(self, running: bool) -> bool:
        """Serve the group and fetch; did anything come? Raises a `PipelineError` for what can't be read."""
        waiting = sum(len(messages) for flow in self._flows.values() for messages, _ in flow.pending)
        busy = any(flow.batches or flow.recorded or flow.committing for flow in self._flows.values())
        if self._full(waiting, running):
            time.sleep(WAIT_BUSY_S)
            return False
        self._rest(waiting, running)
        wait_s = WAIT_BUSY_S if busy or waiting else WAIT_IDLE_S
        messages = self._consumer.poll(1 if self._resting else self._size, wait_s)
        if self._fault is not None:
            raise unreadable(self._topic, self._fault)
        now = time.monotonic()
        if messages:
            self._usual_bytes += (len(messages[0].value() or b"") - self._usual_bytes) / 8
            self._heard_s = now
        for group in _by_partition(messages):
            partition = group[0].partition()
            flow = self._flows.get(partition)
            if flow is not None and not flow.draining:
                flow.take(group)
                flow.heard_s = now
                if flow.fetched:
                    self._consumer.pause([TopicPartition(self._topic, partition)])
        if running and not messages and not waiting and now - self._heard_s > SILENT_S:
            self._listen_for_ends(now)
        return bool(messages)

    @property
    def _most(self) -> int:
        return min(self._window, AHEAD, max(FETCH, int(AHEAD_BYTES / max(1.0, self._usual_bytes))))

    def _full(self, waiting: int, running: bool) -> bool:
        """So much waits that nothing should come, and not for so long yet that the group may not wait to be served."""
        if not running or self._resting or waiting < self._most:
            self._full_since = None
            return False
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        return now - self._full_since < PAUSE_AFTER_S

    def _rest(self, waiting: int, running: bool) -> None:
        """Fetch nothing while enough waits to be sent (a rate is kept) or nothing may be (the plan is held)."""
        most = self._most
        if not running or waiting >= most:
            found = [p for p, flow in self._flows.items() if not flow.fetched and p not in self._resting]
            if found:
                self._consumer.pause([TopicPartition(self._topic, p) for p in found])
                self._resting.update(found)
        elif self._resting and waiting <= most // 2:
            found = [p for p in self._resting if not self._flows[p].fetched]
            self._consumer.resume([TopicPartition(self._topic, p) for p in found])
            self._resting.clear()
            for partition in found:
                self._flows[partition].heard_s = time.monotonic()

    def _listen_for_ends(self, now: float) -> None:
        """A span may end with offsets that never come (they were compacted away): asked of the broker when it is silent. While others
        are fetched a partition may wait for its turn for long, and asking costs a client of its own."""
        for flow in self._flows.values():
            if not flow.fetched and not flow.draining and now - flow.heard_s > SILENT_S:
                place = TopicPartition(self._topic, flow.partition)
                left = read_batches(self._cluster, {place: flow.next_offset}, {place: flow.span.end}, None)
                if next(left, None) is None:
                    flow.nothing_more()
                flow.heard_s = time.monotonic()


def _by_partition(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Runs of one partition each; most fetches are one."""
    if len({message.partition() for message in messages}) <= 1:
        return [messages] if messages else []
    return [list(group) for _, group in groupby(messages, methodcaller("partition"))]


def unreadable(topic: str, fault: FetchFault) -> PipelineError:
    """What a fault means for a plan."""
    partition, offset = fault.partition.partition, fault.offset
    at = f"{topic} partition {partition} can't be read at offset {offset} ({fault.text})"
    if fault.kind == "not_authorized":
        return NotAuthorized(f"{fault.text}; then run the plan again")
    if fault.kind == "unknown_topic":
        return PlanError(f"topic {topic} does not exist any more ({fault.text}): make a new plan")
    if fault.kind == "bad_batch":
        return PlanError(
            f"{at}: the batch there is damaged; make a new plan behind it (--from-offset {partition}:{offset + 1} or later)"
        )
    return PlanError(f"{at}: records of the plan are gone since it was made; make a new plan")
