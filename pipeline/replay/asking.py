"""What somebody asks for when they plan a replay, and where each partition starts and ends for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipeline.core.progress import decode
from pipeline.inspect.positions import committed
from pipeline.model.cluster import Cluster, ClusterAdmin, TopicPartition, TopicSpec
from pipeline.model.errors import ConfigurationError
from pipeline.replay.joining import offsets_at
from pipeline.replay.plan import REPLAYS_MAX, Fork, Selection, Source, SourceKind, Span, Target
from pipeline.topology.naming import Layout, discover

BATCH_BYTES_MAX = 1_000_000
"""A producer's batch may have so many bytes, so a target has to take as many."""


@dataclass(frozen=True, slots=True)
class Request:
    """All by real names. One of `group` (its replay lane), `to_topic` and `to_file` says where to.

    `kind`: what the topic is, where its name alone does not say it. `from_offsets`: by partition. `allowed`: topics of the
    declared topology beside those that groups read. `decode`: "some" (samples) or "none" of the values in the preview.
    """

    topic: str
    who: str
    group: str = ""
    to_topic: str = ""
    to_file: str = ""
    kind: SourceKind | None = None
    select: Selection = field(default_factory=Selection)
    from_offsets: Mapping[int, int] = field(default_factory=dict)
    limit: int = 0
    fork: Fork | None = None
    to_step: int | None = None
    replays_max: int = REPLAYS_MAX
    rate: float = 0.0
    allowed: frozenset[str] = frozenset()
    decode: str = "some"


def source_spec(admin: ClusterAdmin, topic: str) -> TopicSpec:
    """Raises `ConfigurationError` for a topic that is not there."""
    spec = admin.topics([topic]).get(topic)
    if spec is None:
        raise ConfigurationError(f"topic {topic!r} does not exist: `pipeline topics list --all` shows those that do")
    return spec


def _layouts(admin: ClusterAdmin, names: Collection[str], group: str) -> tuple[Layout, ...]:
    found = discover(group, names)
    if not found:
        raise ConfigurationError(
            f"group {group!r} has no lanes on this cluster that you may see: check the name with `pipeline groups list`, "
            "run `pipeline topics apply`, or grant Describe"
        )
    return found


def kind_of(request: Request, every: Collection[Layout]) -> SourceKind:
    """What the source is. Raises `ConfigurationError` for a tier or a replay lane: their records are on their way already."""
    if request.kind is not None:
        return request.kind
    for entry in every:
        if request.topic in entry.topics.lanes:
            raise ConfigurationError(
                f"topic {request.topic} is a lane of group {entry.group}, which is going to process it: replay its source topic "
                f"{entry.topics.source} or its dead letters {entry.topics.dead_letters}"
            )
        if request.topic == entry.topics.dead_letters:
            return "dead_letters"
    return "topic"


def every_layout(admin: ClusterAdmin, names: Collection[str], group: str) -> list[Layout]:
    groups = {*admin.groups(), *([group] if group else [])}
    return [entry for each in sorted(groups) for entry in discover(each, names)]


def target_of(request: Request, admin: ClusterAdmin, kind: SourceKind, every: Collection[Layout]) -> Target:
    """Where to, checked. Raises `ConfigurationError`."""
    if not request.to_topic and not request.to_file and not request.group:
        raise ConfigurationError("say where to: --group GROUP (its replay lane), --to-topic TOPIC or --to-file FILE")
    if request.to_topic and request.to_file:
        raise ConfigurationError("--to-topic and --to-file exclude each other: one plan has one target")
    if request.to_file:
        return Target("file", "", {}, request.to_file)
    if request.to_topic:
        _check_topic_target(request, admin, every)
        return Target("topic", "", {"": request.to_topic})
    entries = [entry for entry in every if entry.group == request.group]
    if not entries:
        _layouts(admin, (), request.group)
    if kind == "topic":
        reading = [entry.topics.source for entry in entries]
        entries = [entry for entry in entries if entry.topics.source == request.topic]
        if not entries:
            raise ConfigurationError(
                f"group {request.group} does not read {request.topic} but {', '.join(sorted(reading))}: give that topic, or --to-topic"
            )
    return Target("lane", request.group, {entry.topics.source: entry.topics.replay for entry in entries})


def _check_topic_target(request: Request, admin: ClusterAdmin, every: Collection[Layout]) -> None:
    target = request.to_topic
    for entry in every:
        if target in (*entry.topics.lanes, entry.topics.dead_letters):
            raise ConfigurationError(
                f"--to-topic {target} is a lane of group {entry.group}: only that group may write to it; use --group {entry.group}"
            )
    known = {*request.allowed, *(entry.topics.source for entry in every)} | (
        {request.topic} if request.kind != "file" else set()
    )
    if target not in known:
        raise ConfigurationError(
            f"--to-topic {target} is not in the declared topology ({', '.join(sorted(known)[:8])}): name one of those, or declare it "
            "in an application and give that with --app MODULE:APP"
        )


def check_target(admin: ClusterAdmin, target: Target, source: Source) -> dict[str, int]:
    """Partitions of each target topic. Raises `ConfigurationError` for one that is missing or does not fit."""
    names = sorted(set(target.topics.values()))
    specs = admin.topics(names) if names else {}
    for name in names:
        if name not in specs:
            raise ConfigurationError(
                f"target {name} does not exist: run `pipeline topics apply`, or choose another target; nothing was sent"
            )
        limit = int(specs[name].configs.get("max.message.bytes", BATCH_BYTES_MAX))
        if limit < BATCH_BYTES_MAX:
            raise ConfigurationError(
                f"target {name} takes batches of at most max.message.bytes={limit}, and a replay writes up to {BATCH_BYTES_MAX}: raise it"
            )
    if target.kind == "lane" and source.kind == "topic":
        lane = specs[target.topics[source.topic]]
        if lane.partitions != source.partitions:
            raise ConfigurationError(
                f"{lane.name} has {lane.partitions} partitions and {source.topic} has {source.partitions}: run `pipeline topics apply`"
            )
    return {name: spec.partitions for name, spec in specs.items()}


def spans_of(cluster: Cluster, admin: ClusterAdmin, request: Request, kind: SourceKind) -> tuple[Source, int]:
    """The source with its spans before anything was read, and how many offsets are left out because the group has not
    processed them yet. Raises `ConfigurationError` for partitions and offsets that are not there."""
    spec = source_spec(admin, request.topic)
    places = [TopicPartition(request.topic, p) for p in range(spec.partitions)]
    beginnings, ends = admin.beginning_offsets(places), admin.end_offsets(places)
    starts = dict(beginnings)
    if request.select.from_ms is not None:
        starts = offsets_at(cluster, places, request.select.from_ms)
    for partition, offset in request.from_offsets.items():
        place = TopicPartition(request.topic, partition)
        _in_range(spec, place, offset, beginnings, ends)
        starts[place] = max(starts[place], offset) if request.select.from_ms is not None else offset
    for partition, offsets in (request.select.positions or {}).items():
        for offset in (min(offsets), max(offsets)) if offsets else ():
            _in_range(spec, TopicPartition(request.topic, partition), offset, beginnings, ends)
    unprocessed = 0
    if kind == "topic" and not request.to_topic and not request.to_file:
        positions = committed(cluster, request.group, places)
        for place in places:
            position = positions.get(place)
            known = decode(position.offset, position.metadata).offset if position else beginnings[place]
            unprocessed += max(0, ends[place] - max(starts[place], known))
            ends[place] = min(ends[place], max(known, beginnings[place]))
    spans = {}
    for place in places:
        number, positions_of = place.partition, request.select.positions
        if positions_of is not None and positions_of.get(number):
            starts[place], ends[place] = min(positions_of[number]), min(ends[place], max(positions_of[number]) + 1)
        elif positions_of is not None or (request.from_offsets and number not in request.from_offsets):
            continue
        spans[number] = Span(min(starts[place], ends[place]), ends[place], beginnings[place])
    return Source(kind, request.topic, spec.partitions, spans), unprocessed


def _in_range(
    spec: TopicSpec,
    place: TopicPartition,
    offset: int,
    beginnings: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
) -> None:
    if place not in ends:
        raise ConfigurationError(
            f"topic {place.topic} has no partition {place.partition}: its {spec.partitions} partitions count from 0"
        )
    if not beginnings[place] <= offset <= ends[place]:
        raise ConfigurationError(
            f"offset {offset} of partition {place.partition} is out of range: {place.topic} holds {beginnings[place]} to "
            f"{ends[place] - 1} there"
            if ends[place] > beginnings[place]
            else f"offset {offset} of partition {place.partition} is out of range: {place.topic} holds nothing there"
        )
