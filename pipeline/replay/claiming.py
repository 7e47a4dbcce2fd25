"""What a group would commit to stand elsewhere: for a moment the tool is the partitions' owner, by the same rules as a worker.

It reads the lanes, takes the next epoch and fences them where they end now (rule g). Plain offsets would forget both, and records
that a worker writes that is gone but does not know it would run. Reading first is what makes the new fences right:
what older zombies left below them is settled in the lanes' commits. A group of others' making gets plain offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.core.progress import Progress, decode, encode, lane_progress
from pipeline.core.rebuild import Rebuild
from pipeline.inspect.lag import lane_name, unsettled_count
from pipeline.inspect.positions import committed
from pipeline.inspect.scan import read_batches
from pipeline.model.cluster import Cluster, ClusterAdmin, Position, TopicPartition
from pipeline.model.errors import ClusterError, ConfigurationError
from pipeline.model.headers import headers_in
from pipeline.model.topics import lane_topics
from pipeline.replay.reset import Standing, check_partitions
from pipeline.topology.naming import Layout, discover

READ_LANES_S = 600.0
REQUEST_BYTES = 900_000


@dataclass(frozen=True, slots=True)
class GroupAt:
    """A group on one topic: commits, log starts and ends of the chosen source partitions and of their lanes.

    `ours` is None for a group of others' making: it has no lanes, and its commits carry no text of ours.
    """

    group: str
    topic: str
    partitions: tuple[int, ...]
    ours: Layout | None
    positions: Mapping[TopicPartition, Position] = field(default_factory=dict)
    beginnings: Mapping[TopicPartition, int] = field(default_factory=dict)
    ends: Mapping[TopicPartition, int] = field(default_factory=dict)

    def standings(self) -> dict[TopicPartition, Standing]:
        found = {}
        for number in self.partitions:
            place = TopicPartition(self.topic, number)
            position = self.positions.get(place)
            progress = None if position is None else decode(position.offset, position.metadata)
            found[place] = Standing(progress, self.beginnings[place], self.ends[place])
        return found

    def lanes(self, number: int) -> list[TopicPartition]:
        """The lane partitions that go with a source partition, as far as they exist."""
        if self.ours is None:
            return []
        places = [TopicPartition(name, number) for name in self.ours.topics.lanes]
        return [place for place in places if place in self.ends]

    def before(self, place: TopicPartition) -> Progress:
        """A lane's settled part. What was deleted by retention is not waited for."""
        beginning = self.beginnings[place]
        found = lane_progress(self.positions.get(place), beginning, self.ends[place])
        if found.offset >= beginning:
            return found
        opened = tuple(offset for offset in found.open if offset >= beginning)
        return replace(found, offset=beginning, end=max(found.end, beginning), open=opened)

    def waiting(self) -> dict[TopicPartition, int]:
        """Lane partition -> records that wait there, by the offsets alone."""
        lanes = [place for number in self.partitions for place in self.lanes(number)]
        return {place: unsettled_count(self.before(place), self.beginnings[place], self.ends[place]) for place in lanes}


def look(cluster: Cluster, admin: ClusterAdmin, group: str, topic: str, only: Collection[int] = ()) -> GroupAt:
    """Read where the group stands. Raises `ConfigurationError` for a topic or partition that is not there, or is a lane."""
    spec = admin.topics([topic]).get(topic)
    if spec is None:
        raise ConfigurationError(f"topic {topic!r} does not exist: `pipeline topics list --all` shows those that do")
    check_partitions(topic, range(spec.partitions), only)
    numbers = tuple(sorted(set(only))) or tuple(range(spec.partitions))
    entries = discover(group, admin.topic_names())
    for entry in entries:
        if topic in entry.topics.lanes:
            raise ConfigurationError(
                f"topic {topic} is a lane of group {group}: reset its source topic {entry.topics.source}; what waits in lanes stays, "
                "or goes with --lanes to-latest"
            )
    ours = next((entry for entry in entries if entry.topics.source == topic), None)
    specs = admin.topics(ours.topics.lanes) if ours is not None else {}
    sources = [TopicPartition(topic, number) for number in numbers]
    lanes = [TopicPartition(name, n) for name, each in specs.items() for n in numbers if n < each.partitions]
    places = [*sources, *lanes]
    positions = committed(cluster, group, places)
    if ours is None and any(decode(p.offset, p.metadata).epoch for p in positions.values()):
        ours = Layout(group, lane_topics(topic, group, ()))  # its lanes were deleted; its epoch still counts
    # Ends after commits, as a worker reads them: a hand-off that landed before a commit counted it is below the fence.
    beginnings = admin.beginning_offsets(places)
    return GroupAt(group, topic, numbers, ours, positions, beginnings, admin.end_offsets(places))


def refuse_live(admin: ClusterAdmin, group: str) -> None:
    """Raises `ClusterError` naming who is in the group."""
    members = admin.describe_group(group).members
    if not members:
        return
    named = [f"{member.member_id} (client id {member.client_id}, host {member.host})" for member in members[:5]]
    more = f" and {len(members) - 5} more" if len(members) > 5 else ""
    raise ClusterError(
        f"group {group} has {len(members)} member{'s' if len(members) > 1 else ''}, so its offsets can't be set: stop "
        f"{', '.join(named)}{more}, then try again"
    )


def claim(
    cluster: Cluster,
    at: GroupAt,
    wanted: Mapping[TopicPartition, Progress],
    drop_lanes: bool = False,
    scanned: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[int, dict[TopicPartition, Position]]:
    """What to commit, source partition by source partition, lanes with their source.

    `wanted` holds the source's new progress with the epoch and fences that were committed. With `drop_lanes` what
    waits in the lanes is settled unseen. Reads the lanes (`scanned` hears of it); raises `ClusterUnavailable` when that takes too long.
    """
    if at.ours is None:
        return {tp.partition: {tp: Position(progress.offset)} for tp, progress in wanted.items()}
    rebuilds = {tp.partition: _rebuild(at, tp.partition, progress) for tp, progress in wanted.items()}
    if not drop_lanes:
        _read_lanes(cluster, at, rebuilds, scanned)
    found = {}
    for source, progress in wanted.items():
        rebuild, positions = rebuilds[source.partition], {}
        for index, place in enumerate(at.lanes(source.partition), start=1):
            end = at.ends[place]
            lane = Progress(end, end) if drop_lanes else rebuild.lane_progress(index)
            positions[place] = Position(lane.offset, encode(lane))
        claimed = replace(progress, epoch=rebuild.epoch, fences=rebuild.fences, marks={})
        positions[source] = Position(claimed.offset, encode(claimed))
        found[source.partition] = positions
    return found


def _rebuild(at: GroupAt, number: int, progress: Progress) -> Rebuild:
    assert at.ours is not None
    names = {lane_name(at.ours, place.topic): place for place in at.lanes(number)}
    before = {name: at.before(place) for name, place in names.items()}
    return Rebuild(progress, list(names), before, {name: at.ends[place] for name, place in names.items()})


def _read_lanes(
    cluster: Cluster, at: GroupAt, rebuilds: Mapping[int, Rebuild], scanned: Callable[[int, int], None]
) -> None:
    index = {place: i for n in rebuilds for i, place in enumerate(at.lanes(n), start=1)}
    starts = {
        at.lanes(number)[lane - 1]: offset
        for number, rebuild in rebuilds.items()
        for lane, offset in rebuild.scan_from.items()
    }
    done, total = 0, sum(at.ends[place] - offset for place, offset in starts.items())
    for messages in read_batches(cluster, starts, at.ends, READ_LANES_S):
        for message in messages:
            place = TopicPartition(message.topic(), message.partition())
            rebuilds[place.partition].observe(index[place], message.offset(), message.key(), headers_in(message))
        done += len(messages)
        scanned(done, total)
    for place in (
        starts
    ):  # all were read to their ends, or it would have raised; there may be no record there (markers of transactions)
        rebuilds[place.partition].reached(index[place], at.ends[place])


def commit(
    cluster: Cluster, admin: ClusterAdmin, at: GroupAt, claims: Mapping[int, Mapping[TopicPartition, Position]]
) -> None:
    """Store them: lanes first, then their sources, as a worker's claim does. Otherwise a lane that is refused alone would be left behind
    the new fence, with the zombies' records that were to be settled in it.

    Raises `ClusterError` when the group moved or came to life since it was looked at. Doing it again is harmless, but for one epoch more.
    """
    refuse_live(admin, at.group)
    places = [place for positions in claims.values() for place in positions]
    if committed(cluster, at.group, places) != {tp: p for tp, p in at.positions.items() if tp in places}:
        raise ClusterError(f"group {at.group} has committed since it was looked at: nothing was changed; look again")
    every = {tp: position for positions in claims.values() for tp, position in positions.items()}
    for positions in (
        {tp: position for tp, position in every.items() if tp.topic != at.topic},
        {tp: position for tp, position in every.items() if tp.topic == at.topic},
    ):
        for request in _requests(positions):
            admin.set_group_positions(at.group, request)


def _requests(positions: Mapping[TopicPartition, Position]) -> Iterator[dict[TopicPartition, Position]]:
    """Requests that a broker takes: each below `REQUEST_BYTES`."""
    request: dict[TopicPartition, Position] = {}
    size = 0
    for tp, position in positions.items():
        weight = len(position.metadata) + len(tp.topic) + 40
        if request and size + weight > REQUEST_BYTES:
            yield request
            request, size = {}, 0
        request[tp] = position
        size += weight
    if request:
        yield request
