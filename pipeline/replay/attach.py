"""A new group over past runs: its start positions, committed before its first worker starts; from there it just goes on to live."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Literal

from pipeline.core.progress import Progress, decode
from pipeline.inspect.lag import unsettled_count
from pipeline.inspect.scan import TAIL, ends_of_records
from pipeline.model.cluster import Cluster, ClusterAdmin, ConsumerPolicy, TopicPartition
from pipeline.model.errors import ClusterUnavailable, ConfigurationError
from pipeline.replay.catching_up import CatchUp, Sight, Way
from pipeline.replay.claiming import GroupAt
from pipeline.replay.reset import check_partitions

REQUEST_S = 10.0
LOOK_EVERY_S = 0.5
SILENT_MAX_S = 60.0
"""So long a broker may be away while a group is watched."""


def refuse_known(at: GroupAt) -> None:
    """Raises `ConfigurationError` for a group that has committed here: it is not new."""
    known = sorted(place.partition for place in at.positions if place.topic == at.topic)
    if known:
        raise ConfigurationError(
            f"group {at.group} has committed offsets on {at.topic} already (partition {known[0]}"
            f"{f' and {len(known) - 1} more' if len(known) > 1 else ''}): `pipeline groups reset {at.group} --topic {at.topic}` moves it"
        )


def start_positions(
    at: GroupAt,
    everywhere: Mapping[TopicPartition, int] | Literal["earliest", "latest"] | None,
    named: Mapping[int, int],
) -> dict[TopicPartition, Progress]:
    """Where each partition starts: `named` offsets first, the rest by time or at an end of the log.

    Raises `ConfigurationError` for an offset out of range, or a partition that nothing was said about.
    """
    check_partitions(at.topic, at.partitions, named)
    found = {}
    for place, standing in at.standings().items():
        offset = named.get(place.partition)
        if offset is None:
            if everywhere is None:
                raise ConfigurationError(
                    f"--from-offset says nothing of partition {place.partition}: name every partition, or add --from earliest for the rest"
                )
            ends = {"earliest": standing.beginning, "latest": standing.end}
            offset = ends[everywhere] if isinstance(everywhere, str) else everywhere[place]
        elif not standing.beginning <= offset <= standing.end:
            raise ConfigurationError(
                f"--from-offset {place.partition}:{offset} is out of range on {at.topic}, which takes "
                f"{standing.beginning} to {standing.end} there"
            )
        found[place] = Progress(offset, offset)
    return found


class Watch:
    """Looks at a group again and again until it is live. Close it when done."""

    def __init__(self, cluster: Cluster, group: str, topic: str) -> None:
        self._cluster, self._group, self._topic = cluster, group, topic
        self._admin: ClusterAdmin = cluster.admin()
        self._consumer = cluster.consumer(ConsumerPolicy(group=group, client_id="pipeline-watch"))

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._consumer.close()
        self._admin.close()

    def look(self) -> Sight:
        """Raises `ClusterUnavailable`."""
        spec = self._admin.topics([self._topic]).get(self._topic)
        if spec is None:
            raise ConfigurationError(f"topic {self._topic} does not exist any more")
        places = [TopicPartition(self._topic, number) for number in range(spec.partitions)]
        positions = self._consumer.committed(places, REQUEST_S)
        beginnings, ends = self._admin.beginning_offsets(places), self._admin.end_offsets(places)
        known = {tp: None if at is None else decode(at.offset, at.metadata) for tp, at in positions.items()}
        lag = sum(unsettled_count(known[place], beginnings[place], ends[place]) for place in places)
        if 0 < lag <= TAIL * len(places):  # it may be there: what is left may be no records
            starts = {tp: max(beginnings[tp], 0 if at is None else at.offset) for tp, at in positions.items()}
            readable = ends | ends_of_records(self._cluster, starts, ends)
            lag = sum(unsettled_count(known[place], beginnings[place], readable[place]) for place in places)
        members = len(self._admin.describe_group(self._group).members)
        return Sight(round(time.time() * 1000), lag, sum(ends.values()), members)

    def until_live(self, timeout_s: float | None = None) -> Iterator[Way]:
        """One `Way` after the other; the last one is live, unless the time is over first."""
        began = answered = time.monotonic()
        catch_up: CatchUp | None = None
        while timeout_s is None or time.monotonic() - began < timeout_s:
            try:
                sight = self.look()
            except ClusterUnavailable:
                if time.monotonic() - answered > SILENT_MAX_S:
                    raise
            else:
                answered = time.monotonic()
                catch_up = catch_up or CatchUp(sight)
                way = catch_up.observe(sight)
                yield way
                if way.live:
                    return
            time.sleep(LOOK_EVERY_S)
