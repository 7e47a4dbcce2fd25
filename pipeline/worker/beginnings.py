"""Why a partition can't be opened: records that waited, or that were still to be read, were deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import TopologyError


def expired_lane(
    group: str,
    source: str,
    lanes: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, Position | None],
    beginnings: Mapping[TopicPartition, int],
) -> TopologyError | None:
    """A lane that lost records which were waiting in it: retention was shorter than the group was away."""
    for tp in lanes:
        position = committed[tp]
        if position is not None and position.offset < beginnings[tp]:
            return TopologyError(
                f"{tp.topic}-{tp.partition} now begins at offset {beginnings[tp]}, but group {group} had "
                f"records waiting from {position.offset}: they were deleted; raise retention.ms of the topic, "
                f"then, with the workers stopped, `pipeline groups reset {group} --topic {source} --partition {tp.partition} "
                "--to-current --execute` lets it go on from there"
            )
    return None


def out_of_range(group: str, source: TopicPartition, offset: int, beginning: int, end: int) -> TopologyError:
    return TopologyError(
        f"group {group} stands at offset {offset} of {source.topic}-{source.partition}, which holds {beginning}..{end}: "
        "records were deleted before they were processed; with the workers stopped, say where it shall go on: "
        f"`pipeline groups reset {group} --topic {source.topic} --partition {source.partition} --to-earliest --execute`"
    )
