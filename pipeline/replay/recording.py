"""Writing results while a replay runs: a batch's results follow its acknowledgement, and are acknowledged before its commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.model.cluster import BulkProducer
from pipeline.model.errors import BufferFull, ClusterError, ClusterUnavailable
from pipeline.replay.flow import Batch, Flow, Recorded
from pipeline.replay.plan import ReplayPlan
from pipeline.replay.results import Result, ResultBatch, entries

FULL_PAUSE_S, FULL_S = 0.002, 20.0
"""A full queue is asked again this often, and for so long: brokers that take nothing end the run."""


def action_of(plan: ReplayPlan) -> str:
    """What the audit and the results call it. Only what sends dead letters back redrives them; a copy elsewhere leaves them as they are."""
    return "redrive" if plan.source.kind == "dead_letters" and plan.target.kind == "lane" else "replay"


class Recorder:
    """One per process. `now_ms` is the clock of the results."""

    def __init__(
        self, producer: BulkProducer, topic: str, plan: ReplayPlan, who: str, now_ms: Callable[[], int]
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._plan = plan
        self._who = who
        self._now_ms = now_ms
        self._action = action_of(plan)

    def record(self, flow: Flow, batches: Sequence[Batch]) -> None:
        """Write the results of acknowledged batches; `flow.settle` takes in the answers.

        Raises the broker's error for a refused batch, and `ClusterUnavailable` when results are not taken. What lies behind it
        in the flow is given up then: a commit past it would lose it.
        """
        found: list[Result] = []
        errors: dict[int, str] = {}
        for index, batch in enumerate(batches):
            try:
                found += batch.results()
            except ClusterError:
                flow.abandon()
                if index:
                    self._settle(flow, batches[:index], found, errors)
                raise
            errors |= batch.copies.errors
        self._settle(flow, batches, found, errors)

    def _settle(self, flow: Flow, batches: Sequence[Batch], found: list[Result], errors: dict[int, str]) -> None:
        counts: Counter[str] = Counter()
        for result in found:
            counts[result.outcome] += result.records
        recorded = Recorded(list(batches), counts)
        flow.recorded.append(recorded)
        try:
            if found:
                self._write(flow.partition, found, errors, recorded)
        except ClusterError:
            flow.abandon()
            flow.recorded.pop()
            raise

    def _write(self, partition: int, found: list[Result], errors: dict[int, str], recorded: Recorded) -> None:
        plan = self._plan
        batch = ResultBatch(
            plan.plan_id, self._action, plan.source.topic, partition, self._who, self._now_ms(), found, errors
        )
        made = entries(batch)
        recorded.expected = len(made)

        def delivered(error: ClusterError | None, offset: int) -> None:
            if error is None:
                recorded.offsets.append(offset)
            else:
                recorded.errors.append(error)

        until = time.monotonic() + FULL_S
        for entry in made:
            while True:
                try:
                    self._producer.send(self._topic, entry.key, entry.value, partition=-1, delivered=delivered)
                    break
                except BufferFull:
                    if time.monotonic() > until:
                        raise ClusterUnavailable(
                            f"the results of partition {partition} could not be written to {self._topic} in {FULL_S:g} s: check that the "
                            "brokers are reachable, then run the plan again"
                        ) from None
                    self._producer.serve(FULL_PAUSE_S)
