"""Of what was fetched: choose, copy and hand to the producer, within the window, the pace and the bound of the run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence

from pipeline.model.cluster import BulkProducer, Cluster, Message, TopicPartition
from pipeline.model.errors import RecordTooLarge
from pipeline.replay.copying import Copier, Copies
from pipeline.replay.flow import Batch, Flow
from pipeline.replay.last_ones import LastOnes
from pipeline.replay.options import WINDOW_FIRST, WINDOW_PART, RunOptions
from pipeline.replay.pacing import Pace, batch_records
from pipeline.replay.plan import ReplayPlan
from pipeline.replay.selecting import Selector

LAST_RECORDS = 500
"""Of those sent last so many go out together, as many as a fetch has."""
_NO_BOUND = 1 << 30


class Sending:
    """Of one process. Batches of a partition go out in order; a full producer queue is met again in the next round."""

    def __init__(
        self,
        cluster: Cluster,
        plan: ReplayPlan,
        options: RunOptions,
        selector: Selector,
        copier: Copier,
        producer: BulkProducer,
    ) -> None:
        self._cluster, self._plan, self._options = cluster, plan, options
        self._selector, self._copy, self._producer = selector, copier, producer
        self._last_of = {partition: frozenset(offsets) for partition, offsets in plan.last.items() if offsets}
        self._reading: dict[int, LastOnes] = {}
        self._slice = batch_records(plan.rate, LAST_RECORDS)
        self._pace = Pace(plan.rate, time.monotonic())
        self._records = 0
        self._under_way = 0
        self._window = min(WINDOW_FIRST, options.window)

    def share(self, part: float) -> None:
        """So much of the plan's rate is ours, from 0 to 1."""
        self._pace.set(self._plan.rate * part, time.monotonic())

    def room(self) -> int:
        """How many records this run may still send."""
        limit = self._options.stop_after
        return limit - self._records if limit else _NO_BOUND

    @property
    def crowded(self) -> bool:
        """Half of the window is taken."""
        return 2 * self._under_way >= self._window

    def forget(self, partition: int) -> None:
        self._reading.pop(partition, None)

    def send(self, flows: Collection[Flow]) -> None:
        """As much as may go out now, partition by partition."""
        self._under_way = sum(flow.under_way for flow in flows)
        through = self._records - self._under_way
        self._window = min(self._options.window, max(WINDOW_FIRST, through // WINDOW_PART))
        for flow in flows:
            if flow.draining or flow.held or not self.push(flow):
                continue
            while flow.pending and self._may():
                if not self._send_next(flow):
                    break
            if flow.fetched and not flow.pending and flow.next_last < len(flow.last) and self._may():
                self._send_last(flow)

    def push(self, flow: Flow) -> bool:
        """Hand on what a full queue refused; False when it still does. Only the last batch can have such records: none is
        started behind one that is not out."""
        for out in flow.batches[-1].copies.outgoing if flow.batches else ():
            while out.records:
                try:
                    taken = self._producer.send_many(out.topic, out.partition, out.records, out.answers)
                except RecordTooLarge as error:
                    # More than the client itself takes: that one's answer, in its turn. Answers are told apart by their number.
                    if len(out.answers.offsets) < len(out.sources) - len(out.records):
                        return False
                    out.answers.add(error, -1)
                    taken = 1
                if not taken:
                    return False
                del out.records[:taken]
        return True

    def _may(self) -> bool:
        return self._under_way < self._window and self.room() > 0 and self._pace.allowed(time.monotonic()) > 0

    def _send_next(self, flow: Flow) -> bool:
        messages, end = flow.pending.popleft()
        before: Counter[str] = Counter()
        chosen = self._selector.choose(self._new(flow, messages, before))
        room = self.room()
        if len(chosen) > room:
            cut = chosen[room].offset()
            flow.pending.appendleft(([m for m in messages if m.offset() >= cut], end))
            before = Counter()
            messages, end = [m for m in messages if m.offset() < cut], cut
            chosen = self._selector.choose(self._new(flow, messages, before))
        return self._start(flow, Batch(end, self._copies(flow, chosen), len(messages), 0, before))

    def _new(self, flow: Flow, messages: Sequence[Message], before: Counter[str]) -> Sequence[Message]:
        """Without those that are sent last, and those that have their result already."""
        last, written = self._last_of.get(flow.partition), flow.written
        if last is not None:
            messages = [m for m in messages if m.offset() not in last]
        if written:
            before.update(written[m.offset()] for m in messages if m.offset() in written)
            messages = [m for m in messages if m.offset() not in written]
        return messages

    def _copies(self, flow: Flow, messages: Sequence[Message]) -> Copies:
        return self._copy(flow.partition, messages) if messages else Copies()

    def _start(self, flow: Flow, batch: Batch) -> bool:
        flow.batches.append(batch)
        records = batch.records
        flow.under_way += records
        self._under_way += records
        self._records += records + len(batch.copies.kept)
        self._pace.spent(records + len(batch.copies.kept))
        taken = self.push(flow)
        if records:
            self._options.stage("sent")
        return taken

    def _send_last(self, flow: Flow) -> None:
        reading = self._reading.get(flow.partition)
        if reading is None:
            place = TopicPartition(self._plan.source.topic, flow.partition)
            reading = self._reading[flow.partition] = LastOnes(self._cluster, place, flow.last[flow.next_last :])
        if not reading.ready():
            return
        taken = True
        while taken and not reading.through and self._may():
            size, messages = reading.take(min(self._slice, self.room()))
            flow.next_last += size
            before: Counter[str] = Counter(flow.written[m.offset()] for m in messages if m.offset() in flow.written)
            chosen = self._selector.choose([m for m in messages if m.offset() not in flow.written])
            taken = self._start(flow, Batch(flow.span.end, self._copies(flow, chosen), 0, size, before))
        if reading.through:
            del self._reading[flow.partition]
