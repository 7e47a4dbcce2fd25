"""Where partitions stand as they become ours: committed offsets of source and lanes first, then log starts, then ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.core.care import SOURCE_NAME, of_records
from pipeline.core.progress import Progress, decode, lane_progress
from pipeline.core.unit import LaneSpec
from pipeline.model.cluster import GroupConsumer, TopicPartition
from pipeline.model.policies import Start
from pipeline.worker.beginnings import expired_lane, out_of_range
from pipeline.worker.inputs import Opened, Refused, StorePlace

REQUEST_TIMEOUT_S = 10.0
TRY_TIMEOUTS_S = (3.0, 5.0, REQUEST_TIMEOUT_S)
"""For each request of the first try to open a partition, of the second, of all others. After a network that fell silent every connection
is found to be dead by its own request, one behind the other: those that wait long would add up."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """`buffered`: records fetched and not started, at which fetching stops; `batch`: records per poll; `poll_s`: the longest one.

    `state`: the topic of a queue's store.
    """

    source: str
    group: str
    start: Start
    buffered: int = 10_000
    batch: int = 2_000
    poll_s: float = 0.02
    state: str | None = None


class Opener:
    """`lanes` gives, within so many seconds, the group's lanes as they are on the cluster now: asked at every assignment, so that
    workers of a rolling deploy that adds or removes a tier agree."""

    def __init__(
        self, consumer: GroupConsumer, policy: FetchPolicy, lanes: Callable[[float], Sequence[LaneSpec]]
    ) -> None:
        self._consumer = consumer
        self._policy = policy
        self._lanes = lanes

    def read(self, partitions: Sequence[int], timeout_s: float) -> Iterator[Opened | Refused]:
        """One answer per partition; each request may take `timeout_s`. Raises what the cluster says, or a `TopologyError`."""
        lanes, source = tuple(self._lanes(timeout_s)), self._policy.source
        sources = [TopicPartition(source, partition) for partition in partitions]
        every = [*sources, *(TopicPartition(lane.topic, partition) for partition in partitions for lane in lanes)]
        committed = self._consumer.committed(every, timeout_s)
        if (state := self._policy.state) is not None:
            every += [TopicPartition(state, partition) for partition in partitions]
        beginnings = self._consumer.beginning_offsets(every, timeout_s)
        # Ends after committed offsets: a hand-off that landed before a commit counted it must be below the fence.
        ends = self._consumer.end_offsets(every, timeout_s)
        fresh = self._starts([tp for tp in sources if committed[tp] is None], beginnings, ends, timeout_s)
        for tp in sources:
            partition, position = tp.partition, committed[tp]
            progress = (
                Progress(fresh[tp], fresh[tp]) if position is None else decode(position.offset, position.metadata)
            )
            by_lane = {lane.name: TopicPartition(lane.topic, partition) for lane in lanes}
            if progress.offset < beginnings[tp] or progress.offset > ends[tp]:
                lost = out_of_range(self._policy.group, tp, progress.offset, beginnings[tp], ends[tp])
                yield Refused(partition, lost)
                continue
            expired = expired_lane(self._policy.group, source, tuple(by_lane.values()), committed, beginnings)
            if expired is not None:
                yield Refused(partition, expired)
                continue
            found = {name: lane_progress(committed[at], beginnings[at], ends[at]) for name, at in by_lane.items()}
            fences = {name: ends[at] for name, at in by_lane.items()}
            marks = of_records(progress.marks, {SOURCE_NAME: ends[tp], **fences})
            store = None
            if state is not None:
                at = TopicPartition(state, partition)
                store = StorePlace(state, beginnings[at], ends[at])
            yield Opened(partition, lanes, replace(progress, marks=marks), found, fences, store=store)

    def _starts(
        self,
        partitions: Sequence[TopicPartition],
        beginnings: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        timeout_s: float,
    ) -> Mapping[TopicPartition, int]:
        at = self._policy.start.at
        if not partitions or at == "earliest":
            return {tp: beginnings[tp] for tp in partitions}
        if at == "latest":
            return {tp: ends[tp] for tp in partitions}
        return self._consumer.offsets_at(partitions, at, timeout_s)
